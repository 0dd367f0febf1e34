"""COCO's instances_*.json (Lin et al. 2014, "Microsoft COCO"; format: cocodataset.org/#format-data)."""

import os
import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.converters.base import Annotations, Entry, Found, Options
from utils.converters.jsonstream import JsonStream
from utils.converters.tree import Pictures, Tree, nearest, note_unused
from utils.errors import UserError
from utils.labels import Problems

_NEEDED = ("images", "annotations", "categories")
_RELEASE = re.compile(r"(?:train|val|test)(20\d\d)")
_FIELDS = 6  # of a box in _File.boxes: number of its category, its own number, x, y, w, h


@dataclass
class _File:
    """What counts of one file. Annotations may precede the categories and images that they refer to."""

    path: str
    images: list[tuple[Any, str, int, int]] = field(default_factory=list)  # id, file name, width, height
    boxes: dict[Any, array] = field(default_factory=dict)  # id of the image -> _FIELDS numbers a box
    categories: dict[Any, str] = field(default_factory=dict)
    category_ids: dict[Any, int] = field(default_factory=dict)  # id -> number in the order of first use
    problems: Problems = field(default_factory=Problems)

    def add_image(self, number: int, item: dict[str, Any]) -> None:
        self.images.append((item["id"], item["file_name"], int(item.get("width") or 0), int(item.get("height") or 0)))

    def add_category(self, number: int, item: dict[str, Any]) -> None:
        self.categories[item["id"]] = " ".join(item["name"].split())

    def add_annotation(self, number: int, item: dict[str, Any]) -> None:
        own = item.get("id")
        own = own if isinstance(own, int) else number
        reason = next((text for key, text in _NO_OBJECT.items() if item.get(key)), None)
        if reason or not item.get("bbox"):
            self.problems.add(reason or "annotations without bbox, left out", f"{self.path}: annotation {own}")
            return
        x, y, w, h = map(float, item["bbox"])
        category = self.category_ids.setdefault(item["category_id"], len(self.category_ids))
        self.boxes.setdefault(item["image_id"], array("d")).extend((category, own, x, y, w, h))

    def found(self, image: tuple[Any, str, int, int]) -> Found:
        """The boxes of an image, which are forgotten here."""
        key, _, width, height = image
        found, values = Found(f"{self.path}: annotation ", (width, height)), self.boxes.pop(key, array("d"))
        names = [self.categories.get(category) for category in self.category_ids]
        for start in range(0, len(values), _FIELDS):
            category, own, x, y, w, h = values[start : start + _FIELDS]
            name = names[int(category)]
            if name is None:
                unknown = list(self.category_ids)[int(category)]
                raise UserError(f"{found.where(int(own))}: category_id {unknown} isn't one of the file's categories")
            found.add(name, int(own), (x, y, x + w, y + h))
        return found


_NO_OBJECT = {"iscrowd": "crowd regions, left out", "ignore": "annotations to be ignored, left out"}
_ADD: dict[str, Callable[[_File, int, dict[str, Any]], None]] = {
    "images": _File.add_image, "categories": _File.add_category, "annotations": _File.add_annotation,
}  # fmt: skip


def read_coco(source: Path, options: Options) -> Annotations:
    """annotations/instances_{train,val}2017.json anywhere under the source, and the pictures of their file_names; other
    JSON files (Roboflow's, say) where there is no such name.

    The file's name or folder says which split it is; a single file is used for both. Category ids become 0, 1, ... in
    their order; crowd regions are left out. Raises UserError when there is no such file, for several that are neither, and
    for those of two releases, which share their pictures.
    """
    tree, result = Tree(source, options), Annotations([])
    files = tree.files(".json")
    files = [p for p in files if os.path.basename(p).lower().startswith("instances")] or files
    if not files:
        raise tree.missing("instances*.json")
    releases = sorted({year for path in files for year in _RELEASE.findall(os.path.basename(path))})
    if len(releases) > 1:
        raise UserError(f"{source}: has the releases {', '.join(releases)}, which share pictures; choose: --only {releases[0]}")
    nameless = [path for path in files if not tree.split(path)]
    if nameless and len(files) > 1:
        raise UserError(f"{nameless[0]}: several annotation files, and this one's name has neither `train` nor `val` in it; "
                        f"choose with --only, or move it away")  # fmt: skip
    pictures, categories = Pictures(tree.pictures), dict[Any, str]()
    for path in files:
        _agree(categories, file := _read_file(path, result), path)
        _add_entries(file, pictures, tree.split(path), result)
    result.names = list(dict.fromkeys(categories[key] for key in sorted(categories, key=lambda k: (isinstance(k, str), k))))
    return note_unused(tree.pictures, result)


def _read_file(path: str, result: Annotations) -> _File:
    file, stream = _File(path, problems=result.problems), JsonStream(path)
    for key, number, item in stream:
        add = _ADD.get(key)
        if add is None:
            continue
        try:
            add(file, number, item)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            where = f"{path}: {key} number {number + 1}"
            raise UserError(f"{where}: not COCO's instances format ({type(error).__name__}: {error})") from None
    missing = [key for key in _NEEDED if key not in stream.keys]
    if missing:
        raise UserError(f"{path}: not COCO's instances format (`{missing[0]}` is missing); use --only to choose another")
    return file


def _agree(categories: dict[Any, str], file: _File, path: str) -> None:
    """Add the file's categories; those of another file must mean the same."""
    for key, name in file.categories.items():
        if categories.setdefault(key, name) != name:
            raise UserError(f"{path}: category {key} is {name!r}, but {categories[key]!r} in another file; convert them apart")


def _add_entries(file: _File, pictures: Pictures, splits: tuple[str, ...], result: Annotations) -> None:
    for image in file.images:
        name, found = image[1].replace("\\", "/"), file.found(image)
        picture = pictures.find(name.rpartition("/")[2], _preference(name, file.path))
        if picture is None:
            result.problems.add("annotated images that aren't there, left out", f"{file.path}: {name}")
        else:
            result.entries.append(Entry(picture, splits, found))
    strays = sum(map(len, file.boxes.values())) // _FIELDS
    if strays:
        first = next(iter(file.boxes))
        result.problems.add("annotations of an image that isn't listed, left out", f"{file.path}: image_id {first}", strays)


def _preference(name: str, path: str) -> Callable[[str], tuple[bool, bool, int]]:
    """Of pictures of one name: the one in the folder that `name` or else the annotation file `path` is called after
    (instances_train2017.json), else the nearest."""
    near, own = nearest(path), os.path.basename(path)

    def rank(picture: str) -> tuple[bool, bool, int]:
        folder = os.path.basename(os.path.dirname(picture))
        return not picture.replace(os.sep, "/").endswith(f"/{name}"), folder not in own, near(picture)

    return rank
