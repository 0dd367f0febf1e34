"""utils.pruning.budget: trials come within 3 % of a budget, whatever the table's error, or to the nearest that there is."""

from collections.abc import Callable

import pytest

from utils.pruning.budget import TOLERANCE, TRIALS, Trial, approach, nearest
from utils.pruning.pruner import Amount

AMOUNTS = [Amount(n / 1000) for n in range(1000)]


def foretell(amount: Amount) -> float:
    """A table of 100 ms, 10 of which stay."""
    return 10 + 90 * (1 - amount.percent) ** 1.5


def run(measure: Callable[[float], float], target: float, table: Callable[[Amount], float] = foretell) -> list[Trial]:
    start = Trial(Amount(0.0), table(Amount(0.0)), measure(table(Amount(0.0))))
    return approach(AMOUNTS, table, lambda amount: measure(table(amount)), target, start)


TRUTHS = {
    "right": lambda ms: ms,
    "overhead": lambda ms: 30 + ms,
    "slower": lambda ms: 1.7 * ms,
    "bent": lambda ms: 0.02 * ms**2 + 3,
    "the other way": lambda ms: 12 * ms**0.5,
}


@pytest.mark.parametrize("share", [0.95, 0.75, 0.5, 0.4])
@pytest.mark.parametrize("truth", TRUTHS)
def test_within_the_tolerance(truth, share):
    measure = TRUTHS[truth]
    least, most = measure(10), measure(100)
    target = max(share * most, 1.05 * least)
    trials = run(measure, target)
    assert len(trials) <= TRIALS
    assert abs(trials[-1].ms - target) <= 0.03 * target
    assert not any(trial.is_near(target) for trial in trials[:-1])
    assert nearest(trials, target) == trials[-1]
    assert TOLERANCE == 0.03


def test_a_right_table_needs_one_trial():
    assert len(run(lambda ms: ms, 50.0)) == 1


def test_out_of_reach_ends_with_the_fastest():
    trials = run(lambda ms: ms, 5.0)
    assert len({trial.amount for trial in trials}) == len(trials)
    assert nearest(trials, 5.0).amount == AMOUNTS[-1]


def test_where_it_goes_in_steps_the_nearest_that_keeps_to_it():
    """Networks of 100, 80, 60, 40, 20 ms: 70 is none of them."""

    def table(amount: Amount) -> float:
        return 100.0 - 20 * int(5 * amount.percent)

    trials = run(lambda ms: ms, 70.0, table)
    assert sorted({trial.ms for trial in trials}) == [60.0, 80.0]
    assert nearest(trials, 70.0).ms == 60.0
    assert len(trials) == 2


def test_noise_stops_nothing():
    """What is measured swings by 10 %."""
    swing = iter([1.0, 1.1, 0.9, 1.1, 0.9, 1.1, 0.9, 1.1])
    trials = run(lambda ms: ms * next(swing), 50.0)
    assert 1 <= len(trials) <= TRIALS
    assert nearest(trials, 50.0).ms == pytest.approx(50, rel=0.15)


def test_nothing_can_be_removed():
    assert run(lambda ms: ms, 50.0, lambda amount: 100.0) == []
