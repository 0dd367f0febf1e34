"""utils.pruning.directed: the least important fade to exactly zero, nothing else is touched, and a promise holds it."""

import numpy as np
import pytest
import torch

from tests.tiny import CSP, NET, RESIDUAL, TOPOLOGIES, conv, head, network
from utils.core.errors import UserError
from utils.core.fields import Fields
from utils.pruning.directed import FADE, DirectedSparsity
from utils.pruning.graph import ChannelGraph
from utils.pruning.masks import Limits
from utils.pruning.promise import Promise
from utils.pruning.pruner import Amount, Pruner
from utils.pruning.residual_blocks import residual_blocks

STEPS = 120


def directed(model, strategy: int = 0, target: float = 0.5, max_drop: float = 0.02) -> DirectedSparsity:
    return DirectedSparsity(model, strategy, target, STEPS, Promise(max_drop))


def norms(model) -> dict[int, torch.nn.BatchNorm2d]:
    return {i: model.module_list[i].BatchNorm2d for i in ChannelGraph(model.defs).gammas()}


def give_gradients(model, importance: dict[int, torch.Tensor]) -> None:
    """Gradients by which gamma * dL/dgamma + beta * dL/dbeta is `importance` for every channel that isn't gone."""
    for index, norm in norms(model).items():
        gamma = norm.weight.detach()
        norm.weight.grad = torch.where(gamma == 0, torch.zeros_like(gamma), importance[index] / gamma)
        norm.bias.grad = torch.zeros_like(gamma)


def advance(model, found: DirectedSparsity, importance, steps: range = range(STEPS), averaged=None) -> None:
    for step in steps:
        give_gradients(model, importance)
        found.apply()
        found.settle(step + 1.0, float(STEPS), averaged)


def random_importance(model) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {i: torch.rand(len(norm.weight), generator=generator) + 0.01 for i, norm in norms(model).items()}


@pytest.mark.parametrize(("cfg", "strategy"), [(cfg, s) for cfg in TOPOLOGIES.values() for s in (0, 1)])
def test_the_wanted_share_ends_at_zero_and_the_rest_is_as_it_was(cfg, strategy):
    model = network(cfg)
    before = {i: (n.weight.detach().clone(), n.bias.detach().clone()) for i, n in norms(model).items()}
    found = directed(model, strategy)
    advance(model, found, random_importance(model))
    assert found.share == pytest.approx(0.5, abs=0.5 / found.units.pool.sum())
    for index, norm in norms(model).items():
        gone = torch.from_numpy(found.gone[found.units.out[index]])
        for parameter, original in zip((norm.weight, norm.bias), before[index], strict=True):
            assert (parameter[gone] == 0).all()
            assert torch.equal(parameter[~gone], original[~gone])


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_no_optimizer_can_hold_what_is_to_go(optimizer):
    """Gradients that pull every gamma away from zero, as strong as you like."""
    model = network(RESIDUAL)
    found, parameters = directed(model), [p for n in norms(model).values() for p in (n.weight, n.bias)]
    stepper = optimizer(parameters, lr=0.01)
    for step in range(STEPS):
        for parameter in parameters:
            parameter.grad = -10 * torch.ones_like(parameter)
        found.apply()
        stepper.step()
        found.settle(step + 1.0, float(STEPS))
    for index in found.channels:
        gone = torch.from_numpy(found.gone[found.units.out[index]])
        assert (norms(model)[index].weight[gone] == 0).all()
    assert found.share == pytest.approx(0.5, abs=0.05)


def test_the_least_important_go():
    model = network(CSP)
    graph, importance = ChannelGraph(model.defs), random_importance(model)
    found = directed(model, target=0.3)
    advance(model, found, importance)
    worth = np.zeros(graph.count)
    for index, values in importance.items():
        np.add.at(worth, graph.out[index], values.numpy())
    worth[~found.units.pool] = np.inf
    keep = np.ones(graph.count, dtype=bool)
    keep[np.argsort(worth)[: found.gone.sum()]] = False
    parts = [p for split in graph.equal_parts for p in split]  # whose counts have to stay equal, so that others may go
    free = np.setdiff1d(np.arange(graph.count), np.concatenate(parts))
    assert (found.gone[free] == ~keep[free]).mean() > 0.9
    assert all(found.gone[a].sum() == found.gone[b].sum() for a, b in graph.equal_parts)


@pytest.mark.parametrize(("spend", "expected"), [("none", [0, 3]), ("params", [0, 3]), ("macs", [3, 0])])
def test_what_goes_is_weighed_against_what_it_saves(spend, expected):
    """Of four filters of 3 x 3 on the image at 64 x 64 pixels each is 27 weights that are used 4096 times, and 4 * 9 that read
    it, 1024 times; of the four after them each is 4 * 9 and 14 of the head, 1024 times. So a first one, worth 2, saves 147,456
    MACs and 27 + 2 + 36 = 65 parameters, a second one, worth 1, 51,200 and 36 + 2 + 14 = 52. By importance the second ones go
    (1 < 2), by parameters too (1 / 52 < 2 / 65), by MACs the first (2 / 147,456 < 1 / 51,200): three, as one has to stay."""
    model = network(NET + conv(4) + conv(4, stride=2) + head())
    graph = ChannelGraph(model.defs)
    found = DirectedSparsity(model, 0, 0.4, STEPS, Promise(0.02), spend, 64)
    scores = np.zeros(graph.count)
    scores[graph.out[0]], scores[graph.out[1]] = 2.0, 1.0
    chosen = found.units.weakest(scores, 3)
    assert [int(chosen[graph.out[i]].sum()) for i in (0, 1)] == expected
    gradients = {i: torch.full((4,), value**0.5) for i, value in ((0, 2.0), (1, 1.0))}  # importance is their square
    advance(model, found, gradients)
    assert [int(found.gone[graph.out[i]].sum()) for i in (0, 1)] == expected


def test_no_layer_is_emptied_and_the_averaged_weights_follow():
    model, averaged = network(RESIDUAL), network(RESIDUAL)
    found = directed(model, strategy=1, target=0.97)
    advance(model, found, random_importance(model), averaged=averaged)
    graph = ChannelGraph(model.defs)
    assert all((~found.gone[graph.out[i]]).any() for i in graph.convolutions())
    assert found.share > 0.8
    for index, norm in norms(averaged).items():
        gone = torch.from_numpy(found.gone[graph.out[index]])
        assert gone.any()
        assert (norm.weight[gone] == 0).all()
        assert (norm.bias[gone] == 0).all()


def test_the_prune_script_finds_exactly_what_is_gone():
    model = network(CSP)
    found = directed(model)
    advance(model, found, random_importance(model))
    pruner = Pruner(model, "normal", Limits())
    choice = pruner.choose(Amount(float(found.amount().split()[1])))
    assert (choice.mask.keep == ~found.gone).all()
    image = torch.rand(1, 3, 64, 64)
    for before, after in zip(model(image)[1], pruner.compact(choice)(image)[1], strict=True):
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_layer_pruning_silences_whole_blocks():
    model = network(RESIDUAL)
    graph, importance = ChannelGraph(model.defs), random_importance(model)
    first, second = residual_blocks(graph)
    importance[second.ends[0]] += 5
    found = directed(model, strategy=2)
    advance(model, found, importance)
    assert (norms(model)[first.ends[0]].weight == 0).all()
    assert (norms(model)[second.ends[0]].weight != 0).all()
    assert found.amount() == "--shortcut 1"
    pruner = Pruner(model, "layer", Limits())
    assert pruner.choose(pruner.check(0.0, 1)).dropped == [first]


def test_what_fades_is_only_let_go_for_something_clearly_weaker():
    model = network(RESIDUAL)
    importance = random_importance(model)
    found = directed(model)
    advance(model, found, importance, range(11))
    assert found.fading.any()
    assert not found.gone.any()
    graph, fading = ChannelGraph(model.defs), found.fading.copy()
    changed = {i: values * np.where(fading[graph.out[i]], 1.3, 1.0).astype(np.float32) for i, values in importance.items()}
    advance(model, found, changed, range(11, 14))
    assert (found.left[fading] < np.inf).all()
    strong = {i: values * np.where(fading[graph.out[i]], 100, 1).astype(np.float32) for i, values in importance.items()}
    advance(model, found, strong, range(14, 16))
    assert (found.left[fading] == np.inf).all()
    assert found.fading.any()


def test_the_push_grows():
    """The share of itself that a fading gamma loses in a step rises to 1 as its way ends."""
    model = network(RESIDUAL)
    found, importance, lost = directed(model), random_importance(model), []
    advance(model, found, importance, range(11))
    unit = np.flatnonzero(found.fading)[0]
    index = next(i for i in found.channels if unit in found.units.out[i])
    place = list(found.units.out[index]).index(unit)
    for step in range(11, 11 + int(FADE * STEPS)):
        before = norms(model)[index].weight[place].item()
        advance(model, found, importance, range(step, step + 1))
        lost.append(1 - norms(model)[index].weight[place].item() / before if before else 1.0)
    assert lost == sorted(lost)
    assert (lost[0] < 0.25, lost[-1]) == (True, 1.0)


def judge(found: DirectedSparsity, map50: float, model, epoch: int = 1) -> bool:
    figures = {"epoch": epoch, "map50": map50, "map": map50 / 2}
    return found.promise.note(figures, 0.1 * map50 + 0.9 * map50 / 2, found.share, model)


def test_it_pauses_while_accuracy_is_below_the_promise_and_lets_go_when_that_lasts():
    model = network(RESIDUAL)
    found, importance = directed(model), random_importance(model)
    found.promise.start = 0.8
    advance(model, found, importance, range(20))

    def epoch(number: int, map50: float) -> np.ndarray:
        judge(found, map50, model)
        found.start_epoch(number, 20.0 + number, float(STEPS))
        before = found.left.copy()
        advance(model, found, importance, range(20 + number, 21 + number))
        return before

    pushed = epoch(0, 0.781)
    assert (found.left < pushed).any()
    pushed = epoch(1, 0.77)  # a first, small drop may be noise
    assert (found.left < pushed).any()
    assert "pause" not in found.note(model)
    for number in (2, 3):
        held = epoch(number, 0.77)
        assert (found.left == held).all()
        assert found.note(model).endswith("paused: mAP@.5 is 0.0300 below where it began")
    assert found.fading.any()
    epoch(4, 0.77)
    assert not found.fading.any()
    assert "let go what fades" in found.note(model)
    epoch(5, 0.79)
    advance(model, found, importance, range(26, 40))
    assert found.fading.any()  # and on
    held = epoch(20, 0.7)  # twice as far as allowed counts at once
    assert (found.left == held).all()


def test_the_largest_share_that_kept_the_promise_is_kept():
    model = network(RESIDUAL)
    found = directed(model)
    found.promise.start = 0.8
    assert judge(found, 0.8, model, 0)
    advance(model, found, random_importance(model), range(80))
    few = found.share
    assert judge(found, 0.785, model, 1)  # more is gone, and it is near enough
    kept = norms(model)[0].weight.clone()
    assert not judge(found, 0.784, model, 2)
    advance(model, found, random_importance(model), range(80, STEPS))
    assert not judge(found, 0.75, model, 3)
    found.promise.restore_kept(model)
    assert torch.equal(norms(model)[0].weight, kept)
    assert 0 < few < found.share
    assert found.amount() == f"--percent {few:g}"
    assert "(20.0%; 50.0% asked for): mAP@.5 0.8000 -> 0.7850, as it was after epoch 1; --max-drop 0.02 is kept, with more" in (
        found.outcome().replace(f"({few:.1%}", "(20.0%")
    )


def test_it_goes_on_after_a_restore_as_it_would_have():
    models = [network(RESIDUAL), network(RESIDUAL)]
    runs, importance = [directed(m) for m in models], random_importance(models[0])
    for model, found in zip(models, runs, strict=True):
        advance(model, found, importance, range(60))
    fresh = directed(models[1])
    fresh.restore(Fields.of(runs[0].state(), "last.pt"))
    advance(models[0], runs[0], importance, range(60, STEPS))
    advance(models[1], fresh, importance, range(60, STEPS))
    assert (fresh.left == runs[0].left).all()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_a_pause_delayed_is_gone_before_the_end():
    model = network(RESIDUAL)
    found, importance = directed(model), random_importance(model)
    advance(model, found, importance, range(40))
    found.held, fading = True, found.fading.copy()
    advance(model, found, importance, range(40, STEPS - 4))
    assert (found.fading == fading).all()
    found.held = False
    advance(model, found, importance, range(STEPS - 4, STEPS))
    assert found.gone[fading].all()


def test_a_network_without_anything_that_may_go_is_refused():
    with pytest.raises(UserError, match="--prune 0: .* has no channel that may go"):
        directed(network(NET + conv(8, bn=0) + head()))
