"""BDD100K, from miniature datasets in its three layouts."""

import json
from pathlib import Path

import pytest

from tests.raw import convert, labels, stems, write_image, write_json, write_text
from utils.converters.base import SWAPPED, Found
from utils.converters.bdd100k import _add_labels
from utils.core.errors import UserError

A, B, C = "0000f77c-6257be58", "b1c66a42-6f7d68ca", "cabc30fc-e7726578"
LANE = {
    "category": "lane", "attributes": {"direction": "parallel"}, "manualShape": True, "id": 3,
    "poly2d": [{"vertices": [[1.0, 2.0], [3.0, 4.0]], "types": "LL", "closed": False}],
}  # fmt: skip
AREA = {"category": "drivable area", "attributes": {"areaType": "direct"}, "poly2d": [{"vertices": [[0, 0]], "closed": True}]}


def label(category: str, *corners: float, **more) -> dict:
    box = dict(zip(("x1", "y1", "x2", "y2"), corners, strict=True))
    return {"category": category, "attributes": {"occluded": False}, "manualShape": True, "box2d": box, "id": 0, **more}


def frame(name: str, found: list[dict] | None) -> dict:
    attributes = {"weather": "clear", "scene": "city street", "timeofday": "daytime"}
    return {"name": f"{name}.jpg", "attributes": attributes, "timestamp": 10000, "labels": found}


def make_images(root: Path) -> Path:
    for split, name in (("train", A), ("val", B), ("test", C)):
        write_image(root / "images" / "100k" / split / f"{name}.jpg")
        write_image(root / "images" / "10k" / split / f"{name}.jpg", 50, 50)  # some are there twice
    return root


OLD = [
    label("person", 20, 10, 60, 50), LANE, label("bike", 150, 50, 200, 100), AREA, label("motor", 0, 0, 100, 50),
    label("traffic light", 10.5, 20.25, 20.5, 30.25), LANE,
]  # fmt: skip
NEW = [label({"person": "pedestrian", "bike": "bicycle", "motor": "motorcycle"}.get(o["category"], o["category"]),
             *o["box2d"].values()) for o in OLD if "box2d" in o]  # fmt: skip
LINES = [
    "2 0.200000 0.300000 0.200000 0.400000",  # person: centre 40, 30 of 200 x 100
    "3 0.875000 0.750000 0.250000 0.500000",  # bike
    "5 0.250000 0.250000 0.500000 0.500000",  # motor
    "9 0.077500 0.252500 0.050000 0.100000",  # traffic light: centre 15.5, 25.25
]


def check(report, out: Path, drawn: int) -> None:
    assert report.names == [
        "car", "bus", "person", "bike", "truck", "motor", "train", "rider", "traffic sign", "traffic light",
    ]  # fmt: skip
    assert labels(out, A) == LINES
    assert (stems(out, "train"), stems(out, "valid")) == (A, B)
    counts = dict(report.problems.counts)
    assert counts.pop("images without annotation, left out") == 4  # three of 10k, the test set's
    assert counts == ({"lanes and drivable areas, left out": drawn} if drawn else {})


def test_the_lists_of_2018(tmp_path):
    src = make_images(tmp_path / "src")
    write_json(src / "labels/bdd100k_labels_images_train.json", [frame(A, OLD)])
    write_json(src / "labels/bdd100k_labels_images_val.json", [frame(B, [label("train", 0, 0, 9, 9), AREA])], indent=4)
    report = convert("bdd100k", src, tmp_path / "out")
    check(report, tmp_path / "out", 4)
    path = src / "labels/bdd100k_labels_images_train.json"
    assert report.problems.first["lanes and drivable areas, left out"] == f"{path}: {A}.jpg: label 2"


def test_the_lists_of_2020(tmp_path):
    """Images without objects have no `labels`; those of 2018 and other tasks lie beside."""
    src = make_images(tmp_path / "src")
    write_json(src / "labels/det_20/det_train.json", [frame(A, NEW)])
    background = frame(B, None)
    del background["labels"]
    write_json(src / "labels/det_20/det_val.json", [background])
    write_json(src / "labels/bdd100k_labels_images_train.json", [frame(A, OLD)])
    write_json(src / "labels/lane/polygons/lane_train.json", [frame(A, [LANE])])
    report = convert("bdd100k", src, tmp_path / "out")
    check(report, tmp_path / "out", 0)
    assert labels(tmp_path / "out", B) == []
    assert report.remarks == [
        "labels/det_20/det_train.json is used, labels/bdd100k_labels_images_train.json isn't; choose with --only"
    ]
    report = convert("bdd100k", src, tmp_path / "old", only="bdd100k_labels")
    assert report.problems.counts["lanes and drivable areas, left out"] == 3


def test_a_file_a_picture(tmp_path):
    """As the archive of 2018 had them, too: names without suffix, `objects` in the one frame, areas with their kind."""
    src = make_images(tmp_path / "src")
    kinds = {"lane": "lane/single white", "drivable area": "area/drivable"}
    objects = [entry | {"category": kinds.get(entry["category"], entry["category"])} for entry in OLD]
    for split, name, found in (("train", A, objects), ("val", B, [])):
        content = {"name": name, "frames": [{"timestamp": 10000, "objects": found}], "attributes": {"weather": "clear"}}
        write_json(src / "labels" / "100k" / split / f"{name}.json", content)
    report = convert("bdd100k", src, tmp_path / "out")
    check(report, tmp_path / "out", 3)
    path = src / "labels" / "100k" / "train" / f"{A}.json"
    assert report.problems.first["lanes and drivable areas, left out"] == f"{path}: label 2"


def test_other_layouts(tmp_path):
    """One list in an object, names with folders, a class of another task, a label without a box, an image that isn't there."""
    write_image(tmp_path / "src" / "a.PNG")
    found = [label("other vehicle", 1, 1, 9, 9), {"category": "car", "box2d": None}, label("Car", 0, 0, 100, 50)]
    frames = [{"name": "videos/a.png", "labels": found}, {"name": "gone.jpg"}]
    write_json(tmp_path / "src" / "labels.json", {"frames": frames, "config": {}})
    report = convert("bdd100k", tmp_path / "src", tmp_path / "out")
    assert labels(tmp_path / "out", "a") == ["0 0.250000 0.250000 0.500000 0.500000"]
    assert report.problems.counts == {
        "annotated images that aren't there, left out": 1, "labels without box2d, left out": 1,
        "boxes of class 'other vehicle', which isn't among the names, left out": 1,
    }  # fmt: skip


def test_the_new_names_can_be_asked_for(tmp_path):
    src = make_images(tmp_path / "src")
    write_json(src / "labels/det_20/det_train.json", [frame(A, OLD)])
    report = convert("bdd100k", src, tmp_path / "out", names=("pedestrian", "motorcycle"))
    assert labels(tmp_path / "out", A) == ["0" + LINES[0][1:], "1" + LINES[2][1:]]
    assert report.class_boxes == {"pedestrian": 1, "motorcycle": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"labels": []}], "labels.json: image number 1: has no `name`; not BDD100K's format"),
        (
            [frame(A, [LANE, label("car", 1, 2, 3, 4), {"box2d": {}}])],
            f"{A}.jpg: label 3: not BDD100K's .*KeyError: 'category'",
        ),
        ([frame(A, [{"category": "car", "box2d": {"x1": 1}}])], "label 1: not BDD100K's format .KeyError: 'y1'"),
        ([frame(A, [label("car", 1, 2, "x", 4)])], "label 1: not BDD100K's format .ValueError"),
    ],
)
def test_what_cannot_be_read(tmp_path, content, message):
    write_text(tmp_path / "src" / "labels.json", json.dumps(content))
    with pytest.raises(UserError, match=message):
        convert("bdd100k", tmp_path / "src", tmp_path / "out")


def test_corners_in_the_wrong_order_keep_the_numbers_of_the_labels():
    found = Found("a: label ")
    _add_labels([label("car", 9, 2, 3, 4), label("car", 1, 2, 3, 4)], found)
    _add_labels([{"category": "car"}], found)
    assert list(found.corners) == [3, 2, 9, 4, 1, 2, 3, 4]
    assert found.problems.first == {SWAPPED: "a: label 1", "labels without box2d, left out": "a: label 3"}
