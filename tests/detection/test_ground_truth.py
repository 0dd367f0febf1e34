"""COCO jsons as people have them: the figures of pycocotools for the same file cleaned by hand, or one line."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.detection.test_metrics import random_case, reference
from utils.core.errors import UserError
from utils.data.data_file import DataConfig
from utils.detection.ground_truth import GroundTruth, coco_ground_truth, json_ground_truth
from utils.detection.metrics import coco_results, compute_metrics

NAMES = ["a dog", "cat", "Hen"]
LABELS, SHAPES, DETECTIONS = random_case(7)
PATHS = [f"data/images/cam{i % 2}/{i // 2:04d}.jpg" for i in range(len(LABELS))]


def clean() -> dict[str, Any]:
    """The labels as COCO has them. Every second image is cam0's, and each camera counts its own."""
    images, annotations = [], []
    for i, (rows, (height, width)) in enumerate(zip(LABELS, SHAPES.tolist(), strict=True)):
        images.append({"id": 10 + i, "file_name": "/".join(PATHS[i].split("/")[2:]), "width": width, "height": height})
        for label, x, y, w, h in rows.tolist():
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            annotations.append({"id": len(annotations) + 1, "image_id": 10 + i, "category_id": int(label) + 3, "bbox": box,
                                "area": box[2] * box[3], "iscrowd": 0})  # fmt: skip
    categories = [{"id": 3 + number, "name": name} for number, name in enumerate(NAMES)]
    return {"images": images, "annotations": annotations, "categories": categories}


@dataclass
class File:
    """A json in a folder of its own, and what was said about it."""

    folder: Path
    said: list[str]

    def truth(self, content: dict[str, Any] | list, names: list[str] = NAMES, paths: list[str] = PATHS) -> GroundTruth:
        path = self.folder / "truth.json"
        path.write_text(json.dumps(content))
        shapes = np.stack([SHAPES[PATHS.index(p)] for p in paths])
        return coco_ground_truth(path, paths, shapes, names, lambda said: self.said.append(str(said)))


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path, [])


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> list[float]:
    """mAP and mAP@0.5 as pycocotools gives them, called as in its own demo."""
    path = tmp_path_factory.mktemp("clean") / "truth.json"
    path.write_text(json.dumps(clean()))
    truth = coco_ground_truth(path, PATHS, SHAPES, NAMES)
    return reference(str(path), coco_results(DETECTIONS, truth)).stats[:2].tolist()


def each(section: str, change: Callable[[int, dict[str, Any]], dict[str, Any]]) -> Callable[[dict], dict]:
    def changed(content: dict) -> dict:
        return content | {section: [change(number, item) for number, item in enumerate(content[section])]}

    return changed


def without(section: str, key: str) -> Callable[[dict], dict]:
    return each(section, lambda _, item: {k: v for k, v in item.items() if k != key})


def twice(content: dict) -> dict:
    """Merged with itself, ids and all."""
    return content | {key: content[key] * 2 for key in ("images", "annotations")}


def split_pictures(content: dict) -> dict:
    """Merged from two files, one of which has every second box."""
    more = [image | {"id": image["id"] + 500} for image in content["images"]]
    boxes = [a | {"image_id": a["image_id"] + 500 * (a["id"] % 2)} for a in content["annotations"]]
    return content | {"images": content["images"] + more, "annotations": boxes}


def texts(content: dict) -> dict:
    """Ids and numbers as a table's export has them."""
    content = each("images", lambda _, i: i | {"id": str(i["id"]), "width": str(i["width"])})(content)
    return each("annotations", lambda _, a: a | {"bbox": list(map(str, a["bbox"])), "iscrowd": "0"})(content)


def polygons(content: dict) -> dict:
    """Segmentations only."""

    def traced(_: int, item: dict) -> dict:
        x, y, w, h = item.pop("bbox")
        return item | {"segmentation": [[x, y + h / 2, x + w / 2, y], [x + w, y + h / 2, x + w / 2, y + h]]}

    return each("annotations", traced)(content)


def other_pixels(content: dict) -> dict:
    """Annotated in images twice as wide and three times as high."""
    content = each("images", lambda _, i: i | {"width": 2 * i["width"], "height": 3 * i["height"]})(content)
    return each("annotations", lambda _, a: a | {"bbox": (np.array(a["bbox"]) * (2, 3, 2, 3)).tolist()})(content)


def with_box(**item: Any) -> Callable[[dict], dict]:
    """One annotation more."""
    return lambda content: content | {"annotations": [*content["annotations"], {"image_id": 10, "category_id": 3} | item]}


def ids_from_0(content: dict) -> dict:
    """Of images and categories."""
    content = each("images", lambda n, i: i | {"id": n})(content)
    content = each("categories", lambda n, c: c | {"id": n})(content)
    lower = {"image_id": 10, "category_id": 3}
    return each("annotations", lambda _, a: a | {key: a[key] - by for key, by in lower.items()})(content)


SAME: dict[str, Callable[[dict], dict]] = {
    "as it is": lambda c: c,
    "ids from 0": each("annotations", lambda n, a: a | {"id": n}),
    "one id for all": each("annotations", lambda _, a: a | {"id": 1}),
    "ids of 40 digits": each("annotations", lambda n, a: a | {"id": 10**39 + n}),
    "no ids": without("annotations", "id"),
    "no area": without("annotations", "area"),
    "area null": each("annotations", lambda _, a: a | {"area": None}),
    "negative area": each("annotations", lambda _, a: a | {"area": -1}),
    "no iscrowd": without("annotations", "iscrowd"),
    "iscrowd null": each("annotations", lambda _, a: a | {"iscrowd": None}),
    "iscrowd NaN": each("annotations", lambda _, a: a | {"iscrowd": float("nan")}),
    "no sizes": without("images", "width"),
    "invented sizes": each("images", lambda _, i: i | {"width": 9, "height": 9}),
    "turned sizes": each("images", lambda _, i: i | {"width": i["height"], "height": i["width"]}),
    "other pixels": other_pixels,
    "dots in paths": each("images", lambda _, i: i | {"file_name": f"./{i['file_name']}"}),
    "backslashes": each("images", lambda _, i: i | {"file_name": i["file_name"].replace("/", "\\")}),
    "another machine's paths": each("images", lambda _, i: i | {"file_name": f"C:\\me\\{i['file_name']}"}),
    "another suffix and case": each("images", lambda _, i: i | {"file_name": i["file_name"].replace(".jpg", ".PNG")}),
    "images that aren't evaluated": lambda c: c | {"images": [*c["images"], {"id": 0, "file_name": "cam2/0000.jpg"}]},
    "merged with itself": twice,
    "images listed twice": split_pictures,
    "texts": texts,
    "segmentations only": polygons,
    "no area in the box": with_box(bbox=[5, 5, 0, 9]),
    "turned sides": with_box(bbox=[9, 9, -5, -5]),
    "no box": with_box(keypoints=[1, 2, 2]),
    "an image that isn't listed": with_box(image_id=999, bbox=[1, 1, 9, 9]),
    "images and categories from 0": ids_from_0,
    "categories in another order": lambda c: c | {"categories": c["categories"][::-1]},
    "names spelled otherwise": each("categories", lambda _, c: c | {"name": f" {c['name'].upper().replace(' ', '_')}"}),
    "one name for all that has no boxes": lambda c: c | {"categories": [{"id": 0, "name": "animals"}, *c["categories"]]},
    "unknown keys": lambda c: c | {"info": None, "licenses": [], "type": "instances"},
}  # fmt: skip


@pytest.mark.parametrize("variant", SAME)
def test_the_same_figures(file: File, expected: list[float], variant: str) -> None:
    content = SAME[variant](copy.deepcopy(clean()))
    result = compute_metrics(file.truth(content), DETECTIONS, NAMES)
    assert (result.map, result.map50) == pytest.approx(expected, abs=1e-9)
    assert result.targets == sum(map(len, LABELS))


def test_results_carry_the_users_ids(file: File) -> None:
    content = each("images", lambda n, i: i | {"id": f"uuid-{n}"})(clean())
    named = {10 + i: f"uuid-{i}" for i in range(len(PATHS))}
    change = {"image_id": named.get, "category_id": str}
    content = each("annotations", lambda _, a: a | {key: make(a[key]) for key, make in change.items()})(content)
    content = each("categories", lambda _, c: c | {"id": f"{c['id']}"})(content)
    truth = file.truth(content)
    assert truth.image_ids == list(named.values())
    assert truth.category_ids == ["3", "4", "5"]
    assert compute_metrics(truth, DETECTIONS, NAMES).targets == sum(map(len, LABELS))


def test_other_pixels_in_the_results(file: File) -> None:
    truth = file.truth(other_pixels(clean()))
    first = next(i for i, rows in enumerate(LABELS) if len(rows))
    (result,) = coco_results({first: np.array([[10, 20, 30, 50, 0.5, 1]], np.float32)}, truth)
    assert result["bbox"] == [20, 60, 40, 90]


def test_crowds_are_not_missed(file: File, expected: list[float]) -> None:
    """As pycocotools has it: a detection in a crowd is neither right nor wrong."""
    crowd = {"id": 0, "image_id": 10, "category_id": 3, "bbox": [0, 0, 500, 500], "iscrowd": 1}
    result = compute_metrics(file.truth(clean() | {"annotations": [*clean()["annotations"], crowd]}), DETECTIONS, NAMES)
    assert result.targets == sum(map(len, LABELS))
    assert result.map >= expected[0]


def renamed(*names: str) -> dict:
    return clean() | {"categories": [{"id": 3 + number, "name": name} for number, name in enumerate(names)]}


def test_classes_by_the_order_of_ids_where_no_name_contradicts(file: File, expected: list[float]) -> None:
    result = compute_metrics(file.truth(renamed("Hund", "cat", "Huhn")), DETECTIONS, NAMES)
    assert result.map == pytest.approx(expected[0], abs=1e-9)
    assert "the order of their ids says which is which: Hund = a dog, Huhn = Hen" in file.said[0]


def test_categories_that_are_no_classes_are_left_out(file: File) -> None:
    truth = file.truth(clean(), names=["cat"])
    assert len(truth.coco.anns) == sum((rows[:, 0] == 1).sum() for rows in LABELS)
    assert truth.category_ids == [4]
    assert "boxes of category 'a dog', which isn't among the names, left out" in file.said[0]


def test_classes_without_category_have_no_targets(file: File) -> None:
    content = clean()
    content["categories"] = content["categories"][:2]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 5]
    truth = file.truth(content)
    assert truth.category_ids == [3, 4, None]
    assert {r["category_id"] for r in coco_results(DETECTIONS, truth)} == {3, 4}
    assert compute_metrics(truth, DETECTIONS, NAMES).per_class[2]["targets"] == 0


BOX = {"id": 1, "image_id": 10, "category_id": 3, "bbox": [1, 1, 9, 9]}


def boxed(**changes: Any) -> dict:
    return clean() | {"annotations": [BOX | changes]}


REFUSED: dict[str, tuple[Any, str]] = {
    "detections": ([{"image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "score": 0.5}], "a list, as detections are"),
    "no categories": ({k: v for k, v in clean().items() if k != "categories"}, "`categories` is missing"),
    "no annotations": ({k: v for k, v in clean().items() if k != "annotations"}, "`annotations` is missing"),
    "annotations null": (clean() | {"annotations": None}, "`annotations` isn't a list"),
    "empty categories": (boxed() | {"annotations": [], "categories": []}, "has 0 categories, but the .data file has classes=3"),
    "no file name": (without("images", "file_name")(clean()), "images number 1: .*has no `file_name`"),
    "one id, two images": (each("images", lambda _, i: i | {"id": 1})(clean()), "images number 2: .*its id 1 is that of"),
    "one id, two categories": (each("categories", lambda _, c: c | {"id": 3})(clean()), "its id 3 is that of 'a dog', too"),
    "supercategory only": (each("categories", lambda n, c: {"id": c["id"], "supercategory": "x"})(clean()), "has no `name`"),
    "nan": (boxed(bbox=[1, 1, float("nan"), 5]), r"annotations number 1: .*its bbox \[1.0, 1.0, nan, 5.0\]"),
    "infinite": (boxed(bbox=[1, 1, float("inf"), 5]), "annotations number 1"),
    "no number": (boxed(bbox=[1, 1, "wide", 5]), "annotations number 1: .*'wide'"),
    "five numbers": (boxed(bbox=[1, 1, 5, 5, 0.3]), "annotations number 1: .*its bbox isn't"),
    "half a box": (boxed(bbox=[None, 1, 5, 5]), "annotations number 1"),
    "no image": ({**boxed(), "annotations": [{"category_id": 3, "bbox": [1, 1, 5, 5]}]}, "has no `image_id`"),
    "a list for an id": (boxed(image_id=[10]), "is no id"),
    "unknown category": (boxed(category_id=77), "annotation 1: category_id 77 isn't one of the file's categories"),
    "names in contradiction": (renamed("cat", "a dog", "Huhn"), "has 3 categories, 'Huhn' among them"),
    "other names and counts": (renamed("x", "y"), "category_id 5 isn't one"),
    "names without folders": (each("images", lambda n, i: i | {"file_name": f"{n // 2:04d}.jpg"})(clean()), "may be"),
    "folders lost in the json": ({**boxed(), "images": [{"id": 10, "file_name": "0000.jpg"}]}, "lists no image|may be"),
    "another set": (each("images", lambda n, i: i | {"file_name": f"x{n}.jpg"})(clean()), "lists no image data/images"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_told_is_refused(file: File, case: str) -> None:
    content, message = REFUSED[case]
    with pytest.raises(UserError, match=rf"truth\.json: .*(?:{message})"):
        file.truth(content)


def test_a_picture_whose_folder_fits_less_is_not_listed(file: File) -> None:
    content = clean() | {"images": [i for i in clean()["images"] if i["file_name"] != "cam1/0000.jpg"]}
    content["annotations"] = []
    with pytest.raises(UserError, match="lists no image data/images/cam1/0000.jpg"):
        file.truth(content)


def test_folders_that_no_file_has(file: File) -> None:
    """An image that two entries fit alike."""
    content = clean() | {
        "images": [{"id": 1, "file_name": "x/0000.jpg"}, {"id": 2, "file_name": "y/0000.jpg"}],
        "annotations": [],
    }
    with pytest.raises(UserError, match=r"cam0/0000.jpg may be its x/0000.jpg or its y/0000.jpg; give"):
        file.truth(content, paths=PATHS[:1])


def test_labels_that_disagree(tmp_path: Path) -> None:
    """Half of the labels' boxes are in the json: said, in a line, and not where the difference is small."""
    content, said = clean(), []
    count = len(content["annotations"])
    data = DataConfig(tmp_path / "x.data", 3, NAMES, None, None, {"coco_json": "truth.json"})
    pictured = type("Pictured", (), {"paths": PATHS, "labels": LABELS, "shapes": SHAPES})
    (tmp_path / "truth.json").write_text(json.dumps(content | {"annotations": content["annotations"][: count // 2]}))
    assert len(json_ground_truth(data, pictured, said.append).coco.anns) == count // 2
    assert f"has {count // 2} boxes of these images, but their label files {count}" in str(said[0])
    (tmp_path / "truth.json").write_text(json.dumps(content | {"annotations": content["annotations"][1:]}))
    json_ground_truth(data, pictured, said.append)
    assert len(said) == 1
    (tmp_path / "truth.json").unlink()
    with pytest.raises(UserError, match=r"truth.json: this COCO json does not exist; check coco_json="):
        json_ground_truth(data, pictured)
