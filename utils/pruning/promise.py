"""A promise on accuracy: how far mAP@0.5 may fall below what a training began with, and what kept to it."""

from dataclasses import dataclass
from typing import Any

import torch

from utils.core.fields import Fields
from utils.network.darknet import Darknet

PATIENCE = 4  # evaluations in a row below the promise after which what was begun is given up, unless the last one rose


@dataclass
class Promise:
    """mAP@0.5 stays within `max_drop` of `start`, that of what the training began with; None until it was evaluated.

    One evaluation of a small set is noisy: a drop counts when it is the second in a row, or twice as large as allowed.
    last: the last evaluation; rises: whether it was better than the one before. below: how many in a row were further down
    than allowed. kept: {epoch, map50, map, fitness, share, model}: of the evaluated networks that keep the promise the one
    that is without the largest share, and of several such ones the fittest.
    """

    max_drop: float
    start: float | None = None
    last: float | None = None
    rises: bool = False
    below: int = 0
    kept: dict[str, Any] | None = None

    def note(self, found: dict[str, float], fitness: float, share: float, model: Darknet) -> bool:
        """Judge an evaluation, {epoch, map50, map}, of `model`, which is without `share` of what could go. Returns whether
        it is the one to keep."""
        self.rises = self.last is not None and found["map50"] > self.last
        self.last = found["map50"]
        self.below = self.below + 1 if self.drop > self.max_drop + 1e-9 else 0
        if self.below or (self.kept and (share, fitness) <= (self.kept["share"], self.kept["fitness"])):
            return False
        weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}
        self.kept = found | {"share": share, "fitness": fitness, "model": weights}
        return True

    @property
    def drop(self) -> float:
        """How far the last evaluation is below the start; 0 where either is missing."""
        return self.start - self.last if self.start is not None and self.last is not None else 0.0

    @property
    def broken(self) -> bool:
        """Whether accuracy has fallen too far to take more away."""
        return self.below >= 2 or (self.below == 1 and self.drop > 2 * self.max_drop)

    @property
    def lost(self) -> bool:
        """Whether waiting hasn't brought it back."""
        return self.below >= PATIENCE and not self.rises

    def restore_kept(self, model: Darknet) -> None:
        """Give `model` the weights that kept the promise."""
        with torch.no_grad():
            model.load_state_dict(self.kept["model"])

    def state(self) -> dict[str, Any]:
        return {"start": self.start, "last": self.last, "rises": self.rises, "below": self.below, "kept": self.kept}

    def restore(self, state: Fields) -> None:
        """Go on from what `state` gave; UserError where it isn't that."""
        self.start, self.last = (state.number(name, default=None) for name in ("start", "last"))
        self.rises, self.below = state.flag("rises"), state.whole("below")
        kept = state.fields("kept")
        if kept.values:
            kept.required("a number", "epoch", "map50", "map", "fitness", "share")
            figures = {name: kept.number(name) for name in ("map50", "map", "fitness", "share")}
            self.kept = {"epoch": kept.whole("epoch")} | figures | {"model": kept.tensors("model")}
