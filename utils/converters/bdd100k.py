"""BDD100K's JSON (Yu et al. 2020, "BDD100K"; format: doc.bdd100k.com): the lists of 2018 and of 2020, and a file an image."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.converters.base import Annotations, Entry, Found, Options, published_names
from utils.converters.tree import Pictures, Tree, nearest, note_unused, stem_of
from utils.core.errors import UserError
from utils.data.json_stream import JsonStream

NAME = "bdd100k"
RENAMED = {"pedestrian": "person", "bicycle": "bike", "motorcycle": "motor"}  # in the release of 2020
_SIDES = ("x1", "y1", "x2", "y2")
_DRAWN = re.compile(r"^(drivable area|area/|lane)")  # lines and areas, which have no box
# Which JSON files hold the boxes, the newest first; the others are of other tasks, or the same again
_RELEASES = (
    re.compile(r"(^|/)(det_20/|det_(train|val)[^/]*\.json$)"),
    re.compile(r"(^|/)bdd100k_labels_images_[^/]*\.json$"),
)


def read_bdd100k(source: Path, options: Options) -> Annotations:
    """images/100k/{train,val,test}/*.jpg with one of: labels/det_20/det_{train,val}.json (2020),
    labels/bdd100k_labels_images_{train,val}.json (2018), labels/100k/{train,val}/*.json, a file an image.

    The names of 2020 count as those of 2018. Raises UserError when there is no JSON file.
    """
    tree, result = Tree(source, options), Annotations([], published_names(NAME))
    pictures = Pictures(tree.pictures)
    files, single = _chosen(tree, pictures, result)
    if not files:
        raise tree.missing("JSON file with labels")
    for path in files:
        if single:
            _add(stem_of(path), path, path, tree, pictures, result)
        else:
            _read_list(path, tree, pictures, result)
    return note_unused(tree, result)


def _chosen(tree: Tree, pictures: Pictures, result: Annotations) -> tuple[list[str], bool]:
    """The files to read, and whether each is about a single image."""
    files = tree.files(".json")
    single = [path for path in files if stem_of(path) in pictures]
    rest = sorted(set(files) - set(single))
    releases = [[p for p in rest if pattern.search(tree.relative(p).lower())] for pattern in _RELEASES]
    kinds = [found for found in (*releases, single) if found] or [rest]
    for other in kinds[1:]:
        result.remarks.append(f"{tree.relative(kinds[0][0])} is used, {tree.relative(other[0])} isn't; choose with --only")
    return kinds[0], kinds[0] is single


def _read_list(path: str, tree: Tree, pictures: Pictures, result: Annotations) -> None:
    """A file that lists pictures: the list itself, or an object whose `frames` is it."""
    for key, number, frame in JsonStream(path):
        if key not in ("", "frames"):
            continue
        if not isinstance(frame, dict) or not isinstance(frame.get("name"), str):
            raise UserError(f"{path}: image number {number + 1}: has no `name`; not BDD100K's format")
        found = Found(f"{path}: {frame['name']}: label ")
        _add_labels(frame.get("labels"), found)
        _add(frame["name"], path, found, tree, pictures, result)


def _add(name: str, path: str, note: Any, tree: Tree, pictures: Pictures, result: Annotations) -> None:
    """An entry for the image `name` that the annotation file `path` is about."""
    near, splits = nearest(path), tree.split(path)

    def preference(picture: str) -> tuple[bool, bool, int]:  # images/10k has some of images/100k again
        return tree.split(os.path.dirname(picture)) != splits, "/100k/" not in tree.relative(picture), near(picture)

    match = pictures.find(name, preference, f"{path}: {name}")
    if match is None:
        result.problems.add("annotated images that aren't there, left out", f"{path}: {name}")
    else:
        result.entries.append(Entry(match.path, splits, (note,), match.misfit))


def parse_bdd100k(note: str | Found, options: Options) -> Found:
    """The labels of one picture: those of its own file, unless the reader has found them in a list."""
    if isinstance(note, Found):
        return note
    found = Found(f"{note}: label ")
    for key, _, item in JsonStream(note):
        if key == "frames" and isinstance(item, dict):
            _add_labels(item.get("objects") or item.get("labels"), found)
        elif key == "labels":
            _add_labels([item], found)
    return found


def _add_labels(labels: Any, found: Found) -> None:
    if not isinstance(labels, list | None):
        raise UserError(f"{found.place.rpartition(': ')[0]}: its labels aren't a list; not BDD100K's format")
    for number, label in enumerate(labels or (), found.seen + 1):
        _add_label(label, number, found)


def _add_label(label: Mapping[str, Any], number: int, found: Found) -> None:
    """Raises UserError for a label that isn't one."""
    try:
        category, box = label["category"], label.get("box2d")
        if not isinstance(category, str):
            raise TypeError("category is no text")
        if box:
            x1, y1, x2, y2 = (float(box[side]) for side in _SIDES)
            found.add_corners(RENAMED.get(category, category), number, (x1, y1), (x2, y2))
        elif _DRAWN.match(category):
            found.leave_out("lanes and drivable areas, left out", number)
        else:
            found.leave_out("labels without box2d, left out", number)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{found.where(number)}: not BDD100K's format ({type(error).__name__}: {error})") from None
