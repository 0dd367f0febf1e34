"""How good detections are: mAP by pycocotools; precision, recall and F1 from its matches."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

from utils.detection.ground_truth import GroundTruth, annotation, make_coco, silent

THRESHOLDS = 1000  # confidences at which F1 is looked at, at most
DIGITS = 3  # of a recommended threshold
COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]  # of COCO's 80 classes


@dataclass
class Evaluation:
    """Figures of one evaluation.

    map50, map: COCO's mAP@0.5 and mAP@0.5:0.95 over the classes that occur. precision, recall, f1: means over these
    classes at IoU 0.5 and the one confidence where the mean F1 is largest; conf_thres: the threshold that keeps what
    reaches that confidence, the one to recommend; None if nothing was found. per_class: a dict a class {name, images,
    targets, precision, recall, f1, map50, map}; a class without targets has zeros and counts in no mean. speed_ms: an
    image's preprocess, inference and nms. detections: index in the dataset -> (n, 6) x1 y1 x2 y2 confidence class in
    pixels of the original image. params, macs: filled in by the script that knows the network.
    """

    map50: float
    map: float
    precision: float
    recall: float
    f1: float
    images: int
    targets: int
    per_class: list[dict[str, Any]]
    speed_ms: dict[str, float] = field(default_factory=dict)
    detections: dict[int, np.ndarray] = field(default_factory=dict, repr=False)
    params: int | None = None
    macs: int | None = None
    conf_thres: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """What test.py --json writes."""
        keys = (
            "map50", "map", "precision", "recall", "f1", "conf_thres", "images", "targets", "params", "macs", "speed_ms",
            "per_class",
        )  # fmt: skip
        return {k: getattr(self, k) for k in keys}


def coco_results(detections: dict[int, np.ndarray], truth: GroundTruth) -> list[dict[str, Any]]:
    """Detections in COCO's result format: image_id, category_id, bbox x y w h, score; ids and pixels are those of the
    user's file. What it has no category for is left out."""
    results = []
    for picture, label, box, score in _each(detections):
        image, category = truth.image_ids[picture], truth.category_ids[label]
        if truth.scales is not None:
            box = (np.array(box) * np.tile(truth.scales[picture], 2)).tolist()
        if category is not None:
            results.append({"image_id": image, "category_id": category, "bbox": box, "score": score})
    return results


def _each(detections: dict[int, np.ndarray]) -> Iterator[tuple[int, int, list[float], float]]:
    """(image, class, box x y w h, confidence) of every detection."""
    for picture, rows in sorted(detections.items()):
        boxes = np.concatenate((rows[:, :2], rows[:, 2:4] - rows[:, :2]), 1).astype(np.float64).tolist()
        for box, score, label in zip(boxes, rows[:, 4].tolist(), rows[:, 5].astype(int).tolist(), strict=True):
            yield picture, label, box, score


def compute_metrics(truth: GroundTruth, detections: dict[int, np.ndarray], names: list[str]) -> Evaluation:
    """Compare detections (index in the dataset -> (n, 6) x1 y1 x2 y2 confidence class, pixels of the original image)
    with the ground truth, by COCOeval with COCO's own limits: IoU 0.5 to 0.95 in steps of 0.05, the 100 best
    detections of a class and image. Without any ground truth every figure is 0."""
    judge = _judge(truth, detections)
    curve = judge.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, class); -1 where a class has no targets
    occurs = curve[0, 0] > -1
    average = np.where(occurs, curve.mean(1), 0)  # (IoU, class)
    rows = [_matches_of(judge, k) for k in range(len(names))]
    conf_thres, (precision, recall, f1) = _at_best_confidence(rows, occurs)
    columns = {"precision": precision, "recall": recall, "f1": f1, "map50": average[0], "map": average.mean(0)}
    per_class = [
        {"name": name, "images": rows[k].images, "targets": rows[k].targets} | {c: float(v[k]) for c, v in columns.items()}
        for k, name in enumerate(names)
    ]
    means = {c: float(v[occurs].mean()) if occurs.any() else 0.0 for c, v in columns.items()}
    targets = sum(r.targets for r in rows)
    counts = {"images": len(truth.image_ids), "targets": targets}
    return Evaluation(**means, **counts, per_class=per_class, detections=detections, conf_thres=conf_thres)


@dataclass
class ClassMatches:
    """What COCOeval matched of one class at IoU 0.5, all images together: scores of its detections, rising, whether
    each found a target, the number of targets and of images that have some."""

    scores: np.ndarray
    hits: np.ndarray
    targets: int
    images: int

    def at(self, confidences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(precision, recall) of the detections that score at least each confidence; 0 where there are none."""
        first = np.searchsorted(self.scores, confidences)
        hits = np.append(np.cumsum(self.hits[::-1])[::-1], 0)[first]
        return hits / np.maximum(len(self.scores) - first, 1), hits / max(self.targets, 1)


def _matches_of(judge: COCOeval, place: int) -> ClassMatches:
    """The matches of COCOeval's category number `place`; crowd targets, and what was matched to one, don't count."""
    count = len(judge.params.imgIds)
    images = [m for m in judge.evalImgs[place * count : (place + 1) * count] if m is not None]
    scores = np.concatenate([m["dtScores"] for m in images] or [np.zeros(0)])
    hits = np.concatenate([m["dtMatches"][0] > 0 for m in images] or [np.zeros(0, bool)])
    counted = np.concatenate([~m["dtIgnore"][0] for m in images] or [np.zeros(0, bool)])
    targets = [int((np.asarray(m["gtIgnore"]) == 0).sum()) for m in images]
    order = np.argsort(scores[counted], kind="stable")
    return ClassMatches(scores[counted][order], hits[counted][order], sum(targets), sum(t > 0 for t in targets))


def _at_best_confidence(rows: list[ClassMatches], occurs: np.ndarray) -> tuple[float | None, np.ndarray]:
    """(threshold, (3, classes): precision, recall and F1 of every class) at the confidence whose F1, averaged over the
    classes that occur, is best."""
    scores = np.unique(np.concatenate([r.scores for r in rows]))
    if not len(scores) or not occurs.any():
        return None, np.zeros((3, len(rows)))
    confidences = scores[np.linspace(0, len(scores) - 1, min(len(scores), THRESHOLDS)).astype(int)]
    precision, recall = np.stack([r.at(confidences) for r in rows], 1)  # (class, confidence)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-16)
    mean = f1[occurs].mean(0)
    best = mean.argmax()
    threshold = _threshold_under(float(confidences[best])) if mean[best] > 0 else None
    return threshold, np.stack((precision, recall, f1))[:, :, best]


def _threshold_under(confidence: float) -> float:
    """The largest threshold of DIGITS decimals, so that it can be typed, that this confidence exceeds, as NMS wants it."""
    return max(math.ceil(confidence * 10**DIGITS - 1), 0) / 10**DIGITS


def _judge(truth: GroundTruth, detections: dict[int, np.ndarray]) -> COCOeval:
    found = [
        annotation(number, picture, label, box) | {"score": score}
        for number, (picture, label, box, score) in enumerate(_each(detections))
    ]
    pictures, classes = len(truth.image_ids), len(truth.category_ids)
    judge = COCOeval(truth.coco, make_coco(pictures, classes, found), "bbox")
    judge.params.imgIds, judge.params.catIds = list(range(pictures)), list(range(1, classes + 1))
    judge.params.areaRng, judge.params.areaRngLbl = judge.params.areaRng[:1], judge.params.areaRngLbl[:1]  # all sizes
    with silent():
        judge.evaluate()
        judge.accumulate()
    return judge
