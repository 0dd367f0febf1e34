"""utils.core.timing: calls that take turns, and how often slow ones run."""

import pytest
import torch

from utils.core import timing
from utils.core.timing import LEAST_RUNS, median_seconds

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of day in seconds, which calls may put forward."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def lasting(clock: list[float], *seconds: float):
    """A call that takes these times in turn, the last one from then on."""
    rest = list(seconds)

    def call() -> None:
        clock[0] += rest.pop(0) if len(rest) > 1 else rest[0]

    return call


def test_medians_without_the_warm_up(clock):
    calls = [lasting(clock, 100, 1, 3, 2), lasting(clock, 100, 10, 30, 20)]
    assert median_seconds(calls, CPU, runs=3, warm_up=1) == [2, 20]


def test_slow_calls_run_less_often_but_not_too_seldom(clock):
    count = []
    slow = lasting(clock, 10)
    median_seconds([lambda: (slow(), count.append(1))], CPU, runs=50, warm_up=1, limit=5)
    assert len(count) == 1 + LEAST_RUNS
    count.clear()
    median_seconds([lambda: (slow(), count.append(1))], CPU, runs=50, warm_up=1, limit=100)
    assert len(count) == 10


def test_what_happens_before_a_call_is_not_measured(clock):
    def before(number: int) -> None:
        clock[0] += 1000

    assert median_seconds([lasting(clock, 1), lasting(clock, 2)], CPU, runs=1, warm_up=0, before=before) == [1, 2]
