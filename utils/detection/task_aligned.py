"""Task-aligned assignment: a box is learned where class score and overlap are good together (TOOD, Feng et al. 2021,
arXiv 2108.07755, section 3.2).

Of a target and a cell whose centre lies inside its box, the alignment is t = s^ALPHA * u^BETA: s the probability that the cell
gives the target's class, u the IoU of the cell's box with the target. The MOST cells with the largest t learn the target; one
that several targets want learns the one that it overlaps most. The label of the class isn't 1 but t / max t * max u, the
maxima over the target's cells: the best cell learns its own overlap, the others less.
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
class _Pairs:
    """Candidates: indices of target and cell, alignment and overlap, (m,) each."""

    target: Tensor
    cell: Tensor
    alignment: Tensor
    overlap: Tensor

    def at(self, chosen: Tensor) -> "_Pairs":
        return _Pairs(self.target[chosen], self.cell[chosen], self.alignment[chosen], self.overlap[chosen])


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
        pairs = _Pairs(*(torch.cat(column) for column in zip(*(vars(p).values() for p in parts), strict=True)))
        pairs = pairs.at(_first_of_each(images[pairs.target] * len(centres) + pairs.cell, pairs.overlap))
        return Assignment(pairs.target, images[pairs.target], pairs.cell, _scores(pairs, len(boxes)))

    def _candidates(
        self, rows: Tensor, images: Tensor, labels: Tensor, boxes: Tensor, logits: Tensor, predicted: Tensor, centres: Tensor
    ) -> _Pairs:
        """The MOST best cells of each of the targets `rows`."""
        mine = boxes[rows, None]
        inside = ((centres > mine[..., :2]) & (centres < mine[..., 2:])).all(-1)
        row, cell = inside.nonzero(as_tuple=True)
        target = rows[row]
        overlap = paired_iou(predicted[images[target], cell], boxes[target])
        alignment = logits[images[target], cell, labels[target]].sigmoid().pow(ALPHA) * overlap.pow(BETA)
        alignments, overlaps = overlap.new_zeros(2, *inside.shape)
        alignments[row, cell], overlaps[row, cell] = alignment, overlap
        values, cells = alignments.topk(min(MOST, len(centres)), 1)
        found = values > 0
        owners = rows[:, None].expand_as(cells)
        return _Pairs(owners[found], cells[found], values[found], overlaps.gather(1, cells)[found])


def _first_of_each(keys: Tensor, values: Tensor) -> Tensor:
    """Indices of the entry with the largest value of each key; of equal ones the first."""
    order = values.argsort(descending=True, stable=True)
    order = order[keys[order].argsort(stable=True)]
    ordered = keys[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first]


def _scores(pairs: _Pairs, targets: int) -> Tensor:
    """(m,) t / max t * max u, the maxima over each target's pairs."""
    best, most = (
        column.new_zeros(targets).scatter_reduce_(0, pairs.target, column, "amax")
        for column in (pairs.alignment, pairs.overlap)
    )
    return pairs.alignment / best[pairs.target] * most[pairs.target]
