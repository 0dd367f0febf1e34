"""What removed channels still carry: constants, pushed forward through the network until a convolution absorbs them.

A channel whose gamma is 0 doesn't disappear: it is the constant act(beta) everywhere. Removing it from the convolution
that reads it would shift that convolution's output by W * act(beta), so the shift is put into the batch normalisation's
mean, or the bias. This is exact but for the borders of zero-padded convolutions, where the original summed fewer taps,
and exact everywhere where act(beta) is 0. Behind a multiplication by data ([se], [scale_channels] by a convolution
without batch normalisation) a constant is no constant any more; it is taken at the factor's middle (a sigmoid's 0.5, or
the activation of the factor's bias), which bounds the error by half of the constant.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from utils import layers as l
from utils.graph import ChannelGraph

if TYPE_CHECKING:
    from models import Darknet

Rule = Callable[[nn.Module, list[Tensor], Tensor], Tensor]


@torch.no_grad()
def layer_constants(model: "Darknet", graph: ChannelGraph, keep: np.ndarray) -> list[Tensor]:
    """For each layer a float64 (channels,) vector on the CPU: what its removed channels carry, 0 for those that stay."""
    constants: list[Tensor] = []
    image = torch.zeros(graph.defs.net.channels, dtype=torch.float64)
    for index, module in enumerate(model.module_list):
        removed = torch.from_numpy(~keep[graph.out[index]])
        inputs = [image if s < 0 else constants[s] for s in model.sources[index]]
        rule = next((r for kind, r in _RULES if isinstance(module, kind)), _same)
        constants.append(torch.where(removed, rule(module, inputs, removed), 0.0))
    return constants


def kernel_shift(module: "l.Convolution", constant: Tensor) -> Tensor:
    """(filters,) float64: what a constant input map, (channels,), adds to a convolution's sums away from borders."""
    taps = module.conv.weight.detach().double().cpu().sum((2, 3))
    groups = module.conv.groups
    per_group = constant.view(groups, -1)  # a grouped convolution's filters read only their own group
    return torch.einsum("gfc,gc->gf", taps.view(groups, -1, taps.shape[1]), per_group).reshape(-1)


def _act(module: nn.Module, x: Tensor) -> Tensor:
    return module.activation(x.clone())


def _convolution(module: "l.Convolution", inputs: list[Tensor], removed: Tensor) -> Tensor:
    if module.BatchNorm2d is not None:
        return _act(module, module.BatchNorm2d.bias.detach().double().cpu())
    bias = module.conv.bias.detach().double().cpu()
    return _act(module, bias + (kernel_shift(module, inputs[0]) if module.conv.groups > 1 else 0))


def _batch_norm(module: "l.BatchNorm", inputs: list[Tensor], removed: Tensor) -> Tensor:
    return module.BatchNorm2d.bias.detach().double().cpu()


def _route(module: "l.Route", inputs: list[Tensor], removed: Tensor) -> Tensor:
    return torch.cat([c.chunk(module.groups)[module.group_id] for c in inputs])


def _shortcut(module: "l.Shortcut", inputs: list[Tensor], removed: Tensor) -> Tensor:
    maps = [c.view(1, -1, 1, 1).float() for c in inputs]
    module_cpu = module.to("cpu") if module.weights is not None else module
    return module_cpu(*maps).view(-1).double()


def _squeeze_excite(module: "l.SqueezeExcite", inputs: list[Tensor], removed: Tensor) -> Tensor:
    return inputs[0] * 0.5


def _product(module: "l.Product", inputs: list[Tensor], removed: Tensor) -> Tensor:
    factor, scaled = inputs
    return _act(module, factor * scaled)


def _upsample(module: "l.Upsample", inputs: list[Tensor], removed: Tensor) -> Tensor:
    return inputs[0] * module.scale


def _reorg3d(module: "l.Reorg3d", inputs: list[Tensor], removed: Tensor) -> Tensor:
    return inputs[0].repeat(module.stride**2)


def _reorg(module: "l.Reorg", inputs: list[Tensor], removed: Tensor) -> Tensor:
    """The channels of a block are mixed, so they carry its mean."""
    s2 = module.stride**2
    means = inputs[0].view(-1, s2).mean(1)
    return means.repeat(s2).repeat_interleave(s2)


def _max_pool_depth(module: "l.MaxPoolDepth", inputs: list[Tensor], removed: Tensor) -> Tensor:
    return torch.zeros(module.out_channels, dtype=torch.float64)


def _same(module: nn.Module, inputs: list[Tensor], removed: Tensor) -> Tensor:
    return inputs[0]


# Everything that isn't listed passes a constant on: pooling, dropout, avgpool, yolo.
_RULES: tuple[tuple[type[nn.Module], Rule], ...] = (
    (l.Convolution, _convolution),
    (l.BatchNorm, _batch_norm),
    (l.Route, _route),
    (l.Shortcut, _shortcut),
    (l.SqueezeExcite, _squeeze_excite),
    (l.Product, _product),
    (l.Upsample, _upsample),
    (l.Reorg3d, _reorg3d),
    (l.Reorg, _reorg),
    (l.MaxPoolDepth, _max_pool_depth),
)
