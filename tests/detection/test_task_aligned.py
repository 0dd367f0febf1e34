"""The assignment against a slow loop that follows the paper's text."""

import numpy as np
import pytest
import torch

from utils.detection import task_aligned
from utils.detection.task_aligned import Assignment, TaskAlignedAssigner

SIDE, STRIDES = 64, (8, 16)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    overlap = width * height
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def by_hand(images, labels, boxes, probabilities, predicted, centres) -> dict[tuple[int, int], tuple[int, float]]:
    """{(image, cell): (target, score)}."""
    wishes: dict[tuple[int, int], list[tuple[float, int, float]]] = {}
    for target, (image, label, box) in enumerate(zip(images, labels, boxes, strict=True)):
        candidates = []
        for cell, (x, y) in enumerate(centres):
            if box[0] < x < box[2] and box[1] < y < box[3]:
                u = iou(predicted[image, cell], box)
                t = probabilities[image, cell, label] ** 0.5 * u**6
                if t > 0:
                    candidates.append((t, cell, u))
        for t, cell, u in sorted(candidates, reverse=True)[:10]:
            wishes.setdefault((image, cell), []).append((u, target, t))
    won = {place: max(wish) for place, wish in wishes.items()}
    found = {}
    for place, (_, target, t) in won.items():
        mine = [(other_t, u) for u, other, other_t in won.values() if other == target]
        found[place] = (target, t / max(m[0] for m in mine) * max(m[1] for m in mine))
    return found


def grid() -> np.ndarray:
    return np.array([((x + 0.5) * s, (y + 0.5) * s) for s in STRIDES for y in range(SIDE // s) for x in range(SIDE // s)])


def scene(seed: int, targets: int, near: float = 4.0) -> dict[str, np.ndarray]:
    """Two images of random targets that overlap; each cell's box is like a target's, so that overlaps are large."""
    rng = np.random.default_rng(seed)
    centres = grid()
    corner = rng.uniform(0, 40, (targets, 2))
    boxes = np.concatenate((corner, corner + rng.uniform(6, 30, (targets, 2))), 1)
    predicted = np.concatenate((centres, centres), 1)[None] + rng.uniform(4, 14, (2, len(centres), 4)) * [-1, -1, 1, 1]
    for image in range(2):
        for cell in range(len(centres)):
            predicted[image, cell] = boxes[rng.integers(targets)] + rng.normal(0, near, 4)
    predicted[..., 2:] = np.maximum(predicted[..., 2:], predicted[..., :2] + 1)
    return {"images": rng.integers(0, 2, targets), "labels": rng.integers(0, 3, targets), "boxes": boxes,
            "logits": rng.normal(-1, 2, (2, len(centres), 3)), "predicted": predicted, "centres": centres}  # fmt: skip


def assign(scene: dict[str, np.ndarray]) -> Assignment:
    return TaskAlignedAssigner()(**{name: torch.from_numpy(values) for name, values in scene.items()})


def as_dict(found: Assignment) -> dict[tuple[int, int], tuple[int, float]]:
    rows = zip(found.image.tolist(), found.cell.tolist(), found.target.tolist(), found.score.tolist(), strict=True)
    return {(image, cell): (target, score) for image, cell, target, score in rows}


@pytest.mark.parametrize(("seed", "targets"), [(0, 1), (1, 4), (2, 12), (3, 40)])
def test_the_loop_over_targets_and_cells_finds_the_same(seed, targets):
    s = scene(seed, targets)
    wanted = by_hand(s["images"], s["labels"], s["boxes"], 1 / (1 + np.exp(-s["logits"])), s["predicted"], s["centres"])
    found = as_dict(assign(s))
    assert {place: target for place, (target, _) in found.items()} == {place: t for place, (t, _) in wanted.items()}
    for place, (_, score) in wanted.items():
        assert found[place][1] == pytest.approx(score, rel=1e-9)
    assert len(found) == len(assign(s).cell)
    assert len(wanted) >= min(targets, 8)


def test_targets_want_the_same_cells_and_each_cell_learns_one():
    s = scene(3, 40)
    wishes = sum(min(10, int(((s["centres"] > b[:2]) & (s["centres"] < b[2:])).all(1).sum())) for b in s["boxes"])
    assert len(assign(s).cell) < wishes


def test_the_best_cell_of_each_target_learns_its_own_overlap():
    s = scene(1, 4)
    found = assign(s)
    for target in found.target.unique().tolist():
        scores = found.score[found.target == target]
        mine = [iou(s["predicted"][s["images"][target], c], s["boxes"][target]) for c in found.cell[found.target == target]]
        assert scores.max().item() == pytest.approx(max(mine), rel=1e-9)


def test_many_boxes_are_worked_on_a_few_at_a_time_with_the_same_result(monkeypatch):
    s = scene(4, 30)
    whole = as_dict(assign(s))
    monkeypatch.setattr(task_aligned, "TABLE", 3 * len(s["centres"]))
    assert as_dict(assign(s)) == whole


def test_ten_cells_at_most():
    centres = grid()
    box = np.array([[0.0, 0.0, 64.0, 64.0]])
    predicted = np.broadcast_to(box, (1, len(centres), 4)) - np.arange(len(centres))[None, :, None] / 100
    found = TaskAlignedAssigner()(
        torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), torch.from_numpy(box),
        torch.zeros(1, len(centres), 1).double(), torch.from_numpy(predicted), torch.from_numpy(centres),
    )  # fmt: skip
    assert sorted(found.cell.tolist()) == list(range(10))  # those that are shifted least


def test_no_targets_and_targets_that_hold_no_centre():
    s = scene(0, 1)
    empty = {k: v[:0] if k in ("images", "labels", "boxes") else v for k, v in s.items()}
    assert [len(v) for v in vars(assign(empty)).values()] == [0, 0, 0, 0]
    s["boxes"] = np.array([[17.0, 17.0, 19.0, 19.0]])  # between the centres 12 and 20, and off 24
    s["predicted"][:] = s["boxes"][0]
    assert len(assign(s).cell) == 0
