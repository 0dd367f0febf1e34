"""ChannelGraph: which channels of a network are the same channel.

Pruning may only take a channel from everything that carries it. Walking the cfg once gives every layer's output as an
array of channel ids; ids that a network ties together are one id. A keep-mask, one bool an id, then says for every layer
what it reads and what it writes: keep[graph.inputs(i)] and keep[graph.out[i]].

    >>> from utils.network.cfg import parse_cfg
    >>> graph = ChannelGraph(parse_cfg('''[net]
    ... [convolutional]
    ... filters=2
    ... batch_normalize=1
    ... [convolutional]
    ... filters=2
    ... batch_normalize=1
    ... [shortcut]
    ... from=-2
    ... [route]
    ... layers=-1,-2'''))
    >>> [ids.tolist() for ids in graph.out]     # 0-2 is the image; the shortcut made 5 and 6 out of 3 and 4
    [[3, 4], [3, 4], [3, 4], [3, 4, 3, 4]]
"""

from collections.abc import Callable

import numpy as np

from utils.network import definitions
from utils.network.activations import ACROSS_CHANNELS
from utils.network.shapes import input_channels, output_shapes

Ids = np.ndarray  # of int, one a channel


class ChannelGraph:
    """The channel ids of a network, from its definitions alone.

    out[i]: ids of layer i's output, one a channel; inputs(i, k): ids of the k-th map that it reads.
    count: number of ids. frozen: (count,) bool, ids that no strategy may remove (the image, what a head reads,
    channels without a batch normalisation, ordinary grouped convolutions). united: (count,) bool, ids that a shortcut
    made one. raw_out[i]: the same channels before anything was united, so that a convolution's own filters can be told
    apart; label: raw id -> id. equal_parts: lists of id arrays of which equally many must be kept (the parts of
    a grouped route), cut_layers: for each of them the layer whose map it is. divisible: those of the cut layers that are
    convolutions which can as well be written in parts, each with the channels at which parts begin and the last one ends
    (see utils.pruning.split). grouped: indices of the ordinary grouped convolutions, which are left whole.
    """

    def __init__(self, defs: definitions.Defs) -> None:
        self.defs = defs
        shapes = output_shapes(defs)
        self._parent: list[int] = []
        self._frozen: set[int] = set()
        self._united: set[int] = set()
        self._with_gamma: set[int] = set()
        self._parts: list[list[Ids]] = []
        self.cut_layers: list[int] = []
        self.grouped: list[int] = []
        self._image = self._new(defs.net.channels)
        self._freeze(self._image)
        raw: list[Ids] = []
        for index, d in enumerate(defs):
            self._index, self._channels = index, input_channels(defs, shapes, index)
            sources = [self._image if s < 0 else raw[s] for s in defs.sources(index)]
            rule = next((r for kind, r in _RULES if isinstance(d, kind)), ChannelGraph._same)
            raw.append(rule(self, d, sources))
        self._finish(raw)

    def inputs(self, index: int, which: int = 0) -> Ids:
        """Ids of the `which`-th map that layer `index` reads."""
        source = self.defs.sources(index)[which]
        return self._image if source < 0 else self.out[source]

    def raw_inputs(self, index: int, which: int = 0) -> Ids:
        """The same channels before anything was united, as raw_out."""
        source = self.defs.sources(index)[which]
        return np.arange(self.defs.net.channels) if source < 0 else self.raw_out[source]

    def is_depthwise(self, index: int) -> bool:
        """Whether layer `index` filters each channel by itself, so that its output has its input's ids."""
        d = self.defs[index]
        return isinstance(d, definitions.Convolutional) and _is_depthwise(d, len(self.inputs(index)))

    def convolutions(self) -> list[int]:
        """Indices of the convolutions, depthwise ones included."""
        return [i for i, d in enumerate(self.defs) if isinstance(d, definitions.Convolutional)]

    def gammas(self) -> list[int]:
        """Indices of the layers with a batch normalisation."""
        return [i for i, d in enumerate(self.defs) if _has_gamma(d)]

    # Building: raw ids, one a filter, united as layers tie them together.

    def _new(self, count: int) -> Ids:
        start = len(self._parent)
        self._parent += range(start, start + count)
        return np.arange(start, start + count)

    def _find(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def _unite(self, a: Ids, b: Ids) -> None:
        """Make one id of each pair of positions; the longer array's rest stays apart."""
        for x, y in zip(a.tolist(), b.tolist(), strict=False):
            first, second = sorted((self._find(x), self._find(y)))
            self._parent[second] = first

    def _freeze(self, ids: Ids) -> None:
        self._frozen.update(ids.tolist())

    def _same(self, d: definitions.LayerDef, sources: list[Ids]) -> Ids:
        return sources[0]

    def _convolution(self, d: definitions.Convolutional, sources: list[Ids]) -> Ids:
        if _is_depthwise(d, self._channels[0]):
            return sources[0]
        ids = self._new(d.filters)
        if d.batch_normalize:
            self._with_gamma.update(ids.tolist())
        if d.groups > 1 or isinstance(d, definitions.Depthwise):
            self.grouped.append(self._index)
            self._freeze(ids)
            self._freeze(sources[0])
        if d.activation in ACROSS_CHANNELS:
            self._freeze(ids)
        return ids

    def _shortcut(self, d: definitions.Shortcut, sources: list[Ids]) -> Ids:
        for ids in sources:
            self._freeze(np.array([i for i in ids.tolist() if i not in self._with_gamma], dtype=int))
        for other in sources[1:]:
            self._unite(sources[0], other)
            common = min(len(sources[0]), len(other))
            self._united.update(sources[0][:common].tolist())
        return sources[0]

    def _product(self, d: definitions.ScaleChannels, sources: list[Ids]) -> Ids:
        factor, scaled = sources
        if len(factor) == len(scaled):
            self._unite(scaled, factor)
        else:  # one factor for all channels
            self._freeze(factor)
        return scaled

    def _route(self, d: definitions.Route, sources: list[Ids]) -> Ids:
        if d.groups == 1:
            return np.concatenate(sources)
        parts = [np.split(ids, d.groups) for ids in sources]
        self._parts += parts
        self.cut_layers += self.defs.sources(self._index)
        return np.concatenate([p[d.group_id] for p in parts])

    def _max_pool(self, d: definitions.MaxPool, sources: list[Ids]) -> Ids:
        if not d.maxpool_depth:
            return sources[0]
        self._freeze(sources[0])  # channels are compared with each other, so none can go alone
        ids = self._new(d.out_channels)
        self._freeze(ids)
        return ids

    def _reorg3d(self, d: definitions.Reorg3d, sources: list[Ids]) -> Ids:
        return np.tile(sources[0], d.stride**2)

    def _reorg(self, d: definitions.Reorg, sources: list[Ids]) -> Ids:
        """Blocks of stride^2 neighbouring channels are mixed with each other, so they stay or go together."""
        blocks = sources[0].reshape(-1, d.stride**2)
        for k in range(1, blocks.shape[1]):
            self._unite(blocks[:, 0], blocks[:, k])
        return np.repeat(np.tile(blocks[:, 0], d.stride**2), d.stride**2)

    def _head(self, d: definitions.Head, sources: list[Ids]) -> Ids:
        self._freeze(sources[0])
        return sources[0]

    def _finish(self, raw: list[Ids]) -> None:
        """Number the united ids from 0 on, in order of their first appearance."""
        roots = np.array([self._find(i) for i in range(len(self._parent))])
        _, label = np.unique(roots, return_inverse=True)
        self.count = int(label.max()) + 1
        self.raw_out = raw
        self.label = label  # raw id -> id
        self.out = [label[ids] for ids in raw]
        self._image = label[self._image]
        self.frozen = self._flags(self._frozen) | ~self._flags(self._with_gamma)
        self.united = self._flags(self._united)
        self.equal_parts = [[label[p] for p in parts] for parts in self._parts]
        self.divisible = {i: self._cuts(i) for i in self.cut_layers if self._is_divisible(i)}

    def part_ids(self, index: int) -> list[Ids]:
        """The ids of each part of a divisible convolution."""
        return np.split(self.out[index], self.divisible[index][1:-1])

    def _is_divisible(self, index: int) -> bool:
        """Whether layer `index` is an ordinary convolution; one that reads the image can't be divided, as no [route] brings a
        later part the image."""
        d = self.defs[index]
        ordinary = type(d) is definitions.Convolutional and d.groups == 1 and d.activation not in ACROSS_CHANNELS
        return ordinary and self.defs.sources(index)[0] >= 0

    def _cuts(self, index: int) -> list[int]:
        """The channels at which grouped routes cut the map of layer `index`, 0 and the number of channels among them."""
        cut = zip(self.cut_layers, self.equal_parts, strict=True)
        return sorted({0} | {k * len(parts[0]) for i, parts in cut if i == index for k in range(1, len(parts) + 1)})

    def _flags(self, raw_ids: set[int]) -> np.ndarray:
        flags = np.zeros(self.count, dtype=bool)
        flags[self.label[sorted(raw_ids)]] = True
        return flags


def _is_depthwise(d: definitions.Convolutional, channels: int) -> bool:
    groups = channels if isinstance(d, definitions.Depthwise) else d.groups
    return groups == channels == d.filters and groups > 1


def _has_gamma(d: definitions.LayerDef) -> bool:
    return isinstance(d, definitions.BatchNorm) or (isinstance(d, definitions.Convolutional) and bool(d.batch_normalize))


# Everything that isn't listed passes its (first) input's ids on.
_RULES: tuple[tuple[type[definitions.LayerDef], Callable[..., Ids]], ...] = (
    (definitions.Convolutional, ChannelGraph._convolution),
    (definitions.Shortcut, ChannelGraph._shortcut),
    (definitions.ScaleChannels, ChannelGraph._product),
    (definitions.Route, ChannelGraph._route),
    (definitions.LocalAvgPool, ChannelGraph._same),
    (definitions.MaxPool, ChannelGraph._max_pool),
    (definitions.Reorg3d, ChannelGraph._reorg3d),
    (definitions.Reorg, ChannelGraph._reorg),
    (definitions.Head, ChannelGraph._head),
)
