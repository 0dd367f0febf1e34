"""Residual blocks: what lies between a shortcut and its `from`, when it can be dropped as a whole, and what is left.

A shortcut adds a branch to a kept path. When the branch fades, the sum is the kept path alone, so the branch and the
shortcut can go, and whoever read the shortcut reads the kept path. No family of networks is special: Darknet's
bottlenecks, CSP stages and MobileNet's inverted residuals (depthwise, squeeze-and-excitation inside) are all found by
the same rule.
"""

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from utils.network import definitions
from utils.network.darknet import Darknet
from utils.pruning.graph import ChannelGraph


@dataclass(frozen=True)
class Block:
    """shortcut, source: indices of the [shortcut] and of the layer whose map goes on if the block is dropped.
    tail: the layers at the end of the branch whose maps are what the shortcut adds; ends: those with a gamma among them.
    """

    shortcut: int
    source: int
    tail: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def layers(self) -> range:
        """Indices of the layers that go."""
        return range(self.source + 1, self.shortcut + 1)


# What stands between a branch's last batch normalisation and its shortcut without making new channels of its own.
_PASSES = (
    definitions.Dropout, definitions.SqueezeExcite, definitions.ScaleChannels, definitions.Route, definitions.MaxPool,
    definitions.Upsample,
)  # fmt: skip


def residual_blocks(graph: ChannelGraph) -> list[Block]:
    """The blocks that can be dropped, in the cfg's order.

    A block is everything between a shortcut and its `from`, if nobody else reads what is in between. Left out are
    shortcuts with weights, several `from` or an activation (without the block the activation would go, too), maps of
    different widths, branches that don't end in batch normalisations, and sums that a head reads directly.
    """
    defs = graph.defs
    readers: list[list[int]] = [[] for _ in defs]
    for index in range(len(defs)):
        for source in defs.sources(index):
            if source >= 0:
                readers[source].append(index)
    found = [_block(graph, index, readers) for index, d in enumerate(defs) if isinstance(d, definitions.Shortcut)]
    return [block for block in found if block is not None]


def _block(graph: ChannelGraph, index: int, readers: list[list[int]]) -> Block | None:
    d = graph.defs[index]
    branch, source, *more = graph.defs.sources(index)
    if more or d.activation != "linear" or d.weights_type != "none" or not 0 <= source < branch:
        return None
    inside = range(source + 1, index)
    if any(reader > index for layer in inside for reader in readers[layer]) or len(graph.out[branch]) != len(graph.out[source]):
        return None
    heads = graph.defs.head_indices()
    if any(h in inside or np.isin(graph.out[index], graph.out[h]).any() for h in heads):
        return None
    tail = _tail(graph, branch)
    if not tail or min(tail) not in inside:
        return None
    return Block(index, source, tuple(tail), tuple(sorted(set(tail) & set(graph.gammas()))))


def _tail(graph: ChannelGraph, index: int) -> list[int]:
    """The layers from the last batch normalisations of a branch up to layer `index`; [] where there are none."""
    if index in graph.gammas():
        return [index]
    if index < 0 or not isinstance(graph.defs[index], _PASSES):
        return []
    sources = graph.defs.sources(index)
    if isinstance(graph.defs[index], definitions.ScaleChannels):
        sources = sources[1:]  # the factors don't matter where the scaled map is silent
    tails = [_tail(graph, s) for s in sources]
    return sorted({index, *(layer for tail in tails for layer in tail)}) if all(tails) else []


def block_scores(model: Darknet, graph: ChannelGraph, blocks: Sequence[Block], keep: np.ndarray) -> np.ndarray:
    """(blocks,) mean |gamma| of the kept channels at the end of each block: what the block still adds."""
    scores = np.zeros(len(blocks))
    for number, block in enumerate(blocks):
        gammas = [model.module_list[i].BatchNorm2d.weight.detach().abs().double().cpu().numpy() for i in block.ends]
        kept = np.concatenate([gamma[keep[graph.out[i]]] for gamma, i in zip(gammas, block.ends, strict=True)])
        scores[number] = kept.mean() if len(kept) else 0.0
    return scores


def ends_of(graph: ChannelGraph, block: Block, keep: np.ndarray) -> np.ndarray:
    """(raw channels,) 0 for the kept ones at the end of the block, -1 for all others."""
    labels = np.full(len(graph.label), -1)
    for index in block.ends:
        labels[graph.raw_out[index][keep[graph.out[index]]]] = 0
    return labels


def weakest_blocks(blocks: Sequence[Block], scores: np.ndarray, count: int) -> list[Block]:
    """The `count` blocks with the smallest scores, in the cfg's order; equal ones go in that order, too."""
    chosen = np.sort(np.argsort(scores, kind="stable")[:count])
    return [blocks[i] for i in chosen]


def surviving_layers(count: int, dropped: Collection[Block]) -> list[int]:
    """Indices of the layers, of `count`, that stay without the blocks `dropped`."""
    gone = {layer for block in dropped for layer in block.layers}
    return [i for i in range(count) if i not in gone]


def without_blocks(defs: definitions.Defs, dropped: Collection[Block]) -> definitions.Defs:
    """The definitions without the blocks; references lead where they led before, relative ones stay relative."""
    kept = surviving_layers(len(defs), dropped)
    stands_for = list(range(len(defs)))
    for block in sorted(dropped, key=lambda b: b.shortcut):
        stands_for[block.shortcut] = stands_for[block.source]
    place = {old: new for new, old in enumerate(kept)}
    layers = []
    for new, old in enumerate(kept):
        layer = copy.deepcopy(defs[old])
        moved = tuple(_moved(r, old, new, place, stands_for) for r in layer.references())
        if moved:
            setattr(layer, "layers" if isinstance(layer, definitions.Route) else "from_", moved)
        layers.append(layer)
    return definitions.Defs(copy.deepcopy(defs.net), layers, defs.name)


def _moved(reference: int, old: int, new: int, place: dict[int, int], stands_for: list[int]) -> int:
    target = place[stands_for[definitions.absolute(reference, old)]]
    return target - new if reference < 0 else target
