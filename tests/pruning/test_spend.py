"""utils.pruning.spend: what a channel's removal saves is what the smaller network lacks, and the order is the greedy one."""

import numpy as np
import pytest

from tests.tiny import CSP, RESIDUAL, TOPOLOGIES, network
from utils.network.cost import network_size
from utils.network.darknet import Darknet
from utils.pruning.compact import compact_defs
from utils.pruning.graph import ChannelGraph
from utils.pruning.masks import POLICIES, Limits, candidates, global_mask
from utils.pruning.spend import COSTS, removal_order


def size(graph: ChannelGraph, keep: np.ndarray, kind: str) -> int:
    return network_size(Darknet, compact_defs(graph, keep), 64)[kind]


@pytest.mark.parametrize("kind", COSTS)
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_savings_are_the_difference_of_the_networks_sizes(name, kind):
    model = network(TOPOLOGIES[name])
    graph = ChannelGraph(model.defs)
    pool = np.flatnonzero(candidates(graph, POLICIES["slim"]))
    keep = np.ones(graph.count, dtype=bool)
    keep[pool[::3]] = False
    for parts in graph.equal_parts:  # a cfg needs parts of equal width
        keep[np.concatenate(parts)] = True
    equal = np.concatenate([p for parts in graph.equal_parts for p in parts] or [np.zeros(0, int)])
    savings, before = COSTS[kind](model, graph, 64)(keep), size(graph, keep, kind)
    for channel in (c for c in pool if keep[c] and c not in equal):
        without = keep.copy()
        without[channel] = False
        assert savings[channel] == before - size(graph, without, kind)


def test_the_order_is_the_greedy_one_by_brute_force():
    model = network(RESIDUAL)
    graph = ChannelGraph(model.defs)
    pool = candidates(graph, POLICIES["slim"])
    scores = np.random.default_rng(0).random(graph.count)
    order = removal_order(lambda keep: scores, pool, COSTS["params"](model, graph, 64), rounds=int(pool.sum()))
    keep = np.ones(graph.count, dtype=bool)
    for channel in order:
        if min(keep[np.unique(graph.out[i])].sum() for i in graph.convolutions()) == 1:  # a cfg has no empty layers
            break
        before = size(graph, keep, "params")
        worth = {}
        for other in np.flatnonzero(pool & keep):
            without = keep.copy()
            without[other] = False
            worth[other] = scores[other] / (before - size(graph, without, "params"))
        assert channel == min(worth, key=worth.get)
        keep[channel] = False
    assert (~keep).sum() > 12
    assert sorted(order) == np.flatnonzero(pool).tolist()


@pytest.mark.parametrize("kind", COSTS)
def test_at_the_same_size_less_importance_is_lost(kind):
    model = network(CSP)
    graph = ChannelGraph(model.defs)
    policy, limits, cost = POLICIES["slim"], Limits(), COSTS[kind](model, graph, 64)
    pool, lost = candidates(graph, policy), {"plain": [], "greedy": []}
    for seed in range(5):
        scores = np.random.default_rng(seed).random(graph.count)
        greedy = removal_order(lambda keep, scores=scores: scores, pool, cost)
        for name, order in (("plain", None), ("greedy", greedy)):
            amounts = (global_mask(graph, scores, policy, n / 50, limits, order).keep for n in range(50))
            keep = next(keep for keep in amounts if size(graph, keep, kind) <= 0.6 * size(graph, keep | True, kind))
            lost[name].append(scores[~keep].sum())
    assert sum(lost["greedy"]) < 0.9 * sum(lost["plain"])


def test_a_third_cost_needs_nothing_but_a_function():
    scores, pool = np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, True, False, True])
    milliseconds = np.array([1.0, 4.0, 100.0, 100.0])
    assert removal_order(lambda keep: scores, pool, lambda keep: milliseconds * keep).tolist() == [3, 1, 0]
