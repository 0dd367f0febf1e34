"""Task-aligned assignment: a box is learned where class score and overlap are good together (TOOD, Feng et al. 2021,
arXiv 2108.07755, section 3.2).

The alignment of a target and a prediction is t = s^ALPHA * u^BETA: s the score that it gives the target's class, u the IoU of
its box with the target. The MOST predictions with the largest t learn the target; one that several targets want learns the one
that it overlaps most. Its label isn't 1 but t / max t * max u, the maxima over the target's predictions: the best one learns
its own overlap, the others less.

[dfl] heads choose among the cells whose centres lie inside the box (TaskAlignedAssigner), [yolo] heads among the anchors and
cells that utils.detection.assignment finds plausible (utils.detection.loss).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from utils.detection.boxes import paired_iou

ALPHA, BETA, MOST = 0.5, 6.0, 10
TABLE = 2**22  # entries of the table of targets and cells that is worked on at once, so that many boxes don't fill the memory


@dataclass
class Assignment:
    """m pairs: target (m,), image (m,) and cell (m,) are indices, score (m,) is the label of the class. No cell of an image
    is in two pairs."""

    target: Tensor
    image: Tensor
    cell: Tensor
    score: Tensor

    @property
    def where(self) -> tuple[Tensor, Tensor]:
        """Index of the pairs' predictions in a tensor (batch, cells, ...)."""
        return self.image, self.cell


@dataclass
class Pairs:
    """Candidates (m,): indices of target and prediction, alignment and overlap."""

    target: Tensor
    prediction: Tensor
    alignment: Tensor
    overlap: Tensor

    def at(self, chosen: Tensor) -> "Pairs":
        return Pairs(*(column[chosen] for column in vars(self).values()))

    def assigned(self) -> Tensor:
        """Indices of those that are assigned: the MOST best aligned of each target, and of those that want the same
        prediction the one with the largest overlap."""
        best = largest_of_each(self.target, self.alignment, MOST)
        return best[largest_of_each(self.prediction[best], self.overlap[best])]

    def scores(self, targets: int) -> tuple[Tensor, Tensor]:
        """(m,) t / max t, and that times max u; the maxima over the pairs of each of so many targets."""
        best, most = (
            column.new_zeros(targets).scatter_reduce_(0, self.target, column, "amax")[self.target]
            for column in (self.alignment, self.overlap)
        )
        share = self.alignment / best
        return share, share * most


def alignment(score: Tensor, overlap: Tensor) -> Tensor:
    return score.pow(ALPHA) * overlap.pow(BETA)


class TaskAlignedAssigner:
    @torch.no_grad()
    def __call__(
        self, images: Tensor, labels: Tensor, boxes: Tensor, logits: Tensor, predicted: Tensor, centres: Tensor
    ) -> Assignment:
        """images, labels (n,): image and class of each target; boxes (n, 4): x1 y1 x2 y2; logits (batch, cells, classes) and
        predicted (batch, cells, 4), x1 y1 x2 y2: what each cell says; centres (cells, 2): where it stands. All in pixels."""
        step = max(1, TABLE // max(len(centres), 1))
        rows = torch.arange(len(boxes), device=boxes.device).split(step)
        parts = [self._candidates(r, images, labels, boxes, logits, predicted, centres) for r in rows]
        if not parts:
            none = boxes.new_zeros(0, dtype=torch.long)
            return Assignment(none, none, none, boxes.new_zeros(0))
        pairs = Pairs(*(torch.cat(column) for column in zip(*(vars(p).values() for p in parts), strict=True)))
        pairs = pairs.at(pairs.assigned())
        image = images[pairs.target]
        return Assignment(pairs.target, image, pairs.prediction - image * len(centres), pairs.scores(len(boxes))[1])

    def _candidates(
        self, rows: Tensor, images: Tensor, labels: Tensor, boxes: Tensor, logits: Tensor, predicted: Tensor, centres: Tensor
    ) -> Pairs:
        """The cells inside each of the targets `rows` that overlap it."""
        mine = boxes[rows, None]
        inside = ((centres > mine[..., :2]) & (centres < mine[..., 2:])).all(-1)
        row, cell = inside.nonzero(as_tuple=True)
        target = rows[row]
        image = images[target]
        overlap = paired_iou(predicted[image, cell], boxes[target])
        t = alignment(logits[image, cell, labels[target]].sigmoid(), overlap)
        return Pairs(target, image * len(centres) + cell, t, overlap).at(t > 0)


def largest_of_each(keys: Tensor, values: Tensor, most: int = 1) -> Tensor:
    """Indices of the entries with the `most` largest values of each key; of equal ones the first."""
    order = values.argsort(descending=True, stable=True)
    order = order[keys[order].argsort(stable=True)]
    ordered = keys[order]
    position = torch.arange(len(keys), device=keys.device)
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    first = torch.where(begins, position, 0).cummax(0).values if len(keys) else position
    return order[position - first < most]
