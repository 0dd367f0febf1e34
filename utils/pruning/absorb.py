"""What removed channels and blocks still carry: constants, pushed forward until a convolution absorbs them.

A channel whose gamma is 0 doesn't disappear: it is the constant act(beta) everywhere. Removing it from the convolution
that reads it would shift that convolution's output by W * act(beta), so the shift is put into the batch normalisation's
mean, or the bias. A dropped residual block leaves its constant on the kept path, where channels that stay carry it, too.
This is exact but for the borders of zero-padded convolutions, where the original summed fewer taps, and exact everywhere
where act(beta) is 0. Behind a multiplication by data ([se], [scale_channels] by a convolution without batch
normalisation) a constant is no constant any more; it is taken at the factor's middle (a sigmoid's 0.5, or the activation
of the factor's bias), which bounds the error of that channel by half of its constant. The inner sums of [se] have no bias
to absorb what removed channels added to them, so the factors of the channels that stay move too: by 0.08 of the outputs'
range on the MobileNets with random weights (tests/matrix.py).
"""

import copy
from collections.abc import Callable, Collection

import numpy as np
import torch
from torch import Tensor, nn

from utils.network import layers
from utils.network.darknet import Darknet
from utils.pruning.graph import ChannelGraph
from utils.pruning.residual_blocks import Block

Rule = Callable[[nn.Module, list[Tensor]], Tensor]


@torch.no_grad()
def layer_constants(model: Darknet, graph: ChannelGraph, keep: np.ndarray, dropped: Collection[Block] = ()) -> list[Tensor]:
    """For each layer of `model` a float64 (channels,) vector on the CPU: by how much the masked network's map exceeds the
    compact one's. For a removed channel that is all it carries; for one that stays, what dropped blocks left on it."""
    constants: list[Tensor] = []
    silent = {i for block in dropped for i in block.tail}
    image = torch.zeros(graph.defs.net.channels, dtype=torch.float64)
    for index, module in enumerate(model.module_list):
        removed = torch.from_numpy(~keep[graph.out[index]]) | (index in silent)
        inputs = [image if s < 0 else constants[s] for s in model.sources[index]]
        rule = next((r for kind, r in _RULES if isinstance(module, kind)), _same)
        carried = rule(module, inputs)
        if isinstance(module, layers.Convolution | layers.BatchNorm):  # these absorb what reaches the channels that stay
            stays = torch.zeros_like(carried)
        else:
            stays = carried - rule(module, [torch.zeros_like(c) for c in inputs])
        constants.append(torch.where(removed, carried, stays))
    return constants


def kernel_shift(module: "layers.Convolution", constant: Tensor) -> Tensor:
    """(filters,) float64: what a constant input map, (channels,), adds to a convolution's sums away from borders."""
    taps = module.conv.weight.detach().sum((2, 3), dtype=torch.float64).cpu()
    groups = module.conv.groups
    per_group = constant.view(groups, -1)  # a grouped convolution's filters read only their own group
    return torch.einsum("gfc,gc->gf", taps.view(groups, -1, taps.shape[1]), per_group).reshape(-1)


def _act(module: nn.Module, x: Tensor) -> Tensor:
    return module.activation(x.clone())


def _convolution(module: "layers.Convolution", inputs: list[Tensor]) -> Tensor:
    if module.BatchNorm2d is not None:
        return _act(module, module.BatchNorm2d.bias.detach().double().cpu())
    bias = module.conv.bias.detach().double().cpu()
    return _act(module, bias + (kernel_shift(module, inputs[0]) if module.conv.groups > 1 else 0))


def _batch_norm(module: "layers.BatchNorm", inputs: list[Tensor]) -> Tensor:
    return module.BatchNorm2d.bias.detach().double().cpu()


def _route(module: "layers.Route", inputs: list[Tensor]) -> Tensor:
    return torch.cat([c.chunk(module.groups)[module.group_id] for c in inputs])


def _shortcut(module: "layers.Shortcut", inputs: list[Tensor]) -> Tensor:
    return copy.deepcopy(module).cpu()(*(c.view(1, -1, 1, 1) for c in inputs)).view(-1)


def _squeeze_excite(module: "layers.SqueezeExcite", inputs: list[Tensor]) -> Tensor:
    return inputs[0] * 0.5


def _product(module: "layers.Product", inputs: list[Tensor]) -> Tensor:
    factor, scaled = inputs
    return _act(module, factor * scaled)


def _upsample(module: "layers.Upsample", inputs: list[Tensor]) -> Tensor:
    return inputs[0] * module.scale


def _reorg3d(module: "layers.Reorg3d", inputs: list[Tensor]) -> Tensor:
    return inputs[0].repeat(module.stride**2)


def _reorg(module: "layers.Reorg", inputs: list[Tensor]) -> Tensor:
    """The channels of a block are mixed, so they carry its mean."""
    s2 = module.stride**2
    means = inputs[0].view(-1, s2).mean(1)
    return means.repeat(s2).repeat_interleave(s2)


def _max_pool_depth(module: "layers.MaxPoolDepth", inputs: list[Tensor]) -> Tensor:
    return torch.zeros(module.out_channels, dtype=torch.float64)


def _same(module: nn.Module, inputs: list[Tensor]) -> Tensor:
    return inputs[0]


# Everything that isn't listed passes a constant on: pooling, dropout, avgpool, yolo.
_RULES: tuple[tuple[type[nn.Module], Rule], ...] = (
    (layers.Convolution, _convolution),
    (layers.BatchNorm, _batch_norm),
    (layers.Route, _route),
    (layers.Shortcut, _shortcut),
    (layers.SqueezeExcite, _squeeze_excite),
    (layers.Product, _product),
    (layers.Upsample, _upsample),
    (layers.Reorg3d, _reorg3d),
    (layers.Reorg, _reorg),
    (layers.MaxPoolDepth, _max_pool_depth),
)
