"""utils.pruning.budget: trials come within 3 % of a budget, whatever the table's error, or to the nearest that there is."""

import itertools
from collections.abc import Callable

import pytest

from utils.pruning.budget import TOLERANCE, TRIALS, Trial, approach, levels, nearest, sides


def foretell(level: float) -> float:
    """Of a network of 100 ms, 10 of which stay."""
    return max(level, 10.0)


def run(measure: Callable[[float], float], target: float, table: Callable[[float], float] = foretell) -> list[Trial]:
    start = Trial(100.0, table(100.0), measure(table(100.0)))
    return approach(levels(100.0), table, lambda level: measure(table(level)), target, start)


def test_levels_are_finer_than_the_tolerance():
    found = levels(40.0)
    assert found[0] == 40 * 0.996
    assert all(b == a * 0.996 for a, b in itertools.pairwise(found))
    assert found[-2] > 0.4 >= found[-1]


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
    assert len({trial.level for trial in trials}) == len(trials)
    assert nearest(trials, 5.0).ms == 10.0
    assert sides(trials, 5.0) == (None, 10.0)


def test_where_it_goes_in_steps_the_nearest_that_keeps_to_it():
    """Networks of 100, 80, 60, 40, 20 ms: 70 is none of them."""

    def table(level: float) -> float:
        return max(20.0 * int(level / 20), 20.0)

    trials = run(lambda ms: ms, 70.0, table)
    assert sorted({trial.ms for trial in trials}) == [60.0, 80.0]
    assert nearest(trials, 70.0).ms == 60.0
    assert sides(trials, 70.0) == (60.0, 80.0)
    assert len(trials) == 2


def test_noise_stops_nothing():
    """What is measured swings by 10 %."""
    swing = iter([1.0, 1.1, 0.9, 1.1, 0.9, 1.1, 0.9, 1.1])
    trials = run(lambda ms: ms * next(swing), 50.0)
    assert 1 <= len(trials) <= TRIALS
    assert nearest(trials, 50.0).ms == pytest.approx(50, rel=0.15)


def test_nothing_can_be_removed():
    assert run(lambda ms: ms, 50.0, lambda level: 100.0) == []
