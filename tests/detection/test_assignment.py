"""Which anchors and cells may learn which targets, worked out by hand."""

import torch

from utils.detection.assignment import HeadGrid, RatioAssigner

GRIDS = [
    HeadGrid(torch.tensor([[100.0, 100.0], [200.0, 100.0]]), 32, 4, 6, 0.0),
    HeadGrid(torch.tensor([[10.0, 10.0], [40.0, 40.0]]), 16, 8, 12, 0.0),
]


def pairs(boxes: list[list[float]], grids: list[HeadGrid] = GRIDS, **options: float) -> list[set[tuple[int, ...]]]:
    """(target, anchor, row, column) of each grid's matches."""
    images = torch.zeros(len(boxes), dtype=torch.long)
    matches = RatioAssigner(**options)(images, torch.tensor(boxes).reshape(-1, 4), grids)
    return [set(zip(*(t.tolist() for t in (m.target, m.anchor, m.row, m.column)), strict=True)) for m in matches]


def test_anchors_within_the_factor_of_4_learn_a_box() -> None:
    """60 x 30: 100/30 < 4 with the first anchor, 200/60 < 4 and 100/30 < 4 with the second, 6 > 4 with 10 x 10."""
    assert pairs([[70, 40, 60, 30]]) == [{(0, 0, 1, 2), (0, 1, 1, 2)}, {(0, 1, 2, 4)}]


def test_no_more_than_the_most_similar_anchors_learn_a_box() -> None:
    """60 x 30 differs from 40 x 40 by 1.5, from 200 x 100 and from 100 x 100 by 3.3; 10 x 10 is 6 off."""
    assert pairs([[70, 40, 60, 30]], most=1) == [set(), {(0, 1, 2, 4)}]
    assert pairs([[70, 40, 60, 33]], most=2) == [{(0, 0, 1, 2)}, {(0, 1, 2, 4)}]  # 100 / 33 < 200 / 60
    assert pairs([[70, 40, 60, 30]], most=2) == [{(0, 0, 1, 2)}, {(0, 1, 2, 4)}]  # of two that are equally far off the first
    assert pairs([[70, 40, 60, 30]], most=9, anchor_t=7) == [{(0, 0, 1, 2), (0, 1, 1, 2)}, {(0, 0, 2, 4), (0, 1, 2, 4)}]


def test_a_box_like_no_anchor_goes_to_the_most_similar() -> None:
    """2 x 2 is 5 times off from 10 x 10; 180 x 8 is 5 off from 40 x 40, 18 from 10 x 10; 1900 x 900 is 9.5 from 200 x 100."""
    assert pairs([[8, 8, 2, 2]]) == [set(), {(0, 0, 0, 0)}]
    assert pairs([[8, 8, 180, 8]]) == [set(), {(0, 1, 0, 0)}]
    assert pairs([[8, 8, 1900, 900]]) == [{(0, 1, 0, 0)}, set()]


def test_boxes_on_the_border_stay_on_the_map() -> None:
    assert pairs([[192, 128, 12, 12]])[1] == {(0, 0, 7, 11), (0, 1, 7, 11)}


def test_no_boxes_no_pairs() -> None:
    assert pairs([]) == [set(), set()]


def test_neighbours_only_where_their_boxes_can_reach() -> None:
    """Centre at 2.3, 1.8 cells. With scale 2 a cell reaches half a cell beyond itself: left and lower neighbour too;
    with scale 1.05, 0.025 cells: none."""
    anchor = torch.tensor([[32.0, 32.0]])
    box = [[2.3 * 32, 1.8 * 32, 32, 32]]
    assert pairs(box, [HeadGrid(anchor, 32, 4, 4, 0.5)]) == [{(0, 0, 1, 2), (0, 0, 1, 1), (0, 0, 2, 2)}]
    assert pairs(box, [HeadGrid(anchor, 32, 4, 4, 0.025)]) == [{(0, 0, 1, 2)}]
    assert pairs([[0.3 * 32, 3.8 * 32, 32, 32]], [HeadGrid(anchor, 32, 4, 4, 0.5)]) == [{(0, 0, 3, 0)}]  # no cell outside
