"""One image and its annotation -> boxes that can be trained on."""

import functools
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from utils.converters.base import Entry, Found, Options, published_names
from utils.converters.formats import FORMATS
from utils.core.errors import UserError
from utils.data.image_size import measure
from utils.data.labels import CLIPPED, DUPLICATE, NO_AREA, Problems
from utils.data.stated_sizes import size_of_pixels, sizes_differ

OUTSIDE = "boxes outside the image, left out"
UNREADABLE = "images that cannot be read, left out"
_ROUNDING = 1e-5  # of the image's side: x + width of decimal fractions may end this far outside
_UNIT = 1e-6  # of a label's numbers, which have six digits


@dataclass(slots=True)
class Examined:
    """What is left of an entry: names and `boxes` (n, 4) as cx, cy, w, h of the image's sides.

    `shape`: the image's (height, width), None where it can't be read.
    """

    names: list[str] = field(default_factory=list)
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    shape: tuple[int, int] | None = None
    problems: Problems = field(default_factory=Problems)


@functools.cache
def known_names(form: str, options: Options) -> Mapping[str, str] | None:
    """Spelling -> class, for a format of fixed classes or with --names; None where every name is a class.

    Other spellings count: the format's aliases, and other cases of letters where they aren't classes of their own.
    """
    published, aliases = FORMATS[form].published, FORMATS[form].aliases
    names = options.names or (published_names(published) if published else None)
    if names is None:
        return None
    known = {aliases.get(name, name): name for name in names} | {name: name for name in names}
    return {spelling.casefold(): name for spelling, name in known.items()} | known


def examine(entry: Entry, form: str, options: Options) -> Examined:
    """Read the annotations of an image, measure the image, clip the boxes and drop those that are of no use.

    Raises UserError for an annotation that cannot be understood.
    """
    result, notes = Examined(), [FORMATS[form].parse(note, options) for note in entry.notes]
    try:
        *shape, remark = measure(entry.image)
    except ValueError as error:
        result.problems.add(UNREADABLE, f"{entry.image}: {error}")
        return result
    result.shape = (shape[0], shape[1])
    if remark:
        result.problems.add(remark, entry.image)
    for found in notes:
        result.problems.include(found.problems)
        _keep_known(found, known_names(form, options), result)
        if found.names:
            width, height = _measure(found, entry.image, result)
            _clean(found, np.array([width, height], np.float64), result)
    return result


def _keep_known(found: Found, known: Mapping[str, str] | None, result: Examined) -> None:
    """Drop boxes of other classes, and those without a name."""
    names = [known.get(n) or known.get(n.casefold()) for n in found.names] if known is not None else found.names
    if all(names):
        found.names = names
        return
    corners = np.frombuffer(found.corners).reshape(-1, 4)
    keep = [i for i, name in enumerate(names) if name]
    for i in (i for i, name in enumerate(names) if not name):
        what = f"of class {found.names[i]!r}, which isn't among the names" if found.names[i] else "without a name"
        result.problems.add(f"boxes {what}, left out", found.where(found.numbers[i]))
    found.names, found.numbers = [names[i] for i in keep], array("q", [found.numbers[i] for i in keep])
    found.corners = array("d", corners[keep].ravel())


def _measure(found: Found, image: str, result: Examined) -> tuple[int, int]:
    """(width, height) in whose pixels the boxes are."""
    height, width = result.shape
    if not sizes_differ(found.size, (width, height)):
        return width, height
    corners = np.frombuffer(found.corners).reshape(-1, 2)
    size, kind = size_of_pixels(found.size, (width, height), tuple(corners.max(0)))
    if kind:
        result.problems.add(kind, f"{image}: {width}x{height}, annotated as {found.size[0]}x{found.size[1]}")
    return size


def _clean(found: Found, size: np.ndarray, result: Examined) -> None:
    """Clip the boxes, drop those without area or written before. size: width, height."""
    corners = np.frombuffer(found.corners).reshape(-1, 2, 2)
    if not np.isfinite(corners).all():
        bad = found.numbers[int(np.argmin(np.isfinite(corners).all((1, 2))))]
        raise UserError(f"{found.where(bad)}: a corner isn't a finite number; mend or remove it")
    clipped = corners.clip(0, size)
    rows = np.concatenate([clipped.mean(1), clipped[:, 1] - clipped[:, 0]], 1) / np.tile(size, 2)
    written = _written(rows)
    is_inside = (clipped[:, 0] < clipped[:, 1]).all(1)
    has_area = (corners[:, 0] < corners[:, 1]).all(1) & (~is_inside | (written[:, 2:] > 0).all(1))
    is_clipped = (np.abs(clipped - corners) > _ROUNDING * size).any((1, 2))
    seen, keep = set[tuple[str, bytes]](), list[int]()
    if result.names:
        seen.update((name, row.tobytes()) for name, row in zip(result.names, _written(result.boxes), strict=True))
    for i, name in enumerate(found.names):
        kind, box = _verdict(has_area[i], is_inside[i], is_clipped[i]), (name, written[i].tobytes())
        if kind in (None, CLIPPED):
            kind = DUPLICATE if box in seen else kind
            if kind != DUPLICATE:
                seen.add(box)
                keep.append(i)
        if kind:
            result.problems.add(kind, found.where(found.numbers[i]))
    result.boxes = np.concatenate([result.boxes, rows[keep]]) if result.names else rows[keep]
    result.names += [found.names[i] for i in keep]


def _written(rows: np.ndarray) -> np.ndarray:
    """What a label's numbers are told apart by."""
    return np.rint(rows / _UNIT)


def _verdict(has_area: bool, is_inside: bool, is_clipped: bool) -> str | None:
    if not has_area:
        return NO_AREA
    if not is_inside:
        return OUTSIDE
    return CLIPPED if is_clipped else None
