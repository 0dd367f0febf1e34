"""The layers that detect: what they read becomes raw maps for the loss, and boxes.

A head is asked for nothing else than what `Head` has, wherever it doesn't matter which kind it is.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from utils.network import definitions
from utils.network.block import Block
from utils.network.decode import decode
from utils.network.dfl import decode_dfl


class Head(Block):
    """One detecting layer. definition: its section; classes: their number; predictions: how many each cell makes."""

    predictions = 1

    def __init__(self, d: definitions.Head) -> None:
        super().__init__()
        self.definition, self.classes = d, d.classes

    def forward(self, x: Tensor) -> Tensor:
        """(batch, predictions * values, ny, nx) -> raw map (batch, predictions, ny, nx, values), at least float32."""
        b, channels, ny, nx = x.shape
        maps = x.reshape(b, self.predictions, channels // self.predictions, ny, nx)
        maps = maps.permute(0, 1, 3, 4, 2).contiguous()
        return maps if maps.dtype == torch.float64 else maps.float()

    def decode(self, raw: Tensor, height: int) -> Tensor:
        """A raw map, seen in an input `height` pixels high -> (batch, boxes, 5 + classes): cx cy w h in pixels of the input,
        objectness, class probabilities."""
        raise NotImplementedError

    def start(self, bias: Tensor, stride: float) -> None:
        """Change, in place, the random biases (channels,) of what the head reads to those that training begins with."""
        raise NotImplementedError

    def unlike(self, other: "Head") -> str:
        """The key of a cfg by which the predictions of another head of the same kind mean something else, "" for none."""
        return ""


class YoloHead(Head):
    """[yolo]: boxes relative to anchors. anchors (anchors, 2): width and height in pixels of the input; scale_x_y and
    new_coords: see utils.network.decode.decode_boxes. Values of a prediction: x y w h, objectness, classes."""

    def __init__(self, d: definitions.Yolo) -> None:
        super().__init__(d)
        self.scale_x_y, self.new_coords, self.predictions = d.scale_x_y, bool(d.new_coords), len(d.mask)
        self.register_buffer("anchors", torch.tensor(d.anchor_sizes(), dtype=torch.float32), persistent=False)
        self.anchors: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Anchors follow the model to its device but never to a lower precision: 373 is no bfloat16."""
        super()._apply(fn, recurse)
        self.anchors = torch.tensor(self.definition.anchor_sizes(), dtype=torch.float32, device=self.anchors.device)
        return self

    def decode(self, raw: Tensor, height: int) -> Tensor:
        return decode(raw, self.anchors, height / raw.shape[2], self.scale_x_y, self.new_coords)

    def start(self, bias: Tensor, stride: float) -> None:
        """Few objects (8 a 640-pixel image) and equal classes (Lin et al. 2017, section 3.3)."""
        rows = bias.view(self.predictions, -1)
        rows[:, 4] += math.log(8 / (640 / stride) ** 2)
        rows[:, 5:] += math.log(0.6 / max(self.classes - 0.99, 0.6))

    def unlike(self, other: "YoloHead") -> str:
        if self.new_coords != other.new_coords:
            return "new_coords"
        same = self.anchors.shape == other.anchors.shape and torch.allclose(self.anchors, other.anchors)
        return "" if same else "anchors"


class DflHead(Head):
    """[dfl]: distances to the four sides as distributions, without anchors and objectness (see utils.network.dfl). Values of a
    prediction: reg_max logits each for left, top, right and bottom, then the classes' logits."""

    def __init__(self, d: definitions.Dfl) -> None:
        super().__init__(d)
        self.reg_max = d.reg_max

    def decode(self, raw: Tensor, height: int) -> Tensor:
        return decode_dfl(raw, self.reg_max, height / raw.shape[2])

    def start(self, bias: Tensor, stride: float) -> None:
        """Flat distributions, and few objects: 5 a 640-pixel image, shared by all classes."""
        bias[: 4 * self.reg_max] = 1.0
        bias[4 * self.reg_max :] = math.log(5 / self.classes / (640 / stride) ** 2)

    def unlike(self, other: "DflHead") -> str:
        return "" if self.reg_max == other.reg_max else "reg_max"
