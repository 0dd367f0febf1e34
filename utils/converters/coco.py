"""COCO's instances_*.json (see utils.data.coco)."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from utils.converters.base import Annotations, Entry, Found, Options
from utils.converters.tree import Pictures, Tree, nearest, note_unused
from utils.core.errors import UserError
from utils.data.coco import CROWD, OBJECT, CocoFile, CocoImage, Key, read_coco_file

_RELEASE = re.compile(r"(?:train|val|test)(20\d\d)")


def read_coco(source: Path, options: Options) -> Annotations:
    """annotations/instances_{train,val}2017.json anywhere under the source, and the images of their file_names; other
    JSON files (Roboflow's, say) where there is no such name.

    The file's name or folder says which split it is; a single file is used for both. Category ids become 0, 1, ... in
    their order; crowd regions are left out. An image that is listed again gets the boxes of both. Raises UserError when
    there is no such file, for several that are neither, and for those of two releases, which share their images.
    """
    tree, result = Tree(source, options), Annotations([])
    files = tree.files(".json")
    files = [p for p in files if os.path.basename(p).lower().startswith("instances")] or files
    if not files:
        raise tree.missing("instances*.json")
    releases = sorted({year for path in files for year in _RELEASE.findall(os.path.basename(path))})
    if len(releases) > 1:
        raise UserError(f"{source}: has the releases {', '.join(releases)}, which share images; choose: --only {releases[0]}")
    nameless = [path for path in files if not tree.split(path)]
    if nameless and len(files) > 1:
        raise UserError(f"{nameless[0]}: several annotation files, and this one's name has neither `train` nor `val` in it; "
                        f"choose with --only, or move it away")  # fmt: skip
    pictures, categories = Pictures(tree.pictures), dict[Key, str]()
    for path in files:
        _agree(categories, file := read_coco_file(path, result.problems))
        _add_entries(file, pictures, tree.split(path), result)
    result.names = list(dict.fromkeys(categories[key] for key in sorted(categories, key=lambda k: (isinstance(k, str), k))))
    return note_unused(tree, result)


def _agree(categories: dict[Key, str], file: CocoFile) -> None:
    """Add the file's categories; those of another file must mean the same."""
    for key, (_, name) in file.categories.items():
        known = categories.setdefault(key, name)
        if known != name:
            raise UserError(f"{file.path}: category {key} is {name!r}, but {known!r} in another file; convert them apart")


def _add_entries(file: CocoFile, pictures: Pictures, splits: tuple[str, ...], result: Annotations) -> None:
    for key, image in file.images.items():
        where = f"{file.path}: {image.name}"
        match = pictures.find(image.name, _preference(file.path), where)
        if match is None:
            result.problems.add("annotated images that aren't there, left out", where)
        else:
            result.entries.append(Entry(match.path, splits, (_found(file, key, image),), match.misfit))


def _found(file: CocoFile, key: Key, image: CocoImage) -> Found:
    """The boxes of an image."""
    found = Found(f"{file.path}: annotation ", image.size)
    for category, number, kind, (x, y, w, h) in file.boxes_of(key):
        if kind == OBJECT:
            found.add(file.categories[category][1], number, (x, y, x + w, y + h))
        else:
            found.leave_out("crowd regions, left out" if kind == CROWD else "annotations to be ignored, left out", number)
    return found


def _preference(path: str) -> Callable[[str], tuple[bool, int]]:
    """Of images of one name: the one in the folder that the annotation file `path` is called after
    (instances_train2017.json), else the nearest."""
    near, own = nearest(path), os.path.basename(path)

    def rank(picture: str) -> tuple[bool, int]:
        return os.path.basename(os.path.dirname(picture)) not in own, near(picture)

    return rank
