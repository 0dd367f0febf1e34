"""What the compressed network is compared with: which image sizes are measured, what is said, by numbers by hand."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

import compress
from utils.compression import times as module
from utils.compression.baselines import Baseline, enclosing, sizes_to_measure, verdict
from utils.compression.clock import Clock
from utils.compression.job import Job
from utils.compression.options import CompressOptions
from utils.compression.times import TURNS, Network, Times
from utils.core.options import options_of

SMALL = Baseline("the original at 288 px", "288 px", 0, 11.9, 9, 9, 0.861, 0.5)
THIN = Baseline("a network uniformly thinner", "thinner", 30, 12.2, 9, 9, 0.872, 0.5)


@pytest.mark.parametrize("share", [n / 40 for n in range(2, 39)])
@pytest.mark.parametrize("truth", [lambda s: s**2, lambda s: 30_000 + s**2, lambda s: s**2.4, lambda s: s * 400])
def test_two_neighbours_come_to_enclose_the_milliseconds(share, truth):
    target = share * truth(416)
    known, asked = {416: truth(416)}, 0
    while more := sizes_to_measure(known, 32, target):
        assert not set(more) & set(known)
        known |= {size: truth(size) for size in more}
        asked += 1
    below, above = enclosing(known, target)
    fast = [size for size in range(32, 417, 32) if truth(size) <= 1.03 * target]
    assert below == max(fast, default=None)
    assert above == (below or 0) + 32
    assert asked <= 4


def test_a_network_of_the_least_size_has_no_smaller_image():
    assert sizes_to_measure({32: 10.0}, 32, 5.0) == []
    assert enclosing({32: 10.0}, 5.0) == (None, 32)


@pytest.mark.parametrize("share", [0.98, 1.0, 1.2])
def test_a_network_that_became_no_faster_is_compared_at_no_smaller_image(share):
    assert sizes_to_measure({416: 10.0}, 32, share * 10.0) == []


@pytest.mark.parametrize(
    ("ours", "judged"),
    [(0.884, "the compressed one is better"), (0.875, "a network uniformly thinner is as good"),
     (0.866, "a network uniformly thinner is better")],
)  # fmt: skip
def test_the_verdict(ours, judged):
    said = verdict({"map50": ours, "latency_ms": 12.0}, 416, [SMALL, THIN])
    assert said == (
        "At 12.00 ms the original at 288 px has 0.861 (11.90 ms, not finetuned), a network uniformly thinner has 0.872 "
        f"(12.20 ms, finetuned for 30 epochs); the compressed network at 416 px {ours:.3f}: {judged}."
    )


def test_what_is_slower_does_not_count():
    slower = replace(THIN, latency_ms=12.73)
    assert "thinner" not in verdict({"map50": 0.865, "latency_ms": 12.0}, 416, [SMALL, slower])
    assert verdict({"map50": 0.884, "latency_ms": 12.0}, 416, [slower]) == (
        "Nothing that it was compared with is as fast as 12.00 ms; the compressed network at 416 px 0.884."
    )
    assert verdict({"map50": 0.884, "latency_ms": 12.0}, 416, []) == ""


class State:
    """compress.json, as far as Times knows it."""

    def __init__(self) -> None:
        self.result, self.saved = {}, 0

    def save(self) -> None:
        self.saved += 1


def test_milliseconds_are_told_by_the_ratio_of_each_turn(monkeypatch):
    """A machine that takes turn after turn longer, and half as long again the second time."""
    truth, calls = {"a": 40.0, "b": 10.0, "c": 20.0}, []

    def latency(model, size, where, runs) -> float:
        calls.append(model)
        return truth[model] * (1 + 0.1 * (len(calls) // 3))

    monkeypatch.setattr(Network, "load", lambda self: SimpleNamespace(model=self.weights, img_size=self.img_size))
    monkeypatch.setattr(module, "latency_ms", latency)
    monkeypatch.setattr(module, "weights_bytes", lambda model: 7)
    state = State()
    found = Times(state, "cpu", None, 44.0)
    networks = {"before": Network("a"), "smallest": Network("b")}
    found.measure(networks)
    assert calls == ["a", "b"] * TURNS
    assert found.ms("before") == pytest.approx(44.0)
    assert found.ms("smallest") == pytest.approx(11.0, rel=0.1)
    assert (state.saved, state.result["costs"]["smallest"]["bytes"]) == (1, 7)
    again = Times(state, "cpu", None, 44.0)
    again.measure(networks | {"288px": Network("c", 288)})
    assert calls[2 * TURNS :] == ["a", "c"] * TURNS
    assert again.ms("before") == found.ms("before")
    assert again.ms("288px") == pytest.approx(22.0, rel=0.1)


@pytest.mark.parametrize(
    ("words", "left", "trained"),
    [("", None, False), ("--baselines train", None, True), ("--baselines test --hours 9", 1000.0, False),
     ("--hours 9", 300.0, True), ("--hours 9", 290.0, False), ("--baselines none", None, False)],
)  # fmt: skip
def test_baselines_are_finetuned_where_there_is_time_for_as_many_epochs(words, left, trained, monkeypatch):
    job = object.__new__(Job)
    args = compress.get_parser().parse_args(["--data", "x", *words.split()])
    job.options = options_of(CompressOptions, vars(args))
    job.clock = Clock(left, pace=5.0)
    job.state = SimpleNamespace(stages={}, running=None)
    asked = []
    monkeypatch.setattr(Job, "train", lambda self, *words: asked.append(words) or "tuned.pt")
    found = job.train_baseline("name", "w.pt", 30, 0.5, ["--img-size", "288"])
    assert (found == "tuned.pt") is trained
    assert asked == [("name", ["--weights", "w.pt", "--finetune", "--img-size", "288"], 30, 0.5, "best")] * trained
