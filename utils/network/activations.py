"""Darknet's activations by their cfg names."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNEL_EPSILON = 1e-4  # Darknet's, in the sums of normalize_channels


class Elementwise(nn.Module):
    """An activation that torch.nn doesn't have, from its formula."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


MISH_SATURATION = 20.0  # from here on mish(x) is x in float32; the powers in its gradient would overflow further up


CHUNK = 2**18  # values whose float32 copies stay in a processor's cache


class BFloat16Mish(torch.autograd.Function):
    """mish(x) = x tanh(softplus(x)) = x / (1 + 1 / n), n = e + e^2 / 2, e = exp(x), for bfloat16 on the CPU.

    PyTorch's own takes several transcendental functions a value, this one exponential: three times as fast. Computed in
    float32, where n may underflow or overflow without harm, it differs from the exact value by bfloat16's rounding only. CHUNK
    values at a time, as what is computed on the way is larger than what is read and written.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        result = torch.empty_like(x, memory_format=_layout(x))
        buffers = torch.empty(2, min(CHUNK, x.numel()))
        for part, found in zip(_chunks(x, x), _chunks(result, x), strict=True):
            wide, powers = buffers[:, : len(part)]
            torch.exp(wide.copy_(part), out=powers)
            torch.div(wide, powers.addcmul_(powers, powers, value=0.5).reciprocal_().add_(1), out=found)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """d mish = 1 - 1 / d + x (e + e^2) / d^2, d = 1 + n."""
        x = ctx.saved_tensors[0]
        result = torch.empty_like(x, memory_format=_layout(x))
        buffers = torch.empty(3, min(CHUNK, x.numel()))
        for part, g, found in zip(_chunks(x, x), _chunks(gradient, x), _chunks(result, x), strict=True):
            wide, powers, share = buffers[:, : len(part)]
            torch.exp(wide.copy_(part).clamp_(max=MISH_SATURATION), out=powers)
            torch.addcmul(powers, powers, powers, value=0.5, out=share).add_(1).reciprocal_()
            slope = wide.mul_(powers.addcmul_(powers, powers)).mul_(share).sub_(1).mul_(share).add_(1)
            torch.mul(slope, g, out=found)
        return result


def _layout(x: Tensor) -> torch.memory_format:
    is_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


def _chunks(values: Tensor, like: Tensor) -> tuple[Tensor, ...]:
    """Up to CHUNK values each, in the order in which those of `like` lie in memory."""
    layout = _layout(like)
    dense = values.contiguous(memory_format=layout)
    return (dense.permute(0, 2, 3, 1) if layout == torch.channels_last else dense).reshape(-1).split(CHUNK)


class Mish(nn.Module):
    """x * tanh(softplus(x)) (Misra 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        fast = x.dtype == torch.bfloat16 and x.device.type == "cpu"
        return BFloat16Mish.apply(x) if fast else F.mish(x)


def _loggy(x: Tensor) -> Tensor:
    return 2 * torch.sigmoid(x) - 1


def _ramp(x: Tensor) -> Tensor:
    return F.relu(x) + 0.1 * x


def _plse(x: Tensor) -> Tensor:
    return 0.125 * x.clamp(-4, 4) + 0.5 + 0.01 * (x - x.clamp(-4, 4))


def _lhtan(x: Tensor) -> Tensor:
    return x.clamp(0, 1) + 0.001 * (x - x.clamp(0, 1))


def _hard_mish(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, (x.clamp(min=-2) + 2) * x.clamp(min=-2) / 2)


def _stair(x: Tensor) -> Tensor:
    """Flat between even and odd whole numbers, rising by one between odd and even ones."""
    whole = torch.floor(x)
    return torch.floor(x / 2) + torch.where(whole % 2 == 0, torch.zeros_like(x), x - whole)


def _channels(x: Tensor) -> int:
    """The dimension of the channels: of a batch of maps, or of one value a channel."""
    return 1 if x.dim() > 1 else 0


def _normalize_channels(x: Tensor) -> Tensor:
    positive = F.relu(x)
    return positive / (positive.sum(_channels(x), keepdim=True) + CHANNEL_EPSILON)


def _softmax_channels(x: Tensor) -> Tensor:
    powers = x.exp()
    return powers / (powers.sum(_channels(x), keepdim=True) + CHANNEL_EPSILON)


def _softmax_channels_maxval(x: Tensor) -> Tensor:
    return _softmax_channels(x - x.amax(_channels(x), keepdim=True))


# leaky, relu and relu6 work in place because nothing else needs their input.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "leaky": lambda: nn.LeakyReLU(0.1, inplace=True),
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "mish": Mish,
    "swish": nn.SiLU,
    "logistic": nn.Sigmoid,
    "hard_swish": nn.Hardswish,
    "h_swish": nn.Hardswish,
    "hard_mish": lambda: Elementwise(_hard_mish),
    "tanh": nn.Tanh,
    "hardtan": nn.Hardtanh,
    "lhtan": lambda: Elementwise(_lhtan),
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": lambda: nn.GELU(approximate="tanh"),
    "loggy": lambda: Elementwise(_loggy),
    "relie": lambda: nn.LeakyReLU(0.01),
    "ramp": lambda: Elementwise(_ramp),
    "plse": lambda: Elementwise(_plse),
    "stair": lambda: Elementwise(_stair),
    "normalize_channels": lambda: Elementwise(_normalize_channels),
    "normalize_channels_softmax": lambda: Elementwise(_softmax_channels),
    "normalize_channels_softmax_maxval": lambda: Elementwise(_softmax_channels_maxval),
}
# In these a value depends on the other channels at its position, so no channel can go alone.
ACROSS_CHANNELS = frozenset(name for name in ACTIVATIONS if name.startswith("normalize_channels"))


def activation(name: str) -> nn.Module:
    """The module of an activation's Darknet name; ValueError if there is none."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name} is not supported; supported: {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]()
