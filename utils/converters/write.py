"""Boxes of any source -> a dataset's folder that train.py reads, and what there is to say about it."""

import functools
import itertools
import os
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.converters.base import SPLITS, TEST, TRAIN, VALID, Annotations, Entry, Options
from utils.converters.examine import examine
from utils.converters.formats import FORMATS
from utils.converters.splits import completed
from utils.converters.tree import merge_repeated, stem_of
from utils.core.errors import UserError
from utils.core.files import make_folder, replacing, write_text
from utils.core.workers import WorkerPool
from utils.data.labels import Problems

_LEFTOVER = re.compile(r"^\..*\.tmp(\.\w+)?$")  # utils.core.files.replacing's, of a process that was killed


@dataclass(slots=True)
class Item:
    """One image to write: its file name in images/, class numbers (n), boxes (n, 4) as cx, cy, w, h of the image's
    sides, and (height, width) in pixels."""

    image: str
    target: str
    splits: tuple[str, ...]
    classes: np.ndarray
    boxes: np.ndarray
    shape: tuple[int, int]


@dataclass
class Report:
    """What was written: images of each split, boxes of each (class, split) and of each class in all (an image may be in
    two splits), what was mended or left out, and what was decided where the source left a choice."""

    data: Path
    names: list[str]
    images: dict[str, int]
    boxes: Counter[tuple[str, str]]
    class_boxes: Counter[str]
    total_images: int
    problems: Problems
    remarks: list[str]
    items: list[Item] = field(repr=False)


def convert(form: str, source: Path, out: Path, options: Options, *, copy: bool = False, workers: int = 1) -> Report:
    """Convert the dataset in `source` to `out`, in the format FORMATS[form]; class ids follow options.names, else the
    format's or the source's own order, else the alphabet.

    Images are hard links where the file system allows, or copies. Lists name them relative to their own folder, so that
    the folder can be moved. Everything is replaced file by file and the .data comes last, so that an interrupted conversion
    can be run again; the same source gives the same files. Raises UserError for annotations that cannot be understood, and
    when there is nothing to write.
    """
    result = FORMATS[form].read(source, options)
    entries = merge_repeated(result.entries, result.problems)
    with WorkerPool(workers) as pool:
        items, names = _look_through(form, entries, options, result, pool)
        for folder in (out, out / "images", out / "labels"):
            _remove_leftovers(make_folder(folder))
        for _ in pool.each(functools.partial(_write, out=str(out), copy=copy), items, f"Writing {out}"):
            pass
    return _write_lists(items, names, out, result)


def _look_through(
    form: str, entries: list[Entry], options: Options, result: Annotations, pool: WorkerPool
) -> tuple[list[Item], list[str]]:
    """Everything that will be written, and the class names."""
    readable, found, numbers = [], [], dict[str, int]()
    examined = pool.each(functools.partial(examine, form=form, options=options), entries, "Reading annotations")
    for entry, seen in zip(entries, examined, strict=True):
        result.problems.include(seen.problems)
        if seen.shape is None:
            continue
        readable.append(entry)
        found.append(([numbers.setdefault(name, len(numbers)) for name in seen.names], seen))
    if not numbers:
        raise UserError(f"no image with a box was found; {result.problems.summary() or 'check --src'}")
    names = list(options.names or result.names or sorted(numbers))
    order = np.array([names.index(name) for name in numbers], np.int64)
    targets = target_names([entry.image for entry in readable])
    splits = [entry.splits for entry in completed(readable, options.valid_share, result)]
    items = [
        Item(entry.image, targets[entry.image], split, order[classes], seen.boxes, seen.shape)
        for entry, split, (classes, seen) in zip(readable, splits, found, strict=True)
    ]
    return items, names


def target_names(images: list[str]) -> dict[str, str]:
    """A file name for every image, no two of one stem: those that share one get their folder's name in front, and a number
    where that isn't enough. Names that differ in their letters' case only count as the same, for file systems that say so."""
    stems, names, taken = Counter(stem_of(image).lower() for image in images), {}, set()
    for image in images:
        own = stem_of(image)
        stem = own if stems[own.lower()] == 1 else f"{os.path.basename(os.path.dirname(image))}_{own}"
        candidates = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
        chosen = next(c for c in candidates if c.lower() not in taken)
        taken.add(chosen.lower())
        names[image] = chosen + os.path.splitext(image)[1]
    return names


def _write(item: Item, out: str, copy: bool) -> None:
    """The image and its label file."""
    place_image(item.image, os.path.join(out, "images", item.target), copy)
    text = "".join(
        f"{number} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n"
        for number, (x, y, w, h) in zip(item.classes.tolist(), item.boxes.tolist(), strict=True)
    )
    path = os.path.join(out, "labels", f"{stem_of(item.target)}.txt")
    if not _holds(path, text):
        _write_label(path, text)


def _write_label(path: str, text: str) -> None:
    """As utils.core.files.write_text, which takes twice as long: there may be a hundred thousand, and no two of one name."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def _holds(path: str, text: str) -> bool:
    """Is this the file's content already?"""
    try:
        with open(path, "rb") as file:
            return file.read() == text.encode()
    except OSError:
        return False


def place_image(source: str, target: str, copy: bool) -> None:
    """Make `target` the same file as `source`, or a copy of it; leave it alone where it is already that."""
    source = os.path.realpath(source) if os.path.islink(source) else source
    if os.path.exists(target):
        have, want = os.stat(target), os.stat(source)
        same = os.path.samestat(have, want)
        if (same and not copy) or (not same and (have.st_size, have.st_mtime) == (want.st_size, want.st_mtime)):
            return
    if not copy and _linked(source, target):
        return
    with replacing(target) as temporary:
        shutil.copy2(source, temporary)


def _linked(source: str, target: str) -> bool:
    """Make a hard link; False on another file system, or one without hard links."""
    if os.path.lexists(target) and not os.path.isdir(target):
        os.unlink(target)
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def _remove_leftovers(folder: Path) -> None:
    for entry in os.scandir(folder):
        if entry.is_file() and _LEFTOVER.match(entry.name):
            os.unlink(entry.path)


def _write_lists(items: list[Item], names: list[str], out: Path, result: Annotations) -> Report:
    """The lists, .names and .data, called after their folder."""
    lists: dict[str, list[str]] = {split: [] for split in SPLITS}
    boxes, class_boxes = Counter(), Counter()
    for item in items:
        counts = np.bincount(item.classes, minlength=len(names))
        own = {names[number]: int(counts[number]) for number in np.flatnonzero(counts)}
        class_boxes.update(own)
        for split in item.splits:
            lists[split].append(f"images/{item.target}\n")
            boxes.update({(name, split): count for name, count in own.items()})
    name = out.resolve().name
    for split in SPLITS:
        if lists[split] or split != TEST:
            write_text(out / f"{split}.txt", "".join(sorted(lists[split])))
    write_text(out / f"{name}.names", "".join(f"{n}\n" for n in names))
    text = f"classes={len(names)}\ntrain={TRAIN}.txt\nvalid={VALID}.txt\nnames={name}.names\n"
    write_text(out / f"{name}.data", text + (f"test={TEST}.txt\n" if lists[TEST] else ""))
    images = {split: len(lists[split]) for split in SPLITS if lists[split] or split != TEST}
    return Report(out / f"{name}.data", names, images, boxes, class_boxes, len(items), result.problems, result.remarks, items)
