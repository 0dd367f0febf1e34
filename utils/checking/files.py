"""One pass over the images and label files of a split, in parallel: what of them can be used and what is wrong.

    list or folder -> paths -> WorkerPool: examine(path) -> Split

Unlike utils.data.datasets.scan, which stops at the first row that training can't use, this goes on and counts.
"""

import functools
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.checking.findings import ERROR, NOTE, WARNING, Split
from utils.core.errors import UserError
from utils.core.workers import WorkerPool
from utils.data.image_size import NO_END, CutShortError, measure
from utils.data.images import FEWER_BITS, libraries_silenced, read_picture
from utils.data.labels import (
    CLIPPED,
    CONFIDENCE,
    DUPLICATE,
    FAR,
    MISSING_IMAGE,
    NO_AREA,
    NO_PICTURE,
    POLYGON,
    TWO_PLACES,
    Finding,
    box_fields,
    image_paths,
    label_path,
    note_two_places,
    open_labels,
    parse_labels,
)

CUT = "images cut short"
CORRUPT = "images that cannot be read"
DAMAGED = "images damaged inside"
NO_LABEL = "images without label file"
EMPTY_LABEL = "images without boxes (background)"
NO_TEXT = "label files that are no text"
NO_ROW = "label rows that aren't five numbers"
NOT_FINITE = "label values that are nan or infinite"
NO_CLASS = "labels of classes that the .data doesn't have"
PIXELS = "boxes in pixels instead of shares"

ROW = "a row is `class cx cy w h`"
# kind -> (severity, what to do about it)
KINDS: dict[str, tuple[str, str]] = {
    MISSING_IMAGE: (ERROR, "mend the paths: relative ones count from the working directory, then from the list's folder"),
    CUT: (ERROR, "get these files again; training leaves them out"),
    CORRUPT: (ERROR, "get these files again; training leaves them out"),
    DAMAGED: (ERROR, "get these files again; training would see gray or noise"),
    NO_PICTURE: (NOTE, "convert those that are images in a format that OpenCV can't read, such as HEIC"),
    NO_END: (NOTE, "nothing has to be done here; other programs may refuse them"),
    **dict.fromkeys(FEWER_BITS.values(), (NOTE, "right unless they are that dark; other programs see them nearly black")),
    TWO_PLACES: (WARNING, "remove those that are out of date"),
    NO_LABEL: (WARNING, "label them; those that show no object get an empty file (--fix writes it)"),
    EMPTY_LABEL: (NOTE, "right if they show no object: they teach what to leave alone"),
    NO_TEXT: (ERROR, "write them as UTF-8 text"),
    NO_ROW: (ERROR, f"{ROW}, without commas"),
    NOT_FINITE: (ERROR, f"{ROW}, with numbers"),
    NO_CLASS: (ERROR, "ids count from 0; mend them, or classes= and the names"),
    PIXELS: (ERROR, "divide cx and w by the image's width, cy and h by its height"),
    NO_AREA: (WARNING, "remove them; training drops them"),
    CLIPPED: (WARNING, "look at some: are they `cx cy w h`, not corners? training clips them"),
    CONFIDENCE: (WARNING, "look at some: are these detections what is to be learned? their confidences count for nothing"),
    POLYGON: (WARNING, "look at some: are they outlines, or key points? training learns the boxes around them"),
    DUPLICATE: (WARNING, "remove them; training drops them"),
}

EDGE = 4096  # bytes at both ends of a file that its print is made of
SHOWN = 40  # characters of a faulty row
NO_BOXES = np.zeros((0, 5), np.float32)


@dataclass(slots=True)
class Examined:
    """What was seen of one picture: (height, width), None where it can't be read; usable boxes (n, 5); the file's print
    (see file_print); what is wrong, and where."""

    shape: tuple[int, int] | None
    rows: np.ndarray
    print: int
    problems: list[tuple[str, str]]


def survey(name: str, source: Path, classes: int, workers: int = 1, decode: bool = False) -> Split:
    """Look through the images of a list or folder, their headers (with `decode` all of their pixels) and label files.

    classes: how many there may be. workers: processes; 1: none besides this one. Raises UserError when there is no such
    list or nothing in it.
    """
    split = Split(name, source)
    paths = image_paths(source, split.problems)
    shapes, prints = [], []
    with WorkerPool(workers) as pool:
        examined = pool.each(functools.partial(examine, classes=classes, decode=decode), paths, f"Checking {source}")
        for path, seen in zip(paths, examined, strict=True):
            for kind, where in seen.problems:
                split.problems.add(kind, where)
            if seen.shape is not None:
                split.paths.append(path)
                split.labels.append(seen.rows)
                shapes.append(seen.shape)
                prints.append(seen.print)
    note_two_places(split.paths, split.problems)
    split.shapes, split.prints = np.array(shapes, np.int64).reshape(-1, 2), np.array(prints, np.uint64)
    return split


def examine(path: str, classes: int, decode: bool) -> Examined:
    """One image and its labels."""
    problems: list[tuple[str, str]] = []
    shape = _picture_shape(path, decode, problems)
    if shape is None:
        return Examined(None, NO_BOXES, 0, problems)
    return Examined(shape, _boxes(path, shape, classes, problems), file_print(path), problems)


def _picture_shape(path: str, decode: bool, problems: list[tuple[str, str]]) -> tuple[int, int] | None:
    """(height, width), or None for an image that can't be used, which is then noted."""
    try:
        height, width, remark = measure(path)
    except ValueError as error:
        problems.append((CUT if isinstance(error, CutShortError) else CORRUPT, f"{path} ({error})"))
        return None
    if remark:
        problems.append((remark, path))
    complaint = _decoding_complaint(path) if decode else ""
    if complaint:
        problems.append((DAMAGED, f"{path} ({complaint})"))
        return None
    return height, width


def _decoding_complaint(path: str) -> str:
    """What the decoder says against an image. libjpeg says it on stderr only, and gives an image that is half gray."""
    with tempfile.TemporaryFile() as said:
        with libraries_silenced(said.fileno()):
            image = read_picture(path)
        said.seek(0)
        words = said.read().decode(errors="replace").strip().splitlines()
    return words[0] if words else "" if image is not None else "not an image that OpenCV can read"


def file_print(path: str) -> int:
    """A number that files of the same content share; others share it too if they are alike at both ends."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        ends = file.read(EDGE)
        if size > EDGE:
            file.seek(max(EDGE, size - EDGE))
            ends += file.read()
    return int.from_bytes(hashlib.blake2b(ends, digest_size=8, salt=size.to_bytes(16, "little")).digest(), "little")


def content_hash(path: str) -> bytes:
    """Of the whole file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _boxes(path: str, shape: tuple[int, int], classes: int, problems: list[tuple[str, str]]) -> np.ndarray:
    """(n, 5) the boxes of an image that can be used; what is wrong with its labels is noted."""
    label = ""
    try:
        with open_labels(path) as file:  # text mode takes twice as long
            label = file.name
            text = file.read().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        problems.append((NO_LABEL, path))
        return NO_BOXES
    except (OSError, UnicodeDecodeError):
        problems.append((NO_TEXT, label or str(label_path(path))))
        return NO_BOXES
    rows, findings = usable_rows(text, label, shape, classes)
    lines = text.split("\n") if findings else []
    problems += [(kind, f"{label}:{line} ({lines[line - 1].strip()[:SHOWN]})") for kind, line in findings]
    if not text.strip():
        problems.append((EMPTY_LABEL, label))
    return rows


def usable_rows(text: str, name: str, shape: tuple[int, int], classes: int) -> tuple[np.ndarray, list[Finding]]:
    """((n, 5) boxes as utils.data.labels.parse_labels gives them, what was found in which line), whatever the text holds.

    Rows in pixels are divided by the image's `shape` (height, width); rows that mean nothing are left out.
    """
    try:
        rows, findings = parse_labels(text, name, classes)
        if not findings:
            return rows, findings
    except UserError:
        pass
    lines, faults = [], []
    for number, line in enumerate(text.split("\n"), 1):
        fields, _ = box_fields(line.split())
        kind = _fault(fields, classes) if fields else None
        if kind:
            faults.append((kind, number))
            line = _shares(fields, shape) if kind == PIXELS else ""
        lines.append(line)  # an empty one keeps the numbers of those that follow
    rows, findings = parse_labels("\n".join(lines), name, classes)
    return rows, faults + findings


def _fault(fields: list[str], classes: int) -> str | None:
    """What training would refuse this row for."""
    try:
        values = np.array(fields, np.float64)
    except ValueError:
        return NO_ROW
    if len(values) != 5:
        return NO_ROW
    if not np.isfinite(values).all():
        return NOT_FINITE
    if not 0 <= values[0] < classes or values[0] % 1:
        return NO_CLASS
    return PIXELS if values[1:].max() > FAR else None


def _shares(fields: list[str], shape: tuple[int, int]) -> str:
    height, width = shape
    sides = (width, height, width, height)
    return " ".join([fields[0], *(repr(float(v) / side) for v, side in zip(fields[1:], sides, strict=True))])
