"""Rounding to a grid, and what its gradient is taken to be."""

from typing import Any

import torch
from torch import Tensor

Limit = Tensor | float | None


class _OntoGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Limit, high: Limit) -> Tensor:
        ctx.limits = low, high
        steps = x * (1 / scale)
        if low is None:
            return steps.round_().mul_(scale)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(steps)
            return steps.round().clamp_(low, high).mul_(scale)
        return steps.round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        low, high = ctx.limits
        if low is None:
            return gradient, None, None, None
        (steps,) = ctx.saved_tensors
        if isinstance(low, Tensor):
            return gradient * ((steps >= low - 0.5) & (steps <= high + 0.5)), None, None, None
        return torch.ops.aten.hardtanh_backward(gradient, steps, low - 0.5, high + 0.5), None, None, None


def onto_grid(x: Tensor, scale: Tensor, low: Limit = None, high: Limit = None) -> Tensor:
    """round(x / scale), half to even, limited to low..high if they are given, times scale: in float32 bit for bit what
    torch.fake_quantize_per_tensor_affine gives for low = quant_min - zero_point, high = quant_max - zero_point.

    The gradient is a straight-through estimator's (Bengio et al. 2013): 1 for what the limits left alone, 0 for what they
    cut off; scale and limits get none. scale, low and high broadcast against x. Written out because torch's own kernel
    isn't vectorised on CPUs: this takes half of its time. float64 stays float64; half precisions are computed in float32
    and come back as they were.
    """
    values = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if isinstance(low, Tensor) and low.numel() == 1 and low.device.type == "cpu":  # nobody waits for these
        low, high = low.item(), high.item()
    return _OntoGrid.apply(values, scale, low, high).to(x.dtype)


def power_of_two(exponent: Tensor) -> Tensor:
    """2**exponent as float32, exactly, on any device: put together from its bits. exponent: integers in -126..127."""
    return ((exponent.to(torch.int32) + 127) << 23).view(torch.float32)
