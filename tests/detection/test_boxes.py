"""Decoding, suppression and the way back to the image, against formulas and loops written out here."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from utils.data.batch import ImageInfo
from utils.detection.boxes import augmented_predictions, nms, unletterbox
from utils.network.decode import decode, decode_boxes

ANCHORS = torch.tensor([[10.0, 14.0], [23.0, 27.0], [37.0, 58.0]])


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize("scale", [1.0, 1.05, 2.0])
def test_decode_follows_darknet(scale: float) -> None:
    """Every element of a map of odd shape, by the formula in plain Python; boxes run over anchors, rows, columns."""
    raw = torch.randn(2, 3, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    decoded = decode(raw, ANCHORS, 16, scale)
    assert decoded.shape == (2, 60, 7)
    for b, a, y, x in [(0, 0, 0, 0), (1, 2, 3, 4), (0, 1, 2, 3), (1, 0, 3, 1)]:
        t = raw[b, a, y, x].tolist()
        expected = [
            (scale * sigmoid(t[0]) - (scale - 1) / 2 + x) * 16,
            (scale * sigmoid(t[1]) - (scale - 1) / 2 + y) * 16,
            math.exp(t[2]) * ANCHORS[a, 0].item(),
            math.exp(t[3]) * ANCHORS[a, 1].item(),
            *(sigmoid(v) for v in t[4:]),
        ]
        assert decoded[b, (a * 4 + y) * 5 + x].tolist() == pytest.approx(expected, rel=1e-5)


def test_decode_of_squashed_values() -> None:
    """new_coords: the network has applied the sigmoid itself."""
    raw = torch.rand(1, 3, 2, 2, 6, generator=torch.Generator().manual_seed(0))
    v = raw[0, 1, 1, 0].tolist()
    row = decode(raw, ANCHORS, 8, 2.0, new_coords=True)[0, 1 * 4 + 2]
    expected = [(2 * v[0] - 0.5) * 8, (2 * v[1] - 0.5 + 1) * 8, (2 * v[2]) ** 2 * 23, (2 * v[3]) ** 2 * 27, v[4], v[5]]
    assert row.tolist() == pytest.approx(expected, rel=1e-6)


def test_bounded_boxes_have_finite_areas() -> None:
    """What the loss sees, for raw values gone wild; within the bounds nothing changes."""
    cells, anchor = torch.zeros(2), ANCHORS[2]
    for value in (-1e4, 1e4):
        box = decode_boxes(torch.full((6,), value), cells, anchor, 32, bounded=True)
        assert 0 < box[2] * box[3] < torch.inf
    raw = torch.tensor([0.3, -2.0, 4.0, -4.0])
    torch.testing.assert_close(decode_boxes(raw, cells, anchor, 32, bounded=True), decode_boxes(raw, cells, anchor, 32))
    assert (decode_boxes(torch.zeros(6), cells, anchor, 32, new_coords=True, bounded=True)[2:] > 0).all()


def test_nms_of_boxes_gone_wild() -> None:
    """An untrained network's exponentials overflow: such a box, as large as it gets, doesn't disturb the others."""
    rows = torch.tensor([[prediction(50, 50, torch.inf, torch.inf, 0.9, 1.0), prediction(50, 50, 20, 20, 0.8, 1.0)]])
    found = nms(rows, 0.1, 0.6)[0]
    torch.testing.assert_close(found[1], torch.tensor([40.0, 40.0, 60.0, 60.0, 0.8, 0.0]))
    info = ImageInfo(Path("x.jpg"), 0, (100, 100), (1.0, 1.0), (0, 0))
    torch.testing.assert_close(unletterbox(found[:1, :4], info), torch.tensor([[0.0, 0.0, 100.0, 100.0]]))


def prediction(x: float, y: float, w: float, h: float, *scores: float) -> list[float]:
    return [x, y, w, h, *scores]


def test_nms_keeps_the_better_of_two() -> None:
    """IoU of boxes 20 wide, 4 apart: 16 / 24 = 0.667."""
    rows = torch.tensor([[prediction(50, 50, 20, 20, 0.8, 0.5), prediction(54, 50, 20, 20, 0.9, 1.0)]])
    strict, loose = nms(rows, 0.1, 0.6)[0], nms(rows, 0.1, 0.7)[0]
    torch.testing.assert_close(strict, torch.tensor([[44.0, 40.0, 64.0, 60.0, 0.9, 0.0]]))
    torch.testing.assert_close(loose[:, 4], torch.tensor([0.9, 0.4]))


def test_nms_and_classes() -> None:
    rows = torch.tensor([[prediction(50, 50, 20, 20, 0.9, 0.8, 0.6), prediction(51, 50, 20, 20, 0.5, 0.1, 1.0)]])

    def scores(**options) -> list[tuple[float, int]]:
        return [(round(r[4].item(), 3), int(r[5])) for r in nms(rows, 0.2, 0.6, **options)[0]]

    assert scores() == [(0.72, 0), (0.54, 1)]  # 0.54 beats 0.5 in class 1; both classes of one box count
    assert scores(multi_label=False) == [(0.72, 0), (0.5, 1)]
    assert scores(agnostic=True) == [(0.72, 0)]
    assert scores(classes=[1]) == [(0.54, 1)]
    assert scores(classes=[7]) == []
    assert scores(max_det=1) == [(0.72, 0)]


def test_nms_of_nothing() -> None:
    found = nms(torch.zeros(3, 10, 8), 0.001, 0.6)
    assert [f.shape for f in found] == [(0, 6)] * 3
    assert nms(torch.zeros(1, 0, 8), 0.001, 0.6)[0].shape == (0, 6)


def greedy(boxes: Tensor, scores: Tensor, labels: Tensor, iou_thres: float) -> list[int]:
    suppresses = (box_iou(boxes, boxes) > iou_thres) & (labels[:, None] == labels)
    kept: list[int] = []
    alive = torch.ones(len(boxes), dtype=torch.bool)
    for i in scores.argsort(descending=True).tolist():
        if alive[i]:
            kept.append(i)
            alive &= ~suppresses[i]
    return kept


def test_nms_is_exact_with_more_candidates_than_it_tries_at_first() -> None:
    """3000 boxes piled up so that the best thousand don't yield 300: equal to greedy suppression, box by box."""
    generator = torch.Generator().manual_seed(1)
    count = 3000
    boxes = torch.rand(count, 4, generator=generator) * 20 + torch.tensor([200.0, 200.0, 60.0, 60.0])
    boxes[1500:, :2] += torch.rand(1500, 2, generator=generator) * 400
    scores = torch.linspace(1, 0.1, count)  # the piled ones are the best
    labels = torch.randint(0, 2, (count,), generator=generator)
    predictions = torch.zeros(1, count, 7)
    predictions[0, :, :4], predictions[0, :, 4] = boxes, scores
    predictions[0, torch.arange(count), 5 + labels] = 1.0
    corners = torch.cat((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), 1)
    expected = greedy(corners, scores, labels, 0.5)
    assert sum(i < 1000 for i in expected) < 300
    found = nms(predictions, 0.01, 0.5)[0]
    torch.testing.assert_close(found[:, :4], corners[expected[:300]])
    assert found[:, 5].tolist() == labels[expected[:300]].tolist()


def test_unletterbox() -> None:
    """A 640 x 480 image in 416 x 416: ratio 0.65, 52 gray rows above. Corners come back, what sticks out is clipped."""
    info = ImageInfo(Path("x.jpg"), 0, (480, 640), (0.65, 0.65), (0, 52))
    boxes = torch.tensor([[0.0, 52.0, 416.0, 364.0], [65.0, 117.0, 130.0, 182.0], [-10.0, 0.0, 500.0, 416.0]])
    expected = torch.tensor([[0.0, 0, 640, 480], [100, 100, 200, 200], [0, 0, 640, 480]])
    torch.testing.assert_close(unletterbox(boxes, info), expected)


class Brightest(torch.nn.Module):
    """A detector that needs no training: one box, on the brightest column and row, 1/10 of the image large."""

    max_stride = 32

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int]] = []

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        height, width = x.shape[-2:]
        self.sizes.append((height, width))
        column, row = x.sum((1, 2)).argmax(1) + 0.5, x.sum((1, 3)).argmax(1) + 0.5
        sides = torch.tensor([[width / 10, height / 10, 0.9, 0.8]]).expand(len(x), -1)
        return torch.cat((column[:, None], row[:, None], sides), 1)[:, None], []


def test_augmented_predictions_come_back_to_the_same_place() -> None:
    images = torch.zeros(2, 3, 320, 416)
    images[0, :, 80:90, 300:310] = 1
    images[1, :, 200:210, 50:60] = 1
    detector = Brightest()
    predictions = augmented_predictions(detector, images)
    assert detector.sizes == [(320, 416), (256, 352), (224, 288)]  # 0.83 and 0.67 in multiples of 32
    assert predictions.shape == (2, 3, 6)
    for picture, (x, y) in enumerate([(305, 85), (55, 205)]):
        for box in predictions[picture]:
            assert abs(box[0] - x) < 6
            assert abs(box[1] - y) < 6
            torch.testing.assert_close(box[2:], torch.tensor([41.6, 32.0, 0.9, 0.8]))
