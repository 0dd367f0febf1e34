"""utils.pruning.refit and utils.pruning.least_squares: fits by hand, against torch's own convolution and lstsq."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.tiny import DEPTHWISE, NET, RESIDUAL, TOPOLOGIES, conv, head, network
from utils.pruning.compact import compact_model
from utils.pruning.graph import ChannelGraph
from utils.pruning.importance import gamma_scores
from utils.pruning.least_squares import NormalEquations, output_size, windows
from utils.pruning.masks import POLICIES, Limits, global_mask
from utils.pruning.refit import added_to, bytes_per_picture, refit
from utils.pruning.residual_blocks import residual_blocks


def pictures(count: int = 4, batches: int = 2, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(count, 3, 64, 64, generator=generator) for _ in range(batches)]


@pytest.mark.parametrize(("size", "stride", "padding", "dilation"), [(1, 1, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 2, 2)])
def test_windows_times_the_kernel_are_the_convolution(size, stride, padding, dilation):
    layer = nn.Conv2d(4, 6, size, stride, padding, dilation, bias=False)
    x = torch.rand(2, 4, 9, 11)
    expected = layer(x)
    assert output_size(layer, x) == expected.shape[2:]
    places = torch.randperm(expected[0, 0].numel())[:20]
    found = windows(layer, x, places) @ layer.weight.flatten(1).T
    torch.testing.assert_close(found, expected.flatten(2)[:, :, places].transpose(1, 2).flatten(0, 1))


def test_normal_equations_solve_what_lstsq_solves():
    x, y = torch.randn(50, 4, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64)
    equations = NormalEquations()
    for part in range(0, 50, 20):
        equations.add(x[part : part + 20], y[part : part + 20])
    fitted, constant = equations.solve(ridge=0)
    expected = torch.linalg.lstsq(torch.cat([x, torch.ones(50, 1, dtype=torch.float64)], 1), y).solution
    torch.testing.assert_close(torch.cat([fitted, constant[None]]), expected)


@pytest.mark.parametrize("ridge", [0.0, 0.01, 10.0])
def test_no_fit_is_worse_than_none(ridge):
    x, y = torch.randn(20, 30), torch.randn(20, 3)  # more unknowns than samples
    equations = NormalEquations()
    equations.add(x, y)
    fitted, constant = equations.solve(ridge)
    assert (y - x @ fitted.float() - constant.float()).square().mean() <= y.square().mean()


def cut(cfg: str, percent: float = 0.4, beta: float = 0.3):
    """(model, graph, keep, compact model)."""
    model = network(cfg, beta=beta)
    graph = ChannelGraph(model.defs)
    keep = global_mask(graph, gamma_scores(model, graph, "largest"), POLICIES["slim"], percent, Limits()).keep
    return model, graph, keep, compact_model(model, graph, keep)


def raw_error(model, small, batches) -> float:
    with torch.no_grad():
        return sum(float((a - b).square().mean()) for x in batches for a, b in zip(model(x)[1], small(x)[1], strict=True))


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_outputs_come_nearer_to_the_originals_on_other_pictures_too(name):
    model, graph, keep, small = cut(TOPOLOGIES[name])
    seen, unseen = pictures(), pictures(seed=2)
    before = raw_error(model, small, seen), raw_error(model, small, unseen)
    fitted = refit(model, small, graph, keep, (), seen)
    assert raw_error(model, small, seen) < 0.9 * before[0]
    assert raw_error(model, small, unseen) < 0.95 * before[1]
    assert set(fitted) <= set(graph.convolutions())


def test_a_removed_channel_that_is_a_combination_of_kept_ones_is_recovered():
    """The first layer's filter 7 is made the sum of two others, before a linear activation: nothing need be lost."""
    model = network(NET + conv(8, stride=2, activation="linear") + conv(6, 1) + head())
    first = model.module_list[0]
    first.conv.weight.data[7] = 0.5 * first.conv.weight[1] - 2 * first.conv.weight[2]
    graph = ChannelGraph(model.defs)
    keep = np.ones(graph.count, dtype=bool)
    keep[graph.out[0][7]] = False
    small, batches = compact_model(model, graph, keep), pictures()
    before = raw_error(model, small, batches)
    assert refit(model, small, graph, keep, (), batches) == [1]
    assert raw_error(model, small, batches) < 1e-3 * before


def test_only_readers_of_removed_channels_change():
    model = network(NET + conv(8, stride=2) + conv(8) + conv(8) + head())
    graph = ChannelGraph(model.defs)
    keep = np.ones(graph.count, dtype=bool)
    keep[graph.out[1][:3]] = False
    small = compact_model(model, graph, keep)
    saved = {k: v.clone() for k, v in small.state_dict().items()}
    assert refit(model, small, graph, keep, (), pictures()) == [2]
    changed = {k for k, v in small.state_dict().items() if not torch.equal(v, saved[k])}
    assert changed == {"module_list.2.Conv2d.weight", "module_list.2.BatchNorm2d.running_mean"}


def test_nothing_removed_nothing_changed():
    model, graph, keep, small = cut(RESIDUAL, percent=0.0)
    saved = {k: v.clone() for k, v in small.state_dict().items()}
    assert refit(model, small, graph, keep, (), pictures()) == []
    assert all(torch.equal(v, saved[k]) for k, v in small.state_dict().items())


def test_a_branch_makes_up_for_what_the_kept_path_lacks():
    cfg = RESIDUAL.replace(conv(6, 1) + conv(12), conv(6, 1) + conv(12, activation="linear"))
    graph = ChannelGraph(network(cfg).defs)
    assert added_to(graph, 3) == (4, 1)
    assert added_to(graph, 6) == (7, 1)
    assert added_to(graph, 2) is added_to(graph, 1) is None
    assert added_to(ChannelGraph(network(RESIDUAL).defs), 3) is None  # its activation comes before the sum


def test_dropped_blocks_are_refitted_around():
    model = network(RESIDUAL)
    graph = ChannelGraph(model.defs)
    dropped, keep = residual_blocks(graph)[:1], np.ones(graph.count, dtype=bool)
    keep[graph.out[0][:4]] = False
    small, batches = compact_model(model, graph, keep, dropped), pictures()
    before = raw_error(model, small, batches)
    assert refit(model, small, graph, keep, dropped, batches) == [1]
    assert raw_error(model, small, batches) < before


def test_memory_is_that_of_the_maps_alive_at_once():
    model = network(NET + conv(8) + conv(4) + head())
    pixels = 64 * 64
    assert bytes_per_picture(model, 64, 64) == 8 * max(8 + 4, 4 + 14, 14 + 14) * pixels
    assert bytes_per_picture(network(DEPTHWISE), 64, 64) > 0
