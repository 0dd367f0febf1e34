"""convert_dataset.py: what is the same for every format. Links, names, splits, reports, images, mistakes."""

import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import convert_dataset
from tests.raw import convert, labels, make_voc, stems, voc_file, voc_object, write_image, write_json, write_text
from utils.converters import examine, image
from utils.converters.base import SWAPPED
from utils.converters.formats import FORMATS
from utils.core.errors import UserError
from utils.data.data_file import read_data
from utils.data.datasets import scan
from utils.data.labels import CLIPPED, DUPLICATE, NO_AREA
from utils.scripts.cli import run

ROOT = Path(__file__).resolve().parents[2]
BOX = voc_object("x", 10, 10, 60, 50)


def command(*words: object) -> convert_dataset.Report:
    return convert_dataset.main(convert_dataset.get_parser().parse_args([str(word) for word in words]))


@pytest.fixture
def no_picture(monkeypatch):
    """Drawing takes a second, which not every test needs."""
    monkeypatch.setattr(image, "draw_report", lambda report, path: None)


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_nlink) for p in folder.rglob("*") if p.is_file()}


def test_the_whole_command(tmp_path, capsys):
    src = make_voc(tmp_path / "src", {
        "a": voc_object("dog", 20, 10, 60, 50) + voc_object("cat", 150, 50, 220, 90) + voc_object("cat", 5, 5, 5, 50),
        "b": voc_object("dog", 0, 0, 200, 100) * 2,
        "c": "",
    }, trainval="a c", train="a", val="c", test="b", cat_test="b -1")  # fmt: skip
    out, figures = tmp_path / "pets", tmp_path / "figures.json"
    report = command("voc", "--src", src, "--out", out, "--json", figures)
    assert (out / "train.txt").read_text() == "images/a.jpg\nimages/c.jpg\n"
    assert (out / "valid.txt").read_text() == "images/b.jpg\n"
    # dog: x 20..60 of 200, y 10..50 of 100; cat: clipped to x 150..200
    assert labels(out, "a") == ["1 0.200000 0.300000 0.200000 0.400000", "0 0.875000 0.700000 0.250000 0.400000"]
    assert labels(out, "b") == ["1 0.500000 0.500000 1.000000 1.000000"]
    assert labels(out, "c") == []
    data = read_data(out / "pets.data")
    assert (data.classes, data.names, data.extra) == (2, ["cat", "dog"], {})
    assert (data.train, data.valid) == (out / "train.txt", out / "valid.txt")
    assert report.problems.first[NO_AREA] == f"{src}/Annotations/a.xml: object 3"
    assert len(scan(data.train, data.classes).paths) == 2
    assert cv2.imread(str(out / "pets.png")).shape == (960, 1120, 3)
    printed = capsys.readouterr().out
    for kind in (NO_AREA, CLIPPED, DUPLICATE):
        assert kind in printed
    written = json.loads(figures.read_text())
    assert written["images"] == {"train": 2, "valid": 1, "all": 3}
    assert written["boxes"] == {"train": 2, "valid": 1, "all": 3}
    assert written["classes"] == {"cat": {"train": 1, "valid": 0, "all": 1}, "dog": {"train": 1, "valid": 1, "all": 2}}
    assert {p["what"]: p["count"] for p in written["problems"]} == {CLIPPED: 1, NO_AREA: 1, DUPLICATE: 1}


def test_converting_again_gives_the_same_files(tmp_path):
    src = make_voc(tmp_path / "src", {"a": BOX, "b": BOX})
    command("voc", "--src", src, "--out", tmp_path / "out")
    first = snapshot(tmp_path / "out")
    assert sorted(first) == ["images/a.jpg", "images/b.jpg", "labels/a.txt", "labels/b.txt", "out.data", "out.names", "out.png",
                             "train.txt", "valid.txt"]  # fmt: skip
    command("voc", "--src", src, "--out", tmp_path / "out")
    assert snapshot(tmp_path / "out") == first


def test_an_interrupted_conversion_can_be_run_again(tmp_path):
    src = make_voc(tmp_path / "src", {"a": BOX, "b": BOX})
    convert("voc", src, tmp_path / "whole")
    convert("voc", src, tmp_path / "out")
    out = tmp_path / "out"
    for name in ("out.data", "valid.txt", "labels/b.txt", "images/b.jpg"):
        (out / name).unlink()
    write_text(out / "labels" / ".b.txt.tmp", "0 0.5")
    write_text(out / ".train.abcd_123.tmp.txt", "images/")
    (out / "labels" / "a.txt").write_text("half")
    convert("voc", src, out)
    renamed = {name.replace("whole", "out"): content for name, (content, _) in snapshot(tmp_path / "whole").items()}
    assert {n: c for n, (c, _) in snapshot(out).items()} == {n: c.replace(b"whole", b"out") for n, c in renamed.items()}


def test_links_and_copies(tmp_path):
    src, image = make_voc(tmp_path / "src", {"a": BOX}), tmp_path / "out" / "images" / "a.jpg"
    original = src / "JPEGImages" / "a.jpg"
    convert("voc", src, tmp_path / "out")
    assert os.path.samefile(image, original)
    convert("voc", src, tmp_path / "out", copy=True)
    assert not os.path.samefile(image, original)
    assert image.read_bytes() == original.read_bytes()
    copied = image.stat().st_ino
    convert("voc", src, tmp_path / "out")
    assert image.stat().st_ino == copied  # the same image already
    write_image(original, 50, 70)
    convert("voc", src, tmp_path / "out")
    assert os.path.samefile(image, original)


def test_copies_where_linking_fails(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    src = make_voc(tmp_path / "src", {"a": BOX})
    monkeypatch.setattr(os, "link", refuse)
    convert("voc", src, tmp_path / "out")
    assert (tmp_path / "out" / "images" / "a.jpg").stat().st_nlink == 1
    assert len(scan(tmp_path / "out" / "train.txt", 1).paths) == 1


def test_symbolic_links_are_followed(tmp_path):
    real = make_voc(tmp_path / "real", {"a": BOX})
    os.rename(real / "JPEGImages", tmp_path / "pictures")
    (real / "JPEGImages").mkdir()
    os.symlink("../../pictures/a.jpg", real / "JPEGImages" / "a.jpg")
    os.symlink(real, real / "again")  # a circle
    os.symlink(real, tmp_path / "src")
    report = convert("voc", tmp_path / "src", tmp_path / "out")
    assert (report.total_images, report.problems.counts) == (1, {})
    assert not (tmp_path / "out" / "images" / "a.jpg").is_symlink()


def test_paths_with_spaces_and_other_alphabets_byte_order_marks_and_capitals(tmp_path):
    src = tmp_path / "mein Datensatz №1"
    write_image(src / "JPEGImages" / "größe 1.b.JPG")
    text = "\ufeff\n<?xml version='1.0' encoding='utf-8'?>\n" + voc_file(voc_object("Hündin", 20, 10, 60, 50), filename="?")
    write_text(src / "ANNOTATIONS" / "gro\u0308ße 1.b.XML", text.replace("\n", "\r\n"), encoding="utf-8")
    write_text(src / "ImageSets" / "Main" / "TRAIN.TXT", "\ufeffgröße 1.b\r\n\r\n", encoding="utf-8", newline="")
    write_image(src / "JPEGImages" / "._größe 1.b.JPG")  # as macOS leaves them in archives
    write_image(src / "__MACOSX" / "größe 1.b.jpg")
    out = tmp_path / "aus gabe#1"
    report = convert("voc", src, out)
    assert (report.names, report.total_images, report.problems.counts) == (["Hündin"], 1, {})
    data = read_data(report.data)
    assert data.names == ["Hündin"]
    found = scan(data.train, 1)
    assert [Path(path).name for path in found.paths] == ["größe 1.b.JPG"]
    np.testing.assert_allclose(found.labels[0], [[0, 0.2, 0.3, 0.2, 0.4]], atol=1e-6)


def test_the_output_may_lie_in_the_source(tmp_path):
    src = make_voc(tmp_path, {"a": BOX})
    for _ in range(2):
        report = convert("voc", src, tmp_path / "out")
        assert (report.total_images, report.problems.counts) == (1, {})


@pytest.mark.parametrize("out", ["", "..", "../.."])
def test_the_source_is_never_written_to(tmp_path, out):
    src = make_voc(tmp_path / "images" / "raw" if out == "../.." else tmp_path / "images", {"a": BOX})
    target = {"": src, "..": src / "..", "../..": src / "../.."}[out]
    with pytest.raises(UserError, match="is the dataset itself; choose another folder"):
        command("voc", "--src", src, "--out", target)
    assert not (src / "train.txt").exists()


def test_what_cannot_be_used_is_counted(tmp_path):
    boxes = {
        "outside": (300, 10, 400, 50), "above": (10, -40, 60, 0), "inverted": (60, 10, 10, 50), "line": (10, 10, 60, 10),
        "speck": (10, 10, 10.00001, 50),
    }  # fmt: skip
    text = "".join(voc_object("x", *corners) for corners in boxes.values()) + BOX * 3 + voc_object(" ", 1, 1, 9, 9)
    src = make_voc(tmp_path / "src", {"a": text, "broken": BOX, "swapped": "", "scaled": ""})
    (src / "JPEGImages" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    write_text(src / "Annotations" / "swapped.xml", voc_file(BOX, "<width>100</width><height>200</height>"))
    write_text(src / "Annotations" / "scaled.xml", voc_file(BOX, "<width>400</width><height>200</height>"))
    write_image(src / "JPEGImages" / "alone.png")
    write_text(src / "Annotations" / "gone.xml", voc_file(BOX))
    report = convert("voc", src, tmp_path / "out")
    assert report.problems.counts == {
        examine.OUTSIDE: 2, NO_AREA: 2, SWAPPED: 1, DUPLICATE: 3, examine.UNREADABLE: 1, "boxes without a name, left out": 1,
        "images annotated with width and height swapped, taken as they are": 1,
        "images of another size than annotated, boxes scaled": 1,
        "images without annotation, left out": 1, "annotations without image, left out": 1,
    }  # fmt: skip
    assert report.problems.first[examine.OUTSIDE] == f"{src}/Annotations/a.xml: object 1"
    assert report.problems.first[DUPLICATE] == f"{src}/Annotations/a.xml: object 6"
    assert report.problems.first[examine.UNREADABLE] == f"{src}/JPEGImages/broken.jpg: cut short"
    assert report.problems.first["images without annotation, left out"] == f"{src}/JPEGImages/alone.png"
    assert labels(tmp_path / "out", "a") == ["0 0.175000 0.300000 0.250000 0.400000"]
    assert labels(tmp_path / "out", "swapped") == ["0 0.175000 0.300000 0.250000 0.400000"]
    assert labels(tmp_path / "out", "scaled") == ["0 0.087500 0.150000 0.125000 0.200000"]


def test_numbers_that_are_none(tmp_path):
    src = make_voc(tmp_path / "src", {"a": BOX + voc_object("x", 1, 1, "nan", 9)})
    with pytest.raises(UserError, match=r"a.xml: object 2: a corner isn't a finite number; mend or remove it"):
        convert("voc", src, tmp_path / "out")
    with pytest.raises(UserError, match="no image with a box was found; check --src"):
        convert("voc", make_voc(tmp_path / "empty", {"a": ""}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_choose_and_order_the_classes(tmp_path, no_picture):
    text = "".join(voc_object(name, 10, 10, 60, y) for name, y in (("x", 50), ("y", 51), ("Z", 52)))
    src = make_voc(tmp_path / "src", {"a": text})
    assert convert("voc", src, tmp_path / "all").names == ["Z", "x", "y"]
    (tmp_path / "names").write_text("z\nx\n")
    report = command("voc", "--src", src, "--out", tmp_path / "out", "--names", tmp_path / "names")
    assert (report.names, report.class_boxes) == (["z", "x"], {"x": 1, "z": 1})
    assert [line[0] for line in labels(tmp_path / "out", "a")] == ["1", "0"]
    assert report.problems.counts == {"boxes of class 'y', which isn't among the names, left out": 1}


@pytest.mark.parametrize(
    ("folders", "share", "splits", "remark"),
    [
        (("train", "valid"), 0, {"train": "train", "valid": "valid"}, ""),
        (("training", "validation", "test"), 0, {"train": "training", "valid": "validation", "test": "test"}, ""),
        (("train", "test"), 0, {"train": "train", "valid": "test"}, "the test set is used to validate on"),
        (("val",), 0, {"train": "val", "valid": "val"}, "there is only one set"),
        (("other",), 0, {"train": "other", "valid": "other"}, "there is only one set"),
        (("train", "val", "other"), 0, {"train": "other train", "valid": "val"}, "1 images that belong to no split"),
        (("train",), 0.999999, {"train": "", "valid": "train"}, "held out"),
        (("train", "test"), 0.999999, {"train": "", "valid": "train", "test": "test"}, "held out"),
    ],
)
def test_splits_by_folders(tmp_path, folders, share, splits, remark):
    for folder in folders:
        write_image(tmp_path / "src" / folder / f"{folder}.jpg")
        write_text(tmp_path / "src" / folder / f"{folder}.xml", voc_file(BOX))
    report = convert("voc", tmp_path / "src", tmp_path / "out", valid_share=share)
    assert {split: stems(tmp_path / "out", split) for split in report.images} == splits
    assert [remark in text for text in report.remarks] == [True] * bool(remark)
    assert read_data(report.data).extra == ({"test": "test.txt"} if "test" in splits else {})


def test_a_share_is_held_out_by_name(tmp_path, no_picture):
    src = make_voc(tmp_path / "src", {f"{i:03d}": BOX for i in range(200)})
    report = command("voc", "--src", src, "--out", tmp_path / "out", "--valid-share", 0.25)
    held = set(stems(tmp_path / "out", "valid").split())
    assert report.images["valid"] == len(held)
    assert 35 <= len(held) <= 65  # 50 of 200, give or take 2.4 standard deviations
    assert held.isdisjoint(stems(tmp_path / "out", "train").split())
    for name in ("000", "001", "002"):
        (src / "JPEGImages" / f"{name}.jpg").unlink()
    convert("voc", src, tmp_path / "less", valid_share=0.25)
    assert set(stems(tmp_path / "less", "valid").split()) == held - {"000", "001", "002"}


def test_a_share_of_what_has_its_own_validation_set(tmp_path):
    src = make_voc(tmp_path / "src", {"a": BOX, "b": BOX}, train="a", val="b")
    with pytest.raises(UserError, match="--valid-share: this dataset has its own 1 images"):
        convert("voc", src, tmp_path / "out", valid_share=0.2)
    for text in ("1", "-0.1", "many"):
        with pytest.raises(SystemExit):
            convert_dataset.get_parser().parse_args(["voc", "--src", "a", "--out", "b", "--valid-share", text])


def test_only_some_annotation_files(tmp_path, no_picture):
    for year in ("VOC2007", "VOC2012"):
        make_voc(tmp_path / "src" / year, {f"{year}_a": BOX})
    assert command("voc", "--src", tmp_path / "src", "--out", tmp_path / "all").total_images == 2
    report = command("voc", "--src", tmp_path / "src", "--out", tmp_path / "out", "--only", "2012")
    assert stems(tmp_path / "out", "train") == "VOC2012_a"
    assert report.problems.counts == {"images without annotation, left out": 1}
    with pytest.raises(
        UserError, match="there is no annotation .* whose path has '2021' in it in this folder; check --src and --only"
    ):
        convert("voc", tmp_path / "src", tmp_path / "out", only="2021")


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="src: this folder cannot be read .Permission denied.; change its permissions"):
        convert("voc", make_voc(tmp_path / "src", {"a": BOX}), tmp_path / "out")


def test_mistakes_on_the_command_line(tmp_path):
    with pytest.raises(UserError, match=r"gone: this folder does not exist; check --src"):
        command("voc", "--src", tmp_path / "gone", "--out", tmp_path / "out")
    with pytest.raises(UserError, match=r"--skip-difficult: coco knows no difficult objects, only voc, dior do"):
        command("coco", "--src", tmp_path, "--out", tmp_path / "out", "--skip-difficult")
    for form in FORMATS:
        with pytest.raises(UserError, match=f"{tmp_path.name}: there is no .*in this folder; check --src"):
            command(form, "--src", tmp_path, "--out", tmp_path / "out")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("names", "message"), [("", "holds no class name"), ("a\n\nb\na\n", "names a twice; a class has one line")]
)
def test_mistakes_in_names(tmp_path, names, message):
    (tmp_path / "src").mkdir()
    (tmp_path / "x.names").write_text(names)
    with pytest.raises(UserError, match=f"x.names: {message}"):
        command("voc", "--src", tmp_path / "src", "--out", tmp_path / "out", "--names", tmp_path / "x.names")


def test_a_folder_without_a_name_is_refused(tmp_path):
    with pytest.raises(UserError, match="--out /: has no name that the .data could have"):
        command("voc", "--src", tmp_path, "--out", "/")


def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys):
    write_text(tmp_path / "src" / "a.xml", "<annotation>")
    monkeypatch.setattr(sys, "argv", ["x.py", "voc", "--src", str(tmp_path / "src"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        run(convert_dataset.main, convert_dataset.get_parser())
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "a.xml:1: not valid XML" in error


def test_one_picture_annotated_twice(tmp_path):
    box = {"category_id": 1, "image_id": 5, "bbox": [20, 10, 40, 40]}
    for split in ("train", "val"):
        write_json(tmp_path / "src" / f"instances_{split}.json", {
            "images": [{"id": 5, "file_name": "a.jpg"}], "annotations": [box], "categories": [{"id": 1, "name": "x"}],
        })  # fmt: skip
    write_image(tmp_path / "src" / "a.jpg")
    report = convert("coco", tmp_path / "src", tmp_path / "out")
    assert (report.images, report.total_images, report.class_boxes) == ({"train": 1, "valid": 1}, 1, {"x": 1})
    assert report.problems.counts == {
        "annotations of an image that has one already, put together": 1, "duplicate boxes, dropped": 1,
    }  # fmt: skip
