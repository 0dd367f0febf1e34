"""COCO's instances, from miniature files in its format."""

import os
from pathlib import Path

import pytest

from tests.raw import convert, labels, stems, write_image, write_json, write_text
from utils.converters.base import Options
from utils.converters.coco import read_coco
from utils.core.errors import UserError

CATEGORIES = [
    {"supercategory": "animal", "id": 17, "name": "cat"}, {"supercategory": "person", "id": 1, "name": "person"},
    {"supercategory": "sports", "id": 90, "name": "toothbrush"},
]  # fmt: skip


def annotation(number: int, image: int, category: int, *bbox: float, **more) -> dict:
    polygon = [[1.0, 1.0, 2.0, 1.0, 2.0, 2.0]]
    content = {"id": number, "image_id": image, "category_id": category, "bbox": list(bbox), "area": 1.0, "iscrowd": 0}
    return content | {"segmentation": polygon} | more


def make_file(path: Path, names: dict[int, str], annotations: list[dict], categories: list[dict] = CATEGORIES, **more) -> Path:
    images = [{"license": 3, "file_name": name, "height": 100, "width": 200, "id": i} for i, name in names.items()]
    content = {"info": {"year": 2017}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    return write_json(path, content | more)


def test_2017_with_crowds(tmp_path):
    src = tmp_path / "src"
    crowd = {"iscrowd": 1, "segmentation": {"counts": [1, 2], "size": [100, 200]}}
    boxes = [
        annotation(101, 9, 17, 20, 10, 40, 30),  # centre 40, 25
        annotation(102, 9, 90, 150, 50, 70, 60),  # reaches 220, 110: clipped to 150..200, 50..100
        annotation(103, 9, 1, 0, 0, 190, 90, **crowd),
        annotation(104, 9, 17, 30, 30, 0, 20),
        annotation(105, 9, 1, 0.5, 0.25, 199.5, 99.75),
        annotation(106, 77, 1, 1, 1, 5, 5),
        annotation(107, 9, 1, 1, 1, 5, 5, bbox=None, segmentation=None),
        annotation(108, 9, 1, 1, 1, 5, 5, ignore=1),
    ]
    make_file(
        src / "annotations/instances_train2017.json", {9: "000000000009.jpg", 8: "000000000008.jpg", 7: "gone.jpg"}, boxes
    )
    make_file(src / "annotations/instances_val2017.json", {5: "000000000005.jpg"}, [annotation(1, 5, 1, 0, 0, 100, 50)])
    write_json(src / "annotations/captions_train2017.json", {"annotations": []})
    for path in ("train2017/000000000009", "train2017/000000000008", "val2017/000000000005", "unlabeled2017/1"):
        write_image(src / f"{path}.jpg")
    report = convert("coco", src, tmp_path / "out")
    assert report.names == ["person", "cat", "toothbrush"]  # in the order of their ids, which have gaps
    assert labels(tmp_path / "out", "000000000009") == [
        "1 0.200000 0.250000 0.200000 0.300000", "2 0.875000 0.750000 0.250000 0.500000",
        "0 0.501250 0.501250 0.997500 0.997500",
    ]  # fmt: skip
    assert labels(tmp_path / "out", "000000000008") == []  # an image without objects belongs to the set
    assert labels(tmp_path / "out", "000000000005") == ["0 0.250000 0.250000 0.500000 0.500000"]
    assert stems(tmp_path / "out", "train") == "000000000008 000000000009"
    assert stems(tmp_path / "out", "valid") == "000000000005"
    assert report.problems.counts == {
        "crowd regions, left out": 1, "annotations to be ignored, left out": 1, "annotations without bbox, left out": 1,
        "annotations of an image that isn't listed, left out": 1, "annotated images that aren't there, left out": 1,
        "images without annotation, left out": 1, "boxes clipped to the image": 1,
        "boxes without area in the image, dropped": 1,
    }  # fmt: skip
    path = src / "annotations/instances_train2017.json"
    assert report.problems.first["crowd regions, left out"] == f"{path}: annotation 103"
    assert report.problems.first["annotations of an image that isn't listed, left out"] == f"{path}: image_id 77"


def test_equal_names_in_several_folders(tmp_path):
    for split in ("train", "val"):
        make_file(tmp_path / f"src/annotations/instances_{split}2017.json", {0: "a.jpg"}, [annotation(1, 0, 1, 0, 0, 9, 9)])
        write_image(tmp_path / "src" / "images" / f"{split}2017" / "a.jpg")
    convert("coco", tmp_path / "src", tmp_path / "out")
    assert (tmp_path / "out" / "train.txt").read_text() == "images/train2017_a.jpg\n"
    assert (tmp_path / "out" / "valid.txt").read_text() == "images/val2017_a.jpg\n"
    assert os.path.samefile(tmp_path / "out" / "images" / "val2017_a.jpg", tmp_path / "src" / "images" / "val2017" / "a.jpg")


def test_folders_in_file_names(tmp_path):
    src = tmp_path / "src"
    boxes = [annotation(1, 0, 1, 0, 0, 100, 50), annotation(2, 1, 1, 0, 0, 50, 100)]
    make_file(src / "instances.json", {0: "left\\a.jpg", 1: "right/a.jpg"}, boxes)
    for folder in ("left", "right"):
        write_image(src / folder / "a.jpg")
    convert("coco", src, tmp_path / "out")
    assert labels(tmp_path / "out", "left_a") == ["0 0.250000 0.250000 0.500000 0.500000"]
    assert labels(tmp_path / "out", "right_a") == ["0 0.125000 0.500000 0.250000 1.000000"]


def test_one_file_beside_its_pictures_a_split(tmp_path):
    """As Roboflow exports: the folder is the split, a class without boxes comes first, one name twice."""
    categories = [{"id": 0, "name": "cats"}, {"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]
    boxes = [annotation(0, 0, 1, 0, 0, 9, 9), annotation(1, 0, 2, 9, 9, 9, 9)]
    for split in ("train", "valid", "test"):
        make_file(tmp_path / "src" / split / "_annotations.coco.json", {0: "a.JPG"}, boxes, categories)
        write_image(tmp_path / "src" / split / "a.JPG")
    report = convert("coco", tmp_path / "src", tmp_path / "out")
    assert (report.names, report.class_boxes) == (["cats", "cat"], {"cat": 6})
    assert {split: stems(tmp_path / "out", split) for split in report.images} == {
        "train": "train_a", "valid": "valid_a", "test": "test_a",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", r"instances.json:1: not valid JSON"),
        ('{"images": [],\n"annotations": [],\n"categories": [{"id": 1]}', r"instances.json:3: not valid JSON"),
        ("{}", "instances.json: not COCO's instances format .`images` is missing.; choose another file"),
        ("[]", "a list, as detections are"),
        (
            '{"images": [], "annotations": [{"bbox": [1, 2, 3]}]}',
            r"annotations number 1: .*its bbox isn't .x, y, width, height.",
        ),
        ('{"images": [{"id": 1}]}', r"images number 1: not COCO's instances format .has no `file_name`"),
        ('{"categories": [5]}', r"categories number 1: not COCO's instances format .*not subscriptable"),
    ],
)
def test_what_cannot_be_read(tmp_path, content, message):
    write_text(tmp_path / "instances.json", content)
    with pytest.raises(UserError, match=message):
        read_coco(tmp_path, Options())


def test_unknown_and_contradicting_categories(tmp_path):
    make_file(tmp_path / "instances_train.json", {0: "a.jpg"}, [annotation(55, 0, 2, 1, 1, 2, 2)])
    with pytest.raises(UserError, match="instances_train.json: annotation 55: category_id 2 isn't one of the file's"):
        read_coco(tmp_path, Options())
    make_file(tmp_path / "instances_train.json", {0: "a.jpg"}, [])
    make_file(tmp_path / "instances_val.json", {0: "a.jpg"}, [], [{"id": 17, "name": "dog"}])
    with pytest.raises(UserError, match="instances_val.json: category 17 is 'dog', but 'cat' in another file"):
        read_coco(tmp_path, Options())


def test_files_that_cannot_be_told_apart(tmp_path):
    with pytest.raises(UserError, match=r"no instances\*.json"):
        read_coco(tmp_path, Options())
    for name in ("instances_1", "instances_train"):
        make_file(tmp_path / f"{name}.json", {0: "a.jpg"}, [])
    with pytest.raises(UserError, match=r"instances_1.json: several annotation files"):
        read_coco(tmp_path, Options())
    assert read_coco(tmp_path, Options(only="_1")).problems.counts == {"annotated images that aren't there, left out": 1}
    with pytest.raises(UserError, match="no image with a box was found; annotated images that aren't there, left out: 1"):
        convert("coco", tmp_path, tmp_path / "out", only="_1")


def test_two_releases_are_never_mixed(tmp_path):
    for year in (2014, 2017):
        for split in ("train", "val"):
            name = f"{split}{year}.jpg"
            make_file(tmp_path / "src" / f"instances_{split}{year}.json", {0: name}, [annotation(1, 0, 1, 1, 1, 9, 9)])
            write_image(tmp_path / "src" / name)
    with pytest.raises(UserError, match="has the releases 2014, 2017, which share images; choose: --only 2014"):
        convert("coco", tmp_path / "src", tmp_path / "out")
    convert("coco", tmp_path / "src", tmp_path / "out", only="2014")
    assert (stems(tmp_path / "out", "train"), stems(tmp_path / "out", "valid")) == ("train2014", "val2014")


def test_coco128(tmp_path, shared):
    report = convert("coco", shared / "data" / "coco128", tmp_path / "coco128")
    assert (report.total_images, report.class_boxes.total(), len(report.names)) == (128, 929, 80)
    assert (report.names[0], report.names[79]) == ("person", "toothbrush")
    assert report.problems.counts == {"crowd regions, left out": 10}
