"""Distillation: each strategy's formula by hand, who learns, which maps belong together, refusals, train.py with a teacher."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_train import BASE, ROOT, here, interrupt_at, results, train_with  # noqa: F401 (here is a fixture)
from tiny import NET, conv, head, network

from models import Darknet
from utils.cfg import parse_cfg, write_cfg
from utils.definitions import Yolo
from utils.distill import KDSTR, Distiller, Link, Teacher, check_distillation_arguments, links, load_teacher, readings
from utils.distill_losses import (
    ATTENTION,
    BOXES,
    CHANNELS,
    STANDARD,
    VECTORS,
    Observed,
    encoded,
    near_objects,
    objectness_and_classes,
)
from utils.distributed import World
from utils.errors import UserError
from utils.hyp import FINETUNE, Hyp
from utils.layers import YoloHead
from utils.loss import RatioAssigner
from utils.masks import Limits
from utils.pruner import Amount, Pruner
from utils.training import Plan, Run
from utils.weights import load_checkpoint, save_checkpoint, save_weights

CPU = torch.device("cpu")
BLOCK = conv(8, 1) + conv(16) + "[shortcut]\nfrom=-3\nactivation=linear\n"
BACKBONE = conv(8, stride=2) + conv(12, stride=2) + conv(16, stride=2) + 2 * BLOCK + conv(20, stride=2)
NECK = "[route]\nlayers=-3\n" + conv(10, 1) + "[upsample]\nstride=2\n[route]\nlayers=-1,8\n" + conv(12)
CFG = NET + BACKBONE + conv(24) + head("1") + NECK + head("0")  # layer 8 ends the stage of stride 8
ONE_HEAD = NET + BACKBONE + conv(18) + head("1")


# The formulas


def yolo_head(**options) -> YoloHead:
    return YoloHead(Yolo(mask=(0,), anchors=(8.0, 4.0), classes=2, num=1, **options))


def observed(student, teacher=None, maps=(), targets=(), **options) -> Observed:
    """One head of one 8x4 anchor on an image of 16x16 pixels; student, teacher: (batch, 1, rows, columns, 7)."""
    student = torch.tensor(student, requires_grad=True)
    teacher = student.detach() if teacher is None else torch.tensor(teacher)
    return Observed(
        [yolo_head(**options)], [student], [teacher], list(maps), torch.tensor(targets).reshape(-1, 6), (16, 16),
        weights=(2.0, 3.0, 5.0), temperature=3.0, assign=RatioAssigner(4.0),
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
    # unequal numbers of objects: the first process has those of its second picture only
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
    mp.start_processes(_half, (str(tmp_path / "store"), str(tmp_path)), nprocs=2, start_method="fork")
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


# Teacher and student


def pruned(strategy: str, cfg: str = CFG, percent: float = 0.4, shortcuts: int = 0) -> tuple[Darknet, Darknet]:
    """(teacher, student): the student as it comes back from the files that a prune script writes."""
    teacher = network(cfg)
    pruner = Pruner(teacher, strategy, Limits(layer_keep=0.01))
    small = pruner.compact(pruner.choose(Amount(percent, shortcuts)))
    student = Darknet(parse_cfg(write_cfg(small.defs)), 64)
    student.load_state_dict(small.state_dict())
    return teacher, student


def arguments(number: int, weights: str = "t.pt", cfg: str = "") -> object:
    return train_arguments(f"--KDstr {number} --t_weights {weights} --t_cfg={cfg}")


def train_arguments(text: str) -> object:
    import train

    return train.get_parser().parse_args([*BASE.split(), *text.split()])


def save(model: Darknet, path: Path, **settings: object) -> str:
    save_checkpoint(path, {"model": model.state_dict(), "cfg": write_cfg(model.defs), "settings": settings})
    return str(path)


def make_run(student: Darknet, teacher: Teacher, number: int, dtype: torch.dtype | None = None, **plan: object) -> Run:
    settings = {"epochs": 3, "batch_size": 2, "batches": 4, "img_size": 64} | plan
    run = Run(student, Hyp(), Plan(**settings), CPU, dtype, World())
    run.distil(Distiller(teacher, number, 1.0, None, CPU))
    return run


TARGETS = torch.tensor([[0, 1, 0.4, 0.4, 0.2, 0.2], [1, 0, 0.6, 0.5, 0.3, 0.25]])


def step(run: Run) -> dict[str, torch.Tensor]:
    images = torch.rand(2, run.model.defs.net.channels, 64, 64)
    with run.autocast(), run.distiller.watch(run.model):
        raws = run.forward(images)
    terms = run.distiller(run, images, raws, TARGETS)
    run.backward(sum(terms.values()))
    return terms


def test_readings_are_the_maps_before_heads_and_where_the_backbone_halves():
    found = [(r.source, r.stride, r.head) for r in readings(parse_cfg(CFG), 512)]
    assert found == [(10, 16, True), (17, 8, True), (8, 8, False)]


def test_a_pruned_students_maps_are_those_of_the_teachers_same_readers():
    """After layer_channel pruning layer numbers differ; the channels are those that compute the same."""
    teacher, student = pruned("layer_channel", percent=0.3, shortcuts=1)
    assert len(student.defs) == len(teacher.defs) - 3
    found = links(student.defs, teacher.defs, 512)
    assert [link.teacher for link in found] == [10, 17, 8]
    assert [link.student for link in found] == [7, 14, 5]
    for link in found:
        assert link.adapted is None
        convolutions = student.module_list[link.student], teacher.module_list[link.teacher]
        if link.teacher != 8:  # the shortcut has no gammas of its own
            mine, theirs = (m.BatchNorm2d.weight for m in convolutions)
            assert torch.equal(mine, theirs[torch.from_numpy(link.channels)])
            assert len(mine) < len(theirs)


def test_without_a_record_maps_of_the_same_stride_belong_together():
    found = links(parse_cfg(ONE_HEAD), parse_cfg(CFG), 512)
    assert found == [Link(10, 10, None, (18, 24)), Link(8, 8)]


@pytest.mark.parametrize("number", KDSTR)
@pytest.mark.parametrize("strategy", ["normal", "slim", "layer_channel"])
def test_a_pruned_student_learns_and_nobody_else(tmp_path, number, strategy):
    model, student = pruned(strategy, shortcuts=1 if strategy == "layer_channel" else 0)
    teacher = load_teacher(arguments(number, save(model, tmp_path / "t.pt")), student, False)
    run = make_run(student, teacher, number)
    before = [p.clone() for p in run.distiller.teacher.parameters()]
    terms = step(run)
    assert tuple(terms) == KDSTR[number].terms
    assert all(0 < term.item() < 100 for term in terms.values())
    assert not run.distiller.parameters()
    gradients = {name for name, p in run.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    wanted = {n for n, _ in run.model.named_parameters()}
    if not KDSTR[number].outputs:  # the convolutions that feed the heads come after the maps
        ends = {f"module_list.{i}." for i, _ in run.model.head_convolutions()}
        wanted = {n for n in wanted if not n.startswith(tuple(ends))}
    assert gradients == wanted
    assert all(p.grad is None and not p.requires_grad for p in run.distiller.teacher.parameters())
    run.optimizer_step()
    for a, b in zip(before, run.distiller.teacher.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not any(m._forward_hooks for m in (*run.model.modules(), *run.weights.modules(), *run.distiller.teacher.modules()))


@pytest.mark.parametrize("number", KDSTR)
def test_an_unpruned_copy_agrees_with_its_teacher(tmp_path, number):
    model = network(CFG)
    teacher = load_teacher(arguments(number, save(model, tmp_path / "t.pt")), model, False)
    run = make_run(network(CFG), teacher, number)
    run.model.eval().train = lambda *_: run.model  # batch statistics would differ from the running ones
    for module in run.model.modules():
        module.training = False
    run.model.training = True  # raw maps only
    terms = step(run)
    if number == 2:
        terms.pop("kd_box")  # of equal distances rounding makes one the larger
    assert all(abs(term.item()) < 1e-4 for term in terms.values())


def test_bfloat16_maps_are_compared_in_float32(tmp_path):
    model, student = pruned("normal")
    teacher = load_teacher(arguments(4, save(model, tmp_path / "t.pt")), student, False)
    run = make_run(student, teacher, 4, torch.bfloat16)
    assert {term.dtype for term in step(run).values()} == {torch.float32}


def test_adapters_learn_with_the_student_and_are_resumed(tmp_path):
    path = save(network(CFG), tmp_path / "t.pt")

    def fresh() -> Run:
        student = network(ONE_HEAD)
        return make_run(student, load_teacher(arguments(7, path), student, False), 7, ema=False)

    run = fresh()
    (adapter,) = run.distiller.parameters()
    assert adapter.shape == (24, 18, 1, 1)
    before = adapter.detach().clone()
    for _ in range(2):
        step(run)
        run.optimizer_step()
    assert not torch.equal(adapter, before)
    assert not any("adapter" in name for name in run.model.state_dict())
    saved = run.state() | {"model": run.weights.state_dict(), "epoch": 0, "seen": 0}
    other = fresh()
    other.restore(saved)
    assert torch.equal(other.distiller.parameters()[0], adapter)
    (group,) = [g for g in other.optimizer.param_groups if g["name"] == "adapters"]
    assert "momentum_buffer" in other.optimizer.state[group["params"][0]]


def test_heads_belong_together_by_stride_not_by_order(tmp_path):
    fine_first = "[route]\nlayers=8\n" + conv(12) + head("0") + "[route]\nlayers=10\n" + head("1")
    student = network(NET + BACKBONE + conv(24) + fine_first)
    teacher = load_teacher(arguments(3, save(network(CFG), tmp_path / "t.pt")), student, False)
    assert teacher.heads == [1, 0]
    step(make_run(student, teacher, 3))  # maps of unequal sizes could not be compared


@pytest.mark.parametrize(("settings", "expected"), [({}, [0.25]), ({"maxabs": False}, [0.625]), ({"maxabs": True}, [0.25])])
def test_the_teacher_sees_pictures_in_its_own_range(tmp_path, settings, expected):
    student = network(ONE_HEAD)
    teacher = load_teacher(arguments(1, save(student, tmp_path / "t.pt", **settings)), student, False)
    distiller = Distiller(teacher, 1, 1.0, None, CPU)
    assert distiller._as_trained(torch.tensor([0.25]), maxabs=True).tolist() == expected


def test_darknet_weights_teach_with_their_cfg(tmp_path):
    model, student = pruned("normal")
    save_weights(model, tmp_path / "t.weights")
    (tmp_path / "t.cfg").write_text(CFG)
    with pytest.raises(UserError, match="t.weights: the teacher's weights carry no cfg; .* --t_cfg"):
        load_teacher(arguments(1, str(tmp_path / "t.weights")), student, False)
    teacher = load_teacher(arguments(4, str(tmp_path / "t.weights"), str(tmp_path / "t.cfg")), student, False)
    assert len(teacher.links) == 3


# Refusals


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (ONE_HEAD, r"compares outputs, but the teacher has 2 heads of stride 8, 16, the student 1 head of stride 16; "
                   r"--KDstr 6 and 7, which compare feature maps only, can"),
        (CFG.replace("classes=2", "classes=3").replace("filters=7", "filters=8"), "has 2 classes, the student 3; --KDstr 6"),
        (CFG.replace("20,16", "30,16"), "the anchors at stride 16 differ; --KDstr 6 and 7"),
        (CFG.replace("num=2", "num=2\nnew_coords=1"), "only one of teacher and student has new_coords=1"),
    ],
)  # fmt: skip
def test_heads_that_differ_are_named(tmp_path, student, message):
    path, model = save(network(CFG), tmp_path / "t.pt"), Darknet(student, 64)
    with pytest.raises(UserError, match=message):
        load_teacher(arguments(4, path), model, False)
    for number in (6, 7):
        step(make_run(model, load_teacher(arguments(number, path), model, False), number))


def test_what_a_teacher_cannot_see_is_refused(tmp_path):
    gray = network(CFG.replace("channels=3", "channels=1"))
    with pytest.raises(UserError, match="reads pictures of 1 channels, the student of 3"):
        load_teacher(arguments(6, save(gray, tmp_path / "g.pt", gray=True)), network(CFG), False)
    coarse = network(
        CFG.replace(conv(20, stride=2), conv(20, stride=2) + conv(20, stride=2), 1).replace("layers=-1,8", "layers=-1,9")
    )
    with pytest.raises(UserError, match="multiples of 32, the student's are multiples of 16"):
        load_teacher(arguments(6, save(coarse, tmp_path / "c.pt")), network(CFG), False)
    fine = network(NET + conv(8, stride=2) + head("1"))
    with pytest.raises(UserError, match="none of the same stride; no other --KDstr can either"):
        load_teacher(arguments(6, save(fine, tmp_path / "f.pt")), network(ONE_HEAD), False)
    with pytest.raises(UserError, match="teacher: .*none.pt|none.pt: .*not exist"):
        load_teacher(arguments(6, str(tmp_path / "none.pt")), network(CFG), False)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--KDstr 3", "--KDstr 3 needs a trained teacher: --t_weights"),
        ("--t_weights t.pt", "needs --KDstr: 1 whole vectors, 2 bounded boxes"),
        ("--t_cfg t.cfg", "needs the teacher's weights"),
        ("--t_weights t.pt --KDstr 1 --kd-temperature 0", "above 0"),
        ("--t_weights t.pt --KDstr 1 --kd-weight -1", "above 0"),
    ],
)
def test_arguments_that_make_no_sense(flags, message):
    with pytest.raises(UserError, match=message):
        check_distillation_arguments(train_arguments(flags))


# train.py


def write_networks(strategy: str = "normal", percent: float = 0.4, shortcuts: int = 0) -> None:
    """t.pt, the teacher; s.cfg and s.weights, its pruned self."""
    teacher, student = pruned(strategy, percent=percent, shortcuts=shortcuts)
    save(teacher, Path("t.pt"))
    Path("s.cfg").write_text(write_cfg(student.defs))
    save_weights(student, "s.weights")


STUDENT = BASE.replace("tiny.cfg", "s.cfg") + " --weights s.weights"


@pytest.mark.parametrize("number", KDSTR)
def test_an_epoch_with_a_teacher(here, capsys, number):  # noqa: F811
    write_networks("layer_channel", 0.3, 1)
    more = "--multi-scale --s 0.01 --prune 0" if number == 5 else "--adam" if number == 6 else ""
    train_with(f"--epochs 1 --t_weights t.pt --KDstr {number} --finetune {more}", STUDENT)
    output = capsys.readouterr().out
    assert f"teacher t.pt: {sum(p.numel() for p in network(CFG).parameters()):,} parameters" in output
    assert ("(student<-teacher) 7<-10, 14<-17, 5<-8" in output) == KDSTR[number].maps
    table = results()
    terms = [table[name][0] for name in KDSTR[number].terms]
    assert min(terms) > 0
    assert table["total"][0] == pytest.approx(sum(table[c][0] for c in ("box", "obj", "cls")) + sum(terms), rel=1e-5)
    assert 0 < table["kd_time"][0] < 1
    last = load_checkpoint("weights/last.pt")
    assert last["hyp"]["lr0"] == FINETUNE["lr0"]
    assert set(last["model"]) == set(Darknet("s.cfg", 64).state_dict())


def test_a_distilled_run_resumes_exactly(here, monkeypatch):  # noqa: F811
    save(network(CFG), Path("t.pt"))
    Path("s.cfg").write_text(ONE_HEAD)  # its maps need an adapter
    base = BASE.replace("tiny.cfg", "s.cfg")
    flags = "--epochs 3 --t_weights t.pt --KDstr 7"
    train_with(f"{flags} --name whole", base)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 4)
        train_with(f"{flags} --name cut", base)
    train_with("--resume --name cut --device cpu --workers 0", base="")
    whole, cut = (load_checkpoint(f"weights/last_{name}.pt")["model"] for name in ("whole", "cut"))
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())
    np.testing.assert_array_equal(results("results_whole.txt")["kd_feat"], results("results_cut.txt")["kd_feat"])


def test_a_refusal_leaves_nothing_behind(here):  # noqa: F811
    save(network(CFG), Path("t.pt"))
    Path("s.cfg").write_text(ONE_HEAD)
    with pytest.raises(UserError, match="--KDstr 6 and 7"):
        train_with("--epochs 1 --t_weights t.pt --KDstr 1", BASE.replace("tiny.cfg", "s.cfg"))
    assert not Path("weights").exists()
    assert not Path("results.txt").exists()


def test_finetune_is_a_preset_that_a_file_overrides(tmp_path):
    (tmp_path / "h.yaml").write_text("lr0: 0.5\n")
    hyp = Hyp.load(tmp_path / "h.yaml", finetune=True)
    assert (hyp.lr0, hyp.warmup_bias_lr) == (0.5, FINETUNE["warmup_bias_lr"])
    assert Hyp.load("", finetune=True).lr0 < Hyp().lr0


def test_two_processes_distil_as_one(here):  # noqa: F811
    """With adapters, whose gradients no wrapper averages."""
    save(network(CFG), Path("t.pt"))
    Path("s.cfg").write_text(ONE_HEAD)
    base = BASE.replace("tiny.cfg", "s.cfg") + " --batch-size 8 --epochs 3 --notest --t_weights t.pt --KDstr 7"
    train_with("--name one", base)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(ROOT / "train.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command += [*base.split(), "--name", "two"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = results("results_one.txt"), results("results_two.txt")
    for column in ("total", "kd_feat"):
        np.testing.assert_allclose(two[column], one[column], rtol=1e-4, err_msg=column)
