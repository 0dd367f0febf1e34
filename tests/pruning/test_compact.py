"""utils.pruning.compact and utils.pruning.absorb: masked and compact networks are the same function."""

import cv2
import numpy as np
import pytest
import torch

from tests.network.test_darknet import opencv_outputs
from tests.tiny import TOPOLOGIES, network
from utils.network.cfg import parse_cfg, write_cfg
from utils.network.darknet import Darknet
from utils.network.weights import load_weights, save_weights
from utils.pruning.compact import compact_model, mask_model
from utils.pruning.graph import ChannelGraph
from utils.pruning.importance import gamma_scores
from utils.pruning.masks import POLICIES, Limits, global_mask

CASES = [(name, policy, percent) for name in TOPOLOGIES for policy in POLICIES for percent in (0.3, 0.7)]
DATA_DEPENDENT = {"depthwise", "dialect"}  # a constant behind a squeeze-and-excitation is none: see utils.pruning.absorb


def pruned(name: str, policy: str, percent: float, beta: float, cfg: str | None = None):
    """(model, graph, keep) of a random network."""
    model = network(cfg or TOPOLOGIES[name], beta=beta)
    graph = ChannelGraph(model.defs)
    rules = POLICIES[policy]
    mask = global_mask(
        graph, gamma_scores(model, graph, rules.combine), rules, percent, Limits(round_to=min(rules.round_to, 4))
    )
    return model, graph, mask.keep


def zero_betas(model, graph, keep) -> None:
    """Silence the removed channels altogether."""
    for index in graph.gammas():
        model.module_list[index].BatchNorm2d.bias.data[torch.from_numpy(~keep[graph.out[index]])] = 0


def outputs(model, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([raw.flatten() for raw in model.double()(image)[1]])


@pytest.mark.parametrize(("name", "policy", "percent"), CASES)
def test_masked_equals_compact_when_removed_channels_are_silent(name, policy, percent):
    model, graph, keep = pruned(name, policy, percent, beta=0.3)
    zero_betas(model, graph, keep)
    small = compact_model(model, graph, keep)
    image = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    expected = outputs(mask_model(model, graph, keep), image)
    assert expected.std() > 1e-2
    torch.testing.assert_close(outputs(small, image), expected, rtol=1e-4, atol=1e-4)
    fewer = sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert fewer or (policy == "regular" and percent < 0.5)  # rounding up may bring all of so few channels back


@pytest.mark.parametrize("name", sorted(set(TOPOLOGIES) - DATA_DEPENDENT))
def test_constants_are_absorbed_exactly_without_zero_padding(name):
    cfg = TOPOLOGIES[name].replace("pad=1\n", "pad=0\n").replace("size=3\n", "size=1\n")
    model, graph, keep = pruned(name, "slim", 0.5, beta=1.0, cfg=cfg)
    image = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    expected = outputs(mask_model(model, graph, keep), image)
    torch.testing.assert_close(outputs(compact_model(model, graph, keep), image), expected, rtol=1e-4, atol=1e-4)


def test_padded_convolutions_differ_at_the_border_only():
    model, graph, keep = pruned("csp", "slim", 0.5, beta=1.0)
    masked, small = mask_model(model, graph, keep).double(), compact_model(model, graph, keep).double()
    image = torch.rand(1, 3, 128, 128, dtype=torch.float64)
    with torch.no_grad():
        difference = (masked(image)[1][0] - small(image)[1][0]).abs().amax((0, 1, 4))
    assert difference[6:-6, 6:-6].max() < 1e-5
    assert difference.max() > 1e-3  # the border does differ: this test can tell


def test_a_constant_behind_squeeze_and_excitation_is_bounded():
    model, graph, keep = pruned("dialect", "normal", 0.5, beta=0.3)
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    masked = outputs(mask_model(model, graph, keep), image)
    absorbed = (outputs(compact_model(model, graph, keep), image) - masked).abs().mean()
    silenced = pruned("dialect", "normal", 0.5, beta=0.3)[0]
    zero_betas(silenced, graph, keep)
    dropped = (outputs(compact_model(silenced, graph, keep), image) - masked).abs().mean()
    assert absorbed < 0.6 * dropped  # half of the constant is absorbed


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_compact_cfg_and_weights_round_trip_and_train(name, tmp_path):
    model, graph, keep = pruned(name, "slim", 0.5, beta=0.3)
    small = compact_model(model, graph, keep)
    save_weights(small, tmp_path / "small.weights")
    text = write_cfg(small.defs)
    assert parse_cfg(text) == small.defs
    again = Darknet(text, 64)
    load_weights(again, tmp_path / "small.weights", prefix=False)
    image = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(again.eval()(image)[0], small.float()(image)[0])
    sum(raw.square().sum() for raw in again.train()(image.repeat(2, 1, 1, 1))).backward()
    assert all(p.grad is not None for p in again.parameters())


@pytest.mark.parametrize("name", ["residual", "csp", "spp", "depthwise"])
def test_opencv_sees_the_same_function_in_original_and_compact_file(name, tmp_path):
    model = network(TOPOLOGIES[name])
    graph = ChannelGraph(model.defs)
    scores = gamma_scores(model, graph, "largest")
    keep = global_mask(graph, scores, POLICIES["slim"], 0.5, Limits()).keep
    for index in graph.gammas():  # dead channels, planted
        dead = torch.from_numpy(~keep[graph.out[index]])
        model.module_list[index].BatchNorm2d.weight.data[dead] = 0
        model.module_list[index].BatchNorm2d.bias.data[dead] = 0
    small = compact_model(model, graph, keep)
    image = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    seen = []
    for label, net in (("original", model), ("compact", small)):
        (tmp_path / f"{label}.cfg").write_text(write_cfg(net.defs))
        save_weights(net, tmp_path / f"{label}.weights")
        seen.append(opencv_outputs(tmp_path / f"{label}.cfg", tmp_path / f"{label}.weights", image))
    assert small.defs[0].filters < model.defs[0].filters or small.defs[1].filters < model.defs[1].filters
    np.testing.assert_allclose(seen[1], seen[0], rtol=1e-4, atol=1e-4)
    assert cv2.norm(seen[0]) > 0


def test_pruning_a_pruned_network_works():
    model, graph, keep = pruned("csp", "slim", 0.3, beta=0.0)
    small = compact_model(model, graph, keep)
    graph2 = ChannelGraph(small.defs)
    keep2 = global_mask(graph2, gamma_scores(small, graph2, "largest"), POLICIES["slim"], 0.3, Limits()).keep
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(
        outputs(compact_model(small, graph2, keep2), image),
        outputs(mask_model(small, graph2, keep2), image),
        rtol=1e-4,
        atol=1e-4,
    )
