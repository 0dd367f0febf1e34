"""utils.importance: scores of channels against formulas and finite differences."""

import numpy as np
import pytest
import torch

from tests.tiny import RESIDUAL, TOPOLOGIES, network
from utils.graph import ChannelGraph
from utils.importance import TaylorTerms, taylor_terms


def loss_of(model) -> torch.Tensor:
    image = torch.rand(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return sum(raw.square().mean() for raw in model(image)[1])


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_taylor_terms_are_the_slope_of_the_loss_along_a_channels_gammas_and_betas(name):
    """d/dt of the loss when all of an id's gammas and betas are multiplied by t, at t = 1, by finite differences."""
    model = network(TOPOLOGIES[name]).double()
    graph = ChannelGraph(model.defs)
    loss_of(model).backward()
    found = taylor_terms(model, graph)
    scaled = [i for i in range(graph.count) if any(i in graph.out[k] for k in graph.gammas())]
    assert not found[np.setdiff1d(np.arange(graph.count), scaled)].any()
    for channel in scaled[::5]:
        losses = []
        for factor in (1 - 1e-5, 1 + 1e-5):
            changed = network(TOPOLOGIES[name]).double()
            for index in graph.gammas():
                norm, here = changed.module_list[index].BatchNorm2d, torch.from_numpy(graph.out[index] == channel)
                norm.weight.data[here] *= factor
                norm.bias.data[here] *= factor
            losses.append(float(loss_of(changed).detach()))
        assert found[channel] == pytest.approx((losses[1] - losses[0]) / 2e-5, rel=1e-3, abs=1e-8)


def test_taylor_terms_follow_the_gradients_and_are_0_without():
    model = network(RESIDUAL)
    graph = ChannelGraph(model.defs)
    terms = TaylorTerms(model, graph)
    assert not terms().any()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    norms = {i: model.module_list[i].BatchNorm2d for i in graph.gammas()}
    expected = sum((norms[i].weight + norms[i].bias).detach() for i in (1, 3, 6))  # what the two shortcuts add
    torch.testing.assert_close(terms()[graph.out[1]], expected)
    norms[1].weight.grad = None
    torch.testing.assert_close(terms()[graph.out[1]], expected - norms[1].weight.detach())
