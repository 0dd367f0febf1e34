"""mAP against COCO's own way of calling pycocotools and against numbers worked out by hand."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from utils.detection.ground_truth import GroundTruth, coco_ground_truth, dataset_ground_truth, make_coco
from utils.detection.metrics import COCO_IDS, coco_results, compute_metrics

SHAPES = np.array([[100, 200], [50, 50]])
LABELS = [np.array([[0, 0.25, 0.5, 0.1, 0.2], [0, 0.75, 0.5, 0.1, 0.2]], np.float32), np.zeros((0, 5), np.float32)]
FIRST, SECOND = [40, 40, 60, 60], [140, 40, 160, 60]  # the two labels in pixels
WRONG = [0, 0, 10, 10]


def found(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 6)


def test_average_precision_worked_by_hand() -> None:
    """Hit, miss, hit: precision 1 up to recall 0.5, then 2/3; COCO reads it at 101 recalls, 51 of them up to 0.5."""
    detections = {0: found([*FIRST, 0.9, 0], [*WRONG, 0.8, 0], [*SECOND, 0.7, 0])}
    result = compute_metrics(dataset_ground_truth(LABELS, SHAPES, 2), detections, ["a", "b"])
    expected = (51 + 50 * 2 / 3) / 101
    assert result.map50 == pytest.approx(expected, abs=1e-9)
    assert result.map == pytest.approx(expected, abs=1e-9)  # perfect boxes count at every IoU
    assert (result.precision, result.recall) == pytest.approx((2 / 3, 1))  # F1 0.8 at 0.7 beats 0.667 at 0.9
    assert result.f1 == pytest.approx(0.8)
    assert result.conf_thres == 0.699  # the box at 0.7 stays
    assert (result.images, result.targets) == (2, 2)
    a, b = result.per_class
    assert (a["name"], a["images"], a["targets"], a["map50"]) == ("a", 1, 2, result.map50)
    assert (b["targets"], b["map50"], b["precision"]) == (0, 0, 0)  # no targets: zeros, and in no mean


def test_a_shifted_box_counts_up_to_its_iou() -> None:
    """Shifted by 2 of 20 pixels: IoU 360 / 440 = 0.818, so it's right at 0.5, 0.55 .. 0.8: 7 of 10 thresholds."""
    labels = [LABELS[0][:1], LABELS[1]]
    result = compute_metrics(dataset_ground_truth(labels, SHAPES, 1), {0: found([42, 40, 62, 60, 0.5, 0])}, ["a"])
    assert (result.map50, result.map) == pytest.approx((1.0, 0.7))


def test_f1_is_taken_at_one_confidence_for_all_classes() -> None:
    """Class 0 alone would stop at 0.9; the mean F1 is best at 0.3, where it has two false ones: (0.5 + 1) / 2."""
    labels = [np.array([[0, 0.25, 0.5, 0.1, 0.2], [1, 0.75, 0.5, 0.1, 0.2]]), LABELS[1]]
    rows = [*FIRST, 0.9, 0], [*WRONG, 0.5, 0], [80, 0, 90, 9, 0.4, 0], [*SECOND, 0.3, 1], [*WRONG, 0.2, 1]
    result = compute_metrics(dataset_ground_truth(labels, SHAPES, 2), {0: found(*rows)}, ["a", "b"])
    assert result.f1 == pytest.approx((0.5 + 1) / 2)
    assert result.precision == pytest.approx((1 / 3 + 1) / 2)
    assert [c["recall"] for c in result.per_class] == [1, 1]


@pytest.mark.parametrize("detections", [{}, {0: found(), 1: found()}])
def test_no_detections(detections: dict[int, np.ndarray]) -> None:
    result = compute_metrics(dataset_ground_truth(LABELS, SHAPES, 1), detections, ["a"])
    assert (result.map50, result.map, result.precision, result.recall, result.f1, result.targets) == (0, 0, 0, 0, 0, 2)


@pytest.mark.parametrize("detections", [{}, {0: found([*FIRST, 0.9, 0])}])
def test_no_ground_truth(detections: dict[int, np.ndarray]) -> None:
    result = compute_metrics(dataset_ground_truth([LABELS[1]] * 2, SHAPES, 1), detections, ["a"])
    assert (result.map50, result.map, result.precision, result.recall, result.f1, result.targets) == (0, 0, 0, 0, 0, 0)


def random_case(seed: int, images: int = 12, classes: int = 3) -> tuple[list[np.ndarray], np.ndarray, dict[int, np.ndarray]]:
    """Labels, and detections that are the labels disturbed, doubled and mixed with others."""
    rng = np.random.default_rng(seed)
    shapes = rng.integers(80, 400, (images, 2))
    labels, detections = [], {}
    for i, (height, width) in enumerate(shapes):
        n = rng.integers(0, 8)
        centres, sides = rng.uniform(0.3, 0.7, (n, 2)), rng.uniform(0.05, 0.5, (n, 2))
        labels.append(np.column_stack((rng.integers(0, classes, n), centres, sides)))
        near = np.tile(np.column_stack((centres - sides / 2, centres + sides / 2)), (2, 1)) * [width, height, width, height]
        near += rng.normal(0, 4, near.shape)
        category = np.where(rng.random(2 * n) < 0.8, np.tile(labels[-1][:, 0], 2), rng.integers(0, classes, 2 * n))
        detections[i] = np.column_stack((near, rng.random(2 * n), category)).astype(np.float32)
    return labels, shapes, detections


def reference(json_path: str, results: list[dict]) -> COCOeval:
    """pycocotools as its own demo calls it."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(json_path)
        judge = COCOeval(truth, truth.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


@pytest.mark.parametrize("category_ids", [[1, 2, 3], [7, 3, 5]])
def test_equal_to_pycocotools(tmp_path, category_ids: list[int]) -> None:
    """Both with categories in order and with a json whose ids are not in the order of our classes."""
    labels, shapes, detections = random_case(3)
    names = ["a", "b", "c"]
    images = [{"id": 10 + i, "file_name": f"{i}.jpg", "height": int(h), "width": int(w)} for i, (h, w) in enumerate(shapes)]
    annotations = []
    for i, rows in enumerate(labels):
        for category, x, y, w, h in rows.tolist():
            height, width = shapes[i].tolist()
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            annotations.append({"id": len(annotations) + 1, "image_id": 10 + i, "bbox": box, "area": box[2] * box[3],
                                "iscrowd": 0, "category_id": category_ids[int(category)]})  # fmt: skip
    path = tmp_path / "truth.json"
    categories = [{"id": c, "name": n} for c, n in zip(category_ids, names, strict=True)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    by_json = coco_ground_truth(path, [str(tmp_path / i["file_name"]) for i in images], shapes, names)
    assert (by_json.image_ids, by_json.category_ids) == ([i["id"] for i in images], category_ids)
    judge = reference(str(path), coco_results(detections, by_json))
    for truth in (by_json, dataset_ground_truth(labels, shapes, 3)):
        ours = compute_metrics(truth, detections, names)
        assert (ours.map, ours.map50) == pytest.approx(judge.stats[:2].tolist(), abs=1e-6)
        assert 0.05 < ours.map < ours.map50 < 0.95
        for k, category in enumerate(sorted(category_ids)):
            row = ours.per_class[category_ids.index(category)]
            curve = judge.eval["precision"][:, :, k, 0, 2]
            assert (row["map50"], row["map"]) == pytest.approx((curve[0].mean(), curve.mean()), abs=1e-6)
            assert row["targets"] == sum(a["category_id"] == category for a in annotations)


def test_f1_agrees_with_pycocotools_recall() -> None:
    """With only the detections above a confidence, COCOeval's largest recall gives the hits, hence F1; ours is the best."""
    labels, shapes, detections = random_case(5, classes=1)
    truth = dataset_ground_truth(labels, shapes, 1)
    result = compute_metrics(truth, detections, ["a"])
    best = (0.0, 0.0, 0.0)
    for confidence in np.concatenate([d[:, 4] for d in detections.values()]):
        kept = {i: d[d[:, 4] >= confidence] for i, d in detections.items()}
        with contextlib.redirect_stdout(io.StringIO()):
            judge = COCOeval(truth.coco, truth.coco.loadRes(coco_results(kept, truth)), "bbox")
            judge.evaluate()
            judge.accumulate()
        recall = judge.eval["recall"][0, 0, 0, 2]
        precision = recall * result.targets / sum(len(d) for d in kept.values())
        best = max(best, (2 * precision * recall / max(precision + recall, 1e-9), precision, recall))
    assert (result.f1, result.precision, result.recall) == pytest.approx(best)


def test_to_dict_has_the_promised_keys() -> None:
    result = compute_metrics(dataset_ground_truth(LABELS, SHAPES, 1), {0: found([*FIRST, 0.9, 0])}, ["a"])
    keys = {"map50", "map", "precision", "recall", "f1", "conf_thres", "images", "targets", "params", "macs", "speed_ms"}
    keys |= {"per_class"}
    assert set(result.to_dict()) == keys
    assert json.loads(json.dumps(result.to_dict()))["targets"] == 2


def test_coco_results_are_in_ids_and_pixels_of_the_users_file() -> None:
    """Its image is twice as wide and four times as high; it has no category for the second class."""
    scales = np.array([[1, 1], [2, 4]])
    truth = GroundTruth(make_coco(2, 2, []), ["a", "b"], ["cat", None], scales)
    assert coco_results({1: found([10, 20, 30, 60, 0.5, 0], [1, 2, 3, 4, 0.5, 1])}, truth) == [
        {"image_id": "b", "category_id": "cat", "bbox": [20, 80, 40, 160], "score": 0.5}
    ]


def test_coco_ids_of_the_80_classes() -> None:
    assert len(COCO_IDS) == 80
    assert (COCO_IDS[0], COCO_IDS[11], COCO_IDS[79]) == (1, 13, 90)  # person, stop sign, toothbrush
