"""utils.data.class_balance: how often images of rare classes are drawn, and what their boxes weigh."""

import numpy as np
import pytest

from utils.data.class_balance import class_counts, class_loss_weights, class_needs, image_weights, weighted_order


def boxes(*classes: int) -> np.ndarray:
    return np.array([[c, 0.5, 0.5, 0.1, 0.1] for c in classes], np.float32).reshape(-1, 5)


# class 0 in 4 of 8 images, class 1 in 1, class 2 in none; three images are background
LABELS = [boxes(0), boxes(0, 0, 0), boxes(0), boxes(0, 1), boxes(), boxes(), boxes(), boxes(0)[:0]]


def test_counts_and_needs_by_hand():
    assert class_counts(LABELS, 3).tolist() == [6, 1, 0]
    assert class_needs(LABELS, 3) == pytest.approx([2**0.5, 8**0.5, 1])
    assert class_needs(LABELS, 3, [1.0, 0.5, 0.0]) == pytest.approx([2**0.5, 1.5 * 8**0.5, 2])
    assert class_needs([boxes(0)] * 999 + [boxes(1)], 2)[1] == 10  # not 31.6


def test_a_picture_is_worth_its_neediest_class():
    weights = image_weights(LABELS, 3)
    assert weights == pytest.approx([2**0.5] * 3 + [8**0.5] + [1] * 4)


def test_order_has_each_picture_as_often_as_it_should():
    weights = np.array([1.0, 1.0, 2.0, 4.0])
    drawn = np.array([np.bincount(weighted_order(weights, np.random.default_rng(seed)), minlength=4) for seed in range(2000)])
    assert (drawn.sum(1) == 4).all()
    expected = 4 * weights / weights.sum()
    assert (np.abs(drawn - expected) < 1).all()  # never further from what is due than rounding
    np.testing.assert_allclose(drawn.mean(0), expected, atol=0.04)


def test_equal_weights_draw_each_picture_once_in_random_order():
    orders = [weighted_order(np.full(50, 0.3), np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert sorted(orders[0].tolist()) == list(range(50))
    assert (orders[0] == orders[1]).all()
    assert (orders[0] != orders[2]).any()
    assert orders[0].tolist() != list(range(50))


def test_loss_weights_by_hand():
    counts = np.array([100, 4, 0])
    assert class_loss_weights(counts, 0) == pytest.approx([1, 1, 1])
    full = class_loss_weights(counts, 1)
    assert full[1] / full[0] == pytest.approx(5)  # sqrt(100 / 4)
    assert (full[:2] * counts[:2]).sum() / 104 == pytest.approx(1)
    assert full[2] == 1
    half = class_loss_weights(counts, 0.5)
    assert half[1] / half[0] == pytest.approx(5**0.5)
    assert class_loss_weights(np.zeros(2), 1).tolist() == [1, 1]
