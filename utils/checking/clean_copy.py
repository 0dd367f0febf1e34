"""A cleaned copy of a dataset, made of what a check could use of it. The originals are only read."""

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.checking.findings import Subject
from utils.converters.write import place_image, target_names
from utils.core.errors import UserError
from utils.core.files import check_writable, make_folder, write_text


@dataclass
class Fix:
    """What was written: the new .data, its images; and how many were left out: those that were in their split already, and
    those of train that valid has, too."""

    data: Path
    pictures: int
    repeated: int
    overlapping: int


def write_clean(subject: Subject, out: Path) -> Fix:
    """Write the readable images (hard links where the file system allows) and their usable boxes to the new folder `out`,
    with lists, .names and .data. Those have absolute paths: relative ones count from the working directory first, which may
    be that of the originals.

    Rows in pixels become shares, clipped boxes stay clipped; rows that can't be used, boxes without area and repeated ones
    are gone. An image without label file gets an empty one. Of images of one content the first stays in each split, and
    valid's are taken out of train, unless nothing would be left of it. Raises UserError when `out` holds something or there
    is nothing to write.
    """
    check_folder(out)
    if subject.data is None or not subject.data.classes or not any(split.paths for split in subject.splits):
        raise UserError("--fix: without classes and images there is nothing to write; mend the .data file first")
    folder = out.resolve()
    again = {(name, path) for group in subject.twins for name, path in _later(group)}
    shared = _shared(subject)
    lists = {s.name: [p for p in s.paths if (s.name, p) not in again | shared] for s in subject.splits}
    lists = {name: list(dict.fromkeys(paths)) for name, paths in lists.items()}
    targets = target_names(list(dict.fromkeys(path for paths in lists.values() for path in paths)))
    rows = {path: labels for split in subject.splits for path, labels in zip(split.paths, split.labels, strict=True)}
    with _whole_folder(folder) as work:
        for kind in ("images", "labels"):
            make_folder(work / kind)
        for path, target in tqdm(targets.items(), desc=f"Writing {out}", delay=1):
            place_image(path, str(work / "images" / target), copy=False)
            write_text(work / "labels" / f"{os.path.splitext(target)[0]}.txt", _label_text(rows[path]))
        for name, paths in lists.items():
            write_text(work / f"{name}.txt", "".join(f"{folder / 'images' / targets[path]}\n" for path in paths))
        _write_data(subject, work, folder)
    return Fix(out / f"{folder.name}.data", len(targets), len(again - shared), len(shared))


def check_folder(out: Path) -> None:
    """Raises UserError for a folder that a cleaned copy can't be written to."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already and not empty; choose another folder with --out")
    if "\n" in str(out.resolve()):
        raise UserError(f"{str(out.resolve())!r}: a line of a .data file can't hold a line break; choose another with --out")
    check_writable(out / "images")


@contextlib.contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder beside the new or empty `folder`, which takes its place when the block ends without an exception, and
    of which nothing is left otherwise."""
    work = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
    try:
        yield make_folder(work)
        work.replace(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _later(group: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The images of a group but the first of each split; one that is listed twice is the same image."""
    first: dict[str, str] = {}
    for name, path in group:
        first.setdefault(name, path)
    return [(name, path) for name, path in group if path != first[name]]


def _shared(subject: Subject) -> set[tuple[str, str]]:
    """The images of train that valid has, too; none if they are all that it could learn from."""
    train = subject.split("train")
    groups = [group for group in subject.twins if any(name == "valid" for name, _ in group)]
    shared = {(name, path) for group in groups for name, path in group if name == "train"}
    boxes = zip(train.paths, train.labels, strict=True) if train else ()
    return shared if any(len(rows) for path, rows in boxes if ("train", path) not in shared) else set()


def _label_text(rows: np.ndarray) -> str:
    return "".join(f"{int(c)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for c, x, y, w, h in rows.tolist())


def _write_data(subject: Subject, work: Path, folder: Path) -> None:
    """The .names and the .data, called after the `folder` that `work` will be."""
    data, names = subject.data, folder / f"{folder.name}.names"
    write_text(work / names.name, "".join(f"{n}\n" for n in unique(data.names)))
    lists = [f"{split.name}={folder / split.name}.txt" for split in subject.splits]
    write_text(work / f"{folder.name}.data", "\n".join([f"classes={data.classes}", *lists, f"names={names}"]) + "\n")


def unique(names: list[str]) -> list[str]:
    """Names that tell classes apart: those that are given twice get their number behind them.

    >>> unique(["a", "b", "a"])
    ['a 0', 'b', 'a 2']
    """
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name} {number}" for number, name in enumerate(names)]
