"""Rare and badly detected classes: how much more often their images are drawn, how much more their boxes weigh.

All of it is a function of the labels (and of the last evaluation), so every process of a training finds the same.
"""

from collections.abc import Sequence

import numpy as np

MOST = 10.0  # times as often as an image that nobody needs: a single image of a class must not be learnt by heart


def class_counts(labels: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """(classes,) boxes of each class; labels: (n, 5) an image, class first."""
    rows = np.concatenate([np.zeros((0, 5), np.float32), *labels])
    return np.bincount(rows[:, 0].astype(int), minlength=classes)


def class_needs(labels: Sequence[np.ndarray], classes: int, precision: Sequence[float] | None = None) -> np.ndarray:
    """(classes,) how much more often than it comes by itself a class should be seen: (2 - AP) / sqrt(f), at most MOST.

    f: share of the images that show the class, whose inverse square root is the repeat factor of LVIS (Gupta, Dollár and
    Girshick 2019, section 5). precision: AP of each class in the last evaluation, None before there was one: all are 1.
    """
    shown = np.zeros(classes)
    for rows in labels:
        shown[np.unique(rows[:, 0]).astype(int)] += 1
    share = np.where(shown > 0, shown, len(labels)) / max(len(labels), 1)
    wanted = 2 - np.asarray(precision) if precision is not None else np.ones(classes)
    return np.minimum(wanted / np.sqrt(share), MOST)


def image_weights(labels: Sequence[np.ndarray], classes: int, precision: Sequence[float] | None = None) -> np.ndarray:
    """(images,) how often each should be drawn, relative to the others: the largest need among its classes, so that the
    number of its boxes doesn't count; 1 for background."""
    needs = class_needs(labels, classes, precision)
    return np.array([needs[rows[:, 0].astype(int)].max() if len(rows) else 1.0 for rows in labels])


def weighted_order(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As many indices as there are weights, in random order; index i comes n * weights[i] / sum(weights) times, rounded up
    or down at random (systematic sampling), so that chance alone leaves out no image that is due."""
    count = len(weights)
    order = rng.permutation(count)
    ends = np.cumsum(weights[order])
    places = (rng.random() + np.arange(count)) / count * ends[-1]
    drawn = order[np.searchsorted(ends, places, side="right").clip(max=count - 1)]
    return rng.permutation(drawn)


def class_loss_weights(counts: np.ndarray, strength: float) -> np.ndarray:
    """(classes,) what the class loss of a box is multiplied with: counts ** (-strength / 2), so with strength 1 the inverse
    square root of the number of boxes, scaled so that the mean over all boxes is 1; 1 for classes without boxes."""
    weights = np.where(counts > 0, np.maximum(counts, 1.0) ** (-strength / 2), 0.0)
    total = float((weights * counts).sum())
    return np.where(counts > 0, weights * counts.sum() / total, 1.0) if total else np.ones(len(counts))
