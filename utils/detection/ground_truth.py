"""What detections are compared with: the labels of a dataset, or the COCO json that its .data file names.

pycocotools trusts its input: an annotation whose id is 0 counts as missed, of two with one id one is lost, an absent key
is an exception at the end of an evaluation. So it never sees a user's file, but always one made here: images 0, 1, ..,
categories 1, 2, .., annotations 1, 2, ..
"""

import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pycocotools.coco import COCO
from tqdm import tqdm

from utils.core.errors import UserError
from utils.data.coco import CROWD, CocoBox, CocoFile, CocoImage, Key, Said, read_coco_file
from utils.data.coco_match import classes_of, pictures_of
from utils.data.data_file import DataConfig, find_file
from utils.data.labels import NO_AREA, Problems
from utils.data.stated_sizes import Size, size_of_pixels

DISAGREE = 0.1  # share of the boxes by which labels and json may differ without a word: crowds, repeated boxes


@dataclass
class GroundTruth:
    """Annotations as pycocotools wants them, and what the user's file has instead: ids of images and of classes (None:
    it has no such class), and how many of its pixels an image's are wide and high (images, 2), None: as many."""

    coco: COCO
    image_ids: list[Key]
    category_ids: list[Key | None]
    scales: np.ndarray | None = None


class Pictured(Protocol):
    """What there is to evaluate: paths of images, their labels and shapes as of dataset_ground_truth."""

    paths: Sequence[str]
    labels: Sequence[np.ndarray]
    shapes: np.ndarray


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """pycocotools prints its progress; here it is noise."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def make_coco(pictures: int, classes: int, annotations: list[dict[str, Any]]) -> COCO:
    """annotations: of `annotation`."""
    coco = COCO()
    categories = [{"id": 1 + number} for number in range(classes)]
    coco.dataset = {"images": [{"id": i} for i in range(pictures)], "annotations": annotations, "categories": categories}
    with silent():
        coco.createIndex()
    return coco


def annotation(number: int, picture: int, label: int, box: Sequence[float], crowd: bool = False) -> dict[str, Any]:
    """number counts from 0, label is a class, box x y w h in pixels."""
    return {"id": number + 1, "image_id": picture, "category_id": label + 1, "bbox": list(box), "area": box[2] * box[3],
            "iscrowd": int(crowd)}  # fmt: skip


def dataset_ground_truth(labels: Sequence[np.ndarray], shapes: np.ndarray, classes: int) -> GroundTruth:
    """Ground truth of any dataset: labels, an array an image (n, 5) of class and cx cy w h as shares of the image;
    shapes (images, 2): their heights and widths in pixels."""
    annotations: list[dict[str, Any]] = []
    for picture, (rows, (height, width)) in enumerate(zip(labels, shapes, strict=True)):
        sides = rows[:, 3:5].astype(np.float64) * (width, height)
        corners = rows[:, 1:3].astype(np.float64) * (width, height) - sides / 2
        boxes = np.concatenate((corners, sides), 1).tolist()
        for label, box in zip(rows[:, 0].astype(int).tolist(), boxes, strict=True):
            annotations.append(annotation(len(annotations), picture, label, box))
    coco = make_coco(len(labels), classes, annotations)
    return GroundTruth(coco, list(range(len(labels))), list(range(1, classes + 1)))


def _to_stderr(said: Said) -> None:
    tqdm.write(str(said), file=sys.stderr)


def json_ground_truth(data: DataConfig, pictured: Pictured, say: Callable[[Said], None] = _to_stderr) -> GroundTruth | None:
    """COCO's own annotations if the .data file has a line `coco_json=`; None: take the labels.

    say: gets whatever is odd about the file, another count of boxes than in the labels, for one.
    """
    if "coco_json" not in data.extra:
        return None
    path = find_file(data.extra["coco_json"], data.path.parent)
    if not path.is_file():
        raise UserError.at(path, "this COCO json does not exist; check coco_json= in the .data file")
    truth = coco_ground_truth(path, pictured.paths, pictured.shapes, data.names, say)
    boxes = sum(not a["iscrowd"] for a in truth.coco.dataset["annotations"])
    labelled = sum(map(len, pictured.labels))
    if labelled and abs(boxes - labelled) > DISAGREE * max(boxes, labelled):
        say(Said(str(path), f"has {boxes} boxes of these images, but their label files {labelled}; mAP is measured with the "
                            "former, training with the latter; do they belong together?"))  # fmt: skip
    return truth


def coco_ground_truth(
    path: Path, paths: Sequence[str], shapes: np.ndarray, names: list[str], say: Callable[[Said], None] = _to_stderr
) -> GroundTruth:
    """Ground truth of a COCO json, for the images `paths` of `shapes` (images, 2): heights and widths in pixels.

    Images are found by as much of their path as is needed, categories by name, else by the order of their ids. Boxes
    count as pycocotools counts them, but those without area, which nothing could find, are left out, and the same
    annotation again; in an image of another size than the file says they are scaled. What was left out or mended is
    said. Raises UserError when it is no such json, and for an image or a class that can't be told.
    """
    problems = Problems()
    file = read_coco_file(str(path), problems)
    entries = pictures_of(file, paths)
    classes = classes_of(file, names, say)
    writer = _Writer(file, classes)
    scales = [writer.add(number, keys, paths[number], shapes[number]) for number, keys in enumerate(entries)]
    if problems.counts:
        say(Said(str(path), problems.summary(), is_warning=False))
    category_ids: list[Key | None] = [None] * len(names)
    for key in reversed(file.sorted_categories()):
        if key in classes:
            category_ids[classes[key]] = file.categories[key][0]
    coco = make_coco(len(paths), len(names), writer.annotations)
    return GroundTruth(coco, [file.images[keys[0]].id for keys in entries], category_ids, np.array(scales).reshape(-1, 2))


@dataclass
class _Writer:
    """Makes annotations of a file's boxes. classes: category -> class."""

    file: CocoFile
    classes: dict[Key, int]
    annotations: list[dict[str, Any]] = field(default_factory=list)

    def add(self, picture: int, keys: list[Key], path: str, shape: np.ndarray) -> np.ndarray:
        """An image of `shape` (height, width), which the file lists as `keys`. Returns (2,): how many of the file's pixels
        one of its own is wide and high."""
        found = list(self._kept(keys))
        image = max((self.file.images[key] for key in keys), key=lambda image: min(image.size))
        real = int(shape[1]), int(shape[0])
        scale = np.array(self._size(image, path, real, found)) / real
        for one in found:
            box = (np.array(one.box) / np.tile(scale, 2)).tolist()
            label = self.classes[one.category]
            self.annotations.append(annotation(len(self.annotations), picture, label, box, one.kind == CROWD))
        return scale

    def _kept(self, keys: list[Key]) -> Iterator[CocoBox]:
        """The boxes that count; the others are noted."""
        seen = set()
        for found in (found for key in keys for found in self.file.boxes_of(key)):
            same = (found.category, found.kind, found.box, found.number if len(keys) == 1 else 0)
            kind = None
            if found.category not in self.classes:
                name = self.file.categories[found.category][1]
                kind = f"boxes of category {name!r}, which isn't among the names, left out"
            elif min(found.box[2:]) <= 0:
                kind = NO_AREA
            elif same in seen:
                kind = "annotations there twice, counted once"
            seen.add(same)
            if kind:
                self.file.problems.add(kind, f"{self.file.path}: annotation {found.number}")
            else:
                yield found

    def _size(self, image: CocoImage, path: str, real: Size, found: list[CocoBox]) -> Size:
        """(width, height) in whose pixels the boxes are. `real` is the image's own."""
        if not found:
            return real
        reach = max(b.box[0] + b.box[2] for b in found), max(b.box[1] + b.box[3] for b in found)
        size, kind = size_of_pixels(image.size, real, reach)
        if kind:
            stated = f"{path}: {real[0]}x{real[1]}, annotated as {image.size[0]}x{image.size[1]}"
            self.file.problems.add(kind, stated)
        return size
