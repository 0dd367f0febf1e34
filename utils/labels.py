"""Lists of images and their label files: a line `class cx cy w h` a box, normalised to 0..1 of the picture."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import read_text
from utils.imagesize import is_image

MISSING_IMAGE = "listed images that aren't there"
CLIPPED = "boxes clipped to the picture"
NO_AREA = "boxes without area in the picture, dropped"
DUPLICATE = "duplicate boxes, dropped"
CONFIDENCE = "boxes with a confidence behind them, taken without it"
POLYGON = "polygons, taken as the boxes around them"
FAR = 2.0  # a coordinate above this is no share of a picture's side
_ROUNDING = 1e-5  # labels are written with 6 digits: less than this outside the picture is not worth a word

Finding = tuple[str, int]  # what was mended, in which line


@dataclass
class Problems:
    """What was mended or left out: a count of each kind and the first place it was seen at.

    >>> problems = Problems()
    >>> problems.add(NO_AREA, "labels/a.txt:3")
    >>> problems.add(NO_AREA, "labels/b.txt:1")
    >>> problems.summary()
    'boxes without area in the picture, dropped: 2 (first: labels/a.txt:3)'
    """

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, where: str, count: int = 1) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + count
        self.first.setdefault(kind, where)

    def include(self, others: "Problems") -> None:
        for kind, count in others.counts.items():
            self.add(kind, others.first[kind], count)

    def summary(self) -> str:
        """One line, empty when there was nothing."""
        return "; ".join(f"{kind}: {count} (first: {self.first[kind]})" for kind, count in self.counts.items())


def image_paths(source: str | Path, problems: Problems) -> list[str]:
    """The images of a list (a text file, one path a line) or of a folder and the folders in it.

    A relative path in a list is looked up from the working directory, then beside the list. Images that aren't there
    are left out and noted in `problems`. Raises UserError when there is no such list, or nothing in it.
    """
    if os.path.isdir(source):
        found = [os.path.join(folder, name) for folder, _, names in os.walk(source) for name in names if is_image(name)]
        if not found:
            raise UserError(f"{source}: there are no images in this folder")
        return sorted(found)
    lines = [line.strip() for line in read_text(source, "list of images", paths=True).splitlines()]
    listed = [(number, line) for number, line in enumerate(lines, 1) if line]
    if not listed:
        raise UserError(f"{source}: this list of images is empty")
    base, found = os.path.dirname(source), []
    for number, line in listed:
        path = next((p for p in (line, os.path.join(base, line)) if os.path.isfile(p)), None)
        if path is None:
            problems.add(MISSING_IMAGE, f"{source}:{number}: {line}")
        else:
            found.append(path)
    if not found:
        raise UserError(f"{source}: none of the {len(listed)} images listed is there; the first is {listed[0][1]}")
    return found


def label_path(image: str | Path) -> Path:
    """images/x.jpg -> labels/x.txt: the last folder named `images` becomes `labels`; without one, beside the image."""
    parts = (os.path.splitext(image)[0] + ".txt").split(os.sep)  # strings: ten times as fast as Path.with_suffix
    for position in range(len(parts) - 2, -1, -1):
        if parts[position] == "images":
            parts[position] = "labels"
            break
    return Path(os.sep.join(parts))


def read_labels(image: str | Path, classes: int) -> tuple[np.ndarray | None, list[Finding]]:
    """The boxes of an image as parse_labels gives them, or None when it has no label file (a background image)."""
    path = label_path(image)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None, []
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: this label file cannot be read as text") from None
    return parse_labels(text, str(path), classes)


def as_one_class(rows: np.ndarray) -> np.ndarray:
    """Boxes (n, 5) with class 0 for all; what only differed in its class is there once."""
    return np.array(list(dict.fromkeys((0.0, *row[1:]) for row in map(tuple, rows.tolist()))), np.float32).reshape(-1, 5)


def parse_labels(text: str, name: str, classes: int) -> tuple[np.ndarray, list[Finding]]:
    """Parse the text of a label file `name`.

    Returns ((n, 5) float32 rows class, cx, cy, w, h within 0..1, what was mended and in which line). Rows of other forms
    are read as box_fields does; boxes that reach outside are clipped; those without area and repeated ones are dropped.
    Raises UserError naming the line for a row of no known form, for pixels and for a class that isn't 0..classes-1.
    """
    rows = [(number, fields) for number, line in enumerate(text.split("\n"), 1) if (fields := line.split())]
    if not rows:
        return np.zeros((0, 5), np.float32), []
    values, forms = _values(rows), []
    if values.shape[1:] != (5,):
        boxes = [(number, *box_fields(fields)) for number, fields in rows]
        rows, forms = [(number, fields) for number, fields, _ in boxes], [(form, number) for number, _, form in boxes if form]
        values = _values(rows)
    ids = values[:, :1]
    if (
        values.shape[1:] != (5,)
        or not np.isfinite(values).all()
        or (values[:, 1:] > FAR).any()
        or ((ids < 0) | (ids >= classes) | (ids % 1 != 0)).any()
    ):
        raise UserError(next(filter(None, (_mistake(*row, name, classes) for row in rows))))
    labels, findings = _mended(values, [number for number, _ in rows])
    return labels, forms + findings


def _values(rows: list[tuple[int, list[str]]]) -> np.ndarray:
    """(n, fields a row) float64; empty where the rows aren't numbers, or not the same number of them."""
    try:
        return np.array([fields for _, fields in rows], np.float64)
    except ValueError:
        return np.zeros((0, 0))


def box_fields(fields: list[str]) -> tuple[list[str], str | None]:
    """A row as `class cx cy w h`, and as what its other form was read, if it has one.

    Six numbers, the last within 0..1, are a box and its confidence, as detect.py --save-txt writes them; an odd number from
    seven on are a class and the corners x y of a polygon, as files for segmentation have them.

    >>> box_fields("3 0.1 0.2 0.5 0.2 0.3 0.6".split())
    (['3', '0.3', '0.4', '0.4', '0.39999999999999997'], 'polygons, taken as the boxes around them')
    """
    try:
        values = [float(text) for text in fields]
    except ValueError:
        return fields, None
    if len(values) == 6 and 0 <= values[5] <= 1:
        return fields[:5], CONFIDENCE
    if len(values) < 7 or len(values) % 2 == 0:
        return fields, None
    sides = [(min(side), max(side)) for side in (values[1::2], values[2::2])]
    numbers = [*((low + high) / 2 for low, high in sides), *(high - low for low, high in sides)]
    return [fields[0], *map(repr, numbers)], POLYGON


def _mistake(number: int, fields: list[str], name: str, classes: int) -> str | None:
    """What is wrong with this row, if anything."""
    where = f"{name}:{number}"
    if len(fields) != 5:
        return f"{where}: expected 5 numbers `class cx cy w h`, found {len(fields)}: {' '.join(fields)[:60]}"
    for text in fields:
        try:
            finite = math.isfinite(float(text))
        except ValueError:
            finite = False
        if not finite:
            return f"{where}: {text[:30]} is not a number; expected `class cx cy w h`"
    if float(fields[0]) not in range(classes):
        return f"{where}: class {fields[0]}, but the .data has classes={classes} (0..{classes - 1})"
    far = next((text for text in fields[1:] if float(text) > FAR), None)
    if far:
        return f"{where}: {far[:30]} is no share of the picture, these are pixels; `check.py --data ... --fix` converts them"
    return None


def _mended(values: np.ndarray, numbers: list[int]) -> tuple[np.ndarray, list[Finding]]:
    """Clip, drop, and say so; `numbers` are the lines that the rows of `values` stand in."""
    centre, half = values[:, 1:3], values[:, 3:5] / 2
    low, high = (centre - half).clip(0, 1), (centre + half).clip(0, 1)
    outside = np.maximum(half - centre, centre + half - 1).max(1) > _ROUNDING
    empty = (high - low).min(1) <= 1e-9
    values[outside, 1:] = np.concatenate([(low + high) / 2, high - low], 1)[outside]
    findings = [(NO_AREA if empty[i] else CLIPPED, numbers[i]) for i in np.flatnonzero(outside | empty)]
    keep = ~empty
    if len(values) > 1:
        seen: set[tuple[float, ...]] = set()
        for i, row in enumerate(map(tuple, values.tolist())):
            if keep[i] and row in seen:
                keep[i] = False
                findings.append((DUPLICATE, numbers[i]))
            seen.add(row)
    return values[keep].astype(np.float32), findings
