"""Distillation losses: each strategy's formula by hand, and what several processes lose."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from utils.detection.assignment import RatioAssigner
from utils.distillation.distiller import KDSTR
from utils.distillation.losses import (
    ATTENTION,
    BOXES,
    CHANNELS,
    STANDARD,
    VECTORS,
    Observed,
    encoded,
    near_objects,
    objectness_and_classes,
    size_weights,
)
from utils.network.definitions import Yolo
from utils.network.heads import YoloHead


def yolo_head(classes: int = 2, **options) -> YoloHead:
    return YoloHead(Yolo(mask=(0,), anchors=(8.0, 4.0), classes=classes, num=1, **options))


def observed(student, teacher=None, maps=(), targets=(), **options) -> Observed:
    """One head of one 8x4 anchor on an image of 16x16 pixels; student, teacher: (batch, 1, rows, columns, 7)."""
    student = torch.tensor(student, requires_grad=True)
    teacher = student.detach() if teacher is None else torch.tensor(teacher)
    return Observed(
        [yolo_head(**options)], [student], [teacher], list(maps), torch.tensor(targets).reshape(-1, 6), (16, 16),
        weights={"box": 2.0, "obj": 3.0, "cls": 5.0}, temperature=3.0, assign=RatioAssigner(),
    )  # fmt: skip


def bernoulli_kl(s: float, t: float, temperature: float = 3.0) -> float:
    p, q = (1 / (1 + math.exp(-v / temperature)) for v in (t, s))
    return temperature**2 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))


S = [0.0, 1.0, 0.5, -0.5, 0.0, 2.0, -1.0]
T = [1.0, 1.0, 0.0, 0.0, 3.0, -1.0, -1.0]


def test_1_is_hintons_divergence_of_whole_vectors():
    o = observed([[[[S, T]]]], [[[[T, T]]]])
    p, q = (np.exp(np.array(v) / 3) / np.exp(np.array(v) / 3).sum() for v in (T, S))
    assert KDSTR[1](o)["kd_out"].item() == pytest.approx(VECTORS * 9 * (p * np.log(p / q)).sum() / 2, rel=1e-5)


def test_one_class_is_learned_too():
    o = observed([[[[S[:6]]]]], [[[[[*S[:5], 4.0]]]]], classes=1)
    assert objectness_and_classes(o)["kd_cls"].item() == pytest.approx(5 * bernoulli_kl(S[5], 4.0), rel=1e-5)


def test_objectness_and_classes_are_binary_divergences_weighted_with_the_teachers_objectness():
    o = observed([[[[S, S]]]], [[[[T, [*T[:4], 0.0, *T[5:]]]]]])
    terms = objectness_and_classes(o)
    # one head: its stride is the finest, so the balance is 4; the mean is over 2 cells
    assert terms["kd_obj"].item() == pytest.approx(3 * 4 * (bernoulli_kl(0, 3) + bernoulli_kl(0, 0)) / 2, rel=1e-5)
    # both cells differ equally in their classes, so their weights don't matter: the mean over two classes of which one differs
    assert terms["kd_cls"].item() == pytest.approx(5 * bernoulli_kl(2, -1) / 2, rel=1e-5)
    other = observed([[[[S, T]]]], [[[[T, [*T[:4], 0.0, *T[5:]]]]]])
    share = 1 / (1 + math.exp(-3)) / (1 / (1 + math.exp(-3)) + 0.5)
    assert objectness_and_classes(other)["kd_cls"].item() == pytest.approx(5 * share * bernoulli_kl(2, -1) / 2, rel=1e-5)


def test_8_asks_each_class_of_each_box_and_the_boxes_overlap():
    """Two cells of an anchor of 8 x 4 at stride 16: the first differs in its scores and by four pixels in x, the second not."""
    o = observed([[[[S, T]]]], [[[[[*S[:4], 3.0, -1.0, -1.0], T]]]])
    o.teacher[0][..., 0, 0] = math.log(3)  # a sigmoid of 0.75 instead of 0.5: a quarter of the stride
    sigmoid = lambda v: 1 / (1 + math.exp(-v))  # noqa: E731
    mine = [sigmoid(0.0) * sigmoid(v) for v in (2.0, -1.0)]
    wanted = [sigmoid(3.0) * sigmoid(-1.0)] * 2
    other = sigmoid(3.0) * sigmoid(-1.0)  # of the second cell, where both agree
    weights = [abs(t - s) for s, t in zip(mine, wanted, strict=True)]
    cross = [-t * math.log(s) - (1 - t) * math.log(1 - s) for s, t in zip(mine, wanted, strict=True)]
    width, shift = 8 * math.exp(S[2]), 16 * 0.25
    hull = width + shift  # as high as both boxes, so that 1 - GIoU = 1 - IoU + what of the hull neither covers
    apart = 1 - max(width - shift, 0) / min(2 * width, hull) + max(hull - 2 * width, 0) / hull
    count = wanted[0] + other
    found = KDSTR[8](o)
    assert found["kd_cls"].item() == pytest.approx(
        5 * sum(w * c for w, c in zip(weights, cross, strict=True)) / count, rel=1e-4
    )
    assert found["kd_box"].item() == pytest.approx(2 * 2 * max(weights) * apart / count, rel=1e-4)


def test_8_has_a_gradient_through_the_weights_of_classes_but_not_of_boxes():
    wanted = [[[[[*S[:4], 3.0, -1.0, -1.0], T]]]]
    o = observed([[[[S, T]]]], wanted)
    o.teacher[0][..., 0, 0] = math.log(3)
    terms = KDSTR[8](o)
    (cls,) = torch.autograd.grad(terms["kd_cls"], o.student, retain_graph=True)
    (box,) = torch.autograd.grad(terms["kd_box"], o.student)
    step = [0.0] * 5 + [1e-3, 0.0]
    more, less = (
        KDSTR[8](observed([[[[[s + sign * d for s, d in zip(S, step, strict=True)], T]]]], wanted))["kd_cls"].item()
        for sign in (1, -1)
    )
    assert cls[0, 0, 0, 0, 5].item() == pytest.approx((more - less) / 2e-3, rel=1e-2)
    assert not box[..., 4:].any()
    assert box[0, 0, 0, 0, 0].item() < 0  # towards the teacher's box


@pytest.mark.parametrize("student_worse", [True, False])
def test_2_adds_the_students_distance_where_it_is_larger_than_the_teachers(student_worse):
    near, far = [0.0, 0.0, math.log(0.5), math.log(2.0), *T[4:]], [0.0, 0.0, 1.0, 2.0, *T[4:]]
    # a target of 4x8 pixels in the middle of the only cell, whose 8x4 anchor stands for t = (0, 0, log 1/2, log 2)
    target = [0, 1, 0.5, 0.5, 4 / 16, 8 / 16]
    pair = (far, near) if student_worse else (near, far)
    o = observed(*([[[[v]]]] for v in pair), targets=[target])
    distance = (1 - math.log(0.5)) ** 2 + (2 - math.log(2)) ** 2
    assert KDSTR[2](o)["kd_box"].item() == pytest.approx(2 * distance if student_worse else 0, rel=1e-5)


def test_3_compares_boxes_weighted_with_the_teachers_objectness():
    left, right = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, math.log(3), 0.0, 0.0]
    o = observed([[[[[math.log(3), 0.0, 0.0, 2.0, *left[4:]], [0.0, 0.0, 1.0, 0.0, *right[4:]]]]]], [[[[left, right]]]])
    weights = 0.5, 0.75
    distances = (0.75 - 0.5) ** 2 + 4, 1
    expected = sum(w * d for w, d in zip(weights, distances, strict=True)) / sum(weights)
    assert KDSTR[3](o)["kd_box"].item() == pytest.approx(BOXES * 2 * expected, rel=1e-5)


def test_boxes_mean_the_same_whatever_the_head():
    raw = torch.tensor([[0.3, -0.4, 0.2, -0.6]])
    scaled = encoded(yolo_head(scale_x_y=2.0), raw)
    assert torch.allclose(scaled[:, :2], 2 * raw[:, :2].sigmoid() - 0.5)
    # a new_coords head says the same sides by (2 v)^2 = exp(t)
    squashed = torch.cat((raw[:, :2].sigmoid(), (raw[:, 2:] / 2).exp() / 2), 1)
    assert torch.allclose(encoded(yolo_head(scale_x_y=2.0, new_coords=1), squashed), scaled)


def test_4_compares_the_attention_of_maps_with_other_channel_counts():
    student = torch.tensor([[[[3.0, 0.0]], [[0.0, -4.0]]]])  # attention 3, 4 over its root mean square 5 / sqrt 2
    teacher = torch.tensor([[[[2.0, -2.0]]]])  # 2, 2 over 2
    o = observed([[[[T]]]], maps=[(student, teacher)])
    expected = ((3 * math.sqrt(2) / 5 - 1) ** 2 + (4 * math.sqrt(2) / 5 - 1) ** 2) / 2 / 2
    assert KDSTR[4](o)["kd_feat"].item() == pytest.approx(ATTENTION * expected, rel=1e-5)


def test_5_counts_positions_near_objects():
    """One 8x4 target around the middle of the second cell of 2x2, each 8 pixels: the anchor there fits it exactly, its left
    neighbour only touches it."""
    target = [0, 0, 12 / 16, 4 / 16, 8 / 16, 4 / 16]
    o = observed([[[[T, T], [T, T]]]], targets=[target])
    assert near_objects(o, 2, 2, 2).tolist() == [[[False, True], [False, False]], [[False, False]] * 2]
    # a quarter of a cell to the left: overlaps of 6/10 and 2/14 of the best, so the left one stays below half of it
    assert near_objects(replace(o, targets=o.targets - torch.tensor([0, 0, 2 / 16, 0, 0, 0])), 2, 2, 1).sum() == 1
    # half-way between both cells
    middle = replace(o, targets=o.targets - torch.tensor([0, 0, 4 / 16, 0, 0, 0]))
    assert near_objects(middle, 2, 2, 1).tolist() == [[[True, True], [False, False]]]
    student = torch.tensor([[[[1.0, 3.0], [1.0, 1.0]]]])  # over its root mean square, sqrt 3
    o.maps = [(student, torch.ones(1, 3, 2, 2))]
    expected = (math.sqrt(3) - 1) ** 2 / 2
    assert KDSTR[5](o)["kd_feat"].item() == pytest.approx(ATTENTION * expected, rel=1e-5)
    assert KDSTR[5](replace(o, targets=torch.zeros(0, 6)))["kd_feat"] == 0


def test_6_compares_each_channels_distribution_over_positions():
    student, teacher = torch.tensor([[[[0.0, 0.0]], [[1.0, 1.0]]]]), torch.tensor([[[[0.0, math.log(3)]], [[5.0, 5.0]]]])
    o = replace(observed([[[[T]]]], maps=[(student, teacher)]), temperature=1.0)
    expected = (0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)) / 2  # one of two channels differs
    assert KDSTR[6](o)["kd_feat"].item() == pytest.approx(CHANNELS * expected, rel=1e-5)
    o = replace(o, maps=[(2 * student, 2 * teacher)], temperature=2.0)
    assert KDSTR[6](o)["kd_feat"].item() == pytest.approx(CHANNELS * 4 * expected, rel=1e-5)


SIZED = [  # on 128 x 128 pixels: 100 x 100, 50 x 50 and 4 x 4 pixels in the same image, and nothing else
    [0, 0, 78 / 128, 78 / 128, 100 / 128, 100 / 128],
    [0, 0, 92 / 128, 92 / 128, 50 / 128, 50 / 128],
    [0, 0, 112 / 128, 16 / 128, 4 / 128, 4 / 128],
]


def test_cells_of_small_and_medium_objects_count_more():
    o = replace(observed([[[[T]]]], targets=SIZED), image_size=(128, 128), small=9.0)
    # cells of 32 pixels; the medium box reaches from 67 to 117, so over the cells from 64 on; the small one lies within one
    expected = [[1, 1, 1, 9], [1, 1, 1, 1], [1, 1, 3, 3], [1, 1, 3, 3]]
    assert size_weights(o, 4, 4, 2).tolist() == [expected, [[1] * 4] * 4]
    medium_as_well = replace(o, targets=torch.cat((o.targets, torch.tensor([[0, 0, 112 / 128, 0.25, 20 / 128, 62 / 128]]))))
    assert size_weights(medium_as_well, 4, 4, 1)[0].tolist() == [[1, 1, 1, 9], [1, 1, 1, 3], *expected[2:]]
    for side, weight in ((31.9, 9), (32, 3), (95.9, 3), (96, 1)):
        one = replace(o, targets=torch.tensor([[0, 0, 0.5, 0.5, side / 128, side / 128]]))
        assert size_weights(one, 1, 1, 1).item() == weight


def test_6_counts_positions_of_small_objects_more_often():
    """Two positions, of which a small object has the second: at W = 3 the teacher's 1/4, 3/4 become 1/10, 9/10 and the
    student's 1/2, 1/2 become 1/4, 3/4."""
    maps = (torch.tensor([[[[0.0, 0.0]]]]), torch.tensor([[[[0.0, math.log(3)]]]]))
    o = replace(observed([[[[T]]]], maps=[maps], targets=[[0, 0, 0.75, 0.5, 0.25, 0.5]]), temperature=1.0, small=3.0)
    o = replace(o, image_size=(16, 32))
    expected = 0.1 * math.log(0.1 / 0.25) + 0.9 * math.log(0.9 / 0.75)
    assert KDSTR[6](o)["kd_feat"].item() == pytest.approx(CHANNELS * expected, rel=1e-5)
    even = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    for plain in (replace(o, small=1.0), replace(o, targets=torch.zeros(0, 6))):
        assert KDSTR[6](plain)["kd_feat"].item() == pytest.approx(CHANNELS * even, rel=1e-5)
    assert KDSTR[6](replace(o, maps=[(maps[1], maps[1])]))["kd_feat"].item() == pytest.approx(0, abs=1e-7)


def test_7_is_one_less_the_correlation_of_channels():
    generator = np.random.default_rng(0)
    student, teacher = (generator.normal(3, 2, (3, 4, 5, 2)).astype(np.float32) for _ in range(2))
    o = observed([[[[T]]]], maps=[(torch.from_numpy(student), torch.from_numpy(teacher))])
    by_channel = [np.corrcoef(student[:, c].ravel(), teacher[:, c].ravel())[0, 1] for c in range(4)]
    assert KDSTR[7](o)["kd_feat"].item() == pytest.approx(STANDARD * (1 - np.mean(by_channel)), rel=1e-4)


def random_batch(batch: int = 4, equal: bool = False, **options) -> Observed:
    def raw():
        values = torch.randn(batch, 1, 2, 2, 7)
        return values.sigmoid() if options.get("new_coords") else values

    o = observed(raw().tolist(), None if equal else raw().tolist(), **options)
    maps = torch.randn(batch, 3, 4, 4, requires_grad=True)
    targets = torch.cat((torch.arange(batch)[:, None], torch.ones(batch, 1), 0.2 + 0.3 * torch.rand(batch, 4)), 1)
    return replace(o, maps=[(maps, maps.detach() if equal else torch.randn(batch, 3, 4, 4))], targets=targets)


@pytest.mark.parametrize("number", KDSTR)
@pytest.mark.parametrize("new_coords", [0, 1])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(number, new_coords):
    terms = KDSTR[number](random_batch(equal=True, new_coords=new_coords))
    assert tuple(terms) == KDSTR[number].terms
    assert all(abs(term.item()) < 1e-6 for term in terms.values())
    different = KDSTR[number](random_batch(new_coords=new_coords))
    assert all(term.item() > 1e-4 for term in different.values())
    assert all(math.isfinite(term.item()) for term in different.values())


def _half(rank: int, store: str, folder: str) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    saved = torch.load(f"{folder}/batch.pt", weights_only=False)
    # unequal numbers of objects: the first process has those of its second image only
    keep = (saved.targets[:, 0] // 2 == rank) & (saved.targets[:, 0] > 0)
    targets = saved.targets[keep] - torch.tensor([2.0 * rank, 0, 0, 0, 0, 0])
    part = slice(2 * rank, 2 * rank + 2)
    found = {}
    for number in KDSTR:
        student, mine = (t[part].clone().requires_grad_() for t in (saved.student[0], saved.maps[0][0]))
        o = replace(saved, student=[student], teacher=[saved.teacher[0][part]], maps=[(mine, saved.maps[0][1][part])],
                    targets=targets)  # fmt: skip
        terms = KDSTR[number](o)
        sum(terms.values()).backward()
        zero = torch.zeros(())
        found[number] = [
            torch.stack(list(terms.values())).detach(),
            *(zero if t.grad is None else t.grad for t in (student, mine)),
        ]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_lose_what_one_does(tmp_path):
    """The mean over processes of values and gradients is that of the whole batch."""
    whole = random_batch()
    leaves = replace(whole, student=[whole.student[0].detach()], maps=[(whole.maps[0][0].detach(), whole.maps[0][1])])
    torch.save(leaves, tmp_path / "batch.pt")
    mp.start_processes(
        _half, (str(tmp_path / "store"), str(tmp_path)), nprocs=2, start_method="spawn"
    )  # forked, autograd may refuse
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    whole.targets = whole.targets[1:]
    for number, strategy in KDSTR.items():
        whole.student[0].grad = whole.maps[0][0].grad = None
        terms = strategy(whole)
        sum(terms.values()).backward()
        a, b = (half[number] for half in halves)
        torch.testing.assert_close((a[0] + b[0]) / 2, torch.stack(list(terms.values())), rtol=1e-4, atol=1e-6)
        for k, leaf in ((1, whole.student[0]), (2, whole.maps[0][0])):
            if leaf.grad is not None:
                torch.testing.assert_close(torch.cat((a[k], b[k])) / 2, leaf.grad, rtol=1e-3, atol=1e-6)
