"""Darknet's activations by their cfg names."""

from collections.abc import Callable

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


# leaky and relu work in place because nothing else needs their input.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "leaky": lambda: nn.LeakyReLU(0.1, inplace=True),
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": nn.ReLU6,
    "mish": nn.Mish,
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
