"""Boxes and labels on images."""

import numpy as np
import pytest

from utils.data.draw import class_colour, draw_boxes, image_grid

NAMES = ["cat", "a rather long name"]


def test_boxes_are_drawn_in_their_class_colour_on_a_copy() -> None:
    image = np.zeros((200, 300, 3), np.uint8)
    drawn = draw_boxes(image, np.array([[50, 60, 120, 150, 0.9, 0], [200, 80, 280, 180, 0.5, 1]]), NAMES)
    assert not image.any()
    assert tuple(drawn[150, 85]) == class_colour(0)  # the lower edge of the first box
    assert tuple(drawn[130, 200]) == class_colour(1)  # the left edge of the second
    assert not drawn[100:140, 60:110].any()  # the inside stays


@pytest.mark.parametrize("shape", [(60, 80, 3), (40, 2000, 3), (2000, 3000, 3)])
@pytest.mark.parametrize("corner", [(0, 0), (0.95, 0), (0.3, 0.95), (0.95, 0.95)])
def test_labels_stay_in_the_picture(shape: tuple, corner: tuple) -> None:
    left, top = int(corner[0] * shape[1]), int(corner[1] * shape[0])
    drawn = draw_boxes(np.zeros(shape, np.uint8), np.array([[left, top, left + 3, top + 3, 0.8, 0]]), NAMES)
    painted = drawn.any(2).sum(1)  # pixels a row
    assert (painted > 30).sum() >= 9  # rows much wider than the box: a label of readable height
    assert (drawn > 150).all(2).any()  # with white letters on it


def test_letters_grow_with_the_picture() -> None:
    box = np.array([[0.5, 0.5, 0.6, 0.6, 0.8, 0]])
    heights = []
    for side in (100, 1000, 4000):
        scaled = box * [side, side, side, side, 1, 1]
        drawn = draw_boxes(np.zeros((side, side, 3), np.uint8), scaled, NAMES)
        above = (drawn[: side // 2 - side // 100] == class_colour(0)).all(2).any(1)
        heights.append(int(above.sum()))
    assert heights[0] >= 9
    assert heights[1] > heights[0]
    assert heights[2] == pytest.approx(4 * heights[1], rel=0.2)


def test_colours_differ() -> None:
    colours = np.array([class_colour(k) for k in range(20)], int)
    distance = np.abs(colours[:, None] - colours[None]).sum(2) + 1000 * np.eye(20, dtype=int)
    assert distance.min() > 15


def test_no_boxes_no_change() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    assert np.array_equal(draw_boxes(image, np.zeros((0, 6)), NAMES), image)


def test_grid_places_pictures_row_by_row() -> None:
    wide, high = np.full((50, 100, 3), 10, np.uint8), np.full((400, 200, 3), 20, np.uint8)
    grid = image_grid([wide, high, wide], columns=2, cell=100, gap=4)
    assert grid.shape == (4 + 100 + 4 + 50 + 4, 4 + 104 * 2, 3)
    assert (grid[4 + 25 : 4 + 75, 4:104] == 10).all()  # the wide one in the middle of a row as high as the other
    assert (grid[4:104, 108 + 25 : 108 + 75] == 20).all()
    assert (grid[108:158, 4:104] == 10).all()
    assert (grid[:4] == 255).all()
    assert (grid[108:, 108:] == 255).all()
