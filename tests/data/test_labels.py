"""utils.data.labels: where labels are, as the two Darknets look for them."""

from pathlib import Path

import numpy as np
import pytest

import check
from utils.checking import report as checking
from utils.core.options import options_of
from utils.data.datasets import scan
from utils.data.images import write_picture
from utils.data.labels import TWO_PLACES, label_folders, label_path, label_places, read_labels

LAYOUTS = {  # image -> labels: facts of Darknet's replace_image_to_label and fill_truth_detection
    "images/x.jpg": "labels/x.txt",
    "coco/images/train2017/x.jpg": "coco/labels/train2017/x.txt",
    "VOCdevkit/VOC2007/JPEGImages/x.JPEG": "VOCdevkit/VOC2007/labels/x.txt",
    "images/VOC/JPEGImages/x.png": "images/VOC/labels/x.txt",
    "images/own/images/x.bmp": "images/own/labels/x.txt",
    "set/raw/x.jpg": "set/labels/x.txt",
    "images/raw/x.jpg": "labels/raw/x.txt",
    "obj/x.jpg": "obj/x.txt",
    "images/beside/x.jpg": "images/beside/x.txt",
    "JPEGImages/beside/x.jpg": "JPEGImages/beside/x.txt",
    "train_images/x.jpg": "train_labels/x.txt",
    "images/VOC/b/JPEGImages/x.jpg": "labels/VOC/b/labels/x.txt",
    "JPEGImages/without": "labels/without.txt",
    "images/a.b.jpg": "labels/a.b.txt",
}


@pytest.mark.parametrize("picture", LAYOUTS)
def test_labels_are_found_where_darknet_finds_them(tmp_path: Path, monkeypatch, picture: str) -> None:
    monkeypatch.chdir(tmp_path)
    for root in ("", "./", f"{tmp_path}/"):
        write_picture(f"{picture}.png", np.zeros((8, 8, 3), np.uint8))
        Path(f"{picture}.png").rename(picture)
        label = Path(LAYOUTS[picture])
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 0.5 0.5 0.25 0.25\n")
        assert label_path(root + picture) == Path(root) / label
        assert len(read_labels(root + picture, 1)[0]) == 1
        assert [len(rows) for rows in scan(str(Path(root + picture).parent), 1).labels] == [1]


def test_without_a_file_the_first_place_is_named() -> None:
    assert label_path("a/images/x.jpg") == Path("a/labels/x.txt")
    assert label_places("a/images/x.jpg") == ["a/labels/x.txt", "a/images/x.txt"]
    assert label_folders("") == ("",)
    assert read_labels("a/images/x.jpg", 1) == (None, [])


def test_labels_in_two_places_are_said(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c"):
        write_picture(f"JPEGImages/{name}.png", np.random.default_rng(ord(name)).integers(0, 255, (64, 64, 3), np.uint8))
    Path("labels").mkdir()
    for path in ("labels/a.txt", "JPEGImages/a.txt", "JPEGImages/b.txt", "labels/c.txt"):
        Path(path).write_text(f"{int(path.startswith('JPEG'))} 0.5 0.5 0.25 0.25\n")
    found = scan("JPEGImages", 2)
    assert [rows[0, 0] for rows in found.labels] == [0, 1, 0]
    assert found.problems.summary() == f"{TWO_PLACES}: 1 (first: labels/a.txt and JPEGImages/a.txt)"
    Path("x.data").write_text("classes=2\ntrain=JPEGImages\nvalid=JPEGImages\n")
    report = checked("x.data")
    (finding,) = [f for f in report["findings"] if f["what"] == f"train: {TWO_PLACES}"]
    assert (finding["count"], finding["first"]) == (1, "labels/a.txt and JPEGImages/a.txt")


def checked(data: str) -> dict:
    """What check.py finds, whatever its exit status."""
    args = check.get_parser().parse_args(["--data", data, "--workers", "1"])
    options = options_of(checking.CheckOptions, vars(args))
    subject, findings = checking.check(options, data)
    return checking.summarise(subject, findings)
