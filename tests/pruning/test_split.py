"""utils.pruning.split: convolutions written in parts are the same function, and let more channels go."""

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from tests.matrix import build, silent_error
from tests.network.test_darknet import opencv_outputs
from tests.tiny import CSP, DFL, NET, conv, head, network
from utils.network.cfg import parse_cfg, write_cfg
from utils.network.darknet import Darknet
from utils.network.weights import load_weights, save_weights
from utils.pruning.graph import ChannelGraph
from utils.pruning.lineage import origin_of, surviving_ids
from utils.pruning.masks import Limits
from utils.pruning.pruner import Amount, Pruner
from utils.pruning.refit import refit
from utils.pruning.split import split_defs, uneven, written

CUT_TWICE = (  # into halves and into quarters, by a route that also cuts a pool's map
    NET + conv(8, stride=2) + conv(16) + "[route]\nlayers=-1\ngroups=2\ngroup_id=1\n" + conv(8)
    + "[maxpool]\nstride=1\nsize=3\n[route]\nlayers=1,-1\ngroups=4\ngroup_id=2\n" + conv(8)
    + "[route]\nlayers=1,-1,3\n" + conv(10) + head()
)  # fmt: skip
FIRST = NET + conv(8) + "[route]\nlayers=-1\ngroups=2\ngroup_id=0\n" + conv(10) + head()
IN_BLOCK = (  # a CSP stage inside a residual block, whose end is itself cut
    NET + conv(8, stride=2) + conv(12) + conv(16, 1) + "[route]\nlayers=-1\ngroups=2\ngroup_id=1\n" + conv(8)
    + "[route]\nlayers=2,-1\n" + conv(12, 1) + "[shortcut]\nfrom=1\nactivation=linear\n"
    + conv(12) + "[route]\nlayers=-1\ngroups=2\ngroup_id=0\n" + conv(6) + conv(12, 1)
    + "[shortcut]\nfrom=8\nactivation=linear\n" + conv(10) + head()
)  # fmt: skip
NETWORKS = {"csp": CSP, "c2f": DFL, "cut twice": CUT_TWICE, "in a block": IN_BLOCK}


def weaken(model: Darknet, index: int, channels: slice, gamma: float = 1e-3) -> None:
    """Make some channels of a convolution those that go first."""
    model.module_list[index].BatchNorm2d.weight.data[channels] *= gamma


def outputs(model: Darknet, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([raw.flatten() for raw in model.eval().double()(image)[1]])


@pytest.mark.parametrize("cfg", NETWORKS.values(), ids=NETWORKS)
def test_written_in_parts_it_is_the_same_function(cfg):
    model = network(cfg).double()
    graph = ChannelGraph(model.defs)
    keep = np.ones(graph.count, dtype=bool)
    for index in graph.divisible:
        keep[graph.out[index][-1]] = False
    divided, other, _, numbers = written(model, graph, keep, ())
    assert len(divided.defs) > len(model.defs)
    assert not set(graph.divisible) & {i for i in range(len(other.defs)) if i in other.divisible}
    assert parse_cfg(write_cfg(divided.defs)) == divided.defs
    image = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(outputs(divided, image), outputs(model, image), rtol=1e-12, atol=1e-12)
    assert other.count == graph.count
    for name in ("frozen", "united"):
        np.testing.assert_array_equal(getattr(other, name), getattr(graph, name))
    for new, old in enumerate(numbers):
        assert set(other.out[new]) <= set(graph.out[old]) if old >= 0 else other.defs[new].kind == "route"


def test_the_parts_of_a_csp_stage():
    split = split_defs(ChannelGraph(parse_cfg(CSP)), [1])
    kinds = [(d.kind, d.extra) for d in split.defs][:6]
    assert kinds == [
        ("convolutional", {}), ("convolutional", {"kept": "0-7"}), ("route", {"origin": "none"}),
        ("convolutional", {"origin": "1", "kept": "8-15"}), ("route", {"origin": "2"}), ("convolutional", {"origin": "3"}),
    ]  # fmt: skip
    assert [split.defs.sources(i) for i in (1, 2, 3, 4, 5, 9)] == [[0], [0], [2], [3], [4], [1, 3, 8]]
    assert split.place == [0, -1, *range(4, 14)]


def test_what_reads_the_image_is_not_divided():
    graph = ChannelGraph(parse_cfg(FIRST))
    assert graph.divisible == {}
    assert len(graph.equal_parts) == 1


@pytest.mark.parametrize("cfg", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize(("strategy", "shortcuts"), [("slim", 0), ("normal", 0), ("layer_channel", 1)])
def test_masked_is_compact_with_parts_of_different_widths(cfg, strategy, shortcuts, tmp_path):
    model = network(cfg)
    for index in ChannelGraph(model.defs).divisible:
        weaken(model, index, slice(0, 6))
    pruner = Pruner(model, strategy, Limits(split=0.0))
    choice = pruner.choose(Amount(0.4, min(shortcuts, len(pruner.blocks))))
    assert len(choice.dropped) == min(shortcuts, len(pruner.blocks))
    assert pruner.divided(choice) or (choice.dropped and uneven(pruner.graph, choice.mask.keep))
    assert silent_error(model.double(), pruner, choice) < 1e-12
    small = pruner.compact(choice)
    save_weights(small, tmp_path / "small.weights")
    again = Darknet(write_cfg(small.defs), 64)
    load_weights(again, tmp_path / "small.weights", prefix=False)
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(outputs(again, image), outputs(small.float(), image), rtol=1e-5, atol=1e-5)


def test_split_halves_spare_what_equal_counts_would_bring_back():
    """All eight channels of the first half of a C2f block's convolution are weak, and none of the second: equal halves keep
    them all, parts leave one of them."""
    model = network(DFL)
    weaken(model, 1, slice(0, 8))
    amount = Amount(7.5 / Pruner(model, "slim", Limits()).pool.sum())
    for split, kept, divided in ((None, 16, []), (0.0, 9, [1]), (0.4, 9, [1]), (0.5, 16, [])):
        pruner = Pruner(model, "slim", Limits(split=split))
        choice = pruner.choose(amount)
        assert (pruner.layer_counts(choice)[1]["after"], pruner.divided(choice)) == (kept, divided)
        assert pruner.summary(choice)["divided"] == divided
    parts = [d.filters for d in Pruner(model, "slim", Limits(split=0.0)).compact(choice).defs if d.kind == "convolutional"]
    assert parts[1] == 16


def test_every_part_meets_the_limits():
    model = network(DFL)
    weaken(model, 1, slice(0, 8))
    for limits, least in ((Limits(min_channels=3, split=0.0), 3), (Limits(round_to=4, split=0.0), 4)):
        pruner = Pruner(model, "slim", limits)
        defs = pruner.defs(pruner.choose(Amount(0.2)))
        first, second = (d.filters for d in (defs[1], defs[3]))
        assert (first, second, defs[3].kind) == (least, 8, "convolutional")


@pytest.mark.parametrize("cfg", [CSP, DFL, CUT_TWICE])
def test_parts_still_count_in_the_first_network(cfg):
    """Pruned twice: every part says which of the first network's layer it has, and computes with those gammas."""
    model = network(cfg)
    teacher = ChannelGraph(model.defs)
    gammas = {i: model.module_list[i].BatchNorm2d.weight.detach().numpy() for i in teacher.gammas()}
    for index in teacher.divisible:
        weaken(model, index, slice(0, 6))
    for _ in range(2):
        pruner = Pruner(model, "slim", Limits(split=0.0))
        model = pruner.compact(pruner.choose(Amount(0.25)))
        student = parse_cfg(write_cfg(model.defs))
        keep = surviving_ids(teacher, student)
        graph, found = ChannelGraph(student), {}
        for index in graph.gammas():
            gamma = model.module_list[index].BatchNorm2d.weight.detach().numpy()
            found.setdefault(origin_of(student, index), []).append(gamma)
        for origin, parts in found.items():
            channels = np.flatnonzero(keep[teacher.out[origin]])
            np.testing.assert_array_equal(np.concatenate(parts), gammas[origin][channels])
        assert any(len(parts) > 1 for parts in found.values())


def test_parts_are_refitted():
    model = network(DFL)
    weaken(model, 1, slice(0, 6), 0.3)
    pruner = Pruner(model, "slim", Limits(split=0.0))
    choice = pruner.choose(Amount(0.4))
    assert pruner.divided(choice) == [1]
    small = pruner.compact(choice)
    batches = list(torch.rand(4, 8, 3, 64, 64))
    wanted = model(batches[0])[1]
    before = sum((a - b).square().sum() for a, b in zip(small(batches[0])[1], wanted, strict=True))
    fitted = refit(model, small, pruner.graph, choice.mask.keep, choice.dropped, batches)
    after = sum((a - b).square().sum() for a, b in zip(small(batches[0])[1], wanted, strict=True))
    assert fitted == sorted(set(fitted))
    assert {1, 16, 19} <= set(fitted) < set(pruner.graph.convolutions())
    assert after < 0.5 * before


@pytest.mark.parametrize("name", ["csp", "in a block", "yolov4-tiny"])  # OpenCV cuts no joined maps
def test_opencv_sees_one_function(name, tmp_path):
    model = build(ROOT / "cfg/yolov4tiny/yolov4-tiny.cfg") if name == "yolov4-tiny" else network(NETWORKS[name])
    graph = ChannelGraph(model.defs)
    for index in graph.divisible:
        weaken(model, index, slice(0, len(graph.out[index]) * 3 // 8))
    pruner = Pruner(model, "slim", Limits(split=0.0))
    choice = pruner.choose(Amount(0.3))
    assert pruner.divided(choice)
    for index in graph.gammas():  # silent, so that no constants are left to differ at borders
        dead = torch.from_numpy(~choice.mask.keep[graph.out[index]])
        for parameter in (model.module_list[index].BatchNorm2d.weight, model.module_list[index].BatchNorm2d.bias):
            parameter.data[dead] = 0
    image = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    seen = []
    for label, net in (("original", model), ("compact", pruner.compact(choice))):
        (tmp_path / f"{label}.cfg").write_text(write_cfg(net.defs))
        save_weights(net, tmp_path / f"{label}.weights")
        seen.append(opencv_outputs(tmp_path / f"{label}.cfg", tmp_path / f"{label}.weights", image))
    np.testing.assert_allclose(seen[1], seen[0], rtol=1e-3, atol=1e-4)
    assert np.ptp(seen[0]) > 0
