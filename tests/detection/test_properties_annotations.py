"""Whatever an annotation file holds, its reader ends in a result or in the one line of a UserError."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.raw import convert, write_image
from utils.converters.base import Options
from utils.converters.visdrone import parse_visdrone
from utils.core.errors import UserError
from utils.detection.ground_truth import coco_ground_truth
from utils.detection.metrics import compute_metrics

COCO = {
    "info": {"year": 2017},
    "images": [
        {"id": 1, "file_name": "a.jpg", "width": 200, "height": 100},
        {"id": 2, "file_name": "b.jpg", "width": 200, "height": 100},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40], "area": 1200, "iscrowd": 0, "ignore": 0},
        {"id": 2, "image_id": 1, "category_id": 2, "segmentation": [[1, 1, 20, 1, 20, 30]]},
        {"id": 3, "image_id": 2, "category_id": 2, "segmentation": {"size": [9, 9], "counts": [5, 10, 66]}, "iscrowd": 1},
    ],
    "categories": [{"id": 1, "name": "x", "supercategory": "z"}, {"id": 2, "name": "y"}],
}  # fmt: skip
BDD100K = [
    {"name": "a.jpg", "labels": [
        {"id": 1, "category": "car", "box2d": {"x1": 1, "y1": 2, "x2": 30, "y2": 40}}, {"category": "lane", "poly2d": []},
        {"category": "rider", "box2d": {"x1": "1", "y1": 2.5, "x2": 30, "y2": 40}},
    ]},
    {"name": "train/b.jpg", "labels": None},
]  # fmt: skip
VISDRONE = "1,2,30,40,1,4,0,0\n5,6,7,8,0,0,0,0\n1,1,9,9,1,11,0,0,\n"

odd = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.just([]), st.just({}), st.just([[]]),
    st.sampled_from([0, -1, 2**63, 10**400, 1e308, "1", "x", "a.jpg", "\ud800", "\0", "..", "/", [1, 2, 3, 4], {"a": 1}]),
)  # fmt: skip


def places(tree: Any, way: tuple = ()) -> list[tuple]:
    """The ways to all values of a JSON tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [way] * bool(way) + [found for key, value in items for found in places(value, (*way, key))]


@st.composite
def mutated(draw: st.DrawFn, tree: Any) -> Any:
    """The tree with one to three values changed, removed or repeated."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(places(tree)))
        parent = tree
        for key in way:
            parent = parent[key]
        match draw(st.sampled_from(["change", "remove", "repeat"])):
            case "remove" if len(parent) > 1:
                del parent[last]
            case "repeat" if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[last]))
            case _:
                parent[last] = draw(odd)
    return tree


@st.composite
def damaged(draw: st.DrawFn, text: str) -> bytes:
    """The text with bytes cut off, put in or replaced."""
    data = bytearray(text.encode())
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        data[start : start + draw(st.sampled_from([0, 0, 1, 5, len(data)]))] = draw(st.binary(max_size=6))
    return bytes(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two images; each example replaces what is annotated of them."""
    folder = tmp_path_factory.mktemp("raw")
    for name in ("a", "b"):
        write_image(folder / f"train/images/{name}.jpg")
    return folder


def ends_well(work: Callable[[], Any]) -> None:
    message = ""
    try:
        work()
    except UserError as error:
        message = str(error)
    assert "\n" not in message


def judge(path: Path) -> None:
    paths = [str(path.parent / f"train/images/{name}.jpg") for name in ("a", "b")]
    truth = coco_ground_truth(path, paths, np.array([[100, 200]] * 2), ["x", "y"], lambda line: None)
    result = compute_metrics(truth, {0: np.array([[1, 2, 31, 42, 0.9, 0]], np.float32)}, ["x", "y"])
    assert 0 <= result.map <= 1


def read(form: str, folder: Path, name: str, data: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    ends_well(lambda: convert(form, folder, folder.parent / f"{folder.name}_{form}"))
    if form == "coco":
        ends_well(lambda: judge(path))
    path.unlink()


EXAMPLES = settings(max_examples=60, derandomize=True, deadline=None)


@EXAMPLES
@given(content=mutated(COCO))
def test_any_coco_json(folder: Path, content: Any) -> None:
    read("coco", folder, "instances_train.json", json.dumps(content).encode())


@EXAMPLES
@given(data=damaged(json.dumps(COCO)))
def test_any_coco_bytes(folder: Path, data: bytes) -> None:
    read("coco", folder, "instances_train.json", data)


@EXAMPLES
@given(content=mutated(BDD100K))
def test_any_bdd100k_json(folder: Path, content: Any) -> None:
    read("bdd100k", folder, "labels/det_20/det_train.json", json.dumps(content).encode())


@EXAMPLES
@given(content=mutated({"name": "a", "frames": [{"objects": BDD100K[0]["labels"]}]}))
def test_any_bdd100k_json_of_one_picture(folder: Path, content: Any) -> None:
    read("bdd100k", folder, "labels/100k/train/a.json", json.dumps(content).encode())


@EXAMPLES
@given(data=damaged(VISDRONE))
def test_any_visdrone_text(folder: Path, data: bytes) -> None:
    read("visdrone", folder, "train/annotations/a.txt", data)


@EXAMPLES
@given(fields=st.lists(st.one_of(st.integers(), st.floats(), st.text("0123456789.-e_nai", max_size=6)), max_size=9))
def test_any_visdrone_line(folder: Path, fields: list) -> None:
    path = folder / "line.txt"
    path.write_text(",".join(map(str, fields)))
    ends_well(lambda: parse_visdrone(str(path), Options()))


def test_they_are_read_as_they_stand(folder: Path) -> None:
    """What the mutations start from is right, so they do reach what lies behind the first look."""
    (folder / "instances_train.json").write_text(json.dumps(COCO))
    judge(folder / "instances_train.json")
    report = convert("coco", folder, folder.parent / "right")
    assert report.class_boxes == {"x": 1, "y": 1}
    assert report.problems.counts == {"crowd regions, left out": 1}
    (folder / "instances_train.json").unlink()
