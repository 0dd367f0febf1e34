"""utils.sparsity: exactly the prunable gammas are pushed, once a step, whatever the loss scale and the accumulation."""

import numpy as np
import pytest
import torch

from tests.tiny import CSP, RESIDUAL, network
from utils.errors import UserError
from utils.graph import ChannelGraph
from utils.sparsity import GammaPenalty, gamma_statistics, gamma_values, penalised_channels


def gradients(model) -> dict[int, torch.Tensor]:
    graph = ChannelGraph(model.defs)
    return {i: model.module_list[i].BatchNorm2d.weight.grad.clone() for i in graph.gammas()}


def backward(model, times: int = 1) -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 3, 64, 64)
    for _ in range(times):
        sum(raw.square().mean() for raw in model(image)).backward()


@pytest.mark.parametrize(("strategy", "layers"), [(0, {0, 2, 5}), (1, {0, 1, 2, 3, 5, 6}), (2, {3, 6})])
def test_exactly_the_prunable_gammas_get_s_times_sign(strategy, layers):
    model = network(RESIDUAL).train()
    model.module_list[0].BatchNorm2d.weight.data[0] = -0.5
    backward(model, times=3)
    before = gradients(model)
    GammaPenalty(model, strategy, 0.25).apply()
    for index, grad in gradients(model).items():
        gamma = model.module_list[index].BatchNorm2d.weight
        expected = 0.25 * gamma.sign() if index in layers else torch.zeros_like(gamma)
        torch.testing.assert_close(grad - before[index], expected.detach())


def test_heads_and_their_inputs_stay_unpenalised_where_they_cannot_be_pruned():
    channels = penalised_channels(ChannelGraph(network(CSP).defs), 0)
    assert set(channels) == {0, 1, 3, 4, 6, 9}
    assert all(mask.all() for mask in channels.values())


def test_layer_strategy_without_residual_blocks_is_refused():
    with pytest.raises(UserError, match="--prune 2: .* no residual blocks; use --prune 0"):
        GammaPenalty(network(CSP), 2, 0.1)


def test_statistics():
    model = network(RESIDUAL)
    channels = penalised_channels(ChannelGraph(model.defs), 0)
    values = torch.linspace(0, 1, 20)
    for index, part in zip((0, 2, 5), values.split([8, 6, 6]), strict=True):
        model.module_list[index].BatchNorm2d.weight.data = part * (-1 if index == 2 else 1)
    np.testing.assert_allclose(gamma_values(model, channels), values.numpy(), rtol=1e-6)
    found = gamma_statistics(model, channels)
    assert found["near_zero"] == 1 / 20
    assert found["quantiles"][0.5] == pytest.approx(0.5)
