"""How good detections are: mAP by pycocotools; precision, recall and F1 from its matches."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from utils.cfg import DataConfig, find_file
from utils.errors import UserError

THRESHOLDS = 1000  # confidences at which F1 is looked at, at most
COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]  # of COCO's 80 classes


@dataclass
class Evaluation:
    """Figures of one evaluation.

    map50, map: COCO's mAP@0.5 and mAP@0.5:0.95 over the classes that occur. precision, recall, f1: means over these
    classes at IoU 0.5 and the one confidence where the mean F1 is largest. per_class: a dict a class {name, images,
    targets, precision, recall, f1, map50, map}; a class without targets has zeros and counts in no mean. speed_ms: an
    image's preprocess, inference and nms. detections: index in the dataset -> (n, 6) x1 y1 x2 y2 confidence class in
    pixels of the original picture. params, macs: filled in by the script that knows the network.
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

    def to_dict(self) -> dict[str, Any]:
        """What test.py --json writes."""
        keys = ("map50", "map", "precision", "recall", "f1", "images", "targets", "params", "macs", "speed_ms", "per_class")
        return {k: getattr(self, k) for k in keys}


@dataclass
class GroundTruth:
    """Annotations as pycocotools wants them, and the ids that it knows the dataset's pictures and classes by."""

    coco: COCO
    image_ids: list[int]
    category_ids: list[int]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """pycocotools prints its progress; here it is noise."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _coco(images: list[dict], annotations: list[dict], category_ids: list[int]) -> COCO:
    coco = COCO()
    coco.dataset = {"images": images, "annotations": annotations, "categories": [{"id": c} for c in category_ids]}
    with _silent():
        coco.createIndex()
    return coco


def dataset_ground_truth(labels: list[np.ndarray], shapes: np.ndarray, classes: int) -> GroundTruth:
    """Ground truth of any dataset: labels, an array a picture (n, 5) of class and cx cy w h as shares of the picture;
    shapes (pictures, 2): their heights and widths in pixels."""
    annotations = []
    for image, (rows, (height, width)) in enumerate(zip(labels, shapes, strict=True)):
        sides = rows[:, 3:5].astype(np.float64) * (width, height)
        corners = rows[:, 1:3].astype(np.float64) * (width, height) - sides / 2
        boxes = np.concatenate((corners, sides), 1).tolist()
        for category, box in zip(rows[:, 0].astype(int).tolist(), boxes, strict=True):
            annotations.append(_annotation(len(annotations) + 1, image, category + 1, box) | {"iscrowd": 0})
    images = [{"id": i, "height": int(h), "width": int(w)} for i, (h, w) in enumerate(shapes)]
    category_ids = list(range(1, classes + 1))
    return GroundTruth(_coco(images, annotations, category_ids), list(range(len(images))), category_ids)


def coco_ground_truth(path: Path, image_paths: Sequence[str | Path], names: list[str]) -> GroundTruth:
    """Ground truth of a COCO json whose pictures are found by file name and whose categories by name, else by order.

    Raises UserError when it is no such json, lacks a picture or has another number of categories.
    """
    try:
        with _silent():
            coco = COCO(str(path))
        by_name = {Path(image["file_name"]).name: image["id"] for image in coco.dataset["images"]}
        categories = {c["name"]: c["id"] for c in coco.dataset["categories"]}
    except FileNotFoundError:
        raise UserError(f"{path}: this COCO json does not exist; check coco_json= in the .data file") from None
    except (ValueError, KeyError, TypeError, AssertionError):
        raise UserError(f"{path}: not a COCO json with images, annotations and categories") from None
    names_of_pictures = [Path(p).name for p in image_paths]
    missing = next((n for n in names_of_pictures if n not in by_name), None)
    if missing is not None:
        raise UserError(f"{path}: lists no picture {missing}; use the json that belongs to valid= in the .data file")
    if len(categories) != len(names):
        raise UserError(f"{path}: has {len(categories)} categories, but the .data file has classes={len(names)}")
    ids = [categories[n] for n in names] if set(names) == set(categories) else sorted(categories.values())
    return GroundTruth(coco, [by_name[n] for n in names_of_pictures], ids)


def json_ground_truth(data: DataConfig, paths: Sequence[str | Path]) -> GroundTruth | None:
    """COCO's own annotations if the .data file has a line `coco_json=`; None: take the labels. paths: the pictures."""
    if "coco_json" not in data.extra:
        return None
    return coco_ground_truth(find_file(data.extra["coco_json"], data.path.parent), paths, data.names)


def _annotation(number: int, image: int, category: int, box: list[float]) -> dict[str, Any]:
    """box: x y w h in pixels."""
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3]}


def coco_results(detections: dict[int, np.ndarray], image_ids: list[int], category_ids: list[int]) -> list[dict[str, Any]]:
    """Detections in COCO's result format: image_id, category_id, bbox x y w h, score."""
    results = []
    for index, rows in sorted(detections.items()):
        boxes = np.concatenate((rows[:, :2], rows[:, 2:4] - rows[:, :2]), 1).astype(np.float64).tolist()
        for box, score, category in zip(boxes, rows[:, 4].tolist(), rows[:, 5].astype(int).tolist(), strict=True):
            result = {"image_id": image_ids[index], "category_id": category_ids[category], "bbox": box, "score": score}
            results.append(result)
    return results


def compute_metrics(truth: GroundTruth, detections: dict[int, np.ndarray], names: list[str]) -> Evaluation:
    """Compare detections (index in the dataset -> (n, 6) x1 y1 x2 y2 confidence class, pixels of the original picture)
    with the ground truth, by COCOeval with COCO's own limits: IoU 0.5 to 0.95 in steps of 0.05, the 100 best
    detections of a class and picture. Without any ground truth every figure is 0."""
    judge = _judge(truth, detections)
    place = np.searchsorted(np.sort(truth.category_ids), truth.category_ids)  # COCOeval sorts the categories
    curve = judge.eval["precision"][:, :, place, 0, -1]  # (IoU, recall, class); -1 where a class has no targets
    occurs = curve[0, 0] > -1
    average = np.where(occurs, curve.mean(1), 0)  # (IoU, class)
    rows = [_matches_of(judge, k) for k in place]
    precision, recall, f1 = _at_best_confidence(rows, occurs)
    columns = {"precision": precision, "recall": recall, "f1": f1, "map50": average[0], "map": average.mean(0)}
    per_class = [
        {"name": name, "images": rows[k].images, "targets": rows[k].targets} | {c: float(v[k]) for c, v in columns.items()}
        for k, name in enumerate(names)
    ]
    means = {c: float(v[occurs].mean()) if occurs.any() else 0.0 for c, v in columns.items()}
    targets = sum(r.targets for r in rows)
    return Evaluation(**means, images=len(truth.image_ids), targets=targets, per_class=per_class, detections=detections)


@dataclass
class ClassMatches:
    """What COCOeval matched of one class at IoU 0.5, all pictures together: scores of its detections, rising, whether
    each found a target, the number of targets and of pictures that have some."""

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


def _at_best_confidence(rows: list[ClassMatches], occurs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of every class at the confidence whose F1, averaged over the classes that occur, is best."""
    scores = np.unique(np.concatenate([r.scores for r in rows]))
    if not len(scores) or not occurs.any():
        return np.zeros(len(rows)), np.zeros(len(rows)), np.zeros(len(rows))
    confidences = scores[np.linspace(0, len(scores) - 1, min(len(scores), THRESHOLDS)).astype(int)]
    precision, recall = np.stack([r.at(confidences) for r in rows], 1)  # (class, confidence)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-16)
    best = f1[occurs].mean(0).argmax()
    return precision[:, best], recall[:, best], f1[:, best]


def _judge(truth: GroundTruth, detections: dict[int, np.ndarray]) -> COCOeval:
    results = coco_results(detections, truth.image_ids, truth.category_ids)
    found = [
        _annotation(i, r["image_id"], r["category_id"], r["bbox"]) | {"score": r["score"], "iscrowd": 0}
        for i, r in enumerate(results, 1)
    ]
    images = [{"id": i} for i in truth.image_ids]
    judge = COCOeval(truth.coco, _coco(images, found, truth.category_ids), "bbox")
    judge.params.imgIds = truth.image_ids
    judge.params.catIds = truth.category_ids
    judge.params.areaRng, judge.params.areaRngLbl = judge.params.areaRng[:1], judge.params.areaRngLbl[:1]  # all sizes
    with _silent():
        judge.evaluate()
        judge.accumulate()
    return judge
