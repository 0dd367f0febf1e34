"""Where a pruned network's layers and channels come from: two keys in its .cfg that Darknet ignores.

origin=12        this layer is number 12 of the unpruned network, or a part of it (see utils.pruning.split); left out where
                 it still has its own number. none: a [route] that the unpruned network didn't need
kept=0-3,7       the filters of the unpruned network's convolution that are left, in order; left out where all are

Pruning a pruned network keeps counting in the first one. Distillation reads from a teacher what a student still has:

    >>> format_ranges([0, 1, 2, 3, 7])
    '0-3,7'
    >>> parse_ranges("0-3,7")
    [0, 1, 2, 3, 7]
"""

from collections.abc import Iterable

import numpy as np

from utils.core.errors import UserError
from utils.network.definitions import Convolutional, Defs, LayerDef
from utils.pruning.graph import ChannelGraph

NEW = "none"


def note_origin(d: LayerDef, new: int, old: int, kept: np.ndarray) -> None:
    """Record in `d`, layer `new` of the smaller network, that it was layer `old` and kept the channels `kept`, (channels,)
    bool. What `d` says of an earlier pruning is composed with it."""
    origin = _number(d.extra.pop("origin", str(old)))
    if origin != new:
        d.extra["origin"] = NEW if origin is None else str(origin)
    if isinstance(d, Convolutional) and not kept.all():
        d.extra["kept"] = format_ranges(np.array(kept_of(d, len(kept)))[kept].tolist())


def note_new(d: LayerDef) -> None:
    """Record in `d` that the unpruned network has no such layer."""
    d.extra["origin"] = NEW


def origin_of(defs: Defs, index: int) -> int | None:
    """The number that layer `index` has in the unpruned network, None for one that is new."""
    return _number(defs[index].extra.get("origin", str(index)))


def kept_of(d: Convolutional, filters: int) -> list[int]:
    """The filters of the unpruned network's convolution that `d`, which has `filters` of them, still has; UserError where its
    record tells of another number."""
    if "kept" not in d.extra:
        return list(range(filters))
    numbers = parse_ranges(d.extra["kept"], filters)
    if len(numbers) != filters:
        raise UserError(f"kept={d.extra['kept'][:40]} names {len(numbers)} filters, but there are {filters}; "
                        "leave the key out if they aren't a pruned network's")  # fmt: skip
    return numbers


def _number(text: str) -> int | None:
    if text == NEW:
        return None
    if not text.isdecimal() or len(text) > 18:
        raise UserError(f"origin={text[:40]}: expected the number of a layer")
    return int(text)


def surviving_ids(teacher: ChannelGraph, student: Defs) -> np.ndarray:
    """(teacher.count,) bool: which channels of the unpruned network `teacher` the pruned network `student` still has.

    Layer i of the student has the channels `keep[teacher.out[origin_of(student, i)]]` of the teacher's layer
    `origin_of(student, i)`. Raises UserError where the student doesn't descend from this teacher.
    """
    keep = np.zeros(teacher.count, dtype=bool)
    keep[teacher.inputs(0)] = True
    for index, d in enumerate(student):
        if not isinstance(d, Convolutional):
            continue
        origin = origin_of(student, index)
        ids = np.zeros(0, dtype=int) if origin is None or origin >= len(teacher.out) else teacher.out[origin]
        kept = kept_of(d, d.filters if "kept" in d.extra else len(ids))
        if len(kept) != d.filters or (kept and max(kept) >= len(ids)):
            raise UserError(f"{student.where(index)}: was not pruned from layer {origin} of {teacher.defs.name}; "
                            "name the cfg that it was pruned from")  # fmt: skip
        keep[ids[kept]] = True
    return keep


def format_ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers as `0-3,7`."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def parse_ranges(text: str, most: int = 1_000_000) -> list[int]:
    """The numbers of `0-3,7`; raises UserError for other text, and before they are listed for more than `most` of them."""
    try:
        bounds = [[int(n) for n in part.split("-")] for part in text.split(",")]
    except ValueError:
        bounds = []
    count = sum(max(end[-1] - end[0] + 1, 0) for end in bounds)
    numbers = [n for first, *last in bounds for n in range(first, (last or [first])[0] + 1)] if count <= most else []
    if not numbers or sorted(set(numbers)) != numbers or max(map(len, bounds)) > 2:
        raise UserError(f"kept={text[:40]}: expected ascending ranges such as 0-3,7, of at most {most} numbers")
    return numbers
