"""Links: which feature maps of a student and of its teacher belong together."""

from dataclasses import dataclass

import numpy as np

from utils.core.errors import UserError
from utils.network import definitions
from utils.network.shapes import output_shapes
from utils.pruning.graph import ChannelGraph
from utils.pruning.lineage import origin_of, surviving_ids

COARSE = 8  # stride from which on backbone maps count: heads read no finer ones, and they would cost the most
_HALVING = (definitions.Convolutional, definitions.MaxPool, definitions.Reorg)  # kinds of layers that may make a map smaller


@dataclass(frozen=True)
class Link:
    """Layer `student` of the student and layer `teacher` of the teacher, whose maps belong together.

    channels: which of the teacher's channels the student's are, None for all of them in order; adapted: neither is known,
    and the counts differ: (student's channels, teacher's channels).
    """

    student: int
    teacher: int
    channels: np.ndarray | None = None
    adapted: tuple[int, int] | None = None


@dataclass(frozen=True)
class Reading:
    """A place at which a feature map is read: layer `reader` reads the map of layer `source`, whose stride is `stride`.

    branch: number of the reader among the convolutions that feed its head, from 1; 0: the reader is one of the backbone's.
    """

    reader: int
    source: int
    stride: int
    branch: int


def readings(defs: definitions.Defs, size: int) -> list[Reading]:
    """The maps before the heads (read by the convolutions that feed them) and, before the first of those or the first
    upsampling, those that a layer of the backbone halves. size: side of the input, a multiple of the largest stride.
    """
    heights = [shape[1] for shape in output_shapes(defs, size, size)]
    neck = min(i for i, d in enumerate(defs) if isinstance(d, definitions.Upsample | definitions.Head))
    heads = {s: branch for i in defs.head_indices() for branch, s in enumerate(defs.feeding(i), 1)}
    halving = [i for i, d in enumerate(defs) if i < neck and isinstance(d, _HALVING)]
    found: dict[int, Reading] = {}
    for index in (*heads, *halving):
        source = defs.sources(index)[0]
        if source < 0 or source in found or not (index in heads or heights[index] < heights[source]):
            continue
        stride = size // heights[source]
        if index in heads or stride >= COARSE:
            found[source] = Reading(index, source, stride, heads.get(index, 0))
    return list(found.values())


def links(student: definitions.Defs, teacher: definitions.Defs, size: int) -> list[Link]:
    """The maps that student and teacher have in common.

    A pruned student says in its cfg which layers and channels it kept (utils.pruning.lineage): its map is what the teacher's
    same reader reads, so that dropped blocks don't matter; a map that parts of one reader read is linked once.
    Otherwise maps of the same stride belong together.
    """
    kept = _surviving(student, teacher)
    if kept is not None:
        graph, keep = kept
        found: dict[int, Link] = {}
        for r in readings(student, size):
            reader = origin_of(student, r.reader)
            source = teacher.sources(reader)[0]
            found.setdefault(source, Link(r.source, source, np.flatnonzero(keep[graph.inputs(reader)])))
        return list(found.values())
    theirs = {(r.branch, r.stride): r.source for r in readings(teacher, size)}
    mine = {(r.branch, r.stride): r.source for r in readings(student, size)}
    counts = [[shape[0] for shape in output_shapes(defs, size, size)] for defs in (student, teacher)]
    pairs = [(s, theirs[place]) for place, s in mine.items() if place in theirs]
    widths = [(counts[0][s], counts[1][t]) for s, t in pairs]
    return [Link(s, t, None, w if w[0] != w[1] else None) for (s, t), w in zip(pairs, widths, strict=True)]


def _surviving(student: definitions.Defs, teacher: definitions.Defs) -> tuple[ChannelGraph, np.ndarray] | None:
    """The teacher's graph and the ids that the student kept; None where the student wasn't pruned from this teacher."""
    if not all(_is_of(teacher, d, origin_of(student, index)) for index, d in enumerate(student)):
        return None
    graph = ChannelGraph(teacher)
    try:
        return graph, surviving_ids(graph, student)
    except UserError:
        return None


def _is_of(teacher: definitions.Defs, d: definitions.LayerDef, origin: int | None) -> bool:
    """Whether `d` can be the teacher's layer `origin`, or with None one that pruning added."""
    if origin is None:
        return isinstance(d, definitions.Route)
    return origin < len(teacher) and type(teacher[origin]) is type(d)
