"""The files of a raw dataset, and what their names and folders say."""

import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from utils.converters.base import TEST, TRAIN, VALID, Annotations, Entry, Options
from utils.errors import UserError
from utils.imagesize import is_image
from utils.labels import Problems

_SPLIT_WORDS = {
    "train": TRAIN, "training": TRAIN, "trainval": TRAIN, "val": VALID, "valid": VALID, "validation": VALID, "test": TEST,
    "testing": TEST,
}  # fmt: skip
_WORD = re.compile(f"(?<![a-z])({'|'.join(sorted(_SPLIT_WORDS, key=len, reverse=True))})(?![a-z])")
_MASKS = re.compile(r"(^|/)(annotations?|labels?|[a-z]*masks?|colormaps?|trimaps?|panoptic\w*|segmentation(class|object))/")


class Tree:
    """All files under `root`, sorted; hidden ones and those of the folder that is written (options.out) left out.
    `pictures` are those to learn from: masks, which often have the same names, lie in folders of other kinds.

    `--only` (options.only) narrows `files`, but not `pictures`.
    """

    def __init__(self, root: Path, options: Options) -> None:
        self.root, self.only = str(root), options.only
        self.paths = sorted(_walk(self.root, {_identity(options.out)} if options.out and options.out.exists() else set()))
        pictures = [path for path in self.paths if is_image(path)]
        self.pictures = [path for path in pictures if not _MASKS.search(self.relative(path).lower())] or pictures

    def files(self, suffix: str, folder: str = "") -> list[str]:
        """Files that end in `suffix`, in a folder called `folder` (at any depth, in any case) if that is given."""
        ending = [p for p in self.paths if p.lower().endswith(suffix) and self.only in self.relative(p)]
        return [p for p in ending if not folder or folder in self.relative(p).lower().split("/")[:-1]]

    def missing(self, what: str) -> UserError:
        """What to raise when there are no annotations."""
        wanted = f" whose path has {self.only!r} in it" if self.only else ""
        return UserError(
            f"{self.root}: there is no {what}{wanted} in this folder; check --src{' and --only' if wanted else ''}"
        )

    def relative(self, path: str) -> str:
        """Below the root, parts joined by `/` everywhere."""
        return path[len(self.root) :].lstrip(os.sep).replace(os.sep, "/")

    def split(self, path: str) -> tuple[str, ...]:
        """The split that the path below the root names: (TRAIN,) for train/..., instances_train2017.json, ...; or none."""
        return split_of(self.relative(path))


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _walk(folder: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    """Files under a folder, through symbolic links too, each folder once."""
    identity = _identity(folder)
    if identity in seen:
        return
    seen.add(identity)
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"{folder}: this folder cannot be read ({error.strerror}); change its permissions") from None
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if entry.is_dir():
            yield from _walk(entry.path, seen)
        elif entry.is_file():
            yield entry.path


def split_of(text: str) -> tuple[str, ...]:
    """The last word of a split in a path, as Entry.splits.

    >>> split_of("annotations/instances_train2017"), split_of("VisDrone2019-DET-test-dev/images"), split_of("trains")
    (('train',), ('test',), ())
    """
    words = _WORD.findall(text.lower())
    return (_SPLIT_WORDS[words[-1]],) if words else ()


class Pictures:
    """Pictures by name; what `folded` ignores, and the suffix, may differ where no picture has the very name."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._by_stem: dict[str, list[str]] = {}
        for path in paths:
            self._by_stem.setdefault(folded(stem_of(path)), []).append(path)

    def __contains__(self, name: str) -> bool:
        return folded(_without_suffix(name)) in self._by_stem

    def find(self, name: str, preference: Callable[[str], Any]) -> str | None:
        """The picture of this file name, with or without suffix; of several the one with the least `preference`."""
        found = self._by_stem.get(folded(_without_suffix(name)), [])
        if len(found) < 2:
            return found[0] if found else None
        part = os.path.basename if is_image(name) else stem_of
        return min(found, key=lambda path: (part(path) != name, preference(path), path))


def folded(text: str) -> str:
    """The same for names that differ in their letters' case or in Unicode's two ways to write an accent."""
    return (text if text.isascii() else unicodedata.normalize("NFC", text)).casefold()


def stem_of(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _without_suffix(name: str) -> str:
    """`name` less a picture's suffix; what follows another dot belongs to the name."""
    return os.path.splitext(name)[0] if is_image(name) else name


def nearest(path: str) -> Callable[[str], int]:
    """Pictures.find's preference for those that share the longest way with `path`."""
    parts = path.split(os.sep)[:-1]

    def distance(other: str) -> int:
        shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(parts, other.split(os.sep)[:-1], strict=False))
        return -sum(1 for _ in shared)

    return distance


def read_paired(source: Path, options: Options, suffix: str, names: list[str]) -> Annotations:
    """An entry for each annotations/*`suffix` that a picture of its name belongs to; splits by the folders' names.

    Raises UserError when there is no annotation.
    """
    tree, result = Tree(source, options), Annotations([], names)
    files = tree.files(suffix, "annotations")
    if not files:
        raise tree.missing(f"annotations/*{suffix}")
    pictures = Pictures(tree.pictures)
    for path in files:
        image = pictures.find(stem_of(path), nearest(path))
        if image is None:
            result.problems.add("annotations without picture, left out", path)
        else:
            result.entries.append(Entry(image, tree.split(os.path.dirname(path)), path))
    return note_unused(tree.pictures, result)


def note_unused(pictures: list[str], result: Annotations) -> Annotations:
    """Count the pictures that no entry is about."""
    used = {entry.image for entry in result.entries}
    unused = [path for path in pictures if path not in used]
    if unused:
        result.problems.add("pictures without annotation, left out", unused[0], len(unused))
    return result


def merge_repeated(entries: list[Entry], problems: Problems) -> list[Entry]:
    """One entry a picture: the first annotation counts, in the splits of all of them."""
    merged: dict[str, Entry] = {}
    for entry in entries:
        first = merged.setdefault(entry.image, entry)
        if first is not entry:
            problems.add("annotations of a picture that has one already, left out", entry.image)
            first.splits = tuple(dict.fromkeys(first.splits + entry.splits))
    return list(merged.values())
