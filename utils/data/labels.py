"""Lists of images and their label files: a line `class cx cy w h` a box, normalised to 0..1 of the image."""

import contextlib
import functools
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from utils.core.errors import UserError
from utils.core.files import read_text
from utils.data.image_kinds import BESIDE, IMAGE, kind_of, left_out

MISSING_IMAGE = "listed images that aren't there"
NO_PICTURE = "files in the folder that are no images, left out"
TWO_PLACES = "labels in two places, the first taken"
CLIPPED = "boxes clipped to the image"
NO_AREA = "boxes without area in the image, dropped"
DUPLICATE = "duplicate boxes, dropped"
CONFIDENCE = "boxes with a confidence behind them, taken without it"
POLYGON = "polygons, taken as the boxes around them"
FAR = 2.0  # a coordinate above this is no share of an image's side
_ROUNDING = 1e-5  # labels are written with 6 digits: less than this outside the image is not worth a word

Finding = tuple[str, int]  # what was mended, in which line


@dataclass
class Problems:
    """What was mended or left out: a count of each kind and the first place it was seen at.

    >>> problems = Problems()
    >>> problems.add(NO_AREA, "labels/a.txt:3")
    >>> problems.add(NO_AREA, "labels/b.txt:1")
    >>> problems.summary()
    'boxes without area in the image, dropped: 2 (first: labels/a.txt:3)'
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
        return _folder_images(source, problems)
    lines = [line.strip() for line in read_text(source, "list of images", paths=True).split("\n")]
    listed = [(number, line) for number, line in enumerate(lines, 1) if line]
    if not listed:
        raise UserError.at(source, "this list of images is empty")
    base, found = os.path.dirname(source), []
    for number, line in listed:
        path = next((p for p in (line, os.path.join(base, line)) if os.path.isfile(p)), None)
        if path is None:
            problems.add(MISSING_IMAGE, f"{source}:{number}: {line}")
        else:
            found.append(path)
    if not found:
        raise UserError.at(source, f"none of the {len(listed)} images listed is there; the first is {listed[0][1]}")
    return found


def _folder_images(folder: str | Path, problems: Problems) -> list[str]:
    """Sorted; what else lies there and is neither labels nor hidden is noted in `problems`."""
    paths = [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]
    kinds = [(path, kind_of(path)) for path in paths]
    found = sorted(path for path, kind in kinds if kind == IMAGE)
    others = sorted(path for path, kind in kinds if kind not in (IMAGE, BESIDE))
    if not found:
        more = f"; {left_out(others, len(others))}" if others else ""
        raise UserError.at(folder, f"there are no images in this folder{more}")
    for path in others:
        problems.add(NO_PICTURE, path)
    return found


@functools.cache
def label_folders(folder: str) -> tuple[str, ...]:
    """Where the labels of a folder's images may be, in the order in which they are looked for. For the two Darknets' sake
    there are several: AlexeyAB's (replace_image_to_label) knows the first two, pjreddie's (fill_truth_detection) replaces words
    wherever they stand.

    1. The last folder named `images` or `JPEGImages`, or if there is none `raw`, becomes `labels`.
    2. Beside the image.
    3. The first `images`, the first `JPEGImages` and the first `raw` within any names all become `labels`.

    >>> label_folders("VOC/JPEGImages"), label_folders("set"), label_folders("train_images")
    (('VOC/labels', 'VOC/JPEGImages'), ('set',), ('train_images', 'train_labels'))
    """
    parts, found = folder.split(os.sep), []
    marked = [i for i, part in enumerate(parts) if part in ("images", "JPEGImages")]
    marked = marked or [i for i, part in enumerate(parts) if part == "raw"]
    if marked:
        found.append(os.sep.join([*parts[: marked[-1]], "labels", *parts[marked[-1] + 1 :]]))
    words = folder
    for word in ("images", "JPEGImages", "raw"):
        words = words.replace(word, "labels", 1)
    return tuple(dict.fromkeys([*found, folder, words]))


def label_places(image: str) -> list[str]:
    """The files that may hold an image's labels; the first that exists does."""
    folder, name = os.path.split(image)
    label = os.path.splitext(name)[0] + ".txt"
    return [os.path.join(place, label) for place in label_folders(folder)]


def label_path(image: str | Path) -> Path:
    """The label file of an image, or where it would be looked for first if it has none."""
    places = label_places(os.fspath(image))
    return Path(next(filter(os.path.isfile, places), places[0]))


def open_labels(image: str) -> BinaryIO:
    """The label file of an image, opened for reading; raises FileNotFoundError when it has none."""
    for place in label_places(image):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return open(place, "rb")
    raise FileNotFoundError(image)


def note_two_places(images: Iterable[str], problems: Problems) -> None:
    """Note the images that have a label file in more than one place: one of them may be out of date."""
    by_folder: dict[str, list[str]] = {}
    for image in images:
        folder, name = os.path.split(image)
        by_folder.setdefault(folder, []).append(name)
    for folder, names in by_folder.items():
        texts = {place: _text_files(place) for place in label_folders(folder)}
        if sum(map(bool, texts.values())) < 2:
            continue
        for name in names:
            label = os.path.splitext(name)[0] + ".txt"
            found = [os.path.join(place, label) for place, there in texts.items() if label in there]
            if len(found) > 1:
                problems.add(TWO_PLACES, " and ".join(found))


def _text_files(folder: str) -> frozenset[str]:
    try:
        return frozenset(name for name in os.listdir(folder or ".") if name.endswith(".txt"))
    except OSError:
        return frozenset()


def read_labels(image: str | Path, classes: int) -> tuple[np.ndarray | None, list[Finding]]:
    """The boxes of an image as parse_labels gives them, or None when it has no label file (a background image)."""
    try:
        with open_labels(os.fspath(image)) as file:
            path, data = file.name, file.read()
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        return None, []
    except (OSError, UnicodeDecodeError):
        raise UserError.at(label_path(image), "this label file cannot be read as text") from None
    return parse_labels(text, path, classes)


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
        return f"{where}: {far[:30]} is no share of the image, these are pixels; `check.py --data ... --fix` converts them"
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
