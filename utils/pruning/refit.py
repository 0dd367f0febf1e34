"""Refitting after a cut: what reads a removed channel learns from some images to do without it, by least squares.

compact_model absorbs what a removed channel carries on average, a constant. What it carries besides can often be told from
the channels that stay. So, layer by layer in the network's order, each convolution that reads fewer channels than before is
fitted to what it computed in the original network, before its batch normalisation, from the maps that it reads in the
compact one, with all that earlier layers get wrong by now (He et al. 2017, "Channel Pruning for Accelerating Very Deep
Neural Networks"). A convolution whose map a shortcut adds to another is fitted to the sum: it makes up for what the other
lacks. The ridge holds kernels near what they are, so that on its samples no fit is worse than none.
"""

import copy
import math
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from utils.network import definitions, layers
from utils.network.darknet import Darknet
from utils.network.shapes import output_shapes
from utils.pruning.graph import ChannelGraph
from utils.pruning.least_squares import NormalEquations, output_size, windows
from utils.pruning.residual_blocks import Block, surviving_layers
from utils.pruning.split import written

SAMPLES, LEAST_SAMPLES = 8, 5000  # positions that a layer is fitted at: this many a weight of a filter, and at least
WIDEST = 9216  # weights of a filter above which its normal equations take gigabytes: such layers are left as they are
SMALLEST_FACTOR = 0.01  # of the median: where batch normalisation scales by less, a filter makes up for nothing
Maps = dict[int, list[Tensor]]  # layer -> its map for each batch; -1 is the image


class Pair:
    """The original network and the compact one, run side by side, layer after layer; only maps that are still to be read are
    kept. Indices are those of the original's layers."""

    def __init__(self, model: Darknet, small: Darknet, graph: ChannelGraph, keep: np.ndarray,
                 dropped: Collection[Block], batches: Sequence[Tensor]) -> None:  # fmt: skip
        device = batches[0].device
        self.graph, self.keep = graph, keep
        self.original, self.small = copy.deepcopy(model).to(device).eval(), small.to(device).eval()
        self.place = {old: new for new, old in enumerate(surviving_layers(len(graph.defs), dropped))}
        self.before: Maps = {-1: list(batches)}
        self.after: Maps = {-1: list(batches)}

    def kept(self, index: int) -> Tensor:
        """(filters,) bool: which channels of layer `index` are left."""
        return torch.from_numpy(self.keep[self.graph.out[index]]).to(self.before[-1][0].device)

    def read(self, index: int, which: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """For each batch the `which`-th map that layer `index` reads in the original and in the compact network."""
        compact = self.after[self.small.sources[self.place[index]][which]]
        return zip(self.before[self.original.sources[index][which]], compact, strict=True)

    def step(self, index: int, before: list[Tensor] | None) -> None:
        """Compute layer `index` in both networks; `before`: the original's, if that is known."""
        self.before[index] = before or _run(self.original, index, self.before)
        _release(self.original, index, self.before)
        if index in self.place:
            new = self.place[index]
            self.after[new] = _run(self.small, new, self.after)
            _release(self.small, new, self.after)


def _run(network: Darknet, index: int, maps: Maps) -> list[Tensor]:
    inputs = zip(*(maps[s] for s in network.sources[index]), strict=True)
    return [network.module_list[index](*x) for x in inputs]


def _release(network: Darknet, index: int, maps: Maps) -> None:
    """Forget the maps that no layer after `index` reads; the image stays."""
    later = {s for sources in network.sources[index + 1 :] for s in sources}
    for done in set(maps) - later - {-1}:
        del maps[done]


@torch.no_grad()
def refit(model: Darknet, small: Darknet, graph: ChannelGraph, keep: np.ndarray, dropped: Collection[Block],
          batches: Sequence[Tensor]) -> list[int]:  # fmt: skip
    """Fit `small`, in place, which compact_model(model, graph, keep, dropped) made, to the maps that `model` makes of
    `batches`, (images, channels, height, width) each, as the network reads them, on the device to compute on.

    Returns the indices in `model` of the layers that were fitted.
    """
    home, training = next(small.parameters()).device, small.training
    model, graph, dropped, numbers = written(model, graph, keep, dropped)
    pair = Pair(model, small, graph, keep, dropped, batches)
    generator, fitted = torch.Generator().manual_seed(0), []
    for index in tqdm(range(len(graph.defs)), desc="refit", unit="layer", leave=False):
        other = added_to(graph, index)
        known = None
        if index in pair.place and is_fitted(pair, index, other):
            known = fit_convolution(pair, index, other, generator)
            fitted.append(numbers[index])
        pair.step(index, known)
    small.to(home).train(training)
    return sorted(set(fitted))  # of the parts of a layer each was fitted


def is_fitted(pair: Pair, index: int, other: tuple[int, int] | None) -> bool:
    """Whether layer `index` is a convolution that reads fewer channels than before, or makes up for what was lost elsewhere."""
    module = pair.original.module_list[index]
    if not isinstance(module, layers.Convolution) or module.conv.groups > 1:
        return False
    target = pair.small.module_list[pair.place[index]]
    changed = not pair.keep[pair.graph.inputs(index)].all() or (other is not None and not pair.keep.all())
    return changed and target.conv.weight[0].numel() <= WIDEST


def added_to(graph: ChannelGraph, index: int) -> tuple[int, int] | None:
    """(shortcut, which of its maps): the other map of a plain [shortcut] that alone reads convolution `index`; None where
    there is no such, or where it isn't known when the convolution is computed."""
    d, last = graph.defs[index], index
    if not isinstance(d, definitions.Convolutional) or d.activation != "linear" or d.antialiasing:
        return None
    while True:
        readers = [i for i in range(len(graph.defs)) if last in graph.defs.sources(i)]
        if len(readers) != 1:
            return None
        reader = graph.defs[readers[0]]
        if not isinstance(reader, definitions.Dropout):
            break
        last = readers[0]
    sources = graph.defs.sources(readers[0])
    if not isinstance(reader, definitions.Shortcut) or len(sources) != 2 or reader.activation != "linear":
        return None
    which = 1 - sources.index(last)
    plain = reader.weights_type == "none" and len(graph.out[sources[which]]) == len(graph.out[index])
    return (readers[0], which) if plain and sources[which] < index else None


def fit_convolution(pair: Pair, index: int, other: tuple[int, int] | None, generator: torch.Generator) -> list[Tensor]:
    """Fit convolution `index` of the compact network; returns the original's maps of it."""
    module, target = pair.original.module_list[index], pair.small.module_list[pair.place[index]]
    kept, equations, maps = pair.kept(index), NormalEquations(), []
    pictures = sum(len(images) for images in pair.before[-1])
    sums = pair.read(*other) if other else ((None, None) for _ in pair.before[-1])
    for (x, y), (wanted_sum, found_sum) in zip(pair.read(index), sums, strict=True):
        wanted = module.conv(x)
        places = choose_places(target, y, pictures, generator)
        lacking = _at(wanted, places)[:, kept] - _mean(module)[kept] - (_at(target.conv(y), places) - _mean(target))
        if other:
            difference = _at(wanted_sum, places)[:, pair.kept(pair.original.sources[other[0]][other[1]])]
            lacking += (difference - _at(found_sum, places)) * _inverse_factor(target)
        equations.add(windows(target.conv, y, places), lacking)
        maps.append(module.finish(wanted))
    change, constant = equations.solve()
    target.conv.weight += change.T.reshape(target.conv.weight.shape).to(target.conv.weight)
    if target.BatchNorm2d is not None:
        target.BatchNorm2d.running_mean -= constant.to(target.conv.weight)
    else:
        target.conv.bias += constant.to(target.conv.weight)
    return maps


def choose_places(module: layers.Convolution, x: Tensor, pictures: int, generator: torch.Generator) -> Tensor:
    """Random positions in the flattened output map, so many that all `pictures` together give enough samples."""
    positions = math.prod(output_size(module.conv, x))
    wanted = max(SAMPLES * module.conv.weight[0].numel(), LEAST_SAMPLES)
    return torch.randperm(positions, generator=generator)[: -(-wanted // pictures)].to(x.device)


def _at(maps: Tensor, places: Tensor) -> Tensor:
    """(batch, channels, height, width) -> (batch * places, channels)."""
    return maps.flatten(2)[:, :, places].transpose(1, 2).flatten(0, 1)


def _mean(module: layers.Convolution) -> Tensor:
    """(filters,) what batch normalisation takes away from the kernel's sums; a bias is in them already."""
    norm = module.BatchNorm2d
    return norm.running_mean if norm is not None else torch.zeros_like(module.conv.bias)


def _inverse_factor(module: layers.Convolution) -> Tensor:
    """(filters,) 1 / what batch normalisation multiplies by; 0 where that is next to nothing."""
    norm = module.BatchNorm2d
    if norm is None:
        return torch.ones_like(module.conv.bias)
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    usable = factor.abs() > SMALLEST_FACTOR * factor.abs().median()
    return torch.where(usable, 1 / factor, 0.0)


def bytes_per_picture(model: Darknet, height: int, width: int) -> int:
    """Memory that refit needs at least for each picture: the maps that are alive at once in both networks, in float32."""
    shapes = output_shapes(model.defs, height, width)
    sizes = [math.prod(shape) for shape in shapes]
    last = {s: i for i, sources in enumerate(model.sources) for s in sources}
    alive = [sum(sizes[s] for s in range(i + 1) if last.get(s, s) >= i) for i in range(len(sizes))]
    return 8 * max(alive)
