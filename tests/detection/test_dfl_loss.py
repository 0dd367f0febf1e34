"""The anchor-free heads' loss against numbers worked out by hand, and its behaviour where training would break."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.detection.test_loss import softplus
from tests.tiny import DFL, NET, RESIDUAL, conv, dfl_head
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.detection.dfl_loss import TaskAlignedLoss, distribution_focal_loss
from utils.detection.loss import DetectionLoss
from utils.detection.losses import build_loss
from utils.network import definitions
from utils.network.darknet import Darknet
from utils.network.heads import DflHead

HYP = Hyp()
SURE = 30.0  # a logit that takes all of a distribution


def heads(*reg_max: int, classes: int = 2) -> SimpleNamespace:
    return SimpleNamespace(heads=[DflHead(definitions.Dfl(classes=classes, reg_max=r)) for r in reg_max])


def one_speaker(distances: list[int]) -> Tensor:
    """A raw map of 4 x 4 cells, 4 bins and two classes, whose cell (1, 1) surely predicts these whole distances, left, top,
    right and bottom; all others a box of no size, and all logits of classes are 0."""
    raw = torch.zeros(1, 1, 4, 4, 4 * 4 + 2)
    raw[..., [0, 4, 8, 12]] = SURE
    raw[0, 0, 1, 1, [0, 4, 8, 12]] = 0
    for k, distance in enumerate(distances):
        raw[0, 0, 1, 1, 4 * k + distance] = SURE
    return raw


def test_one_box_by_hand() -> None:
    """A 32 x 32 input, one head of stride 8 with 4 bins, classes' logits 0 but for 1.5. The target 4..28 x 4..20 in cells is
    0.5..3.5 x 0.5..2.5; the cell (1, 1), centre 1.5, says 1 left, 1 above, 2 right, 1 below: its very box. Others say a box of
    no size, which overlaps nothing, so that one cell alone learns, with label 1."""
    raw = one_speaker([1, 1, 2, 1])
    raw[0, 0, 1, 1, -1] = 1.5
    targets = torch.tensor([[0, 1, 0.5, 0.375, 0.75, 0.5]])
    loss, parts = TaskAlignedLoss(heads(4), HYP)([raw], targets, (32, 32))
    expected = {"box": 0.0, "cls": HYP.dfl_cls * (softplus(-1.5) + 31 * math.log(2)), "dfl": 0.0}
    assert list(parts) == list(expected)
    assert {k: v.item() for k, v in parts.items()} == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert loss.item() == pytest.approx(sum(expected.values()), rel=1e-4)


def test_a_box_that_is_off_by_hand() -> None:
    """The same cell says 1, 1, 1, 1 cells: 16 x 16 in the target's 24 x 16, IoU 2/3, centres 4 apart, diagonal^2 24^2 + 16^2.
    Its label is its overlap; the divisor max(2/3, 1) is 1. Right, a distance of 2 has no mass in bin 2."""
    raw = one_speaker([1, 1, 1, 1])
    targets = torch.tensor([[0, 1, 0.5, 0.375, 0.75, 0.5]])
    _, parts = TaskAlignedLoss(heads(4), HYP)([raw], targets, (32, 32))
    score = 2 / 3
    v = 4 / math.pi**2 * (math.atan(24 / 16) - math.atan(1)) ** 2
    ciou = 1 - score + 16 / (24**2 + 16**2) + v * v / (1 - score + v)
    expected = {
        "box": HYP.dfl_box * ciou * score,
        "cls": HYP.dfl_cls * 32 * math.log(2),  # with a logit of 0, whatever the label
        "dfl": HYP.dfl * score * SURE / 4,  # one side of four; p of its bin is exp(-SURE)
    }
    assert {k: v.item() for k, v in parts.items()} == pytest.approx(expected, rel=1e-4)


def test_distribution_focal_loss_by_hand() -> None:
    """Bins 0, 1, 2 with p = 0.2, 0.5, 0.3; a distance of 1.25 is three quarters bin 1."""
    logits = torch.tensor([0.2, 0.5, 0.3]).log()
    assert distribution_focal_loss(logits, torch.tensor(1.25)).item() == pytest.approx(
        -0.75 * math.log(0.5) - 0.25 * math.log(0.3), rel=1e-6
    )
    assert distribution_focal_loss(logits, torch.tensor(0.0)).item() == pytest.approx(-math.log(0.2), rel=1e-6)
    last = -0.01 * math.log(0.5) - 0.99 * math.log(0.3)  # what the bins don't reach
    assert distribution_focal_loss(logits.expand(2, 3), torch.tensor([2.0, 50.0])).tolist() == pytest.approx(
        [last, last], rel=1e-4
    )
    assert distribution_focal_loss(logits, torch.tensor(-3.0)).item() == pytest.approx(-math.log(0.2), rel=1e-6)


def scene(batch: int = 2, reg_max: tuple[int, int] = (6, 6)) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    raws = [torch.randn(batch, 1, n, n, 4 * r + 2, generator=generator) for n, r in zip((8, 4), reg_max, strict=True)]
    targets = torch.tensor([[0, 1, 0.3, 0.3, 0.4, 0.5], [0, 0, 0.6, 0.6, 0.5, 0.6], [1, 1, 0.5, 0.4, 0.9, 0.7]])
    return raws, targets[targets[:, 0] < batch]


def test_the_mean_over_the_batch_counts_a_picture_once() -> None:
    raws, targets = scene(1)
    other = targets.clone()
    other[:, 0] = 1
    compute = TaskAlignedLoss(heads(6, 6), HYP)
    once, _ = compute(raws, targets, (64, 64))
    twice, _ = compute([r.repeat(2, 1, 1, 1, 1) for r in raws], torch.cat((other, targets)), (64, 64))
    assert compute.assign(*_assigned(compute, raws, targets)).score.sum() > 1
    assert twice.item() == pytest.approx(once.item(), rel=1e-5)


def _assigned(compute: TaskAlignedLoss, raws: list[Tensor], targets: Tensor) -> tuple[Tensor, ...]:
    """What `compute` asks its assigner."""
    asked: list[tuple[Tensor, ...]] = []
    assign = compute.assign
    compute.assign = lambda *args: asked.append(args) or assign(*args)
    compute(raws, targets, (64, 64))
    compute.assign = assign
    return asked[0]


def test_heads_may_have_different_bins() -> None:
    """The coarse head alone, and both: a fine head whose cells overlap nothing adds its class term only."""
    raws, targets = scene(2, (4, 6))
    raws[0][..., :16] = 0
    raws[0][..., [0, 4, 8, 12]] = SURE
    _, both = TaskAlignedLoss(heads(4, 6), HYP)(raws, targets, (64, 64))
    _, alone = TaskAlignedLoss(heads(6), HYP)(raws[1:], targets, (64, 64))
    assert both["box"].item() == pytest.approx(alone["box"].item(), rel=1e-5)
    assert both["dfl"].item() == pytest.approx(alone["dfl"].item(), rel=1e-5)
    assert both["cls"] > alone["cls"]


def test_gradients_reach_every_value_that_should_learn() -> None:
    raws, targets = scene()
    for raw in raws:
        raw.requires_grad_(True)
    TaskAlignedLoss(heads(6, 6), HYP)(raws, targets, (64, 64))[0].backward()
    for raw in raws:
        assert raw.grad.isfinite().all()
        assert (raw.grad[..., 24:] != 0).all()  # every cell learns its classes
    assigned = (raws[0].grad[..., :24] != 0).any(-1).sum() + (raws[1].grad[..., :24] != 0).any(-1).sum()
    assert 0 < assigned <= 30  # ten cells a target


def test_pictures_without_boxes_learn_that_nothing_is_there() -> None:
    raws, targets = scene()
    loss, parts = TaskAlignedLoss(heads(6, 6), HYP)(raws, targets[:0], (64, 64))
    wanted = sum(torch.nn.functional.softplus(r[..., 24:]).sum() for r in raws) * HYP.dfl_cls
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert parts["box"] == parts["dfl"] == 0


def test_class_weights_and_smoothing_touch_the_assigned_cells_alone() -> None:
    raws, targets = scene()
    plain = TaskAlignedLoss(heads(6, 6), HYP)
    found = plain.assign(*_assigned(plain, raws, targets))
    logits = torch.cat([r.flatten(1, 3)[..., 24:] for r in raws], 1)[found.where]
    wanted = torch.nn.functional.one_hot(targets[found.target, 1].long(), 2) * found.score[:, None]
    divisor = found.score.sum().clamp(min=1)

    weighed = TaskAlignedLoss(heads(6, 6), Hyp(cls_weights=1.0))
    weighed.weigh_classes(np.array([1, 9]))
    assert weighed.class_weights.tolist() != [1, 1]
    cells = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(1)
    more = (cells * (weighed.class_weights[targets[found.target, 1].long()] - 1)).sum() / divisor * HYP.dfl_cls
    before, after = (loss(raws, targets, (64, 64))[1]["cls"] for loss in (plain, weighed))
    assert (after - before).item() == pytest.approx(more.item(), rel=1e-3)

    smooth = TaskAlignedLoss(heads(6, 6), Hyp(label_smoothing=0.1))(raws, targets, (64, 64))[1]["cls"]
    change = ((wanted - (wanted * 0.9 + 0.05)) * logits).sum() / divisor * HYP.dfl_cls
    assert (smooth - before).item() == pytest.approx(change.item(), rel=1e-3)


def test_half_precision_maps_are_computed_in_float32() -> None:
    raws, targets = scene()
    compute = TaskAlignedLoss(heads(6, 6), HYP)
    halves = [r.bfloat16() for r in raws]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, parts = compute(halves, targets, (64, 64))
    assert found.dtype == parts["dfl"].dtype == torch.float32
    assert torch.equal(found, compute([h.float() for h in halves], targets, (64, 64))[0])


def test_a_network_learns_two_boxes() -> None:
    torch.manual_seed(0)
    text = NET + conv(8, stride=2) + conv(8, stride=2) + conv(16, stride=2) + dfl_head(2, 3, reg_max=8)
    model = Darknet(text, 64).train()
    image = torch.zeros(1, 3, 64, 64)
    image[:, 0, 8:40, 8:32] = image[:, 1, 32:60, 40:60] = 1
    targets = torch.tensor([[0, 0, 20 / 64, 24 / 64, 24 / 64, 32 / 64], [0, 1, 50 / 64, 46 / 64, 20 / 64, 28 / 64]])
    compute, optimizer = build_loss(model, HYP), torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(150):
        loss, _ = compute(model(image), targets, (64, 64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        decoded = model.decode(model(image), 64)[0]
    for label, box in enumerate(([20, 24, 24, 32], [50, 46, 20, 28])):
        best = decoded[decoded[:, 5 + label].argmax()]
        assert best[5 + label] > 0.6
        assert best[:4].tolist() == pytest.approx(box, abs=1.5)


def test_the_kind_of_heads_decides_which_loss() -> None:
    assert type(build_loss(Darknet(DFL, 64), HYP)) is TaskAlignedLoss
    assert type(build_loss(Darknet(RESIDUAL, 64), HYP)) is DetectionLoss


def test_which_assignment_is_a_matter_of_anchors() -> None:
    boxes = Darknet(RESIDUAL, 64)
    assert [build_loss(boxes, HYP, assign).aligned for assign in ("anchor", "aligned")] == [False, True]
    assert build_loss(boxes, HYP).aligned
    assert type(build_loss(Darknet(DFL, 64), HYP, "aligned")) is TaskAlignedLoss
    with pytest.raises(UserError, match=r"^--assign anchor: \[dfl\] layers of cfg have no anchors; leave it out$"):
        build_loss(Darknet(DFL, 64), HYP, "anchor")


def test_both_kinds_in_one_network_are_one_line() -> None:
    yolo = conv(14, 1, bn=0, activation="linear") + "[yolo]\nmask=0,1\nanchors=8,10, 20,16\nclasses=2\nnum=2\n"
    model = Darknet(NET + conv(8, stride=8) + yolo + dfl_head(0, 3), 64)
    with pytest.raises(
        UserError, match=r"cfg: has both \[yolo\] and \[dfl\] layers; training needs heads of one kind"
    ) as error:
        build_loss(model, HYP)
    assert "\n" not in str(error.value)


def test_processes_divide_by_what_the_whole_batch_assigns(monkeypatch) -> None:
    """Two processes with an image each: the mean of their losses is the loss of both images."""
    raws, targets = scene(2)
    whole, _ = TaskAlignedLoss(heads(6, 6), HYP)(raws, targets, (64, 64))
    shares = [([r[k : k + 1] for r in raws], targets[targets[:, 0] == k] * torch.tensor([0.0, 1, 1, 1, 1, 1])) for k in (0, 1)]
    compute = TaskAlignedLoss(heads(6, 6), HYP)
    sums = [compute.assign(*_assigned(compute, *share)).score.sum() for share in shares]
    monkeypatch.setattr("utils.detection.dfl_loss.mean_over_processes", lambda tensor: sum(sums) / 2)
    assert sum(sums) / 2 > 1
    mean = sum(compute(*share, (64, 64))[0] for share in shares) / 2
    assert mean.item() == pytest.approx(whole.item(), rel=1e-5)
