"""The files of a raw dataset, and what their names and folders say."""

import filecmp
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from utils.converters.base import TEST, TRAIN, VALID, Annotations, Entry, Options
from utils.core.errors import UserError
from utils.data.file_names import folded, path_parts, shared_parts, stem_of, without_suffix
from utils.data.image_kinds import BESIDE, IMAGE, is_image, kind_of
from utils.data.labels import NO_PICTURE, Problems

_SPLIT_WORDS = {
    "train": TRAIN, "training": TRAIN, "trainval": TRAIN, "val": VALID, "valid": VALID, "validation": VALID, "test": TEST,
    "testing": TEST,
}  # fmt: skip
_WORD = re.compile(f"(?<![a-z])({'|'.join(sorted(_SPLIT_WORDS, key=len, reverse=True))})(?![a-z])")
_MASKS = re.compile(r"(^|/)(annotations?|labels?|[a-z]*masks?|colormaps?|trimaps?|panoptic\w*|segmentation(class|object))/")


class Tree:
    """All files under `root`, sorted; hidden ones and those of the folder that is written (options.out) left out.
    `pictures` are those to learn from: masks, which often have the same names, lie in folders of other kinds. `others` are
    neither images nor what describes them.

    `--only` (options.only) narrows `files`, but not `pictures`.
    """

    def __init__(self, root: Path, options: Options) -> None:
        self.root, self.only = str(root), options.only
        self.paths = sorted(_walk(self.root, {_identity(options.out)} if options.out and options.out.exists() else set()))
        kinds = [(path, kind_of(path)) for path in self.paths]
        self.others = [path for path, kind in kinds if kind not in (IMAGE, BESIDE)]
        pictures = [path for path, kind in kinds if kind == IMAGE]
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


class Match(NamedTuple):
    """An image, and how badly it fits: of two annotations that match the same image, the one with less is its own."""

    path: str
    misfit: tuple[int, bool, Any]


class Pictures:
    """Images by name; what `folded` ignores, and the suffix, may differ where no image has the very name."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._by_stem: dict[str, list[str]] = {}
        for path in paths:
            self._by_stem.setdefault(folded(stem_of(path)), []).append(path)

    def __contains__(self, name: str) -> bool:
        return folded(without_suffix(name)) in self._by_stem

    def matches(self, name: str, preference: Callable[[str], Any]) -> list[Match]:
        """The images that `name`, with or without folders and suffix, fits best: those that share most of its folders, then
        those of the very name, then those with the least `preference`. Several where that doesn't decide."""
        name = name.replace("\\", "/")
        folders, _, own = name.rpartition("/")
        paths = self._by_stem.get(folded(without_suffix(own)), [])
        parts, part = path_parts(name) if folders else [], os.path.basename if is_image(own) else stem_of
        misfits = [
            (-shared_parts(parts, path_parts(path)) if folders else -1, part(path) != own, preference(path)) for path in paths
        ]
        return [Match(*pair) for pair in zip(paths, misfits, strict=True) if pair[1] == min(misfits)]

    def find(self, name: str, preference: Callable[[str], Any], place: str) -> Match | None:
        """The one of `matches`. Raises UserError naming the annotation `place` where several images that differ fit alike."""
        return only(self.matches(name, preference), place)


def only(matches: list[Match], place: str) -> Match | None:
    """The first, of which the others must be copies; UserError naming the annotation `place` if they aren't."""
    for other in matches[1:]:
        if not filecmp.cmp(matches[0].path, other.path, shallow=False):
            raise UserError(f"{place}: may be about {matches[0].path} or {other.path}; move one of them away, or rename it "
                            "and its annotation")  # fmt: skip
    return matches[0] if matches else None


def nearest(path: str) -> Callable[[str], int]:
    """Pictures.find's preference for those that share the longest way with `path`."""
    parts = path.split(os.sep)[:-1]

    def distance(other: str) -> int:
        shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(parts, other.split(os.sep)[:-1], strict=False))
        return -sum(1 for _ in shared)

    return distance


def read_paired(source: Path, options: Options, suffix: str, names: list[str]) -> Annotations:
    """An entry for each annotations/*`suffix` that an image of its name belongs to; splits by the folders' names.

    Raises UserError when there is no annotation.
    """
    tree, result = Tree(source, options), Annotations([], names)
    files = tree.files(suffix, "annotations")
    if not files:
        raise tree.missing(f"annotations/*{suffix}")
    pictures = Pictures(tree.pictures)
    for path in files:
        match = pictures.find(stem_of(path), nearest(path), path)
        if match is None:
            result.problems.add("annotations without image, left out", path)
        else:
            result.entries.append(Entry(match.path, tree.split(os.path.dirname(path)), (path,), match.misfit))
    return note_unused(tree, result)


def note_unused(tree: Tree, result: Annotations) -> Annotations:
    """Count the images that no entry is about, and the files of other kinds."""
    used = {entry.image for entry in result.entries}
    unused = [path for path in tree.pictures if path not in used]
    for kind, paths in (("images without annotation, left out", unused), (NO_PICTURE, tree.others)):
        if paths:
            result.problems.add(kind, paths[0], len(paths))
    return result


def merge_repeated(entries: list[Entry], problems: Problems) -> list[Entry]:
    """One entry an image, with the annotations and splits of all that fit it alike, as where an image is listed twice.
    Where some fit it better, the others are about another image of its name, which isn't there."""
    merged: dict[str, Entry] = {}
    for entry in entries:
        first = merged.setdefault(entry.image, entry)
        if first is entry:
            continue
        if entry.misfit == first.misfit:
            problems.add("annotations of an image that has one already, put together", entry.image)
            first.notes, splits = first.notes + entry.notes, first.splits + entry.splits
            first.splits = tuple(dict.fromkeys(splits))
        else:
            problems.add("annotations that another image of the same name lacks, left out", entry.image)
            merged[entry.image] = min(first, entry, key=lambda e: e.misfit)
    return list(merged.values())
