"""A referee: what a trained network finds according to OpenCV and ONNX Runtime, judged by pycocotools, without the suite.

Everything between a file of images and a mean average precision is done here a second time: how an image becomes the
network's input, what its outputs mean, non-maximum suppression, the matching with the labels. The suite writes the .cfg and
.weights, or the .onnx; nothing else of it is used.
"""

import contextlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.references import read_darknet

SIDE, STRIDE = 64, 8  # of the tiny network's input and its largest stride, in pixels
CUT = 0.2  # OpenCV's reader sets class scores under this to 0
OVERLAP = 0.6  # of NMS, as test.py's default
SHAPES = [(64, 64), (48, 64), (64, 48), (56, 64)]  # heights and widths of the images
COLOURS = [(40, 60, 250), (90, 230, 60)]  # of the classes, BGR
Network = Callable[[np.ndarray], np.ndarray]  # (1, channels, height, width) -> (rows, 4 + classes): cx cy w h in pixels, scores


def draw(folder: Path, count: int, seed: int, classes: int) -> None:
    """Images of noise with up to three boxes of two colours, and their labels: with one class both colours are of it."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for number in range(count):
        height, width = SHAPES[number % len(SHAPES)]
        image, lines = rng.integers(0, 90, (height, width, 3), dtype=np.uint8), []
        for x, y in _places(rng, height, width):
            colour = int(rng.integers(2))
            kind = colour if classes > 1 else 0
            w, h = rng.integers(12, 22, 2)
            image[y : y + h, x : x + w] = np.array(COLOURS[colour]) + rng.integers(-20, 5, (h, w, 3))
            lines.append(f"{kind} {(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}\n")
        cv2.imwrite(str(folder / f"{number}.png"), image)
        (folder / f"{number}.txt").write_text("".join(lines))


def _places(rng: np.random.Generator, height: int, width: int) -> list[tuple[int, int]]:
    """Corners of boxes, at most one in each quarter of the image, so that they overlap little."""
    corners = [(x, y) for y in (0, height // 2) for x in (0, width // 2)]
    chosen = rng.permutation(4)[: rng.integers(1, 4)]
    return [(int(corners[k][0] + rng.integers(0, 4)), int(corners[k][1] + rng.integers(0, 4))) for k in chosen]


@dataclass(frozen=True)
class Preparation:
    """How an image becomes an input. stretch: to a square, whatever its shape; else it is scaled until its longer side fits
    and centred in gray, in the smallest rectangle of multiples of STRIDE. gray: one channel; maxabs: -1..1, not 0..1."""

    stretch: bool = False
    gray: bool = False
    maxabs: bool = False

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(blob (1, channels, height, width), ratio (x, y), offset (x, y)): x in the input = x * ratio + offset."""
        height, width = image.shape[:2]
        if self.gray:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        if self.stretch:
            return self._blob(image, (SIDE, SIDE)), np.array([SIDE / width, SIDE / height]), np.zeros(2)
        scale = SIDE / max(height, width)
        fitted = np.array([width, height]) * scale
        outer = np.ceil(fitted / STRIDE).astype(int) * STRIDE
        offset = ((outer - fitted) // 2).astype(int)
        right, below = (outer - fitted - offset).astype(int).tolist()
        left, above = offset.tolist()
        inner = cv2.resize(image, fitted.astype(int).tolist()) if scale != 1 else image
        framed = cv2.copyMakeBorder(inner, above, below, left, right, cv2.BORDER_CONSTANT, value=(114, 114, 114))
        return self._blob(framed, outer.tolist()), np.array([scale, scale]), offset

    def _blob(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        factor, mean = (1 / 127.5, (127.5, 127.5, 127.5)) if self.maxabs else (1 / 255, (0, 0, 0))
        return cv2.dnn.blobFromImage(image, factor, size, mean, swapRB=not self.gray, crop=False)


def opencv(cfg: Path, weights: Path) -> Network:
    """The network as OpenCV reads it."""
    rows = opencv_rows(cfg, weights)

    def run(blob: np.ndarray) -> np.ndarray:
        found = rows(blob)
        return np.concatenate((found[:, :4], found[:, 5:]), 1)

    return run


def opencv_rows(cfg: Path, weights: Path) -> Network:
    """(1, channels, height, width) -> (rows, 5 + classes): cx cy w h in pixels, objectness, and scores, objectness times class
    probability. A net for each size of input, since its anchors are shares of the .cfg's size."""
    text, nets = cfg.read_text(), {}

    def run(blob: np.ndarray) -> np.ndarray:
        height, width = blob.shape[2:]
        if (height, width) not in nets:
            sized = re.sub(r"(?m)^width *=.*$", f"width={width}", text)
            sized = re.sub(r"(?m)^height *=.*$", f"height={height}", sized)
            net = read_darknet(np.frombuffer(sized.encode(), np.uint8), np.fromfile(weights, np.uint8))
            net.enableWinograd(False)
            nets[height, width] = net
        net = nets[height, width]
        net.setInput(blob)
        rows = np.concatenate([out.reshape(-1, out.shape[-1]) for out in net.forward(net.getUnconnectedOutLayersNames())])
        return np.concatenate((rows[:, :4] * (width, height, width, height), rows[:, 4:]), 1)

    return run


def class_certainty(rows: Network, prepare: Preparation, folder: Path) -> float:
    """Of a network with one class, as opencv_rows gives it: the mean class probability of what it finds in the images of a
    folder, objects of this class nearly all. Scores that are cut count as 0."""
    found = np.concatenate([rows(prepare(cv2.imread(str(path)))[0]) for path in sorted(folder.glob("*.png"))])
    likely = found[found[:, 4] > 2 * CUT]
    return float(np.mean(likely[:, 5] / likely[:, 4]))


def onnx_runtime(path: Path) -> Network:
    """The network as ONNX Runtime computes what export.py wrote."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(blob: np.ndarray) -> np.ndarray:
        (rows,) = session.run(None, {session.get_inputs()[0].name: blob})[0]
        return np.concatenate((rows[:, :4], rows[:, 4:5] * rows[:, 5:]), 1)

    return run


def judge(network: Network, prepare: Preparation, folder: Path, classes: int, cut: float) -> float:
    """mAP@0.5 of what a network finds with scores above `cut` in the images of a folder that `draw` wrote."""
    images, targets, results = [], [], []
    for path in sorted(folder.glob("*.png")):
        image, number = cv2.imread(str(path)), len(images) + 1
        height, width = image.shape[:2]
        images.append({"id": number, "height": height, "width": width})
        targets += [_annotation(number, *_target(line, height, width)) for line in path.with_suffix(".txt").open()]
        blob, ratio, offset = prepare(image)
        for box, category, score in _suppressed(network(blob), cut):
            corners = np.clip((box - np.tile(offset, 2)) / np.tile(ratio, 2), 0, (width, height, width, height))
            results.append(_annotation(number, category, [*corners[:2], *(corners[2:] - corners[:2])]) | {"score": score})
    return _average_precision(images, targets, results, classes)


def _target(line: str, height: int, width: int) -> tuple[int, list[float]]:
    """(class, x y w h in pixels) of a line of a label file."""
    kind, cx, cy, w, h = (float(v) for v in line.split())
    return int(kind), [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]


def _suppressed(rows: np.ndarray, cut: float) -> list[tuple[np.ndarray, int, float]]:
    """What NMS leaves, class by class, of rows cx cy w h and scores: (x1 y1 x2 y2, class, score)."""
    found = []
    for category in range(rows.shape[1] - 4):
        mine = rows[rows[:, 4 + category] > cut]
        scores = mine[:, 4 + category]
        boxes = np.concatenate((mine[:, :2] - mine[:, 2:4] / 2, mine[:, 2:4]), 1)
        kept = cv2.dnn.NMSBoxes(boxes.astype(float).tolist(), scores.astype(float).tolist(), cut, OVERLAP)
        found += [(np.concatenate((boxes[k, :2], boxes[k, :2] + boxes[k, 2:])), category, float(scores[k])) for k in kept]
    return found


def _annotation(image: int, category: int, box: list[float]) -> dict:
    box = [float(v) for v in box]
    return {"image_id": image, "category_id": category + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}


def _average_precision(images: list[dict], targets: list[dict], results: list[dict], classes: int) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = (_coco(images, annotations, classes) for annotations in (targets, results))
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[1])


def _coco(images: list[dict], annotations: list[dict], classes: int) -> COCO:
    coco = COCO()
    numbered = [a | {"id": number} for number, a in enumerate(annotations, 1)]
    coco.dataset = {"images": images, "annotations": numbered, "categories": [{"id": c + 1} for c in range(classes)]}
    coco.createIndex()
    return coco
