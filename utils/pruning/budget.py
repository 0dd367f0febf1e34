"""From a budget of milliseconds to a network: what a table foretells is measured, and what it may foretell corrected by it.

Measuring a whole network takes seconds, so it is tried a few times only, where the line between the nearest trials on both
sides says that the budget is met.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from utils.pruning.amounts import first_true

TOLERANCE = 0.03  # of the budget, on either side
TRIALS = 6
FINENESS = 0.004  # of what the table may foretell, from one level to the next
LEAST = 0.01  # of the original's milliseconds that the table is asked for


@dataclass(frozen=True)
class Trial:
    """level: the milliseconds that the table might foretell at most. foretold: those that it does, of the network that leaves
    no more of it unspent than it must. ms: that were measured of that network."""

    level: float
    foretold: float
    ms: float

    def is_near(self, target: float) -> bool:
        return abs(self.ms - target) <= TOLERANCE * target


def levels(whole: float) -> list[float]:
    """What the table may be asked to foretell of a network of `whole` milliseconds, the most first.

    >>> [round(level, 2) for level in levels(50.0)[:3]]
    [49.8, 49.6, 49.4]
    """
    found = [whole * (1 - FINENESS)]
    while found[-1] > LEAST * whole:
        found.append(found[-1] * (1 - FINENESS))
    return found


def approach(
    tried: Sequence[float], foretell: Callable[[float], float], measure: Callable[[float], float], target: float,
    original: Trial,
) -> list[Trial]:  # fmt: skip
    """Trials until one is within TOLERANCE of `target` milliseconds, at most TRIALS; `nearest` says which is to be taken.

    tried: levels, the most first; foretell and measure: milliseconds of the network of a level. original: with nothing pruned.
    """
    trials: list[Trial] = []
    while len(trials) < TRIALS:
        level = _next(tried, foretell, target, [original, *trials])
        if level is None:
            break
        trials.append(Trial(level, foretell(level), measure(level)))
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


def sides(trials: Sequence[Trial], target: float) -> tuple[float | None, float | None]:
    """Milliseconds that came the nearest to the target, from below and from above."""
    below = max((trial.ms for trial in trials if trial.ms <= target), default=None)
    return below, min((trial.ms for trial in trials if trial.ms > target), default=None)


def _next(tried: Sequence[float], foretell: Callable[[float], float], target: float, known: Sequence[Trial]
          ) -> float | None:  # fmt: skip
    """The level to try after `known`; None if there is none that is untried between the nearest ones on both sides."""
    above = min((t for t in known if t.ms > target), key=lambda t: t.foretold)
    below = max((t for t in known if t.ms <= target and t.foretold < above.foretold), key=lambda t: t.foretold, default=None)
    low, low_ms = (below.foretold, below.ms) if below else (0.0, 0.0)
    budget = low + (above.foretold - low) * (target - low_ms) / (above.ms - low_ms)
    smaller = _from(tried, lambda level: foretell(level) < above.foretold)
    between = smaller[: len(smaller) - len(_from(smaller, lambda level: foretell(level) <= low))] if below else smaller
    if not between:
        return None
    return first_true(between, lambda level: foretell(level) <= budget) or between[-1]


def _from(tried: Sequence[float], holds: Callable[[float], bool]) -> Sequence[float]:
    """The levels from the first one on for which it holds."""
    first = first_true(tried, holds)
    return [] if first is None else tried[tried.index(first) :]
