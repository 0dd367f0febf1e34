"""(model, graph, keep-mask) -> smaller definitions and the smaller model that computes the same function."""

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from utils import definitions as c
from utils import layers as l
from utils.constants import kernel_shift, layer_constants
from utils.graph import ChannelGraph

if TYPE_CHECKING:
    from models import Darknet


def compact_defs(graph: ChannelGraph, keep: np.ndarray) -> c.Defs:
    """The definitions of the network that keeps only the ids in `keep`, (graph.count,) bool."""
    defs = copy.deepcopy(graph.defs)
    for index, d in enumerate(defs):
        kept = int(keep[graph.out[index]].sum())
        if isinstance(d, c.Convolutional):
            if d.groups > 1 and graph.is_depthwise(index):
                d.groups = kept
            d.filters = kept
        elif isinstance(d, c.SqueezeExcite):
            d.hidden = d.hidden or len(graph.out[index]) // d.reduction
            d.filters = kept
    return defs


@torch.no_grad()
def mask_model(model: "Darknet", graph: ChannelGraph, keep: np.ndarray) -> "Darknet":
    """A copy of `model`, of the same size, in which the gammas of removed channels are 0: what pruning does to the
    function, before anything is taken away."""
    masked = copy.deepcopy(model)
    for index in graph.gammas():
        gamma = masked.module_list[index].BatchNorm2d.weight
        gamma[torch.from_numpy(~keep[graph.out[index]]).to(gamma.device)] = 0
    return masked


@torch.no_grad()
def compact_model(model: "Darknet", graph: ChannelGraph, keep: np.ndarray) -> "Darknet":
    """The network without the removed channels, their constants absorbed; same training mode and device as `model`.

    Equals mask_model's output to float precision; for where constants limit that, see utils.constants.
    """
    small = type(model)(compact_defs(graph, keep), model.img_size)
    constants = layer_constants(model, graph, keep)
    for index, module in enumerate(model.module_list):
        kept_out = torch.from_numpy(keep[graph.out[index]])
        kept_in = torch.from_numpy(keep[graph.inputs(index)])
        source = model.sources[index][0]
        constant = constants[source] if source >= 0 else torch.zeros(len(kept_in), dtype=torch.float64)
        target = small.module_list[index]
        if isinstance(module, l.Convolution):
            _copy_convolution(module, target, kept_in, kept_out, constant)
        elif isinstance(module, l.SqueezeExcite):
            target.se.fc[0].weight.copy_(module.se.fc[0].weight[:, kept_in])
            target.se.fc[2].weight.copy_(module.se.fc[2].weight[kept_out])
        elif isinstance(module, l.BatchNorm):
            _copy_batch_norm(module.BatchNorm2d, target.BatchNorm2d, kept_out, torch.zeros(len(kept_out)))
        elif isinstance(module, l.Shortcut) and module.weights is not None:
            per_channel = module.weights.shape[1] > 1
            target.weights.copy_(module.weights[:, kept_out] if per_channel else module.weights)
    small.seen = model.seen
    return small.train(model.training).to(next(model.parameters()).device)


def _copy_convolution(
    module: l.Convolution, target: l.Convolution, kept_in: Tensor, kept_out: Tensor, constant: Tensor
) -> None:
    """Copy the kept filters and absorb the constant that the removed inputs carried: the mean falls or the bias rises."""
    shift = kernel_shift(module, constant)
    conv, smaller = module.conv, target.conv
    weight = conv.weight[kept_out]
    smaller.weight.copy_(weight if conv.groups > 1 else weight[:, kept_in])
    if module.BatchNorm2d is not None:
        _copy_batch_norm(module.BatchNorm2d, target.BatchNorm2d, kept_out, shift)
    else:
        smaller.bias.copy_((conv.bias.cpu().double() + shift)[kept_out])


def _copy_batch_norm(bn: nn.BatchNorm2d, target: nn.BatchNorm2d, kept: Tensor, shift: Tensor) -> None:
    for name in ("weight", "bias", "running_var"):
        getattr(target, name).copy_(getattr(bn, name)[kept])
    target.running_mean.copy_((bn.running_mean.cpu().double() - shift)[kept])
