"""Annotations of other programs -> images/, labels/, train.txt, valid.txt, .names and .data.

A reader turns one format into Samples, and one writer serves them all:

    FORMATS[name](source folder, options) -> Annotations -> write_dataset(annotations, out, ...) -> Report
"""

import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tqdm import tqdm

from utils.errors import UserError
from utils.files import make_folder, read_text, replacing, write_text
from utils.imagesize import image_size, is_image
from utils.labels import CLIPPED, DUPLICATE, NO_AREA, Problems

TRAIN, VALID = "train", "valid"
BOTH = (TRAIN, VALID)


@dataclass
class Box:
    """A box in pixels; `where` says which entry of which file it comes from."""

    name: str
    x1: float
    y1: float
    x2: float
    y2: float
    where: str


@dataclass
class Sample:
    """One image with its boxes. (`width`, `height`) is what the boxes are measured in; 0 where the source is silent."""

    image: Path
    width: int
    height: int
    boxes: list[Box]
    splits: tuple[str, ...]


@dataclass
class Annotations:
    """What a reader found: the class names in the source's order (None: it has none), and what it had to leave out."""

    samples: list[Sample]
    names: list[str] | None = None
    problems: Problems = field(default_factory=Problems)


@dataclass
class Options:
    """What a reader may be asked for."""

    skip_difficult: bool = False


@dataclass
class Report:
    """What was written: images of each split, boxes of each (class, split) and of each class in all (an image may be in
    both splits), and what was mended or left out."""

    data: Path
    names: list[str]
    images: dict[str, int]
    boxes: Counter[tuple[str, str]]
    class_boxes: Counter[str]
    total_images: int
    problems: Problems


def read_voc(source: Path, options: Options) -> Annotations:
    """Pascal VOC: JPEGImages/, Annotations/*.xml, ImageSets/Main/{train,val,trainval,test}.txt.

    A box is [xmin, xmax] with width xmax - xmin, in pixels as they stand: VOC counts pixels from 1 and its last one
    belongs to the box, but most programs that write its format do neither, and the difference is one pixel.
    With a test list, trainval trains and test validates; without one, train and val do; without any list every image is
    in both. Raises UserError for a missing folder and for XML that cannot be read.
    """
    folder = source / "Annotations"
    if not folder.is_dir():
        raise UserError(f"{folder}: this folder of a Pascal VOC dataset does not exist; check --src")
    pictures = source / "JPEGImages"  # VOC's own also has masks, of the same names, in other folders
    images = {path.stem: path for path in find_images(pictures if pictures.is_dir() else source)}
    result = Annotations([])
    splits = _voc_splits(source, sorted(path.stem for path in folder.glob("*.xml")))
    for stem, where in tqdm(splits.items(), desc="Reading annotations", delay=1, leave=False):
        path = folder / f"{stem}.xml"
        if stem not in images or not path.is_file():
            result.problems.add("listed images without picture or annotation, left out", stem)
            continue
        result.samples.append(_voc_sample(path, images[stem], where, options, result.problems))
    return result


def _voc_splits(source: Path, annotated: list[str]) -> dict[str, tuple[str, ...]]:
    """Image name without suffix -> the splits that it belongs to."""
    lists = {}
    for path in sorted((source / "ImageSets" / "Main").glob("*.txt")):
        if path.stem in ("train", "val", "trainval", "test"):  # the others list one class each
            lists[path.stem] = [line.split()[0] for line in read_text(path, "list of images").splitlines() if line.strip()]
    trainval = lists.get("trainval") or lists.get("train", []) + lists.get("val", [])
    train, valid = (trainval, lists["test"]) if "test" in lists else (lists.get("train"), lists.get("val"))
    if not train or not valid:
        train = valid = trainval or annotated
    members: dict[str, tuple[str, ...]] = {}
    for split, stems in zip(BOTH, (train, valid), strict=True):
        for stem in dict.fromkeys(stems):
            members[stem] = (*members.get(stem, ()), split)
    return members


def _voc_sample(path: Path, image: Path, splits: tuple[str, ...], options: Options, problems: Problems) -> Sample:
    try:
        root = ElementTree.parse(path).getroot()
        width, height = (round(float(root.findtext(f"size/{side}", "0"))) for side in ("width", "height"))
        boxes = []
        for number, item in enumerate(root.iter("object"), 1):
            where = f"{path}: object {number}"
            if options.skip_difficult and item.findtext("difficult", "0").strip() == "1":
                problems.add("difficult objects, left out", where)
            elif item.find("bndbox") is None:
                problems.add("objects without bndbox, left out", where)
            else:
                corners = [float(item.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")]
                boxes.append(Box(item.findtext("name", "").strip(), *corners, where))
    except ElementTree.ParseError as error:
        raise UserError(f"{path}:{error.position[0]}: not valid XML ({error})") from None
    except ValueError as error:
        raise UserError(f"{path}: a size or a corner is not a number ({error})") from None
    return Sample(image, width, height, boxes, splits)


def read_coco(source: Path, options: Options) -> Annotations:
    """COCO: instances*.json anywhere under the source, and the images of their file_names.

    A file with `train` in its name trains and one with `val` validates; a single file is used for both. Crowd regions
    are left out. Category ids become 0, 1, ... in their order. Raises UserError when there is no such file or several
    that are neither.
    """
    files = sorted(source.rglob("instances*.json"))
    if not files:
        raise UserError(f"{source}: there is no instances*.json in this folder; check --src")
    splits = {path: tuple(s for s, word in ((TRAIN, "train"), (VALID, "val")) if word in path.stem) for path in files}
    if len(files) == 1:
        splits[files[0]] = BOTH
    for path in files:
        if not splits[path]:
            raise UserError(f"{path}: several annotation files, and this one's name has neither `train` nor `val` in it")
    by_name: dict[str, list[Path]] = {}
    for path in find_images(source):
        by_name.setdefault(path.name, []).append(path)
    result, names = Annotations([]), {}
    for path in files:
        names |= _read_coco_file(path, splits[path], by_name, result)
    result.names = [names[i] for i in sorted(names)]
    return result


def _read_coco_file(path: Path, splits: tuple[str, ...], images: dict[str, list[Path]], result: Annotations) -> dict[int, str]:
    """Append the file's samples; returns category id -> name."""
    content = read_json(path)
    try:
        names = {c["id"]: c["name"] for c in content["categories"]}
        boxes: dict[int, list[Box]] = {}
        for annotation in content["annotations"]:
            where = f"{path}: annotation {annotation.get('id')}"
            if annotation.get("iscrowd"):
                result.problems.add("crowd regions, left out", where)
                continue
            x, y, w, h = map(float, annotation["bbox"])
            box = Box(names[annotation["category_id"]], x, y, x + w, y + h, where)
            boxes.setdefault(annotation["image_id"], []).append(box)
        for entry in content["images"]:
            name = entry["file_name"]
            found = images.get(Path(name).name, [])
            if not found:
                result.problems.add("annotated images that aren't there, left out", f"{path}: {name}")
                continue
            # the same name in several folders: the one that the annotation file is named after (instances_train2017.json)
            image = min(found, key=lambda p: (not str(p).endswith(f"/{name}"), p.parent.name not in path.stem))
            size = int(entry.get("width", 0)), int(entry.get("height", 0))
            result.samples.append(Sample(image, *size, boxes.get(entry["id"], []), splits))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not COCO's instances format ({type(error).__name__}: {error})") from None
    return names


Reader = Callable[[Path, Options], Annotations]
FORMATS: dict[str, Reader] = {"voc": read_voc, "coco": read_coco}


def read_json(path: Path) -> Any:
    """The content of a JSON file; raises UserError naming file and line."""
    try:
        return json.loads(read_text(path, "annotation file"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from None


def find_images(folder: Path) -> list[Path]:
    """All images under a folder, sorted."""
    return sorted(Path(root, name) for root, _, names in os.walk(folder) for name in names if is_image(name))


def write_dataset(annotations: Annotations, out: Path, names: list[str] | None = None, copy: bool = False) -> Report:
    """Write a dataset to `out`; class ids follow `names`, else the source's order, else the alphabet.

    Images are hard links where the file system allows, or copies. Lists name them relative to their own folder, so that
    the folder can be moved. Everything is replaced file by file and the .data comes last. Raises UserError when there is
    nothing to write.
    """
    samples, problems = annotations.samples, annotations.problems
    if not samples:
        raise UserError(f"no image with an annotation was found; {problems.summary() or 'check --src'}")
    names = names or annotations.names or sorted({box.name for sample in samples for box in sample.boxes})
    ids = {name: number for number, name in enumerate(names)}
    for folder in ("images", "labels"):
        make_folder(out / folder)
    lists: dict[str, list[str]] = {split: [] for split in BOTH}
    boxes, class_boxes = Counter(), Counter()
    targets = _target_names(samples)
    for sample in tqdm(samples, desc=f"Writing {out}", delay=1):
        target = targets[sample.image]
        rows = _label_rows(sample, ids, problems)
        place_image(sample.image, out / "images" / target, copy)
        write_text(out / "labels" / Path(target).with_suffix(".txt"), "".join(f"{row}\n" for _, row in rows))
        class_boxes.update(name for name, _ in rows)
        for split in sample.splits:
            lists[split].append(f"images/{target}\n")
            boxes.update((name, split) for name, _ in rows)
    for split in BOTH:
        write_text(out / f"{split}.txt", "".join(sorted(lists[split])))
    data = _write_data(out, names)
    return Report(data, names, {s: len(lists[s]) for s in BOTH}, boxes, class_boxes, len(samples), problems)


def _target_names(samples: list[Sample]) -> dict[Path, str]:
    """A file name for every image, no two of one stem: those that share one get their folder's name in front, and a number
    where that isn't enough."""
    images = dict.fromkeys(sample.image for sample in samples)
    stems, names, taken = Counter(path.stem for path in images), {}, set()
    for path in images:
        stem = path.stem if stems[path.stem] == 1 else f"{path.parent.name}_{path.stem}"
        candidates = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
        chosen = next(c for c in candidates if c not in taken)
        taken.add(chosen)
        names[path] = chosen + path.suffix
    return names


def _label_rows(sample: Sample, ids: dict[str, int], problems: Problems) -> list[tuple[str, str]]:
    """(class name, label line) of every box that can be used."""
    width, height = sample.width, sample.height
    if min(width, height) < 1:
        try:
            height, width = image_size(sample.image)
        except ValueError as error:
            problems.add("pictures of unknown size, their boxes left out", f"{sample.image}: {error}")
            return []
    rows: dict[tuple[str, str], None] = {}
    for box in sample.boxes:
        x1, x2 = (min(max(x, 0.0), width) for x in (box.x1, box.x2))
        y1, y2 = (min(max(y, 0.0), height) for y in (box.y1, box.y2))
        if box.name not in ids:
            problems.add(f"boxes of class {box.name!r}, which isn't in --names, left out", box.where)
            continue
        if not (x2 > x1 and y2 > y1):
            problems.add(NO_AREA, box.where)
            continue
        if (x1, y1, x2, y2) != (box.x1, box.y1, box.x2, box.y2):
            problems.add(CLIPPED, box.where)
        values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        row = (box.name, " ".join([str(ids[box.name]), *(f"{value:.6f}" for value in values)]))
        if row in rows:
            problems.add(DUPLICATE, box.where)
        rows[row] = None
    return list(rows)


def place_image(source: Path, target: Path, copy: bool) -> None:
    """Make `target` the same file as `source`, or a copy of it; leave it alone where it is already that."""
    if target.exists():
        have, want = target.stat(), source.stat()
        same = os.path.samefile(source, target)
        if (same and not copy) or (not same and (have.st_size, have.st_mtime) == (want.st_size, want.st_mtime)):
            return
    elif not copy:
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without hard links
            pass
    with replacing(target) as temporary:
        shutil.copy2(source, temporary)


def _write_data(out: Path, names: list[str]) -> Path:
    """The .names and .data files, called after their folder."""
    name = out.resolve().name
    write_text(out / f"{name}.names", "".join(f"{n}\n" for n in names))
    text = f"classes={len(names)}\ntrain=train.txt\nvalid=valid.txt\nnames={name}.names\n"
    write_text(out / f"{name}.data", text)
    return out / f"{name}.data"
