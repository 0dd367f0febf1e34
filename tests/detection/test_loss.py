"""The loss against numbers worked out by hand, and its behaviour where training would otherwise break."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from utils.core.hyp import Hyp
from utils.detection.assignment import HeadGrid, RatioAssigner
from utils.detection.boxes import paired_iou
from utils.detection.loss import ANCHOR, ASSIGNMENTS, BOX_LOSSES, DetectionLoss
from utils.network.darknet import Darknet
from utils.network.decode import decode, to_corners

HYP = Hyp()


def head(anchors: list[list[float]], classes: int = 2, scale: float = 1.0, new_coords: bool = False) -> SimpleNamespace:
    definition = SimpleNamespace(iou_loss="ciou", ignore_thresh=0.7)
    boxes = {"anchors": torch.tensor(anchors), "scale_x_y": scale, "new_coords": new_coords}
    return SimpleNamespace(classes=classes, definition=definition, **boxes)


def detection_loss(*heads: SimpleNamespace, hyp: Hyp = HYP, **options) -> DetectionLoss:
    return DetectionLoss(SimpleNamespace(heads=list(heads)), hyp, ANCHOR, **options)


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def test_one_box_by_hand() -> None:
    """A 64 x 64 input, one head of stride 32 with a 32 x 32 anchor, raw values 0 but for the objectness 0.5 and the
    class 1.5 of one cell. Its box is 32 x 32 around (16, 16); the target 16 x 32 around it: IoU 0.5, CIoU's v known."""
    raw = torch.zeros(1, 1, 2, 2, 7)
    raw[0, 0, 0, 0, 4], raw[0, 0, 0, 0, 5] = 0.5, 1.5
    targets = torch.tensor([[0, 0, 0.25, 0.25, 0.25, 0.5]])
    loss, parts = detection_loss(head([[32.0, 32.0]]))([raw], targets, (64, 64))

    v = 4 / math.pi**2 * (math.atan(0.5) - math.atan(1)) ** 2
    ciou = 1 - 0.5 + v * v / (1 - 0.5 + v)
    objectness = (softplus(0.5) - 0.5 * 0.5 + 3 * math.log(2)) / 4  # label 0.5 in one cell, 0 in three
    classes = (softplus(1.5) - 1.5 + math.log(2)) / 2
    expected = {
        "box": ciou * HYP.box * 3,
        "obj": objectness * 4 * HYP.obj * 3 * (64 / 640) ** 2,
        "cls": classes * HYP.cls * 3 * math.sqrt(2 / 80),
    }
    assert {k: v.item() for k, v in parts.items()} == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx(sum(expected.values()), rel=1e-5)


def test_the_mean_over_the_batch() -> None:
    """The same image twice costs what it costs once."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(1, 1, 4, 4, 7, generator=generator)
    targets = torch.tensor([[0, 1, 0.3, 0.3, 0.2, 0.3], [0, 0, 0.7, 0.6, 0.3, 0.4]])
    other = targets.clone()
    other[:, 0] = 1
    compute = detection_loss(head([[32.0, 32.0]]))
    once, _ = compute([raw], targets, (128, 128))
    twice, _ = compute([raw.repeat(2, 1, 1, 1, 1)], torch.cat((other, targets)), (128, 128))
    assert twice.item() == pytest.approx(once.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["mse", "iou", "giou", "diou", "ciou"])
def test_box_losses(name: str) -> None:
    """Two 10 x 10 boxes, 5 apart: IoU 1/3; the hull is 15 x 10 without gap, the centres 5 apart, its diagonal^2 325."""
    a, b = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[5.0, 0, 15, 10]])
    expected = {"iou": 2 / 3, "giou": 2 / 3, "diou": 2 / 3 + 25 / 325, "ciou": 2 / 3 + 25 / 325, "mse": 2 / 3 + 25 / 325}
    assert BOX_LOSSES[name](a, b).item() == pytest.approx(expected[name], abs=1e-5)
    assert BOX_LOSSES[name](a, a).item() == pytest.approx(0, abs=1e-5)


def test_paired_iou_is_the_diagonal_of_torchvisions() -> None:
    corners = torch.rand(50, 4, generator=torch.Generator().manual_seed(0)) * 40
    corners[:, 2:] += corners[:, :2]
    other = corners.roll(1, 0)
    torch.testing.assert_close(paired_iou(corners, other), box_iou(corners, other).diagonal())


def test_hyper_parameters_limit_the_anchors() -> None:
    loss = detection_loss(head([[32.0, 32.0]]), hyp=Hyp(anchor_t=3, most_anchors=2))
    assert (loss.assign.anchor_t, loss.assign.most) == (3, 2)


def objectness_gradient(raw: Tensor, targets: Tensor, **options) -> Tensor:
    raw = raw.clone().requires_grad_()
    loss, _ = detection_loss(head([[32.0, 32.0]], classes=1), **options)([raw], targets, (128, 128))
    loss.backward()
    return raw.grad[..., 4]


def test_a_good_neighbour_is_not_pushed_away() -> None:
    """The cell left of the target's predicts the same box to 2 pixels (IoU 30/34 = 0.88 > 0.7): ignored, as in Darknet;
    the matched cell itself is not, however well it fits."""
    raw = torch.zeros(1, 1, 4, 4, 6)
    raw[0, 0, 1, 0, 0] = 20.0  # its centre: the right edge of cell 0, x = 32
    targets = torch.tensor([[0, 0, 34 / 128, 48 / 128, 0.25, 0.25]])
    ignoring, pushing = objectness_gradient(raw, targets), objectness_gradient(raw, targets, ignore=False)
    assert ignoring[0, 0, 1, 0] == 0
    assert pushing[0, 0, 1, 0] > 0
    assert ignoring[0, 0, 1, 1] == pushing[0, 0, 1, 1] != 0
    ignoring[0, 0, 1, 0] = pushing[0, 0, 1, 0]
    torch.testing.assert_close(ignoring, pushing)


def test_two_targets_in_one_cell_give_it_the_better_iou() -> None:
    raw = torch.zeros(1, 1, 2, 2, 6)
    good, bad = [0, 0, 0.25, 0.25, 0.5, 0.5], [0, 0, 0.25, 0.25, 0.2, 0.2]
    expected = (math.log(2) - 0) / 4 * 4  # logit 0: log 2 in every cell, whatever the label
    for order in ([good, bad], [bad, good]):
        leaf = raw.clone().requires_grad_()
        loss, parts = detection_loss(head([[32.0, 32.0]], classes=1))([leaf], torch.tensor(order), (64, 64))
        assert parts["obj"].item() == pytest.approx(expected * 4 * 3 * 0.01, rel=1e-5)
        gradient = torch.autograd.grad(loss, leaf)[0][0, 0, 0, 0, 4]
        assert gradient.item() == pytest.approx((0.5 - 1.0) / 4 * 4 * 3 * 0.01, rel=1e-5)  # label 1, not 0.16


def test_squashed_values_cost_what_their_logits_cost() -> None:
    """new_coords: objectness and class from probabilities equal those from logits; at 0 and 1 they stay finite."""
    logits = torch.randn(2, 1, 4, 4, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 1, 0.3, 0.3, 0.2, 0.3], [1, 0, 0.7, 0.6, 0.3, 0.4]])
    squashed = detection_loss(head([[32.0, 32.0]], scale=2.0, new_coords=True), ignore=False)
    _, parts = squashed([logits.sigmoid()], targets, (128, 128))
    scores = logits[..., 5:]
    grid = HeadGrid(torch.tensor([[32.0, 32.0]]), 32, 4, 4, 0.5)
    rows = RatioAssigner()(torch.tensor([0, 1]), targets[:, 2:] * 128, [grid])[0]
    wanted = F.one_hot(torch.tensor([1, 0]), 2).float()[rows.target]
    expected = F.binary_cross_entropy_with_logits(scores[rows.where], wanted) * HYP.cls * 3 * math.sqrt(2 / 80)
    assert parts["cls"].item() == pytest.approx(expected.item(), rel=1e-4)
    for value in (0.0, 1.0):
        raw = torch.full((2, 1, 4, 4, 7), value, requires_grad=True)
        loss, _ = squashed([raw], targets, (128, 128))
        loss.backward()
        assert loss.isfinite()
        assert raw.grad.isfinite().all()


def test_label_smoothing() -> None:
    raw = torch.zeros(1, 1, 2, 2, 7)
    raw[..., 5] = 2.0
    targets = torch.tensor([[0, 0, 0.25, 0.25, 0.5, 0.5]])
    _, parts = detection_loss(head([[32.0, 32.0]]), hyp=Hyp(label_smoothing=0.1))([raw], targets, (64, 64))
    expected = (softplus(2.0) - 0.95 * 2.0 + math.log(2)) / 2 * HYP.cls * 3 * math.sqrt(2 / 80)
    assert parts["cls"].item() == pytest.approx(expected, rel=1e-5)


def test_one_class_is_trained_as_each_of_many() -> None:
    """Its scores are objectness times class probability, so the probability has to become 1, as in Darknet."""
    targets = torch.tensor([[0, 0, 0.5, 0.5, 0.5, 0.5]])
    raw = torch.ones(1, 1, 2, 2, 6, requires_grad=True)
    loss, parts = detection_loss(head([[32.0, 32.0]], classes=1))([raw], targets, (64, 64))
    assert parts["cls"].item() == pytest.approx(softplus(-1.0) * HYP.cls * 3 * math.sqrt(1 / 80), rel=1e-5)
    loss.backward()
    assert raw.grad[0, 0, 1, 1, 5] < 0  # towards 1 where the object is,
    assert raw.grad[..., 5].count_nonzero() == 1  # and nowhere else


def test_extreme_values_give_finite_gradients() -> None:
    targets = torch.tensor([[0, 1, 0.3, 0.3, 0.2, 0.3], [1, 0, 1.0, 1.0, 0.0001, 0.9]])
    for value in (-1e4, -50.0, 50.0, 1e4):
        raw = torch.full((2, 1, 4, 4, 7), value, requires_grad=True)
        loss, _ = detection_loss(head([[32.0, 32.0]]))([raw], targets, (128, 128))
        loss.backward()
        assert loss.isfinite()
        assert raw.grad.isfinite().all()


CONVOLUTION = """[convolutional]
filters=16
size=3
stride={}
pad=1
batch_normalize=1
activation=leaky
"""
CFG = f"""[net]
width=64
height=64
{"".join(CONVOLUTION.format(stride) for stride in (2, 2, 2, 2, 1))}
[convolutional]
filters=14
size=1
activation=linear
[yolo]
mask=1,2
anchors=8,8, 20,20, 40,30
num=3
classes=2
iou_loss=ciou
[route]
layers=2
[convolutional]
filters=7
size=1
activation=linear
[yolo]
mask=0
anchors=8,8, 20,20, 40,30
num=3
classes=2
iou_loss=giou
"""


@pytest.mark.parametrize("assign", ASSIGNMENTS)
@pytest.mark.parametrize("targets", [torch.zeros(0, 6), torch.tensor([[1, 1, 0.5, 0.5, 0.3, 0.3]])])
def test_every_parameter_learns(targets: Tensor, assign: str) -> None:
    """Heads of different anchor counts, with and without targets, and under autocast: the loss is float32."""
    torch.manual_seed(0)
    model = Darknet(CFG, 64).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, parts = DetectionLoss(model, HYP, assign)(model(torch.rand(2, 3, 64, 64)), targets, (64, 64))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(sum(p.item() for p in parts.values()), rel=1e-6)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    if not len(targets):
        assert (parts["box"], parts["cls"]) == (0, 0)


@pytest.mark.parametrize("assign", ASSIGNMENTS)
def test_a_small_network_learns_one_picture(assign: str) -> None:
    """Two boxes of two classes: after 100 steps each is found with IoU > 0.7, the right class and no third one."""
    torch.manual_seed(0)
    model = Darknet(CFG, 64).train()
    image = torch.zeros(1, 3, 64, 64)
    image[0, 0, 6:26, 10:30] = 1
    image[0, 2, 32:62, 20:60] = 1
    targets = torch.tensor([[0, 0, 20 / 64, 16 / 64, 20 / 64, 20 / 64], [0, 1, 40 / 64, 47 / 64, 40 / 64, 30 / 64]])
    compute, optimizer = DetectionLoss(model, HYP, assign), torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(100):
        optimizer.zero_grad()
        compute(model(image), targets, (64, 64))[0].backward()
        optimizer.step()
    heads = zip(model(image), model.heads, strict=True)
    decoded = torch.cat([decode(r, h.anchors, 64 / r.shape[2], h.scale_x_y) for r, h in heads], 1)[0].detach()
    wanted = to_corners(targets[:, 2:] * 64)
    confident = decoded[decoded[:, 4] > 0.5]
    assert len(confident)
    ious = box_iou(to_corners(confident[:, :4]), wanted)
    assert (ious.amax(1) > 0.7).all()
    assert (ious.amax(0) > 0.7).all()
    assert confident[:, 5:].argmax(1).tolist() == ious.argmax(1).tolist()
