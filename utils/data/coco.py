"""COCO's instances_*.json (Lin et al. 2014, "Microsoft COCO"; format: cocodataset.org/#format-data), as people have it."""

import math
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from utils.core.errors import UserError
from utils.data.json_stream import JsonStream
from utils.data.labels import Problems
from utils.data.segmentation import Box, box_around
from utils.data.stated_sizes import sizes_differ

Key = int | str
OBJECT, CROWD, IGNORED = range(3)  # kinds of annotations
NO_BOX = "annotations without bbox, left out"
STRAY = "annotations of an image that isn't listed, left out"
SCORED = "annotations with a score, as detections have it, taken as they are"
_NEEDED = ("images", "annotations", "categories")
_FIELDS = 7  # of a box in CocoFile.boxes: number of its category, its own number, its kind, x, y, w, h
_FURTHEST = 1e9  # pixels: beyond are damaged numbers
_EXACT = 2**53  # whole numbers above are not exact in a float


@dataclass(frozen=True)
class Said:
    """What is odd about a file and stops nothing. is_warning: whether what is measured with it may be wrong."""

    place: str
    what: str
    is_warning: bool = True

    def __str__(self) -> str:
        return f"{'warning: ' if self.is_warning else ''}{self.place}: {self.what}"


class CocoImage(NamedTuple):
    """id: as the file has it; name: its file_name with `/` between folders; size: (width, height), 0 where not stated."""

    id: Key
    name: str
    size: tuple[int, int]


class CocoBox(NamedTuple):
    """category: key of it; number: the annotation's own; kind: OBJECT, CROWD or IGNORED; box: x, y, w, h in pixels."""

    category: Key
    number: int
    kind: int
    box: Box


@dataclass
class CocoFile:
    """What counts of one file. Annotations may precede the categories and images that they refer to.

    images, categories: key (see key_of) -> image, (id as the file has it, name). Boxes, of which there may be millions,
    are numbers: key of their image -> _FIELDS of them a box.
    """

    path: str
    images: dict[Key, CocoImage] = field(default_factory=dict)
    categories: dict[Key, tuple[Key, str]] = field(default_factory=dict)
    boxes: dict[Key, array] = field(default_factory=dict)
    used: dict[Key, int] = field(default_factory=dict)  # categories in the order of first use -> their first annotation
    numbers: dict[Key, int] = field(default_factory=dict)  # categories -> their place in `used`
    problems: Problems = field(default_factory=Problems)

    def add_image(self, number: int, item: dict[str, Any]) -> None:
        size = int(item.get("width") or 0), int(item.get("height") or 0)
        image = CocoImage(item["id"], _text(item, "file_name").replace("\\", "/"), size)
        known = self.images.setdefault(key_of(image.id), image)
        if known.name != image.name or sizes_differ(known.size, image.size):
            raise ValueError(f"its id {image.id} is that of {known.name}, too, so nobody knows whose boxes are whose; "
                             "were files put together? give each its own")  # fmt: skip

    def add_category(self, number: int, item: dict[str, Any]) -> None:
        category = item["id"], _text(item, "name")
        known = self.categories.setdefault(key_of(item["id"]), category)
        if known[1] != category[1]:
            raise ValueError(f"its id {item['id']} is that of {known[1]!r}, too")

    def add_annotation(self, number: int, item: dict[str, Any]) -> None:
        own = item.get("id")
        own = own if isinstance(own, int) and abs(own) < _EXACT else number
        box, where = _box(item), f"{self.path}: annotation {own}"
        if item.get("score") is not None:
            self.problems.add(SCORED, where)
        if box is None:
            self.problems.add(NO_BOX, where)
            return
        kind = CROWD if _flag(item, "iscrowd") else IGNORED if _flag(item, "ignore") else OBJECT
        category = key_of(item["category_id"])
        self.used.setdefault(category, own)
        place = self.numbers.setdefault(category, len(self.numbers))
        self.boxes.setdefault(key_of(item["image_id"]), array("d")).extend((place, own, kind, *box))

    def boxes_of(self, image: Key) -> Iterator[CocoBox]:
        """The boxes of an image, in the file's order."""
        values, categories = self.boxes.get(image, ()), list(self.used)
        for start in range(0, len(values), _FIELDS):
            category, own, kind, x, y, w, h = values[start : start + _FIELDS]
            yield CocoBox(categories[int(category)], int(own), int(kind), (x, y, w, h))

    def check(self) -> None:
        """What can only be seen at the end. Raises UserError for annotations of a category that isn't listed."""
        for key, own in self.used.items():
            if key not in self.categories:
                raise UserError.at(self.path, f"annotation {own}: category_id {key} isn't one of the file's categories")
        strays = [key for key in self.boxes if key not in self.images]
        if strays:
            count = sum(len(self.boxes[key]) for key in strays) // _FIELDS
            self.problems.add(STRAY, f"{self.path}: image_id {strays[0]}", count)

    def sorted_categories(self) -> list[Key]:
        """Their keys in order: numbers, then texts."""
        return sorted(self.categories, key=lambda key: (isinstance(key, str), key))


_ADD: dict[str, Callable[[CocoFile, int, dict[str, Any]], None]] = {
    "images": CocoFile.add_image, "categories": CocoFile.add_category, "annotations": CocoFile.add_annotation,
}  # fmt: skip


def read_coco_file(path: str, problems: Problems) -> CocoFile:
    """Read a file an item at a time, so that one of gigabytes may be larger than the memory; what is left out is noted.

    Boxes of annotations that have a segmentation only are those around it. Raises UserError naming the item that can't be
    understood, that contradicts another, or that refers to a category that isn't there.
    """
    file, stream = CocoFile(path, problems=problems), JsonStream(path)
    for key, number, item in stream:
        add = _ADD.get(key)
        if add is None:
            continue
        if number < 0:
            raise UserError.at(path, f"not COCO's instances format (`{key}` isn't a list)")
        try:
            add(file, number, item)
        except KeyError as error:
            raise _unusable(path, key, number, f"has no `{error.args[0]}`") from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise _unusable(path, key, number, str(error)[:200]) from None
    missing = [key for key in _NEEDED if key not in stream.keys]
    if missing:
        kind = "a list, as detections are" if "" in stream.keys else f"`{missing[0]}` is missing"
        raise UserError.at(path, f"not COCO's instances format ({kind}); choose another file")
    file.check()
    return file


def _unusable(path: str, key: str, number: int, reason: str) -> UserError:
    return UserError.at(path, f"{key} number {number + 1}: not COCO's instances format ({reason})")


def key_of(value: Any) -> Key:
    """An id as ids are compared: 7, 7.0 and "7" are the same, since files come through tables and other languages.

    >>> key_of(7.0), key_of("7"), key_of("007"), key_of("cam1")
    (7, 7, '007', 'cam1')
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{str(value)[:30]!r} is no id")
    return int(value) if isinstance(value, str) and value.isdecimal() and str(int(value)) == value else value


def _text(item: dict[str, Any], key: str) -> str:
    text = item[key]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"`{key}` is no text")
    text.encode()  # a ValueError for half of a surrogate pair, which no file's name and no list can hold
    return " ".join(text.split()) if key == "name" else text.strip()


def _flag(item: dict[str, Any], key: str) -> bool:
    """Not set where absent: by null, or by the NaN that a table has there."""
    value = float(item.get(key) or 0)
    return value != 0 and not math.isnan(value)


def _box(item: dict[str, Any]) -> Box | None:
    """The annotation's bbox, or the box around its segmentation."""
    bbox = item.get("bbox") or box_around(item.get("segmentation"))
    if bbox is None:
        return None
    if not isinstance(bbox, list | tuple) or len(bbox) != 4:
        raise ValueError("its bbox isn't [x, y, width, height]")
    x, y, w, h = map(float, bbox)
    if not all(abs(value) < _FURTHEST for value in (x, y, w, h)):  # nan neither
        raise ValueError(f"its bbox {[x, y, w, h]} isn't one of numbers of pixels")
    return x, y, w, h
