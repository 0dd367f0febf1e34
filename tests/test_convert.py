import json
import os
from argparse import Namespace
from pathlib import Path

import cv2
import numpy as np
import pytest

import convert_dataset
from utils.cfg import read_data
from utils.convert import BOTH, Options, Sample, _target_names, read_coco, read_voc, write_dataset
from utils.datasets import scan
from utils.errors import UserError
from utils.labels import CLIPPED, DUPLICATE, NO_AREA

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")


def write_image(path: Path, shape: tuple[int, int] = (100, 200)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.zeros((*shape, 3), np.uint8))


def voc_object(name: str, *corners: float | str, difficult: int = 0) -> str:
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object>"


def make_voc(root: Path, objects: dict[str, str], size: str = "<width>200</width><height>100</height>", **lists: str) -> Path:
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for stem, text in objects.items():
        write_image(root / "JPEGImages" / f"{stem}.jpg")
        (root / "Annotations" / f"{stem}.xml").write_text(f"<annotation><size>{size}</size>{text}</annotation>")
    for name, stems in lists.items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(stems.split()))
    return root


def convert(form: str, src: Path, out: Path, **options) -> convert_dataset.Report:
    defaults = {"names": None, "copy": False, "skip_difficult": False}
    return convert_dataset.main(Namespace(format=form, src=src, out=out, **defaults | options))


def test_voc(tmp_path, capsys):
    objects = {
        "a": voc_object("dog", 20, 10, 60, 50) + voc_object("cat", 150, 50, 220, 90) + voc_object("cat", 5, 5, 5, 50),
        "b": voc_object("dog", 0, 0, 200, 100) * 2,
        "c": "",
    }
    src = make_voc(tmp_path / "src", objects, trainval="a c", train="a", val="c", test="b", cat_test="b -1")
    report = convert("voc", src, tmp_path / "pets")
    out = tmp_path / "pets"
    assert (out / "train.txt").read_text() == "images/a.jpg\nimages/c.jpg\n"
    assert (out / "valid.txt").read_text() == "images/b.jpg\n"
    # dog: x 20..60 of 200, y 10..50 of 100; cat: clipped to x 150..200
    assert (out / "labels" / "a.txt").read_text() == (
        "1 0.200000 0.300000 0.200000 0.400000\n0 0.875000 0.700000 0.250000 0.400000\n"
    )
    assert (out / "labels" / "b.txt").read_text() == "1 0.500000 0.500000 1.000000 1.000000\n"
    assert (out / "labels" / "c.txt").read_text() == ""
    data = read_data(out / "pets.data")
    assert (data.classes, data.names) == (2, ["cat", "dog"])
    assert (data.train, data.valid) == (out / "train.txt", out / "valid.txt")
    assert report.problems.counts == {CLIPPED: 1, NO_AREA: 1, DUPLICATE: 1}
    assert report.problems.first[NO_AREA] == f"{src}/Annotations/a.xml: object 3"
    printed = capsys.readouterr().out
    assert NO_AREA in printed
    assert "Written: " in printed
    assert len(scan(data.train, data.classes).paths) == 2


@pytest.mark.parametrize(
    ("lists", "train", "valid"),
    [
        ({"train": "a", "val": "b", "test": "c"}, "a b", "c"),
        ({"train": "a", "val": "b", "trainval": "a b"}, "a", "b"),
        ({"trainval": "a b"}, "a b", "a b"),
        ({}, "a b c", "a b c"),
    ],
)
def test_voc_splits(tmp_path, lists, train, valid):
    src = make_voc(tmp_path, dict.fromkeys("abc", voc_object("x", 1, 1, 9, 9)), **lists)
    samples = read_voc(src, Options()).samples
    found = {split: " ".join(sorted(s.image.stem for s in samples if split in s.splits)) for split in BOTH}
    assert found == {"train": train, "valid": valid}


def test_voc_options(tmp_path):
    text = voc_object("x", 1, 1, 9, 9, difficult=1) + voc_object("y", 1, 1, 9, 9) + voc_object("z", 1, 1, 9, 9)
    src = make_voc(tmp_path / "src", {"a": text})
    (tmp_path / "names").write_text("z\nx\n")
    assert convert("voc", src, tmp_path / "out").names == ["x", "y", "z"]
    report = convert("voc", src, tmp_path / "out", skip_difficult=True, names=tmp_path / "names")
    assert report.class_boxes == {"z": 1}
    assert (tmp_path / "out" / "labels" / "a.txt").read_text().startswith("0 ")
    assert sorted(report.problems.counts) == [
        "boxes of class 'y', which isn't in --names, left out",
        "difficult objects, left out",
    ]


def test_voc_without_size_measures_the_picture(tmp_path):
    src = make_voc(tmp_path / "src", {"a": voc_object("x", 50, 25, 150, 75)}, size="<width>0</width>")
    convert("voc", src, tmp_path / "out")
    assert (tmp_path / "out" / "labels" / "a.txt").read_text() == "0 0.500000 0.500000 0.500000 0.500000\n"


@pytest.mark.parametrize(
    ("text", "message"), [("<object>", r"a.xml:1: not valid XML"), (voc_object("x", 1, 1, "?", 1), r"a.xml: .*'\?'")]
)
def test_voc_that_cannot_be_read(tmp_path, text, message):
    src = make_voc(tmp_path / "src", {"a": text})
    with pytest.raises(UserError, match=message):
        convert("voc", src, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_voc_lists_what_is_not_there(tmp_path):
    src = make_voc(tmp_path, {"a": voc_object("x", 1, 1, 9, 9)}, train="a b", val="a")
    found = read_voc(src, Options())
    assert [s.image.name for s in found.samples] == ["a.jpg"]
    assert found.problems.first == {"listed images without picture or annotation, left out": "b"}


def make_coco(root: Path, files: dict[str, list[str]]) -> Path:
    """Every image has one box of category 7 (cat) at 20, 10 with size 40 x 30, and a crowd."""
    for name, images in files.items():
        entries = [{"id": i, "file_name": image, "width": 200, "height": 100} for i, image in enumerate(images)]
        boxes = [
            {"id": 10 + i, "image_id": i, "category_id": 7, "bbox": [20, 10, 40, 30], "iscrowd": 0} for i in range(len(images))
        ]
        crowds = [
            {"id": 20 + i, "image_id": i, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1} for i in range(len(images))
        ]
        content = {
            "images": entries,
            "annotations": boxes + crowds,
            "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "ant"}],
        }
        root.mkdir(exist_ok=True)
        (root / f"{name}.json").write_text(json.dumps(content))
    return root


def test_coco_with_one_file(tmp_path):
    src = make_coco(tmp_path / "src", {"instances": ["a.jpg", "gone.jpg"]})
    write_image(src / "images" / "a.jpg")
    report = convert("coco", src, tmp_path / "out")
    assert report.names == ["ant", "cat"]
    assert report.images == {"train": 1, "valid": 1}
    assert (report.total_images, report.class_boxes) == (1, {"cat": 1})
    assert (tmp_path / "out" / "labels" / "a.txt").read_text() == "1 0.200000 0.250000 0.200000 0.300000\n"
    assert report.problems.counts == {"crowd regions, left out": 2, "annotated images that aren't there, left out": 1}


def test_coco_with_splits_and_equal_names(tmp_path):
    src = make_coco(tmp_path / "src", {"instances_train2017": ["a.jpg"], "instances_val2017": ["a.jpg"]})
    for folder in ("train2017", "val2017"):
        write_image(src / "images" / folder / "a.jpg")
    convert("coco", src, tmp_path / "out")
    assert (tmp_path / "out" / "train.txt").read_text() == "images/train2017_a.jpg\n"
    assert (tmp_path / "out" / "valid.txt").read_text() == "images/val2017_a.jpg\n"
    assert os.path.samefile(tmp_path / "out" / "images" / "val2017_a.jpg", src / "images" / "val2017" / "a.jpg")


@pytest.mark.parametrize(
    ("content", "message"), [("[", r"json:1: not valid JSON"), ("{}", "KeyError: 'categories'"), ("[]", "TypeError")]
)
def test_coco_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "instances.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_coco(tmp_path, Options())


def test_coco_that_cannot_be_told_apart(tmp_path):
    with pytest.raises(UserError, match=r"no instances\*.json"):
        read_coco(tmp_path, Options())
    make_coco(tmp_path, {"instances_1": [], "instances_train": []})
    with pytest.raises(UserError, match=r"instances_1.json: several annotation files"):
        read_coco(tmp_path, Options())
    with pytest.raises(UserError, match="no image with an annotation"):
        write_dataset(read_coco(make_coco(tmp_path / "b", {"instances": ["a.jpg"]}), Options()), tmp_path / "out")


def test_voc_masks_of_the_same_name_are_no_pictures(tmp_path):
    src = make_voc(tmp_path / "src", {"a": voc_object("x", 1, 1, 9, 9)})
    write_image(src / "SegmentationClass" / "a.png")
    convert("voc", src, tmp_path / "out")
    assert (tmp_path / "out" / "train.txt").read_text() == "images/a.jpg\n"


def test_no_two_pictures_share_a_label_file():
    paths = [Path(p) for p in ("a/x.jpg", "a/x.png", "b/a/x.jpg", "c/y.jpg", "d/a_x.jpg")]
    names = _target_names([Sample(p, 1, 1, [], BOTH) for p in paths])
    assert list(names) == paths
    assert names[paths[0]] == "a_x.jpg"
    assert names[paths[3]] == "y.jpg"
    assert len({Path(n).stem for n in names.values()}) == len(paths)


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_nlink) for p in folder.rglob("*") if p.is_file()}


def test_converting_again_and_copying(tmp_path):
    src = make_voc(tmp_path / "src", {"a": voc_object("x", 1, 1, 9, 9)})
    out, image = tmp_path / "out", tmp_path / "out" / "images" / "a.jpg"
    convert("voc", src, out)
    first, written = snapshot(out), image.stat().st_ino
    convert("voc", src, out)
    assert snapshot(out) == first
    assert os.path.samefile(image, src / "JPEGImages" / "a.jpg")
    convert("voc", src, out, copy=True)
    assert image.stat().st_ino != written
    assert image.read_bytes() == (src / "JPEGImages" / "a.jpg").read_bytes()
    copied = image.stat().st_ino
    convert("voc", src, out)
    assert image.stat().st_ino == copied  # the same picture already


def test_copies_where_linking_fails(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    src = make_voc(tmp_path / "src", {"a": voc_object("x", 1, 1, 9, 9)})
    monkeypatch.setattr(os, "link", refuse)
    convert("voc", src, tmp_path / "out")
    assert (tmp_path / "out" / "images" / "a.jpg").stat().st_nlink == 1


def test_missing_source(tmp_path):
    with pytest.raises(UserError, match=r"gone: this folder does not exist; check --src"):
        convert("voc", tmp_path / "gone", tmp_path / "out")
    with pytest.raises(UserError, match="Annotations: this folder of a Pascal VOC dataset does not exist"):
        convert("voc", tmp_path, tmp_path / "out")


@needs_shared
def test_bccd(tmp_path):
    report = convert("voc", SHARED / "bccd", tmp_path / "bccd")
    assert (report.total_images, report.images) == (364, {"train": 292, "valid": 72})
    assert report.names == ["Platelets", "RBC", "WBC"]
    assert report.problems.counts == {NO_AREA: 2}
    # its first object: WBC 68, 315, 286, 480 of 640 x 480
    line = (tmp_path / "bccd" / "labels" / "BloodImage_00001.txt").read_text().splitlines()[0]
    assert line == "2 0.276562 0.828125 0.340625 0.343750"


@needs_shared
def test_coco128(tmp_path):
    report = convert("coco", SHARED / "coco128", tmp_path / "coco128")
    assert (report.total_images, report.class_boxes.total(), len(report.names)) == (128, 929, 80)
    assert (report.names[0], report.names[79]) == ("person", "toothbrush")
    assert report.problems.counts == {"crowd regions, left out": 10}
