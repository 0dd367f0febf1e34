"""What a loss reads of a raw map, with one gradient for all of it."""

from typing import Any

import torch
from torch import Tensor

OBJECTNESS = 4  # its column in a prediction


class Picked(torch.autograd.Function):
    """Of a raw map (batch, anchors, ny, nx, values): the predictions (n, values) at n places, which may be the same, and the
    objectness (batch, anchors, ny, nx) of all.

    Indexed one by one, each would have a gradient of the whole map's size, nearly all of it zeros, and these would be added up:
    a third of the loss's time on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, raw: Tensor, *where: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*where)
        ctx.shape = raw.shape
        return raw[where], raw[..., OBJECTNESS].contiguous()

    @staticmethod
    def backward(ctx: Any, found: Tensor, objectness: Tensor) -> tuple[Tensor | None, ...]:
        where = ctx.saved_tensors
        gradient = found.new_zeros(ctx.shape)
        gradient.index_put_(where, found, accumulate=True)
        gradient[..., OBJECTNESS].add_(objectness)
        return gradient, *[None] * len(where)
