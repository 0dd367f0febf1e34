"""utils.pruning.remainder: what a coarse step leaves of a budget is spent, by numbers by hand."""

import numpy as np
import pytest
import torch

from tests.tiny import NET, conv, head, network
from utils.pruning.amounts import axis
from utils.pruning.graph import ChannelGraph
from utils.pruning.masks import Limits
from utils.pruning.pruner import Amount, Choice, Pruner
from utils.pruning.remainder import Filler

DEAR, CHEAP = 0, 1  # layers: of 4 filters that cost 10 each, and of 8 that cost 1


def filler(dear: list[float], cheap: list[float]) -> Filler:
    """Of a network with these gammas, whose filters go two by two."""
    model = network(NET + conv(4) + conv(8) + head())
    for layer, gammas in ((DEAR, dear), (CHEAP, cheap)):
        model.module_list[layer].BatchNorm2d.weight.data = torch.tensor(gammas)

    graph = ChannelGraph(model.defs)
    prices = np.zeros(graph.count)
    prices[graph.out[DEAR]], prices[graph.out[CHEAP]] = 10, 1

    def cost(keep: np.ndarray) -> np.ndarray:
        return prices * keep

    pruner = Pruner(model, "normal", Limits(round_to=2), cost=cost)
    return Filler(pruner, axis(pruner, Amount(0.0), 0.001), lambda choice: float(cost(choice.mask.keep).sum()))


def counts(found: Filler, choice: Choice) -> list[int]:
    return [row["after"] for row in found.pruner.layer_counts(choice)[:2]]


def test_what_went_last_comes_back():
    """Four cheap filters go first, 44 left; then two dear ones, 24 left of 40, which nothing else could have met."""
    found = filler([0.5, 0.5, 100, 100], [0.04] * 4 + [90] * 4)
    plain = next(a for a in found.amounts if found.cost_at(a) <= 40)
    assert counts(found, found.pruner.choose(plain)) == [2, 4]
    assert counts(found, found.fill(40)) == [2, 8]
    assert counts(found, found.fill(27)) == [2, 6]
    assert counts(found, found.fill(24)) == [2, 4]


def test_where_others_do_the_coarse_step_stays():
    """Two more cheap filters, worth 0.12, do what two dear ones, worth 1, would have done."""
    found = filler([0.5, 0.5, 100, 100], [0.04] * 4 + [0.06, 0.06, 90, 90])
    choice = found.fill(42)
    assert counts(found, choice) == [4, 2]
    assert found.pruner.price(choice) == pytest.approx(4 * 0.04 + 2 * 0.06)
    assert choice.mask.achieved == pytest.approx(6 / 12)


def test_a_budget_that_nothing_meets_ends_with_the_largest_amount():
    found = filler([0.5] * 4, [0.5] * 8)
    assert counts(found, found.fill(1.0)) == [2, 2]


@pytest.mark.parametrize("budget", range(22, 48))
def test_no_step_more_would_fit(budget):
    found = filler([0.5, 0.6, 0.7, 100], [0.04, 0.05, 0.06, 0.07, 0.2, 0.3, 0.4, 0.5])
    choice = found.fill(budget)
    assert found.cost(choice) <= budget
    for layer in (DEAR, CHEAP):
        gone = found.pruner.graph.out[layer]
        gone = gone[~choice.mask.keep[gone]]
        assert not len(gone) or found.cost(found.pruner.with_channels(choice, gone[:1])) > budget
