"""What the losses of all kinds of heads have in common."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.core.hyp import Hyp
from utils.data.class_balance import class_loss_weights
from utils.network.heads import Head


class HeadLoss:
    """Loss of a Darknet's raw maps against target boxes, computed in float32.

    parts: names of its summands; own_hyp: hyper-parameters that it alone of all losses reads; assign: what says which
    predictions learn which targets; class_weights (classes,): what a match counts in the class part, None: 1 each.
    """

    parts: tuple[str, ...]
    own_hyp: tuple[str, ...]
    assign: Any

    def __init__(self, model: nn.Module, hyp: Hyp) -> None:
        self.heads: list[Head] = model.heads
        self.hyp = hyp
        self.class_weights: Tensor | None = None

    def weigh_classes(self, counts: np.ndarray) -> None:
        """Tell how many boxes each class has (see utils.data.class_balance.class_loss_weights)."""
        if self.hyp.cls_weights:
            self.class_weights = torch.from_numpy(class_loss_weights(counts, self.hyp.cls_weights)).float()

    def start_epoch(self, done: float) -> None:
        """Tell which share of a training's epochs is done. Without a word a loss is that of a trained network."""

    def __call__(self, raws: list[Tensor], targets: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]]:
        """raws: each head's raw map; targets (n, 6): image, class, cx cy w h as shares of the input; image_size: (height,
        width) of the input in pixels.

        Returns (loss, parts): the mean over the batch, and its summands by name without gradient.
        """
        with torch.autocast(raws[0].device.type, enabled=False):
            parts = self._parts([r.float() for r in raws], targets.to(raws[0].device).float(), image_size)
            parts = parts * parts.new_tensor(self.weights(*image_size))
        return parts.sum(), dict(zip(self.parts, parts.detach(), strict=True))

    def weights(self, height: int, width: int) -> tuple[float, ...]:
        """What each part is multiplied with for an input of height x width pixels."""
        raise NotImplementedError

    def _parts(self, raws: list[Tensor], targets: Tensor, image_size: tuple[int, int]) -> Tensor:
        """The parts before that, in the order of `parts`."""
        raise NotImplementedError

    def _smoothed(self, wanted: Tensor) -> Tensor:
        """Labels between 0 and 1 with hyp.label_smoothing."""
        return wanted * (1 - self.hyp.label_smoothing) + self.hyp.label_smoothing / 2


def pixel_boxes(targets: Tensor, image_size: tuple[int, int]) -> Tensor:
    """(n, 4) cx cy w h in pixels of targets (n, 6)."""
    height, width = image_size
    return targets[:, 2:] * targets.new_tensor([width, height, width, height])
