"""Anchor fitting against sizes whose answer is known."""

import numpy as np
import pytest

from utils.core.errors import UserError
from utils.detection import anchors as module
from utils.detection.anchors import cluster_anchors, concentration, fit, label_sizes, rarity, size_iou


def three_groups(count: int = 60, spread: float = 0.03) -> np.ndarray:
    """Boxes scattered around 20x10, 50x60 and 200x120."""
    generator = np.random.default_rng(1)
    centres = np.array([[50, 60], [20, 10], [200, 120]])
    return np.concatenate([c * generator.normal(1, spread, (count, 2)) for c in centres])


def test_size_iou_by_hand() -> None:
    result = size_iou(np.array([[10, 10], [20, 5]]), np.array([[10, 10], [20, 20]]))
    assert result == pytest.approx(np.array([[1, 100 / 400], [50 / 150, 100 / 400]]))


def test_fit_by_hand() -> None:
    sizes, anchors = np.array([[10, 10], [10, 41], [39, 10]], float), np.array([[10, 10]], float)
    result = fit(sizes, anchors, anchor_t=4)
    assert result.recall == pytest.approx(2 / 3)  # 41 is more than four times 10
    assert result.mean_iou == pytest.approx((1 + 100 / 410 + 100 / 390) / 3)


def test_label_sizes_letterboxed_and_stretched() -> None:
    labels = [np.array([[0, 0.5, 0.5, 0.5, 0.25]]), np.zeros((0, 5)), np.array([[1, 0.5, 0.5, 1, 1]])]
    shapes = np.array([[100, 200], [50, 50], [400, 100]])  # height, width
    assert label_sizes(labels, shapes, (64, 64)) == pytest.approx(np.array([[32, 8], [16, 64]]))
    assert label_sizes(labels, shapes, (64, 64), stretch=True) == pytest.approx(np.array([[32, 16], [64, 64]]))
    assert label_sizes(labels, shapes, (32, 64)) == pytest.approx(np.array([[32, 8], [8, 32]]))


def test_clustering_finds_the_groups_sorted_by_area() -> None:
    anchors = cluster_anchors(three_groups(), 3)
    assert anchors == pytest.approx(np.array([[20, 10], [50, 60], [200, 120]]), rel=0.05)
    assert (anchors == anchors.round()).all()


def test_clustering_is_reproducible_and_beats_random_choices() -> None:
    generator = np.random.default_rng(0)
    sizes = np.exp(generator.normal(3.5, 0.8, (300, 2)))
    anchors = cluster_anchors(sizes, 6, seed=3)
    assert np.array_equal(anchors, cluster_anchors(sizes, 6, seed=3))
    assert (np.diff(anchors.prod(1)) >= 0).all()
    best_random = max(fit(sizes, generator.choice(sizes, 6, replace=False)).mean_iou for _ in range(50))
    assert fit(sizes, anchors).mean_iou > best_random


def test_tiny_boxes_never_get_an_anchor_without_area() -> None:
    assert cluster_anchors(np.array([[0.1, 0.4], [0.2, 0.3], [5, 5]]), 2).min() >= 1


def test_fewer_sizes_than_anchors_is_said() -> None:
    with pytest.raises(UserError, match="3 anchors need 3 different box sizes; the labels have 2"):
        cluster_anchors(np.array([[10, 10], [10, 10], [20, 20]], float), 3)


@pytest.mark.parametrize("seed", range(4))
def test_refinement_never_makes_it_worse(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same clustering without it, on boxes of many sizes and shapes."""
    sizes = np.exp(np.random.default_rng(seed).normal(3.5, 0.9, (400, 2)))
    refined = fit(sizes, cluster_anchors(sizes, 6, seed)).mean_iou
    monkeypatch.setattr(module, "GENERATIONS", 0)
    assert refined > fit(sizes, cluster_anchors(sizes, 6, seed)).mean_iou


def test_a_few_odd_boxes_keep_the_recall_that_they_had() -> None:
    """Old anchors that reach every box, one of them spent on two odd ones: the mean IoU alone would give those up."""
    generator = np.random.default_rng(0)
    sizes = np.concatenate([np.exp(generator.normal(4, 0.25, (400, 2))), [[400, 4], [420, 4]]])
    old = np.array([[30, 30], [60, 60], [400, 4]], float)
    assert fit(sizes, old).recall == 1
    careless, careful = cluster_anchors(sizes, 3), cluster_anchors(sizes, 3, old=old)
    assert fit(sizes, careless).recall < 1
    assert fit(sizes, careful).recall == 1
    assert fit(sizes, old).mean_iou < fit(sizes, careful).mean_iou < fit(sizes, careless).mean_iou


def test_old_anchors_that_cannot_be_bettered_stay() -> None:
    sizes = np.repeat(np.array([[10, 20], [50, 40], [90, 95]], float), 5, axis=0)
    assert np.array_equal(cluster_anchors(sizes, 3, old=sizes[::5]), sizes[::5])


def test_rarity_by_hand() -> None:
    assert rarity(np.array([3, 1, 3, 3, 3])) == pytest.approx([0.5, 1, 0.5, 0.5, 0.5])


def test_boxes_count_as_they_weigh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups, one of them with 20 times as many boxes: enough weight gives the smaller one two of three anchors."""
    generator = np.random.default_rng(0)
    many, few = np.exp(generator.normal(4, 0.3, (400, 2))), 8 * generator.normal(1, 0.02, (20, 2))
    sizes, classes = np.concatenate((many, few)), np.repeat([0, 1], [400, 20])
    plain = cluster_anchors(sizes, 3)
    assert (plain[:, 0] < 12).sum() == 1
    weights = np.where(classes == 1, 1000.0, 1.0)
    weighed = cluster_anchors(sizes, 3, weights=weights)
    assert (weighed[:, 0] < 12).sum() == 2
    assert fit(sizes, plain).mean_iou > fit(sizes, weighed).mean_iou
    monkeypatch.setattr(module, "SAMPLE", 300)  # weights stay with their boxes
    assert (cluster_anchors(sizes, 3, weights=weights)[:, 0] < 12).sum() == 2
    monkeypatch.setattr(module, "SAMPLE", 10_000)
    assert fit(sizes, plain, weights=np.where(classes == 1, 1.0, 0.0)).mean_iou == pytest.approx(fit(few, plain).mean_iou)


def test_a_cluster_is_the_weighted_mean_of_its_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10x10 three times as heavy as 14x14, without refinement: 11x11."""
    monkeypatch.setattr(module, "GENERATIONS", 0)
    sizes = np.array([[10, 10], [14, 14]], float)
    assert np.array_equal(cluster_anchors(sizes, 1, weights=np.array([3.0, 1.0])), [[11, 11]])


def test_concentration_by_hand() -> None:
    """Three of four boxes are nearest to 10x10, the first of three anchors; six anchors: 2 of them are a third."""
    sizes = np.array([[9, 9], [10, 10], [11, 11], [40, 40]], float)
    anchors = np.array([[10, 10], [20, 20], [40, 40]], float)
    assert concentration(sizes, anchors) == 0.75
    assert concentration(sizes, np.concatenate((anchors, 10 * anchors))) == 1
