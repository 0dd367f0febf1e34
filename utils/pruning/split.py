"""Writing one convolution as several, so that the parts of its map that a `route groups=N` cuts may keep different numbers of
channels.

YOLOv8's C2f blocks and CSP stages compute one map and read a half of it. As Darknet cuts evenly, pruning would have to keep
equally many channels of all parts. Each part is as well a convolution of its own, with its share of the filters:

    [convolutional] filters=16         ->      [convolutional] filters=8
    [route] layers=-1                          [route] layers=<what the convolution reads>
    groups=2 group_id=1                        [convolutional] filters=8
    ...                                        [route] layers=-1
    [route] layers=<it>,-1                     ...
                                               [route] layers=<part>,<part>,-1

Each filter computes what it did, so the function is the same. The channel graph gives the channels the same ids as before,
in the same order: a keep-mask of the one network is one of the other.
"""

import copy
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from utils.network import definitions
from utils.network.darknet import Darknet
from utils.pruning.graph import ChannelGraph
from utils.pruning.lineage import note_new, note_origin
from utils.pruning.residual_blocks import Block, residual_blocks


@dataclass
class Split:
    """Definitions in which some convolutions are written in parts.

    origins: for each layer (the layer that it was, the channels of that which it makes), None for the [route]s that are new.
    place: for each layer as it was, the number of the one that makes its whole map; -1 where nothing does any more.
    """

    defs: definitions.Defs
    origins: list[tuple[int, slice] | None] = field(default_factory=list)
    place: list[int] = field(default_factory=list)

    def add(self, d: definitions.LayerDef, origin: tuple[int, slice] | None) -> int:
        self.defs.layers.append(d)
        self.origins.append(origin)
        return len(self.origins) - 1


@torch.no_grad()
def written(model: Darknet, graph: ChannelGraph, keep: np.ndarray, dropped: Collection[Block]
            ) -> tuple[Darknet, ChannelGraph, list[Block], list[int]]:  # fmt: skip
    """The network in which the convolutions of `uneven` are written in parts: (model, graph, dropped blocks), and for each
    layer the number that it has in `graph`, -1 for a new [route]. All as it was where there are no such convolutions."""
    defs, split = written_defs(graph, keep)
    if split is None:
        return model, graph, list(dropped), list(range(len(defs)))
    divided = type(model)(defs, model.img_size)
    for target, origin in zip(divided.module_list, split.origins, strict=True):
        if origin is not None:
            layer, part = origin
            source = model.module_list[layer].state_dict()
            width = len(graph.out[layer])
            target.load_state_dict({k: v[part] if v.dim() and len(v) == width else v for k, v in source.items()})
    divided.seen = model.seen
    divided.train(model.training).to(next(model.parameters()))
    other = ChannelGraph(defs)
    return divided, other, moved_blocks(other, split, dropped), [-1 if o is None else o[0] for o in split.origins]


def written_defs(graph: ChannelGraph, keep: np.ndarray) -> tuple[definitions.Defs, Split | None]:
    """The definitions as `written` has them, and how they came about; (graph.defs, None) where nothing is to be written in
    parts."""
    chosen = uneven(graph, keep)
    if not chosen:
        return graph.defs, None
    split = split_defs(graph, chosen)
    return split.defs, split


def uneven(graph: ChannelGraph, keep: np.ndarray) -> list[int]:
    """The convolutions of whose cut maps `keep`, (ids,) bool, leaves parts of different widths."""
    cut = zip(graph.cut_layers, graph.equal_parts, strict=True)
    return sorted({i for i, parts in cut if i in graph.divisible and len({int(keep[p].sum()) for p in parts}) > 1})


def moved_blocks(graph: ChannelGraph, split: Split, dropped: Collection[Block]) -> list[Block]:
    """The blocks `dropped` as they are in `graph`, that of the split definitions."""
    shortcuts = {split.place[block.shortcut] for block in dropped}
    return [block for block in residual_blocks(graph) if block.shortcut in shortcuts]


def split_defs(graph: ChannelGraph, chosen: Collection[int]) -> Split:
    """The network of `graph` with the convolutions `chosen`, of graph.divisible, written in parts."""
    defs = graph.defs
    split = Split(definitions.Defs(copy.deepcopy(defs.net), [], defs.name))
    parts: dict[int, list[int]] = {}  # convolution -> the layers that are its parts
    for index, d in enumerate(defs):
        if index in chosen:
            parts[index] = _add_parts(graph, split, index)
            read_whole = any(index in defs.sources(i) and not isinstance(r, definitions.Route) for i, r in enumerate(defs))
            split.place.append(_add_route(split, parts[index], d.line) if read_whole else -1)
            continue
        if isinstance(d, definitions.Route) and any(s in chosen for s in d.sources(index)):
            layer: definitions.LayerDef = _joined(graph, split, index, parts)
        else:
            layer = copy.deepcopy(d)
            references = tuple(
                split.place[definitions.absolute(r, index)] - len(split.origins) * (r < 0) for r in d.references()
            )
            if references:
                setattr(layer, "layers" if isinstance(d, definitions.Route) else "from_", references)
        new = split.add(layer, (index, slice(None)))
        note_origin(layer, new, index, np.ones(len(graph.out[index]), dtype=bool))
        split.place.append(new)
    return split


def _add_parts(graph: ChannelGraph, split: Split, index: int) -> list[int]:
    """Write convolution `index` in parts; returns their numbers. All read what it read, so the later ones need a [route]."""
    source = split.place[index - 1]
    found: list[int] = []
    cuts = graph.divisible[index]
    for first, last in itertools.pairwise(cuts):
        if found:
            _add_route(split, [source], graph.defs[index].line)
        part = copy.deepcopy(graph.defs[index])
        assert isinstance(part, definitions.Convolutional)
        part.filters = last - first
        found.append(split.add(part, (index, slice(first, last))))
        places = np.arange(cuts[-1])
        note_origin(part, found[-1], index, (places >= first) & (places < last))
    return found


def _add_route(split: Split, layers: Sequence[int], line: int, groups: int = 1, group_id: int = 0) -> int:
    """Add a [route] that the network didn't have."""
    here = len(split.origins)
    route = definitions.Route(layers=tuple(i - here for i in layers), groups=groups, group_id=group_id, line=line)
    note_new(route)
    return split.add(route, None)


def _joined(graph: ChannelGraph, split: Split, index: int, parts: dict[int, list[int]]) -> definitions.Route:
    """[route] `index`, which reads parts where their convolution is written in parts; what else it cuts is cut before it."""
    d = graph.defs[index]
    assert isinstance(d, definitions.Route)
    layers: list[int] = []
    for source in d.sources(index):
        if source in parts:
            cuts = graph.divisible[source]
            width = cuts[-1] // d.groups
            first, last = d.group_id * width, (d.group_id + 1) * width
            layers += [p for p, cut in zip(parts[source], cuts, strict=False) if first <= cut < last]
        elif d.groups > 1:
            layers.append(_add_route(split, [split.place[source]], d.line, d.groups, d.group_id))
        else:
            layers.append(split.place[source])
    route = copy.deepcopy(d)
    route.groups, route.group_id = 1, 0
    route.given = tuple(k for k in d.given if k not in ("groups", "group_id"))
    here = len(split.origins)
    route.layers = tuple(i - here if min(d.layers) < 0 else i for i in layers)
    return route
