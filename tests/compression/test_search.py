"""What is tried next, and how many epochs there is time for: numbers by hand."""

import pytest

import compress
from utils.compression.aim import Aim, AimOptions, aim_of
from utils.compression.clock import Clock
from utils.compression.search import Trial, best_of, next_target
from utils.core.errors import UserError
from utils.core.options import options_of

BEFORE = {"macs": 1000, "params": 500, "map50": 0.8, "latency_ms": 20.0}
DROP = Aim("macs", None, 0.01)


def trials(*results: tuple[int, float]) -> list[Trial]:
    """Trials of (MACs, mAP@0.5)."""
    return [
        Trial(n, macs, macs // 2, macs, map50, 0.5, DROP.is_kept(BEFORE, {"map50": map50}), f"{n}.pt", f"round{n}")
        for n, (macs, map50) in enumerate(results, 1)
    ]


@pytest.mark.parametrize(
    ("results", "wanted"),
    [
        ([], 300),
        ([(300, 0.795)], 150),  # kept: half of it
        ([(300, 0.795), (150, 0.7)], 212.13),  # sqrt(300 * 150)
        ([(300, 0.7)], 547.72),  # sqrt(1000 * 300)
        ([(300, 0.7), (548, 0.79)], 405.46),  # 0.79 is exactly 0.01 less, and kept; sqrt(300 * 548)
        ([(300, 0.7), (150, 0.795)], 75),  # noise: the smaller one is kept, so the larger one's failure is none
        ([(300, 0.795), (280, 0.7)], None),  # enclosed to a tenth
        ([(300, 0.7), (548, 0.7), (740, 0.7), (860, 0.7)], None),  # as many rounds as there are
    ],
)
def test_bisection_over_what_was_tried(results, wanted):
    found = next_target(DROP, BEFORE, trials(*results), rounds=4)
    assert found == (None if wanted is None else pytest.approx(wanted, abs=0.01))


def test_a_budget_is_pruned_to_once():
    aim = Aim("macs", 250, None)
    assert next_target(aim, BEFORE, [], 4) == 250
    assert next_target(aim, BEFORE, trials((250, 0.1)), 4) is None


def test_the_smallest_that_is_kept_is_the_best():
    assert best_of(DROP, trials((500, 0.8), (300, 0.795), (100, 0.5))).macs == 300
    assert best_of(DROP, trials((500, 0.7))) is None


def parsed(*words: str) -> AimOptions:
    return options_of(AimOptions, vars(compress.get_parser().parse_args(words)))


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], Aim("macs", None, 0.01)),
        (["--max-drop", "0.03"], Aim("macs", None, 0.03)),
        (["--target-macs", "0.3"], Aim("macs", 300, None)),
        (["--target-params", "0.2k"], Aim("params", 200, None)),
        (["--target-macs", "30%"], Aim("macs", 300, None)),
        (["--target-ms", "0.5"], Aim("ms", 0.5, None)),
        (["--target-ms", "50%"], Aim("ms", 10, None)),
    ],
)
def test_the_aim_of_a_command_line(words, wanted):
    assert aim_of(parsed(*words), BEFORE) == wanted


@pytest.mark.parametrize("target", ["1000", "2G", "1"])
def test_a_budget_that_is_kept_already_is_refused(target):
    if target == "1":  # one multiply-accumulate: small, not all of it
        assert aim_of(parsed("--target-macs", target), BEFORE).limit == 1
        return
    with pytest.raises(UserError, match=f"--target-macs {target}: the network has 1,000 MACs"):
        aim_of(parsed("--target-macs", target), BEFORE)


@pytest.mark.parametrize("target", ["19.5", "20", "1e6"])
def test_milliseconds_that_are_kept_already(target):
    with pytest.raises(UserError, match=f"--target-ms {target}: the network has 20.00 milliseconds, which is no more; give"):
        aim_of(parsed("--target-ms", target), BEFORE)


def test_epochs_that_there_is_time_for():
    clock = Clock(3600)
    assert clock.epochs(40, 0.5) == 40  # nothing is known yet
    clock.note(100, {"seconds": 60, "epochs": 1})  # 40 seconds until the first epoch
    assert clock.left == 3500
    assert clock.epochs(40, 0.5) == 28  # (1750 - 40) / 60
    assert clock.epochs(20, 0.5) == 20
    clock.note(3450, {})
    assert (clock.pace, clock.epochs(20, 1.0), clock.allowed(1.0)) == (60, 0, 50)
    assert Clock(None).epochs(40, 0.1) == 40
    assert Clock(None).allowed(0.1) is None
