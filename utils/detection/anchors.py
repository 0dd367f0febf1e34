"""Anchor sizes: how well they fit a dataset's boxes, and better ones by clustering."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from utils.core.errors import UserError
from utils.core.hyp import Hyp

ONE_SIZE = 0.67  # a greater `concentration` means that most boxes have one size
RESTARTS = 10
GENERATIONS = 1000
SAMPLE = 20_000  # boxes that the clustering looks at; more change the third digit at most


@dataclass
class AnchorFit:
    """How well anchors fit boxes: best possible recall (share of the boxes whose sides differ from some anchor's by less
    than the factor `anchor_t`, see utils.core.hyp) and the mean over the boxes of the IoU with the best anchor, both
    centred."""

    recall: float
    mean_iou: float


def label_sizes(
    labels: Sequence[np.ndarray], shapes: np.ndarray, img_size: tuple[int, int], stretch: bool = False
) -> np.ndarray:
    """(n, 2) width and height, in pixels of the network's input, of every labelled box.

    labels: (boxes, 5) class, cx, cy, w, h an image, normalised; shapes: (images, 2) height, width; as
    utils.data.datasets.scan gives them. img_size: (height, width) of the input, into which images are letterboxed (scaled by
    one factor) or stretched.
    """
    scales = np.array(img_size) / shapes
    inner = np.array(img_size) * np.ones_like(scales) if stretch else shapes * scales.min(1, keepdims=True)
    return np.concatenate([rows[:, 3:].astype(np.float64) * hw[::-1] for rows, hw in zip(labels, inner, strict=True)])


def size_iou(sizes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """(n, k) IoU of boxes (n, 2) and anchors (k, 2) as if both had the same centre."""
    overlap = np.minimum(sizes[:, None], anchors[None]).prod(2)
    return overlap / (sizes.prod(1)[:, None] + anchors.prod(1)[None] - overlap)


def fit(sizes: np.ndarray, anchors: np.ndarray, anchor_t: float = Hyp.anchor_t, weights: np.ndarray | None = None) -> AnchorFit:
    """How well `anchors` (k, 2) fit the boxes `sizes` (n, 2), which count in the mean IoU as their `weights` (n,) say."""
    ratio = sizes[:, None] / anchors[None]
    worst_side = np.maximum(ratio, 1 / ratio).max(2)
    reached, best = worst_side.min(1) < anchor_t, size_iou(sizes, anchors).max(1)
    return AnchorFit(float(reached.mean()), float(np.average(best, weights=weights)))


def concentration(sizes: np.ndarray, anchors: np.ndarray) -> float:
    """Share of the boxes `sizes` (n, 2) that are nearest to the most used third of the `anchors` (k, 2)."""
    used = np.bincount(size_iou(sizes, anchors).argmax(1), minlength=len(anchors))
    return float(np.sort(used)[::-1][: max(1, len(anchors) // 3)].sum() / used.sum())


def rarity(classes: np.ndarray) -> np.ndarray:
    """(n,) weights of boxes by their class (n,): the inverse square root of its number of boxes, so that one class of
    nearly equal boxes doesn't get all the anchors."""
    _, members, counts = np.unique(classes, return_inverse=True, return_counts=True)
    return 1 / np.sqrt(counts[members])


def cluster_anchors(
    sizes: np.ndarray, count: int, seed: int = 0, old: np.ndarray | None = None, weights: np.ndarray | None = None
) -> np.ndarray:
    """(count, 2) anchors for the boxes `sizes` (n, 2), in whole pixels, sorted by area; the same for the same seed.

    k-means with the distance 1 - IoU (Redmon and Farhadi 2017, section 2), begun several times as k-means++ begins
    (Arthur and Vassilvitskii 2007); the best is refined by random mutations that are kept when the mean IoU rises.
    weights: (n,) what each box counts in the mean; the same without. With `old` anchors (k, 2) neither best possible recall
    nor, if there are as many of them, the mean IoU falls below theirs, on the boxes that are looked at.
    Raises UserError when there are fewer different sizes than anchors.
    """
    different = len(np.unique(sizes.round(3), axis=0))
    if different < count:
        raise UserError(f"--anchors kmeans: {count} anchors need {count} different box sizes; the labels have {different}")
    generator = np.random.default_rng(seed)
    weights = np.ones(len(sizes)) if weights is None else weights
    if len(sizes) > SAMPLE:
        looked_at = generator.choice(len(sizes), SAMPLE, replace=False)
        sizes, weights = sizes[looked_at], weights[looked_at]
    least = fit(sizes, old).recall if old is not None else 0.0

    def fitness(anchors: np.ndarray) -> tuple[float, float]:
        """Best possible recall as far as `least`, then the mean IoU."""
        result = fit(sizes, anchors, weights=weights)
        return min(result.recall, least), result.mean_iou

    starts = [_kmeans(sizes, weights, _spread_start(sizes, weights, count, generator)) for _ in range(RESTARTS)]
    starts = [max(starts, key=fitness)]
    if old is not None and len(old) == count and fitness(starts[0]) < fitness(old):
        starts.append(old.astype(np.float64))
    candidates = [*starts, *(_refine(fitness, start, generator) for start in starts)]
    anchors = max((np.maximum(c.round(), 1) for c in candidates), key=fitness)
    return anchors[np.argsort(anchors.prod(1), kind="stable")]


def _spread_start(sizes: np.ndarray, weights: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Boxes that are far from each other: each drawn with a probability that grows with its squared distance."""
    chosen = sizes[generator.choice(len(sizes), p=weights / weights.sum())][None]
    while len(chosen) < count:
        chances = weights * (1 - size_iou(sizes, chosen).max(1)).clip(0) ** 2
        chances = chances / chances.sum() if chances.sum() > 0 else None
        chosen = np.concatenate((chosen, sizes[generator.choice(len(sizes), p=chances)][None]))
    return chosen


def _kmeans(sizes: np.ndarray, weights: np.ndarray, anchors: np.ndarray, rounds: int = 100) -> np.ndarray:
    """Lloyd's rounds until no box changes its cluster; an empty cluster keeps its anchor."""
    nearest = np.full(len(sizes), -1)
    for _ in range(rounds):
        previous, nearest = nearest, size_iou(sizes, anchors).argmax(1)
        if np.array_equal(previous, nearest):
            break
        members = [nearest == k for k in range(len(anchors))]
        means = [np.average(sizes[m], 0, weights[m]) if m.any() else a for m, a in zip(members, anchors, strict=True)]
        anchors = np.stack(means)
    return anchors


def _refine(
    fitness: Callable[[np.ndarray], tuple[float, float]], anchors: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Random changes by about a tenth; the fitter set survives."""
    best = fitness(anchors)
    for _ in tqdm(range(GENERATIONS), desc="refining anchors", leave=False):
        change = generator.normal(1, 0.1, anchors.shape) ** (generator.random(anchors.shape) < 0.5)
        mutant = np.maximum(anchors * change.clip(0.5, 2), 1)
        value = fitness(mutant)
        if value > best:
            best, anchors = value, mutant
    return anchors
