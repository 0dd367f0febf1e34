"""Distillation: who learns, which maps belong together, and what is refused."""

import pytest
import torch

from tests.taught import BACKBONE, CFG, CPU, ONE_HEAD, arguments, make_run, pruned, save, train_arguments
from tests.tiny import CSP, DFL, NET, conv, head, network
from utils.core.errors import UserError
from utils.distillation.distiller import KDSTR, Distiller, check_distillation, listening
from utils.distillation.links import Link, links, readings
from utils.distillation.teacher import load_teacher
from utils.network.cfg import parse_cfg
from utils.network.checkpoint import Checkpoint
from utils.network.darknet import Darknet
from utils.network.weights import save_weights
from utils.pruning.masks import Limits
from utils.pruning.pruner import Amount, Pruner
from utils.training.run import Run

TARGETS = torch.tensor([[0, 1, 0.4, 0.4, 0.2, 0.2], [1, 0, 0.6, 0.5, 0.3, 0.25]])


def step(run: Run) -> dict[str, torch.Tensor]:
    images = torch.rand(2, run.model.defs.net.channels, 64, 64)
    with run.autocast(), run.distiller.watch(run.model):
        raws = run.forward(images)
    terms = run.distiller(images, raws, TARGETS, run.loss, run.plan.maxabs)
    run.backward(sum(terms.values()))
    return terms


def test_readings_are_the_maps_before_heads_and_where_the_backbone_halves():
    found = [(r.source, r.stride, r.branch) for r in readings(parse_cfg(CFG), 512)]
    assert found == [(10, 16, 1), (17, 8, 1), (8, 8, 0)]


def test_both_branches_of_an_anchor_free_head_are_read():
    found = [(r.source, r.stride, r.branch) for r in readings(parse_cfg(DFL), 512)]
    assert found == [(15, 2, 1), (18, 2, 2), (25, 4, 1), (28, 4, 2)]
    wider = DFL.replace("filters=6\nsize=3", "filters=9\nsize=3")  # the class branches
    assert [link.adapted for link in links(parse_cfg(DFL), parse_cfg(wider), 512)] == [None, (6, 9), None, (6, 9)]


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
    other.restore(Checkpoint.of(saved | {"finished": False}, "last.pt"))
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
                   r"--KDstr 6 and 7 can"),
        (CFG.replace("classes=2", "classes=3").replace("filters=7", "filters=8"), "has 2 classes, the student 3; --KDstr 6"),
        (CFG.replace("20,16", "30,16"), "the anchors at stride 16 differ; --KDstr 6 and 7"),
        (CFG.replace("num=2", "num=2\nnew_coords=1"), "new_coords at stride 16 differ"),
    ],
)  # fmt: skip
def test_heads_that_differ_are_named(tmp_path, student, message):
    path, model = save(network(CFG), tmp_path / "t.pt"), Darknet(student, 64)
    with pytest.raises(UserError, match=message):
        load_teacher(arguments(4, path), model, False)
    for number in (6, 7):
        step(make_run(model, load_teacher(arguments(number, path), model, False), number))


@pytest.mark.parametrize("number", [6, 7])
def test_a_pruned_anchor_free_student_learns_by_feature_maps(tmp_path, number):
    model, student = pruned("slim", cfg=DFL)
    teacher = load_teacher(arguments(number, save(model, tmp_path / "t.pt")), student, False)
    run = make_run(student, teacher, number)
    assert len(run.distiller.links) == 4
    assert not run.distiller.adapters
    assert 0 < sum(step(run).values()).item() < 1e4
    box, scores = (student.module_list[i].conv.weight.grad for i in (15, 18))
    assert box.abs().sum() > 0
    assert scores.abs().sum() > 0
    same = load_teacher(arguments(number, save(student, tmp_path / "s.pt")), student, False)
    run = make_run(student.eval(), same, number)
    run.model.eval()
    with run.distiller.watch(run.model):
        raws = run.model(images := torch.rand(2, 3, 64, 64))[1]
    terms = run.distiller(images, raws, TARGETS, run.loss)
    assert sum(terms.values()).item() == pytest.approx(0, abs=1e-5)


def test_outputs_of_anchor_free_heads_are_compared(tmp_path):
    model, student = pruned("slim", cfg=DFL)
    path = save(model, tmp_path / "t.pt")
    terms = step(make_run(student, load_teacher(arguments(8, path), student, False), 8))
    assert set(terms) == {"kd_cls", "kd_box"}
    assert all(0 < term.item() < 1e4 for term in terms.values())
    box, scores = (student.module_list[i].conv.weight.grad for i in (15, 18))
    assert box.abs().sum() > 0
    assert scores.abs().sum() > 0
    anchored = network(NET + conv(8, stride=2) + head() + "[route]\nlayers=0\n" + conv(8, stride=2) + head())
    with pytest.raises(UserError, match=r"compares outputs, but the teacher has \[dfl\] heads, the student \[yolo\]"):
        load_teacher(arguments(8, path), anchored, False)
    finer = network(DFL.replace("reg_max=6", "reg_max=9").replace("filters=24\nsize=1", "filters=36\nsize=1"))
    with pytest.raises(UserError, match=r"compares outputs, but the reg_max at stride 2 differ; --KDstr 6 and 7"):
        load_teacher(arguments(8, path), finer, False)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_what_needs_objectness_is_refused_for_anchor_free_heads(tmp_path, number):
    path = save(network(DFL), tmp_path / "t.pt")
    said = r"--KDstr . is about objectness and anchors, which \[dfl\] heads do without; --KDstr 6, 7 and 8 can"
    with pytest.raises(UserError, match=said) as error:
        load_teacher(arguments(number, path), network(DFL), False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [3, 8])
def test_what_is_named_instead_can_be_used_with_heads_of_another_kind(tmp_path, number):
    anchored = network(NET + conv(8, stride=2) + head() + "[route]\nlayers=0\n" + conv(8, stride=2) + head())
    path = save(anchored, tmp_path / "t.pt")
    with pytest.raises(UserError, match="; --KDstr 6 and 7 can$"):
        load_teacher(arguments(number, path), network(DFL), False)
    assert load_teacher(arguments(6, path), network(DFL), False).links


def test_what_a_teacher_cannot_see_is_refused(tmp_path):
    gray = network(CFG.replace("channels=3", "channels=1"))
    with pytest.raises(UserError, match="reads images of 1 channels, the student of 3"):
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
        (
            "--t_weights t.pt --KDstr 7 --kd-small 4",
            "--kd-small 4 weighs the positions of feature maps for --KDstr 6; add that",
        ),
        ("--kd-small 4", "--kd-small 4 weighs the positions"),
    ],
)
def test_arguments_that_make_no_sense(flags, message):
    with pytest.raises(UserError, match=message):
        check_distillation(train_arguments(flags))


@pytest.mark.parametrize("cfg", [CSP, DFL])
def test_a_student_with_convolutions_in_parts_learns_from_the_same_channels(cfg):
    """Without constants, each linked map of the student is the masked teacher's in the channels that are left."""
    teacher = network(cfg, beta=0.0)
    teacher.module_list[1].BatchNorm2d.weight.data[:6] *= 1e-3
    pruner = Pruner(teacher, "slim", Limits(split=0.0))
    choice = pruner.choose(Amount(0.3))
    assert pruner.divided(choice) == [1]
    student, masked = pruner.compact(choice).double(), pruner.masked(choice).double()
    found = links(student.defs, teacher.defs, 512)
    assert [link.teacher for link in found] == [r.source for r in readings(teacher.defs, 512)]
    maps: tuple[dict, dict] = {}, {}
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    places = [link.student for link in found], [link.teacher for link in found]
    with torch.no_grad(), listening(student, places[0], maps[0]), listening(masked, places[1], maps[1]):
        student(image)
        masked(image)
    for link in found:
        wanted = maps[1][link.teacher][:, torch.from_numpy(link.channels)]
        torch.testing.assert_close(maps[0][link.student], wanted, rtol=1e-10, atol=1e-10)
