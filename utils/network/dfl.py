"""Boxes of the anchor-free head: distances from a cell's centre to the four sides, each the mean of a distribution.

A side's distance, in cells, is sum_i i * softmax(logits)_i over i = 0 .. reg_max - 1 (Generalized Focal Loss, Li et al. 2020,
arXiv 2006.04388, equation 5), so never more than reg_max - 1 cells.

    >>> logits = torch.full((4, 3), -1000.0)        # left, top, right, bottom; reg_max = 3
    >>> logits[[0, 1, 2, 3], [0, 1, 2, 1]] = 0.0
    >>> side_distances(logits.flatten(), 3)
    tensor([0., 1., 2., 1.])
"""

import torch
from torch import Tensor


def side_distances(logits: Tensor, reg_max: int) -> Tensor:
    """(..., 4 * reg_max), left, top, right, bottom one after another -> (..., 4) distances in cells."""
    bins = torch.arange(reg_max, dtype=logits.dtype, device=logits.device)
    shares = logits.unflatten(-1, (4, reg_max)).softmax(-1)
    return (shares @ bins[:, None])[..., 0]  # a column: OpenCV takes the product with a vector for another shape


def cell_centres(ny: int, nx: int, device: torch.device) -> Tensor:
    """(ny, nx, 2) x and y of the centres of a grid's cells, in cells."""
    columns, rows = torch.arange(nx, device=device) + 0.5, torch.arange(ny, device=device) + 0.5
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)


def decode_sides(distances: Tensor, centres: Tensor, stride: float) -> Tensor:
    """distances (..., 4) left, top, right, bottom and centres (..., 2), both in cells -> (..., 4) cx cy w h in pixels."""
    before, after = distances[..., :2], distances[..., 2:]
    return torch.cat((centres + (after - before) / 2, before + after), -1) * stride


def decode_dfl(raw: Tensor, reg_max: int, stride: float) -> Tensor:
    """A raw map (batch, 1, ny, nx, 4 * reg_max + classes) -> (batch, ny * nx, 5 + classes): cx cy w h in pixels of the input,
    1 for the objectness that this head hasn't got, class probabilities."""
    sides, classes = raw[..., : 4 * reg_max], raw[..., 4 * reg_max :]
    centres = cell_centres(raw.shape[2], raw.shape[3], raw.device)
    boxes = decode_sides(side_distances(sides, reg_max), centres, stride)
    return torch.cat((boxes, torch.ones_like(raw[..., :1]), classes.sigmoid()), -1).flatten(1, 3)
