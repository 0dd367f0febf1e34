"""From a head's raw map to boxes in pixels of the input."""

import torch
from torch import Tensor

MAX_EXPONENT = 10.0  # a box 22026 times its anchor is nonsense already; beyond, areas overflow float32
MIN_SHARE = 1e-3  # of a squashed side, where losses would divide by 0


def decode_boxes(
    raw: Tensor,
    cells: Tensor,
    anchors: Tensor,
    stride: float,
    scale_x_y: float = 1.0,
    new_coords: bool = False,
    bounded: bool = False,
) -> Tensor:
    """Boxes (..., 4) as cx cy w h in pixels of the input, from the first four of a head's raw values (..., >= 4).

    cells (..., 2): column and row of the cell that predicts; anchors (..., 2): width and height in pixels; all three
    broadcast. Darknet's formulas: centre = (scale_x_y * sigmoid(t) - (scale_x_y - 1) / 2 + cell) * stride,
    side = anchor * exp(t); with new_coords the network has applied the sigmoid, and side = anchor * (2 v)^2.
    bounded: for losses: sides stay within what areas and gradients survive; Darknet's own decoding has no bounds.
    """
    xy, wh = raw[..., :2], raw[..., 2:4]
    if bounded:
        wh = wh.clamp(min=MIN_SHARE) if new_coords else wh.clamp(-MAX_EXPONENT, MAX_EXPONENT)
    if new_coords:
        sides = (2 * wh).square()
    else:
        xy, sides = xy.sigmoid(), wh.exp()
    return torch.cat(((scale_x_y * xy - (scale_x_y - 1) / 2 + cells) * stride, sides * anchors), -1)


def decode_map(raw: Tensor, anchors: Tensor, stride: float, scale_x_y: float = 1.0, new_coords: bool = False) -> Tensor:
    """The boxes of a whole raw map (batch, anchors, ny, nx, >= 4), same leading shape, as cx cy w h in pixels."""
    ny, nx = raw.shape[2:4]
    columns, rows = torch.arange(nx, device=raw.device), torch.arange(ny, device=raw.device)
    cells = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
    return decode_boxes(raw, cells, anchors[:, None, None], stride, scale_x_y, new_coords)


def decode(raw: Tensor, anchors: Tensor, stride: float, scale_x_y: float = 1.0, new_coords: bool = False) -> Tensor:
    """A head's raw map (batch, anchors, ny, nx, 5 + classes) -> (batch, anchors * ny * nx, 5 + classes): cx cy w h in
    pixels of the input, objectness and class probabilities. anchors (anchors, 2) in pixels."""
    boxes = decode_map(raw, anchors, stride, scale_x_y, new_coords)
    scores = raw[..., 4:] if new_coords else raw[..., 4:].sigmoid()
    return torch.cat((boxes, scores), -1).flatten(1, 3)


def to_corners(boxes: Tensor) -> Tensor:
    """(..., 4) cx cy w h -> x1 y1 x2 y2."""
    centre, half = boxes[..., :2], boxes[..., 2:4] / 2
    return torch.cat((centre - half, centre + half), -1)
