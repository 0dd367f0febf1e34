"""utils.pruning.latency: tables give back what was measured, and savings are the differences of sums."""

import numpy as np
import pytest

from tests.tiny import CSP, DEPTHWISE, RESIDUAL, TOPOLOGIES, network
from utils.network.cfg import parse_cfg
from utils.pruning.compact import compact_defs
from utils.pruning.graph import ChannelGraph
from utils.pruning.latency import Geometry, LayerTimes, Points, Table, convolutions, ladder, wanted_points
from utils.pruning.masks import POLICIES, Limits, candidates, global_mask
from utils.pruning.spend import removal_order

LEAKY = Geometry(3, (1, 1), 1, 1, 1, 0, "leaky", 8, 8)


def formula(geometry: Geometry, widths: tuple[int, int]) -> float:
    """Milliseconds with a part for each weight, each channel that is read or made, and each layer."""
    channels, filters = widths
    area = geometry.height * geometry.width / geometry.strides[0] ** 2
    kernels = geometry.size**2 * filters * (channels / geometry.groups if geometry.groups else 1)
    return 1e-3 * area * (kernels + 3 * filters + (2 * channels if geometry.groups == 1 else 0)) + 0.01


def times(cfg: str, step: int) -> LayerTimes:
    wanted = wanted_points(parse_cfg(cfg), 64, step)
    return LayerTimes({g: {w: formula(g, w) for w in points} for g, points in wanted.items()}, step)


def test_between_points_a_product_of_widths_is_exact():
    points: Points = {(i, o): 5 + 2 * i + 3 * o + 0.5 * i * o for i in (4, 8, 32, 33) for o in (4, 16, 64)}
    table = Table.of(points, 1)
    for i, o in ((4, 4), (8, 16), (20, 40), (33, 64), (32, 5)):
        assert table.at(i, o) == pytest.approx(5 + 2 * i + 3 * o + 0.5 * i * o)
    assert table.at(1, 1) == table.at(4, 4)
    assert table.at(100, 100) == table.at(33, 64)
    assert table.at(0, 8) == table.at(8, 0) == 0
    assert table.slopes(20, 40) == pytest.approx((2 + 0.5 * 40, 3 + 0.5 * 20))


def test_numbers_of_channels_are_rounded_up_to_what_is_computed_at_once():
    table = Table.of({(i, o): float(i * o) for i in (16, 32, 64) for o in (16, 32, 40)}, 16)
    assert table.at(17, 16) == table.at(32, 16) == 512
    assert table.at(16, 33) == table.at(16, 40) == 640  # a layer of 40 takes what it takes
    assert table.slopes(64, 32) == ((2048 - 48 * 32) / 16, (2048 - 1024) / 16)
    assert table.slopes(16, 16) == (0, 0)


def test_noise_is_evened_out():
    table = Table.of({(16, 16): 1.0, (16, 32): 3.0, (16, 64): 2.0, (16, 128): 9.0}, 16)
    assert [table.at(16, o) for o in (16, 32, 64, 128)] == [1.0, 2.5, 2.5, 9.0]
    rng = np.random.default_rng(0)
    ms = Table.of({(i, o): rng.random() for i in ladder(128, 16) for o in ladder(512, 16)}, 16).ms
    assert (np.diff(ms, axis=0) >= 0).all()
    assert (np.diff(ms, axis=1) >= 0).all()


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_network_takes_what_its_convolutions_take(name):
    defs = parse_cfg(TOPOLOGIES[name])
    found = times(TOPOLOGIES[name], 1)
    layers = list(convolutions(defs, 64))
    assert len(layers) == len(ChannelGraph(defs).convolutions())
    assert found.total(defs, 64) == pytest.approx(sum(formula(layer.geometry, layer.widths) for layer in layers))
    assert found.scaled(3).total(defs, 64) == pytest.approx(3 * found.total(defs, 64))


@pytest.mark.parametrize("cfg", [RESIDUAL, DEPTHWISE])
def test_savings_are_the_differences_of_milliseconds(cfg):
    model = network(cfg)
    graph, found = ChannelGraph(model.defs), times(cfg, 1)
    pool = np.flatnonzero(candidates(graph, POLICIES["slim"]))
    keep = np.ones(graph.count, dtype=bool)
    keep[pool[::3]] = False
    savings, before = found.cost(model, graph, 64)(keep), found.total(compact_defs(graph, keep), 64)
    tried = 0
    for channel in pool[keep[pool]]:
        without = keep.copy()
        without[channel] = False
        if min(without[np.unique(ids)].sum() for ids in graph.out) == 0:
            continue
        # a channel that goes from both sides of a kernel at once takes their common weights once only
        both = (
            channel in graph.out[i] and channel in graph.inputs(i) for i in graph.convolutions() if not graph.is_depthwise(i)
        )
        if not any(both):
            assert savings[channel] == pytest.approx(before - found.total(compact_defs(graph, without), 64))
            tried += 1
    assert tried > 5


def test_at_the_same_milliseconds_less_importance_is_lost():
    model = network(CSP)
    graph, found, policy, limits = ChannelGraph(model.defs), times(CSP, 2), POLICIES["slim"], Limits(round_to=2)
    pool, lost = candidates(graph, policy), {"plain": 0.0, "greedy": 0.0}
    target = 0.6 * found.total(model.defs, 64)
    for seed in range(5):
        scores = np.random.default_rng(seed).random(graph.count)
        greedy = removal_order(lambda keep, scores=scores: scores, pool, found.cost(model, graph, 64))
        for name, order in (("plain", None), ("greedy", greedy)):
            amounts = (global_mask(graph, scores, policy, n / 50, limits, order).keep for n in range(50))
            keep = next(keep for keep in amounts if found.total(compact_defs(graph, keep), 64) <= target)
            lost[name] += scores[~keep].sum()
    assert lost["greedy"] < 0.9 * lost["plain"]


def test_what_has_to_be_measured():
    wanted = wanted_points(parse_cfg(RESIDUAL), 64, 4)
    first = next(convolutions(parse_cfg(RESIDUAL), 64))
    assert wanted[first.geometry] == [(3, 4), (3, 8)]  # an image of 3 channels, 8 filters
    (twelve,) = [points for g, points in wanted.items() if g.size == 3 and g.strides == (1, 1) and (6, 12) in points]
    assert twelve == [(i, o) for i in (4, 6, 8) for o in (4, 8, 12)]  # 8 -> 12 and 6 -> 12, of one geometry
    assert all(i == o for g, points in wanted_points(parse_cfg(DEPTHWISE), 64, 4).items() if not g.groups for i, o in points)


def test_a_geometry_is_what_the_layer_says():
    layer = next(convolutions(parse_cfg(RESIDUAL), 64))
    assert layer.geometry == Geometry(3, (2, 2), 1, 1, 1, 0, "leaky", 64, 64)
    assert Geometry.of(layer.geometry.definition((3, 8)), 3, 64, 64) == layer.geometry
    assert str(LEAKY) != str(Geometry(3, (1, 1), 1, 1, 0, 0, "leaky", 8, 8))
