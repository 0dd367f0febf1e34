"""A small BCCD that tests of check.py may spoil, and the faults that they plant in it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

import check
import convert_dataset
from tests.tiny import NET, conv
from utils.network.checkpoint import save_checkpoint
from utils.network.darknet import Darknet
from utils.network.weights import save_weights

TRAIN, VALID = 16, 6  # images
CLASSES = ["Platelets", "RBC", "WBC"]
HEAD = "[yolo]\nmask=0,1,2\nanchors=32,32, 70,65, 140,130\nclasses=3\nnum=3\n"
CFG = (
    NET.replace("64", "416") + "".join(conv(4, stride=2) for _ in range(4)) + conv(24, 1, bn=0, activation="linear") + HEAD
)  # fmt: skip
ROW = "0 0.5 0.5 0.2 0.2"


def make_bccd(source: Path, folder: Path) -> Path:
    """A few of BCCD's images, converted by this project, with a cfg for their classes and its weights."""
    few, out = folder / "few", folder / "bccd"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (few / name).mkdir(parents=True)
    for split, count in (("trainval", TRAIN), ("test", VALID)):
        stems = (source / f"ImageSets/Main/{split}.txt").read_text().split()[:count]
        (few / f"ImageSets/Main/{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        for stem in stems:
            shutil.copy(source / f"JPEGImages/{stem}.jpg", few / "JPEGImages")
            shutil.copy(source / f"Annotations/{stem}.xml", few / "Annotations")
    arguments = ["voc", "--src", str(few), "--out", str(out), "--workers", "1"]
    convert_dataset.main(convert_dataset.get_parser().parse_args(arguments))
    (out / "net.cfg").write_text(CFG)
    save_weights(Darknet(CFG), out / "net.weights")
    return out


@dataclass
class Copy:
    """A copy of the small BCCD that a test may spoil."""

    folder: Path

    def image(self, number: int, split: str = "train") -> Path:
        return self.folder / (self.folder / f"{split}.txt").read_text().split()[number]

    def label(self, number: int, split: str = "train") -> Path:
        return self.folder / "labels" / self.image(number, split).with_suffix(".txt").name

    def rows(self) -> list[list[str]]:
        """All label rows of train."""
        return [row.split() for number in range(TRAIN) for row in self.label(number).read_text().splitlines()]

    def append(self, name: str, text: str) -> None:
        with open(self.folder / name, "a") as file:
            file.write(text)

    def add_row(self, number: int, row: str) -> None:
        self.append(f"labels/{self.label(number).name}", f"{row}\n")

    def replace(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def add_image(self, name: str, image: np.ndarray, rows: str, split: str = "train") -> None:
        assert cv2.imwrite(str(self.folder / "images" / name), image)
        (self.folder / "labels" / Path(name).with_suffix(".txt").name).write_text(rows)
        self.append(f"{split}.txt", f"images/{name}\n")

    def check(self, *flags: str, weights: bool = True) -> tuple[int, dict]:
        """(exit status, what --json writes); the working directory is the folder."""
        network = "--cfg net.cfg --weights net.weights" if weights else "--cfg net.cfg"
        return run_check(f"--data bccd.data --json report.json {network} {' '.join(flags)}")


def run_check(text: str) -> tuple[int, dict]:
    """(exit status, what it wrote to --json report.json)."""
    try:
        check.main(check.get_parser().parse_args(["--workers", "1", *text.split()]))
        status = 0
    except SystemExit as end:
        status = end.code
    return status, json.loads(Path("report.json").read_text())


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def break_weights(c: Copy) -> None:
    model = Darknet(CFG)
    model.module_list[1].conv.weight.data[0, 0, 0, 0] = torch.nan
    save_weights(model, c.folder / "net.weights")


def other_names(c: Copy) -> None:
    state = {"model": Darknet(CFG).state_dict(), "names": ["RBC", "Platelets", "WBC"], "cfg": CFG}
    save_checkpoint(c.folder / "net.weights", state)


def twin(c: Copy, split: str, suffix: str = ".jpg") -> None:
    """The first image of `split` under another name, in train."""
    shutil.copy(c.image(0, split), c.folder / f"images/twin{suffix}")
    shutil.copy(c.label(0, split), c.folder / "labels/twin.txt")
    c.append("train.txt", f"images/twin{suffix}\n")


def second_suffix(c: Copy) -> None:
    name = c.image(1).with_suffix(".png").name
    assert cv2.imwrite(str(c.folder / "images" / name), noise(200, 200))
    c.append("train.txt", f"images/{name}\n")


def without_class(c: Copy) -> None:
    """Take the platelets out of train."""
    for number in range(TRAIN):
        rows = c.label(number).read_text().splitlines(keepends=True)
        c.label(number).write_text("".join(row for row in rows if not row.startswith("0 ")))


def two_heads(c: Copy) -> None:
    """A second, finer head that has the largest anchors."""
    coarse, fine = HEAD.replace("0,1,2", "0,1"), HEAD.replace("0,1,2", "2")
    cfg = CFG.replace(HEAD, coarse).replace("filters=24", "filters=16")
    cfg += "[route]\nlayers=-3\n[upsample]\nstride=2\n" + conv(8, 1, bn=0, activation="linear") + fine
    (c.folder / "net.cfg").write_text(cfg)
    save_weights(Darknet(cfg), c.folder / "net.weights")


def tiny_boxes(c: Copy) -> None:
    for number in range(1, 9):
        c.add_row(0, f"1 .{number} .5 .005 .008")
    c.replace("net.cfg", "32,32", "5,5")


def stray_label(c: Copy) -> None:
    (c.folder / "labels/stray.txt").write_text("0 0.5 0.5 0.2 0.2\n")


@dataclass
class Fault:
    plant: Callable[[Copy], object]
    severity: str
    what: str
    first: str
    count: int = 1


FAULTS = {
    "a listed image that isn't there": Fault(
        lambda c: c.append("train.txt", "images/gone.jpg\n"), "error", "train: listed images that aren't there", "train.txt:17"
    ),
    "an image cut short": Fault(
        lambda c: c.image(2).write_bytes(c.image(2).read_bytes()[:6000]), "error", "train: images cut short", ".jpg (cut"
    ),
    "an image that is none": Fault(
        lambda c: c.image(2, "valid").write_text("hello"), "error", "valid: images that cannot be read", ".jpg (not a"
    ),
    "an image without label file": Fault(
        lambda c: c.label(3).unlink(), "warning", "train: images without label file", ".jpg"
    ),
    "an empty label file": Fault(
        lambda c: c.label(3).write_text(" \n"), "note", "train: images without boxes (background)", ".txt"
    ),
    "a label file without image": Fault(stray_label, "warning", "label files without image", "labels/stray.txt"),
    "a label file that is no text": Fault(
        lambda c: c.label(3).write_bytes(b"\xff\xfe\x00"), "error", "train: label files that are no text", ".txt"
    ),
    "a row of four numbers": Fault(
        lambda c: c.add_row(0, "0 .5 .5 .1"), "error", "train: label rows that aren't five numbers", ":ROW (0 .5 .5 .1)"
    ),
    "a word in a row": Fault(
        lambda c: c.add_row(0, "RBC .5 .5 .1 .1"), "error", "train: label rows that aren't five numbers", ":ROW (RBC"
    ),
    "a value that is nan": Fault(
        lambda c: c.add_row(0, "0 .5 nan .1 .1"), "error", "train: label values that are nan or infinite", ":ROW (0 .5 nan"
    ),
    "a class out of range": Fault(
        lambda c: c.add_row(0, "3 .5 .5 .1 .1"), "error", "train: labels of classes that the .data doesn't have", ":ROW (3 .5"
    ),
    "a box in pixels": Fault(
        lambda c: c.add_row(0, "0 320 240 60 60"), "error", "train: boxes in pixels instead of shares", ":ROW (0 320"
    ),
    "a confidence behind a box": Fault(
        lambda c: c.add_row(0, "0 .9 .9 .1 .1 .75"), "warning", "train: boxes with a confidence behind them", ":ROW (0 .9"
    ),
    "a polygon": Fault(lambda c: c.add_row(0, "0 .9 .9 .95 .9 .9 .95"), "warning", "train: polygons, taken as", ":ROW (0 .9"),
    "a key given twice": Fault(
        lambda c: c.append("bccd.data", "classes=4\n"), "warning", "classes=4 is left out: classes=3 stands in", "bccd.data:"
    ),
    "a box without area": Fault(
        lambda c: c.add_row(0, "0 .5 .5 0 .1"), "warning", "train: boxes without area", ":ROW (0 .5 .5 0"
    ),
    "a box that reaches outside": Fault(
        lambda c: c.add_row(0, "0 .97 .5 .1 .1"), "warning", "train: boxes clipped to the image", ":ROW (0 .97"
    ),
    "boxes given twice": Fault(
        lambda c: (c.add_row(0, ROW), c.add_row(0, ROW)), "warning", "train: duplicate boxes, dropped", f":ROW+1 ({ROW})"
    ),
    "a COCO json that isn't there": Fault(
        lambda c: c.append("bccd.data", "coco_json=gone.json\n"), "error", "this COCO json does not exist", "gone.json"
    ),
    "a class without boxes": Fault(without_class, "warning", "train: classes without boxes", "Platelets (0): 0 boxes"),
    "more names than classes": Fault(
        lambda c: c.append("bccd.names", "fourth\nfifth\n"), "error", "classes=3, but 5 names", "bccd.data", 2
    ),
    "a name given twice": Fault(
        lambda c: c.replace("bccd.names", "WBC", "RBC"), "warning", "names given twice", "bccd.names: RBC (2)"
    ),
    "an empty line in the names": Fault(
        lambda c: c.replace("bccd.names", "RBC", "\nRBC"), "warning", "empty lines between names", "bccd.names:2"
    ),
    "no line valid=": Fault(
        lambda c: c.replace("bccd.data", "valid=valid.txt\n", ""), "error", "a .data without a line `valid=`", "bccd.data"
    ),
    "a list that isn't there": Fault(
        lambda c: c.replace("bccd.data", "valid=valid", "valid=none"), "error", "this list of images does not exist", "none.txt"
    ),
    "a line that means nothing": Fault(
        lambda c: c.append("bccd.data", "what is this\n"), "error", "expected `key=value`, found: what is this", "bccd.data:5"
    ),
    "an image of valid in train": Fault(
        lambda c: twin(c, "valid"), "error", "images of valid that are in train, too", "images/twin.jpg"
    ),
    "an image of train again": Fault(lambda c: twin(c, "train"), "warning", "train: images again", "images/twin.jpg = "),
    "two images of one label file": Fault(
        second_suffix, "warning", "images that share a label file", "{.jpg,.png}"
    ),
    "a tiny image": Fault(
        lambda c: c.add_image("t.png", noise(20, 30), ROW), "warning", "train: images with a side under 32", "t.png (30x20)"
    ),
    "a strip": Fault(
        lambda c: c.add_image("s.png", noise(40, 500), ROW), "warning", "train: images over 10 times", "s.png (500x40)"
    ),
    "filters that don't suit the masks": Fault(
        lambda c: c.replace("net.cfg", "filters=24", "filters=27"), "error", "filters=27 before a [yolo]", "layer 4 [conv"
    ),
    "anchors far from the boxes": Fault(
        lambda c: c.replace("net.cfg", "32,32, 70,65, 140,130", "2,2, 4,3, 5,6"), "warning", "anchors with best possible",
        "layer 5 [yolo]", -1,
    ),
    "anchors in the wrong order": Fault(two_heads, "warning", "masks that give large anchors to fine maps", "layer 9 [yolo]"),
    "boxes smaller than the map can show": Fault(
        tiny_boxes, "warning", "train: boxes under 8 pixels at --img-size 416", ".jpg", 8
    ),
    "weights of another network": Fault(
        lambda c: save_weights(Darknet(CFG.replace("filters=4\n", "filters=6\n")), c.folder / "net.weights"), "error",
        "the weights hold", "net.weights",
    ),
    "weights of other classes": Fault(
        lambda c: save_weights(Darknet(CFG.replace("=24", "=30").replace("classes=3", "classes=5")), c.folder / "net.weights"),
        "warning", "these weights are for 5 classes", "net.weights",
    ),
    "weights that are NaN": Fault(break_weights, "error", "tensors with NaN or infinite values", "module_list.1."),
    "classes in another order": Fault(other_names, "warning", "classes that are called otherwise", "0: RBC there", 2),
}  # fmt: skip
