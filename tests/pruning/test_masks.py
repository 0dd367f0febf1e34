"""utils.pruning.importance and utils.pruning.masks: scores and masks of small networks, worked by hand."""

import numpy as np
import pytest
import torch

from tests.tiny import CSP, DEPTHWISE, RESIDUAL, TOPOLOGIES, network
from utils.pruning.graph import ChannelGraph
from utils.pruning.importance import gamma_scores
from utils.pruning.masks import POLICIES, Limits, candidates, global_mask


def gamma_of(model, index: int) -> np.ndarray:
    return model.module_list[index].BatchNorm2d.weight.detach().abs().double().numpy()


def test_scores_of_united_channels():
    model = network(RESIDUAL)
    graph = ChannelGraph(model.defs)
    members = np.stack([gamma_of(model, i) for i in (1, 3, 6)])  # what the two shortcuts add
    shared = graph.out[1]
    np.testing.assert_array_equal(gamma_scores(model, graph, "first")[shared], members[0])
    np.testing.assert_array_equal(gamma_scores(model, graph, "largest")[shared], members.max(0))


def test_a_channel_through_a_depthwise_convolution_is_worth_its_smallest_gamma():
    model = network(DEPTHWISE)
    graph = ChannelGraph(model.defs)
    expected = np.minimum(gamma_of(model, 1), gamma_of(model, 2))
    np.testing.assert_array_equal(gamma_scores(model, graph)[graph.out[1]], expected)


def test_normal_keeps_what_shortcuts_united_and_slim_does_not():
    graph = ChannelGraph(network(RESIDUAL).defs)
    normal, slim = candidates(graph, POLICIES["normal"]), candidates(graph, POLICIES["slim"])
    assert normal.sum() == 8 + 6 + 6
    assert slim.sum() == 8 + 6 + 6 + 12


@pytest.mark.parametrize("percent", [0.0, 0.25, 0.5])
def test_the_weakest_go_and_nothing_else(percent):
    model = network(RESIDUAL)
    graph, policy = ChannelGraph(model.defs), POLICIES["normal"]
    scores = gamma_scores(model, graph)
    mask = global_mask(graph, scores, policy, percent, Limits())
    pool = np.flatnonzero(candidates(graph, policy))
    weakest = pool[np.argsort(scores[pool])[: round(percent * len(pool))]]
    assert sorted(np.flatnonzero(~mask.keep)) == sorted(weakest)
    assert mask.achieved == pytest.approx(len(weakest) / len(pool))


@pytest.mark.parametrize("name", TOPOLOGIES)
@pytest.mark.parametrize("policy", POLICIES)
def test_no_layer_is_emptied_and_parts_stay_equal(name, policy):
    model = network(TOPOLOGIES[name])
    graph = ChannelGraph(model.defs)
    mask = global_mask(graph, gamma_scores(model, graph), POLICIES[policy], 0.99, Limits(min_channels=2))
    assert all(mask.keep[np.unique(ids)].sum() >= min(2, len(np.unique(ids))) for ids in graph.out)
    assert all(len({mask.keep[p].sum() for p in parts}) == 1 for parts in graph.equal_parts)
    assert mask.keep[graph.frozen].all()


def test_limit_is_the_largest_percent_that_empties_no_layer():
    model = network(RESIDUAL)
    graph, policy = ChannelGraph(model.defs), POLICIES["normal"]
    scores = gamma_scores(model, graph)
    pool = np.flatnonzero(candidates(graph, policy))
    limit = global_mask(graph, scores, policy, 0.5, Limits()).limit

    def empties(count: int) -> bool:
        keep = np.ones(graph.count, dtype=bool)
        keep[pool[np.argsort(scores[pool], kind="stable")[:count]]] = False
        return any(not keep[ids].any() for ids in graph.out)

    assert not empties(round(limit * len(pool)))
    assert empties(round(limit * len(pool)) + 1)


def test_ties_do_not_change_the_count():
    model = network(RESIDUAL)
    for index in (0, 2, 5):
        torch.nn.init.constant_(model.module_list[index].BatchNorm2d.weight, 0.5)
    graph = ChannelGraph(model.defs)
    mask = global_mask(graph, gamma_scores(model, graph), POLICIES["normal"], 0.25, Limits())
    assert (~mask.keep).sum() == 5  # a quarter of 20


def test_regular_keeps_multiples():
    model = network(CSP)
    graph = ChannelGraph(model.defs)
    mask = global_mask(graph, gamma_scores(model, graph), POLICIES["regular"], 0.6, Limits(round_to=4))
    counts = {i: int(mask.keep[graph.out[i]].sum()) for i in graph.convolutions()}
    assert [n % 4 for i, n in counts.items() if i < 9] == [0] * 5
    assert sum(counts.values()) < sum(len(graph.out[i]) for i in counts)


def test_layer_keep():
    model = network(CSP)
    graph = ChannelGraph(model.defs)
    mask = global_mask(graph, gamma_scores(model, graph), POLICIES["slim"], 0.9, Limits(layer_keep=0.5))
    assert all(2 * mask.keep[graph.out[i]].sum() >= len(graph.out[i]) for i in graph.convolutions())
