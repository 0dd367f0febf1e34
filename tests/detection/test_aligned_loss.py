"""[yolo] heads that learn what fits best now: against loops over targets, and by hand."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import complete_box_iou_loss

from utils.core.hyp import Hyp
from utils.detection.loss import ALIGNED, ANCHOR, DetectionLoss

SIDE, CLASSES, STRIDES = 128, 3, (32, 16)
ANCHORS = ([[40.0, 40.0], [80.0, 60.0]], [[10.0, 14.0], [20.0, 24.0], [30.0, 20.0]])
DIALECTS = {"v3": (1.0, False), "v4": (1.05, False), "v7": (2.0, True)}


def heads(scale: float, new_coords: bool, classes: int = CLASSES) -> list[SimpleNamespace]:
    definition = SimpleNamespace(iou_loss="ciou", ignore_thresh=0.7)
    boxes = {"scale_x_y": scale, "new_coords": new_coords, "classes": classes, "definition": definition}
    return [SimpleNamespace(anchors=torch.tensor(a), **boxes) for a in ANCHORS]


def loss_of(dialect: str, assign: str = ALIGNED, classes: int = CLASSES, **options) -> DetectionLoss:
    model = SimpleNamespace(heads=heads(*DIALECTS[dialect], classes))
    return DetectionLoss(model, options.pop("hyp", Hyp()), assign, **options)


def scene(seed: int, dialect: str, targets: int, classes: int = CLASSES, near: float = 0.5) -> tuple[list[Tensor], Tensor]:
    """Raw maps of three images, and targets of the first two of them."""
    generator = torch.Generator().manual_seed(seed)
    raws = []
    for anchors, stride in zip(ANCHORS, STRIDES, strict=True):
        raw = torch.randn(3, len(anchors), SIDE // stride, SIDE // stride, 5 + classes, generator=generator) * near
        raws.append(raw.sigmoid() if DIALECTS[dialect][1] else raw)
    rows = torch.rand(targets, 6, generator=generator)
    rows[:, 0], rows[:, 1] = (rows[:, 0] * 2).floor(), (rows[:, 1] * classes).floor()
    rows[:, 4:] = rows[:, 4:] * 0.5 + 0.05
    return raws, rows


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def decoded(values: list[float], cell: tuple[int, int], anchor: list[float], stride: int, dialect: str) -> list[float]:
    """x1 y1 x2 y2 objectness classes..., by Darknet's formulas."""
    scale, squashed = DIALECTS[dialect]
    x, y = ((v if squashed else sigmoid(v)) * scale - (scale - 1) / 2 for v in values[:2])
    w, h = ((2 * v) ** 2 * a if squashed else math.exp(v) * a for v, a in zip(values[2:4], anchor, strict=True))
    centre = (x + cell[0]) * stride, (y + cell[1]) * stride
    scores = [v if squashed else sigmoid(v) for v in values[4:]]
    return [centre[0] - w / 2, centre[1] - h / 2, centre[0] + w / 2, centre[1] + h / 2, *scores]


def iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def like(width: float, height: float, anchor: list[float]) -> float:
    """By what factor the sides differ at most."""
    return max(width / anchor[0], anchor[0] / width, height / anchor[1], anchor[1] / height)


def candidates(row: list[float], anchors: list[tuple[int, int, list[float]]]) -> list[tuple[int, int, int, int]]:
    """(head, anchor, row, column) that may learn a target: anchors like it (or the likest), in the cell that holds its centre
    and in the nearest neighbours."""
    x, y, width, height = (v * SIDE for v in row[2:])
    fitting = [a for a in anchors if like(width, height, a[2]) < 4]
    found = []
    for head, anchor, _ in fitting or [min(anchors, key=lambda a: like(width, height, a[2]))]:
        cells = SIDE // STRIDES[head]
        column, line = x / STRIDES[head], y / STRIDES[head]
        places = [(int(column), int(line))]
        places.append((int(column) + (1 if column % 1 > 0.5 else -1), int(line)))
        places.append((int(column), int(line) + (1 if line % 1 > 0.5 else -1)))
        found += [(head, anchor, r, c) for c, r in places if 0 <= c < cells and 0 <= r < cells]
    return found


def by_hand(raws: list[Tensor], targets: Tensor, dialect: str) -> dict[tuple[int, ...], tuple[int, float, float]]:
    """{(head, image, anchor, row, column): (target, weight, quality)} of what is assigned."""
    anchors = [(h, i, a) for h, rows in enumerate(ANCHORS) for i, a in enumerate(rows)]
    wishes: dict[tuple[int, ...], list[tuple[float, int, float]]] = {}
    for number, row in enumerate(targets.tolist()):
        x, y, w, h = (v * SIDE for v in row[2:])
        wanted, ranked = [x - w / 2, y - h / 2, x + w / 2, y + h / 2], []
        for head, anchor, line, column in candidates(row, anchors):
            place = (head, int(row[0]), anchor, line, column)
            values = raws[head][place[1:]].tolist()
            found = decoded(values, (column, line), ANCHORS[head][anchor], STRIDES[head], dialect)
            overlap, score = iou(found, wanted), found[4] * found[5 + int(row[1])]
            ranked.append((max(score, 1e-9) ** 0.5 * max(overlap, 0.01) ** 6, place, overlap))
        for t, place, overlap in sorted(ranked, reverse=True)[:10]:
            wishes.setdefault(place, []).append((overlap, number, t))
    won = {place: max(wish) for place, wish in wishes.items()}
    result = {}
    for place, (_, number, t) in won.items():
        mine = [(other_t, u) for u, other, other_t in won.values() if other == number]
        weight = t / max(m[0] for m in mine)
        result[place] = (number, weight, weight * max(m[1] for m in mine))
    return result


def assigned(loss: DetectionLoss, raws: list[Tensor], targets: Tensor) -> dict[tuple[int, ...], tuple[int, float, float]]:
    found = {}
    for head, fit in enumerate(loss.fits(raws, targets, (SIDE, SIDE))):
        columns = (*fit.matches.where, fit.matches.target, fit.weight, fit.quality)
        for *place, target, weight, quality in zip(*(c.tolist() for c in columns), strict=True):
            if weight > 0:
                assert (head, *place) not in found  # no prediction learns two targets
                found[head, *place] = (target, weight, quality)
    return found


@pytest.mark.parametrize(("dialect", "seed"), itertools.product(DIALECTS, range(3)))
def test_what_loops_over_targets_find(dialect: str, seed: int) -> None:
    raws, targets = scene(seed, dialect, targets=(40, 12, 3)[seed])
    found, expected = assigned(loss_of(dialect), raws, targets), by_hand(raws, targets, dialect)
    assert {k: v[0] for k, v in found.items()} == {k: v[0] for k, v in expected.items()}
    np.testing.assert_allclose([found[k][1:] for k in expected], [v[1:] for v in expected.values()], rtol=2e-4, atol=1e-6)


def test_one_target_by_hand() -> None:
    """One class, one target of exactly the 40 x 40 anchor in the middle of cell (1, 1) of stride 32, raw values 0: its
    box fits, IoU 1; 80 x 60 around the same centre 1600 / 4800. At stride 16 the centre is the corner of four cells, and it
    belongs to (3, 3), whose boxes lie 8 pixels off. Objectness and class are 1/2 everywhere, so t = IoU^6 / 2."""
    raws, _ = scene(0, "v3", 1, classes=1, near=0.0)
    targets = torch.tensor([[0, 0, 48 / SIDE, 48 / SIDE, 40 / SIDE, 40 / SIDE]])
    found = assigned(loss_of("v3", classes=1), raws, targets)
    assert found[0, 0, 0, 1, 1] == pytest.approx((0, 1.0, 1.0))
    assert found[0, 0, 1, 1, 1] == pytest.approx((0, 3.0**-6, 3.0**-6), rel=1e-4)
    assert found[1, 0, 1, 3, 3] == pytest.approx((0, 0.3**6, 0.3**6), rel=1e-4)  # 20 x 24 wholly inside: 480 / 1600
    _, parts = loss_of("v3", classes=1, hyp=Hyp(cls=1.0))(raws, targets, (SIDE, SIDE))
    heads_weight = 3 / 2 * math.sqrt(1 / 80)
    assert parts["cls"].item() == pytest.approx(2 * math.log(2) * heads_weight, rel=1e-4)  # a weighted mean, times two heads


def test_the_mean_is_over_the_matches_of_all_heads() -> None:
    """By anchors each head has a mean of its own, and the loss is their sum; here it is as many times the mean of all."""
    raws, targets = scene(1, "v3", 12)
    compute = loss_of("v3", hyp=Hyp(box=1.0))
    total, weights = 0.0, 0.0
    for fit in compute.fits(raws, targets, (SIDE, SIDE)):
        total += (complete_box_iou_loss(fit.predicted, fit.wanted) * fit.weight).sum().item()
        weights += fit.weight.sum().item()
    _, parts = compute(raws, targets, (SIDE, SIDE))
    assert parts["box"].item() == pytest.approx(2 * total / weights * 3 / 2, rel=1e-5)


def test_the_best_match_alone_carries_the_box_loss() -> None:
    """Whichever of two predictions fits has nearly all of the gradient; by anchors both have the same weight."""
    raws, _ = scene(0, "v3", 1, near=0.0)
    targets = torch.tensor([[0, 0, 48 / SIDE, 48 / SIDE, 42 / SIDE, 42 / SIDE]])
    gradients = {}
    for assign in (ANCHOR, ALIGNED):
        leaves = [r.clone().requires_grad_() for r in raws]
        loss_of("v3", assign, hyp=Hyp(obj=0.0, cls=0.0))(leaves, targets, (SIDE, SIDE))[0].backward()
        gradients[assign] = [leaves[0].grad[0, i, 1, 1, 2:4].abs().sum().item() for i in (0, 1)]
    assert gradients[ALIGNED][1] < 0.01 * gradients[ALIGNED][0]
    assert gradients[ANCHOR][1] > 0.3 * gradients[ANCHOR][0]


def test_the_first_epochs_learn_by_anchors() -> None:
    raws, targets = scene(0, "v3", 6)
    loss, anchor = loss_of("v3", hyp=Hyp(static_share=0.4)), loss_of("v3", ANCHOR)
    values = []
    for done in (0.0, 0.39, 0.4, 0.9):
        loss.start_epoch(done)
        values.append(loss(raws, targets, (SIDE, SIDE))[0].item())
    assert values[:2] == [anchor(raws, targets, (SIDE, SIDE))[0].item()] * 2
    assert values[2:] == [loss_of("v3")(raws, targets, (SIDE, SIDE))[0].item()] * 2
    assert values[0] != values[2]


def test_what_overlaps_nothing_yet_is_learned() -> None:
    """A target of 2 x 2 pixels in the corner of a cell, far from every box: its candidates share it."""
    raws, _ = scene(0, "v3", 1, near=0.0)
    for raw in raws:
        raw[..., 2:4] = -5.0
    targets = torch.tensor([[1, 2, 1 / SIDE, 1 / SIDE, 2 / SIDE, 2 / SIDE]])
    found = assigned(loss_of("v3"), raws, targets)
    assert found == {(1, 1, 0, 0, 0): (0, 1.0, 0.0)}
    leaves = [r.clone().requires_grad_() for r in raws]
    loss, parts = loss_of("v3")(leaves, targets, (SIDE, SIDE))
    loss.backward()
    assert parts["box"] > 0
    assert leaves[1].grad[1, 0, 0, 0, :4].abs().min() > 0


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("classes", [1, CLASSES])
def test_no_boxes(dialect: str, classes: int) -> None:
    raws, _ = scene(0, dialect, 1, classes)
    loss, parts = loss_of(dialect, classes=classes)(raws, torch.zeros(0, 6), (SIDE, SIDE))
    assert (parts["box"], parts["cls"]) == (0, 0)
    assert loss == parts["obj"] > 0


@pytest.mark.parametrize("dialect", DIALECTS)
def test_extreme_values_give_finite_gradients(dialect: str) -> None:
    _, targets = scene(0, dialect, 5)
    for value in (0.0, 1.0) if DIALECTS[dialect][1] else (-1e4, -50.0, 50.0, 1e4):
        leaves = [torch.full_like(r, value).requires_grad_() for r in scene(0, dialect, 1)[0]]
        loss, _ = loss_of(dialect)(leaves, targets, (SIDE, SIDE))
        loss.backward()
        assert loss.isfinite()
        assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_the_same_twice_and_independent_of_order() -> None:
    raws, targets = scene(5, "v7", 30)
    losses = [loss_of("v7")(raws, t, (SIDE, SIDE))[0].item() for t in (targets, targets, targets.flip(0))]
    assert losses[0] == losses[1]
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


def test_two_processes_mean_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of the losses of two halves of a batch, with the counts averaged over both, is the loss of the whole."""
    raws, targets = scene(3, "v7", 20)
    halves = [(slice(0, 1), targets[:, 0] == 0), (slice(1, 2), targets[:, 0] == 1)]
    raws = [r[:2] for r in raws]
    whole, _ = loss_of("v7")(raws, targets, (SIDE, SIDE))
    shares = []
    for pictures, mine in halves:
        rows = targets[mine].clone()
        rows[:, 0] = 0
        shares.append(([r[pictures] for r in raws], rows))
    sums = [torch.stack([f.weight.sum() for f in loss_of("v7").fits(*s, (SIDE, SIDE))]) for s in shares]
    monkeypatch.setattr("utils.detection.loss.mean_over_processes", lambda _: torch.stack(sums).mean(0))
    parts = [loss_of("v7")(*s, (SIDE, SIDE))[0].item() for s in shares]
    assert sum(parts) / 2 == pytest.approx(whole.item(), rel=1e-5)


def test_weighed_classes() -> None:
    """A class that counts twice doubles its share of the class loss, and of nothing else."""
    raws, targets = scene(4, "v3", 1)
    targets[:, 1] = 1
    plain, weighed = loss_of("v3"), loss_of("v3")
    weighed.class_weights = torch.tensor([1.0, 2.0, 1.0])
    once, twice = (loss(raws, targets, (SIDE, SIDE))[1] for loss in (plain, weighed))
    assert twice["cls"].item() == pytest.approx(2 * once["cls"].item(), rel=1e-5)
    assert (twice["box"], twice["obj"]) == (once["box"], once["obj"])
