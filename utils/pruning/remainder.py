"""What a budget has left over, spent: channels go in whole steps, of which one can free much more than was wanted.

The order of removal is the greedy one for the knapsack. It ends with the first amount that fits, and where the last step was a
coarse one (sixteen filters of an early layer, which compute on large maps) that is far below the budget. As for any knapsack,
there are two ways on from there, and the better is taken: with the coarse step gone, others come back, the last that went
first, as long as they fit; or the coarse step stays, and what would have gone next goes instead.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from utils.pruning.amounts import first_true
from utils.pruning.pruner import Amount, Choice, Pruner


class Filler:
    """Choices that use a budget up. amounts: from the smallest on; cost: of what a choice leaves, which falls along them."""

    def __init__(self, pruner: Pruner, amounts: Sequence[Amount], cost: Callable[[Choice], float]) -> None:
        self.pruner, self.amounts, self.cost = pruner, amounts, cost
        self.layers = [np.unique(pruner.graph.out[i]) for i in pruner.graph.convolutions()]
        self.cost_at = functools.cache(lambda amount: cost(pruner.choose(amount)))

    def fill(self, budget: float) -> Choice:
        """The choice that loses the least of those that fit and leave no room for another step; the largest amount where
        none fits."""
        amounts, choose = self.amounts, self.pruner.choose
        found = first_true(amounts, lambda amount: self.cost_at(amount) <= budget)
        if found is None:
            return choose(amounts[-1])
        place, choice = amounts.index(found), choose(found)
        before = choose(amounts[place - 1]).mask.keep if place else np.ones_like(choice.mask.keep)
        step = np.flatnonzero(before & ~choice.mask.keep)

        def without_step(amount: Amount) -> Choice:
            return self.pruner.with_channels(choose(amount), step)

        further = first_true(amounts[place + 1 :], lambda amount: self.cost(without_step(amount)) <= budget)
        starts = [choice] + ([without_step(further)] if further else [])
        return min((self.give_back(start, budget) for start in starts), key=self.pruner.price)

    def give_back(self, choice: Choice, budget: float) -> Choice:
        """A choice that fits, with what still does, the last that went first. A layer of which one step more doesn't fit is
        done with, as what is left over only shrinks."""
        done = np.zeros(self.pruner.graph.count, dtype=bool)
        for channel in self.pruner.last_gone_first():
            if choice.mask.keep[channel] or done[channel]:
                continue
            larger = self.pruner.with_channels(choice, channel)
            if self.cost(larger) <= budget:
                choice = larger
                continue
            for ids in self.layers:
                done[ids] |= channel in ids
        return choice
