"""utils.pruning.sparsity: exactly the prunable gammas are pushed, once a step, whatever the loss scale and the accumulation."""

import numpy as np
import pytest
import torch

from tests.tiny import CSP, RESIDUAL, network
from utils.core.errors import UserError
from utils.core.fields import Fields
from utils.pruning.graph import ChannelGraph
from utils.pruning.residual_blocks import residual_blocks
from utils.pruning.sparsity import GammaPenalty, gamma_statistics, gamma_values, penalised_channels, sparsity_warnings


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
    with pytest.raises(UserError, match="--prune 2: .* no residual blocks that could be dropped; use --prune 0"):
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


def test_layer_strategy_penalises_what_layer_prune_ranks():
    cfg = RESIDUAL.replace("[shortcut]\nfrom=-3", "[dropout]\n[shortcut]\nfrom=-4")
    graph = ChannelGraph(network(cfg).defs)
    assert set(penalised_channels(graph, 2)) == {i for block in residual_blocks(graph) for i in block.ends} == {3, 7}


def penalty(schedule: str, model=None, **options) -> GammaPenalty:
    return GammaPenalty(model or network(RESIDUAL), 0, options.pop("s", 0.4), schedule=schedule, **options)


def pushes(found: GammaPenalty) -> list[torch.Tensor]:
    """What `apply` adds to each gamma's gradient."""
    for gamma in found.gammas:
        gamma.grad = torch.zeros_like(gamma)
    found.apply()
    return [gamma.grad.abs() for gamma in found.gammas]


def test_constant_and_global_decay():
    constant, decay = penalty("constant", epochs=5), penalty("global-decay", epochs=5)
    seen = []
    for epoch in range(5):
        constant.start_epoch(epoch, 0, 1)
        decay.start_epoch(epoch, 0, 1)
        assert all((push == 0.4).all() for push in pushes(constant))
        seen.append(decay.strength)
    assert seen == pytest.approx([0.4, 0.4, 0.4, 0.004, 0.004])


def test_local_decay_spares_the_largest_gammas_from_half_on():
    found = penalty("local-decay", epochs=4, keep=0.75)
    found.start_epoch(1, 0, 1)
    assert all((push == 0.4).all() for push in pushes(found))
    found.start_epoch(2, 0, 1)
    gammas, push = torch.cat([g.detach() for g in found.gammas]).abs(), torch.cat(pushes(found))
    order = gammas.argsort()
    torch.testing.assert_close(push[order], torch.tensor([0.4] * 15 + [0.004] * 5))  # 15 of 20 are the smallest 75 %


@pytest.mark.parametrize("stiffness", [0.02, 0.3])
@pytest.mark.parametrize("target", [0.4, 0.7])
@pytest.mark.parametrize(("epochs", "steps"), [(12, 40), (60, 5), (60, 20)])
def test_dynamic_reaches_the_wanted_share_whatever_the_resistance(stiffness, target, epochs, steps):
    """A training in which each gamma is pulled back to where it began by a spring of its own, by SGD with momentum."""
    model = network(RESIDUAL)
    found = penalty("dynamic", model, s=0.0, target=target, epochs=epochs)
    springs = [torch.rand_like(g) * stiffness for g in found.gammas]
    starts = [g.detach().clone() for g in found.gammas]
    optimizer = torch.optim.SGD(found.gammas, lr=0.01, momentum=0.937)
    rates = 0.01 * (0.01 + 0.99 * (1 + np.cos(np.pi * np.arange(steps * epochs) / (steps * epochs))) / 2)
    way = np.cumsum([0, *rates / (1 - 0.937)])
    for epoch in range(epochs):
        found.start_epoch(epoch, way[epoch * steps], way[-1])
        for step in range(steps):
            for gamma, spring, start in zip(found.gammas, springs, starts, strict=True):
                gamma.grad = spring * (gamma.detach() - start)
            found.apply()
            optimizer.param_groups[0]["lr"] = rates[epoch * steps + step]
            optimizer.step()
    reached = gamma_statistics(model, found.channels)["near_zero"]
    assert target - 0.06 <= reached <= target + 0.2  # each of the 20 gammas is a share of 0.05


def test_dynamic_goes_on_after_a_restore_as_it_would_have():
    first, second = (penalty("dynamic", s=0.0, epochs=9) for _ in range(2))
    for found in (first, second):
        found.start_epoch(0, 0.0, 10.0)
    for gammas in zip(first.gammas, second.gammas, strict=True):
        for gamma in gammas:
            gamma.data *= 0.97
    fresh = penalty("dynamic", network(RESIDUAL), s=0.0, epochs=9)
    for gamma, other in zip(fresh.gammas, first.gammas, strict=True):
        gamma.data.copy_(other.data)
    fresh.restore(Fields.of(first.state(), "last.pt"))
    for found in (first, fresh):
        found.start_epoch(1, 1.0, 10.0)
    assert first.strength == fresh.strength != second.strength


def history(near_zero: list[float], median: list[float], map50: list[float]) -> dict[str, np.ndarray]:
    count = len(near_zero)
    return {
        k: np.array(v) for k, v in {"epoch": range(1, count + 1), "near_zero": near_zero, "g50": median, "mAP50": map50}.items()
    }


def test_a_strength_that_moves_nothing_is_called_too_small():
    median = [1 - 0.005 * n for n in range(10)]
    (line,) = sparsity_warnings(history([0.0] * 10, median, [0.5] * 10), 40, 0.001)
    assert line.startswith(
        "s too small: the share under 0.01 moved by 0.000 in 10 epochs, the median gamma from 1.000 to 0.955"
    )
    assert "begin again with --s 0.0" in line
    assert sparsity_warnings(history([0.0] * 9, median[:9], [0.5] * 9), 40, 0.001) == []  # not asked at this epoch
    assert sparsity_warnings(history([0.0] * 10, median, [0.5] * 10), 40, 0.0) == []  # dynamic


def test_a_strength_that_will_get_there_is_not():
    falling = [1 - 0.045 * n for n in range(10)]
    assert sparsity_warnings(history([0.0] * 10, falling, [0.5] * 10), 40, 0.01) == []
    assert sparsity_warnings(history(np.linspace(0, 0.3, 10), [0.9] * 10, [0.5] * 10), 40, 0.01) == []


def test_a_strength_that_costs_accuracy_is_called_too_large_once():
    accuracy = [0.5, 0.8, 0.8, 0.5, 0.4, 0.3]
    said = [sparsity_warnings(history([0.1] * n, [0.5] * n, accuracy[:n]), 40, 0.1) for n in range(1, 7)]
    assert [len(lines) for lines in said] == [0, 0, 0, 0, 1, 0]
    assert said[4][0].startswith("s too large: mAP@0.5 fell by 0.400, to 0.400; take a smaller --s")
