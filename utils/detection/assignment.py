"""Which predictions of [yolo] heads may learn which targets: anchors of a like size, in the cells that can reach the centre."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.core.hyp import Hyp


@dataclass
class HeadGrid:
    """A head as the assignment sees it: its anchors (anchors, 2) in pixels, its cells, and how far a cell can reach.

    reach: share of a cell by which a centre may leave the cell that predicts it, (scale_x_y - 1) / 2.
    """

    anchors: Tensor
    stride: float
    rows: int
    columns: int
    reach: float


@dataclass
class Matches:
    """Which predictions of one head learn which targets, n pairs: indices (n,) of the target, the image, the anchor,
    the row and the column."""

    target: Tensor
    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor

    @property
    def where(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Index of the pairs' predictions in a raw map."""
        return self.image, self.anchor, self.row, self.column

    def flat(self, shape: torch.Size) -> Tensor:
        """(n,) position of each in a flattened (batch, anchors, ny, nx) map of the shape."""
        _, anchors, ny, nx = shape
        return ((self.image * anchors + self.anchor) * ny + self.row) * nx + self.column


class RatioAssigner:
    """A target belongs to those anchors, of all heads, whose width and height differ from its own by less than the factor
    `anchor_t`, to the `most` most similar ones of them (0: to all), and to the most similar anchor if there is none. The
    cell that holds its centre predicts it, and those neighbours whose decoded centres can reach it (none where scale_x_y
    is 1).
    """

    def __init__(self, anchor_t: float = Hyp.anchor_t, most: int = Hyp.most_anchors) -> None:
        self.anchor_t, self.most = anchor_t, most

    def __call__(self, images: Tensor, boxes: Tensor, grids: list[HeadGrid]) -> list[Matches]:
        """images (n,): each target's image; boxes (n, 4): cx cy w h in pixels. Returns the matches of each grid."""
        anchors = torch.cat([g.anchors for g in grids])
        ratio = boxes[:, None, 2:] / anchors
        ratio = torch.maximum(ratio, 1 / ratio).amax(-1)  # (n, all anchors)
        most_similar = ratio.argsort(dim=1, stable=True)[:, : self.most or len(anchors)]
        chosen = torch.zeros_like(ratio, dtype=torch.bool).scatter(1, most_similar, True) & (ratio < self.anchor_t)
        nearest = F.one_hot(ratio.argmin(1), len(anchors)).bool() if len(boxes) else chosen
        chosen |= nearest & ~chosen.any(1, keepdim=True)
        parts = chosen.split([len(g.anchors) for g in grids], 1)
        return [_cells(images, boxes, part, grid) for part, grid in zip(parts, grids, strict=True)]


def _cells(images: Tensor, boxes: Tensor, chosen: Tensor, grid: HeadGrid) -> Matches:
    """The cells of one grid that predict each (target, anchor) pair set in `chosen` (targets, anchors)."""
    target, anchor = chosen.nonzero(as_tuple=True)
    centre = boxes[target, :2] / grid.stride
    cell = centre.floor()
    inside = centre - cell
    steps = centre.new_tensor([[0, 0], [-1, 0], [0, -1], [1, 0], [0, 1]])
    reached = torch.cat((inside < grid.reach, inside > 1 - grid.reach), 1)  # left, upper, right, lower neighbour
    limit = centre.new_tensor([grid.columns - 1, grid.rows - 1])
    cell = cell.clamp_(min=torch.zeros_like(limit), max=limit)  # a centre on the right or lower edge of the image
    candidates = cell + steps[:, None]  # (5, pairs, 2)
    valid = torch.cat((torch.ones_like(reached[:, :1]), reached), 1).T & ((candidates >= 0) & (candidates <= limit)).all(-1)
    step, pair = valid.nonzero(as_tuple=True)
    column, row = candidates[step, pair].long().unbind(-1)
    target = target[pair]
    return Matches(target, images[target], anchor[pair], row, column)
