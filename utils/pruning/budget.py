"""From a budget of milliseconds to an amount of pruning: what a table foretells is measured, and the budget corrected by it.

Measuring a whole network takes seconds, so it is tried a few times only, where the line between the nearest trials on both
sides says that the budget is met.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from utils.pruning.amounts import first_true
from utils.pruning.pruner import Amount

TOLERANCE = 0.03  # of the budget, on either side
TRIALS = 6


@dataclass(frozen=True)
class Trial:
    """An amount, the milliseconds that the table foretells for it, and those that were measured."""

    amount: Amount
    foretold: float
    ms: float

    def is_near(self, target: float) -> bool:
        return abs(self.ms - target) <= TOLERANCE * target


def approach(
    amounts: Sequence[Amount], foretell: Callable[[Amount], float], measure: Callable[[Amount], float], target: float,
    original: Trial,
) -> list[Trial]:  # fmt: skip
    """Trials until one is within TOLERANCE of `target` milliseconds, at most TRIALS; `nearest` says which is to be taken.

    amounts: from the smallest on; foretell falls along them. original: with nothing pruned.
    """
    trials: list[Trial] = []
    while len(trials) < TRIALS:
        amount = _next(amounts, foretell, target, [original, *trials])
        if amount is None:
            break
        trials.append(Trial(amount, foretell(amount), measure(amount)))
        if trials[-1].is_near(target):
            break
    return trials


def nearest(trials: Sequence[Trial], target: float) -> Trial:
    """The one that is near the target; else the slowest that keeps to it; else the fastest."""
    near = [trial for trial in trials if trial.is_near(target)]
    kept = [trial for trial in trials if trial.ms <= target]
    if near or kept:
        return min(near or kept, key=lambda trial: abs(trial.ms - target))
    return min(trials, key=lambda trial: trial.ms)


def _next(amounts: Sequence[Amount], foretell: Callable[[Amount], float], target: float, known: Sequence[Trial]
          ) -> Amount | None:  # fmt: skip
    """The amount to try after `known`; None if there is none that is untried between the nearest ones on both sides."""
    above = min((t for t in known if t.ms > target), key=lambda t: t.foretold)
    below = max((t for t in known if t.ms <= target and t.foretold < above.foretold), key=lambda t: t.foretold, default=None)
    low, low_ms = (below.foretold, below.ms) if below else (0.0, 0.0)
    budget = low + (above.foretold - low) * (target - low_ms) / (above.ms - low_ms)
    smaller = _from(amounts, lambda amount: foretell(amount) < above.foretold)
    between = smaller[: len(smaller) - len(_from(smaller, lambda amount: foretell(amount) <= low))] if below else smaller
    if not between:
        return None
    return first_true(between, lambda amount: foretell(amount) <= budget) or between[-1]


def _from(amounts: Sequence[Amount], holds: Callable[[Amount], bool]) -> Sequence[Amount]:
    """The amounts from the first one on for which it holds."""
    first = first_true(amounts, holds)
    return [] if first is None else amounts[amounts.index(first) :]
