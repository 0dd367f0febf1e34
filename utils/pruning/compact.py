"""(model, graph, keep-mask) -> smaller definitions and the smaller model that computes the same function."""

import copy
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor, nn

from utils.core.errors import UserError
from utils.network import definitions, layers
from utils.network.darknet import Darknet
from utils.pruning.absorb import kernel_shift, layer_constants
from utils.pruning.graph import ChannelGraph
from utils.pruning.lineage import note_origin
from utils.pruning.residual_blocks import Block, surviving_layers, without_blocks
from utils.pruning.split import moved_blocks, written, written_defs


def compact_defs(graph: ChannelGraph, keep: np.ndarray, dropped: Collection[Block] = ()) -> definitions.Defs:
    """The definitions of the network that keeps only the ids in `keep`, (graph.count,) bool, and not the blocks `dropped`.

    Each layer records where in the unpruned network it comes from (see utils.pruning.lineage). A convolution of whose parts
    `keep` leaves different numbers is written in parts (see utils.pruning.split).
    """
    defs, split = written_defs(graph, keep)
    if split is not None:
        graph = ChannelGraph(defs)
        dropped = moved_blocks(graph, split, dropped)
    defs = without_blocks(defs, dropped)
    for new, old in enumerate(surviving_layers(len(graph.defs), dropped)):
        d, kept = defs[new], keep[graph.out[old]]
        try:
            note_origin(d, new, old, kept)
        except UserError as error:
            raise UserError(f"{graph.defs.where(old)}: {error}") from None
        if isinstance(d, definitions.Convolutional):
            if d.groups > 1 and graph.is_depthwise(old):
                d.groups = int(kept.sum())
            d.filters = int(kept.sum())
        elif isinstance(d, definitions.SqueezeExcite):
            d.hidden = d.inner_width(len(kept))
            d.filters = int(kept.sum())
    return defs


@torch.no_grad()
def mask_model(model: Darknet, graph: ChannelGraph, keep: np.ndarray, dropped: Collection[Block] = ()) -> Darknet:
    """A copy of `model`, of the same size, in which the gammas of removed channels and of dropped blocks' ends are 0: what
    pruning does to the function, before anything is taken away."""
    masked = copy.deepcopy(model)
    ends = {i for block in dropped for i in block.ends}
    for index in graph.gammas():
        gamma = masked.module_list[index].BatchNorm2d.weight
        gamma[torch.from_numpy(~keep[graph.out[index]] | (index in ends)).to(gamma.device)] = 0
    return masked


@torch.no_grad()
def compact_model(model: Darknet, graph: ChannelGraph, keep: np.ndarray, dropped: Collection[Block] = ()) -> Darknet:
    """The network without the removed channels and blocks, their constants absorbed; same training mode and device.

    Equals mask_model's output to float precision; for where constants limit that, see utils.pruning.absorb.
    """
    model, graph, dropped, _ = written(model, graph, keep, dropped)
    small = type(model)(compact_defs(graph, keep, dropped), model.img_size)
    constants = layer_constants(model, graph, keep, dropped)
    for target, index in zip(small.module_list, surviving_layers(len(graph.defs), dropped), strict=True):
        module = model.module_list[index]
        kept_out = torch.from_numpy(keep[graph.out[index]])
        kept_in = torch.from_numpy(keep[graph.inputs(index)])
        source = model.sources[index][0]
        constant = constants[source] if source >= 0 else torch.zeros(len(kept_in), dtype=torch.float64)
        if isinstance(module, layers.Convolution):
            _copy_convolution(module, target, kept_in, kept_out, constant)
        elif isinstance(module, layers.SqueezeExcite):
            target.se.fc[0].weight.copy_(module.se.fc[0].weight[:, kept_in])
            target.se.fc[2].weight.copy_(module.se.fc[2].weight[kept_out])
        elif isinstance(module, layers.BatchNorm):
            _copy_batch_norm(module.BatchNorm2d, target.BatchNorm2d, kept_out, constant)
        elif isinstance(module, layers.Shortcut) and module.weights is not None:
            per_channel = module.weights.shape[1] > 1
            target.weights.copy_(module.weights[:, kept_out] if per_channel else module.weights)
    small.seen = model.seen
    return small.train(model.training).to(next(model.parameters()).device)


def _copy_convolution(
    module: layers.Convolution, target: layers.Convolution, kept_in: Tensor, kept_out: Tensor, constant: Tensor
) -> None:
    """Copy the kept filters and absorb the constant that the inputs carried: the mean falls or the bias rises."""
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
