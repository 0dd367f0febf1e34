"""What takes as long as the compressed network without having been compressed: the network that came at smaller images, and
one that lost the same share of every layer. The report says where they do better."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from utils.compression.aim import Aim
from utils.compression.job import Job
from utils.compression.search import Trial
from utils.compression.times import FIRST, Network, Times
from utils.loading import load_model
from utils.pruning.budget import TOLERANCE
from utils.pruning.spend import MILLISECONDS

SMALL = "smallest"  # the compressed network's name among the times
EVEN = 0.005  # of mAP@0.5: so near two networks are as good as each other


@dataclass(frozen=True)
class Baseline:
    """A network that the compressed one is compared with. title: which it is; label: the same in a picture; epochs: for which
    it was finetuned as it is, 0 where it wasn't; the rest: its figures, latency_ms told as the compressed one's are."""

    title: str
    label: str
    epochs: int
    latency_ms: float
    params: int
    macs: int
    map50: float
    map: float

    def __str__(self) -> str:
        """
        >>> str(Baseline("the original at 288 px", "288 px", 0, 11.9, 9, 9, 0.861, 0.5))
        'the original at 288 px has 0.861 (11.90 ms, not finetuned)'
        """
        trained = f"finetuned for {self.epochs} epochs" if self.epochs else "not finetuned"
        return f"{self.title} has {self.map50:.3f} ({self.latency_ms:.2f} ms, {trained})"


def sizes_to_measure(known: Mapping[int, float], stride: int, target: float) -> list[int]:
    """Image sizes whose milliseconds say more about which takes `target`; [] once two neighbours, or an end, enclose it, and
    where all that were measured are fast enough.

    known: {size: milliseconds} of those that were measured, the network's own among them. Between them milliseconds are taken
    to grow with the number of pixels.

    >>> sizes_to_measure({416: 40.0}, 32, 20.0)
    [256, 288, 320]
    """
    if max(known.values()) <= (1 + TOLERANCE) * target:
        return []
    below, above = enclosing(known, target)
    least = below if below is not None else 0
    if above - least <= stride:
        return []
    low = known[least] if least else 0.0
    share = (target - low) / (known[above] - low)
    guess = stride * round(math.sqrt(least**2 + share * (above**2 - least**2)) / stride)
    near = (guess + stride * step for step in (-1, 0, 1))
    return [size for size in near if least < size < above and size not in known] or [least + stride]


def enclosing(known: Mapping[int, float], target: float) -> tuple[int | None, int]:
    """The largest size that takes `target` milliseconds, to TOLERANCE, None where all take longer; and the next measured."""
    above = min(size for size in known if known[size] > (1 + TOLERANCE) * target)
    return max((size for size in known if size < above), default=None), above


def compare(job: Job, aim: Aim, best: Trial, times: Times) -> list[Baseline]:
    """Baselines of the best trial, measured beside it; times: with both networks' among them afterwards."""
    networks = {FIRST: Network(job.weights), SMALL: Network(best.weights)}
    if job.options.baselines == "none":
        times.measure(networks)
        return []
    thin = _thin(job, aim, best)
    first = load_model("", job.weights)
    size, stride = first.img_size, first.model.max_stride
    wanted = sizes_to_measure({size: 1.0}, stride, best.latency_ms / job.anchor)
    networks |= {"thin": Network(thin)} | _at(job.weights, wanted)
    times.measure(networks)
    target, known = times.ms(SMALL), {size: times.ms(FIRST)}
    found = []
    if target * (1 + TOLERANCE) < known[size]:
        known |= {each: times.ms(_name(each)) for each in wanted}
        while more := sizes_to_measure(known, stride, target):
            times.measure(networks | _at(job.weights, more))
            known |= {each: times.ms(_name(each)) for each in more}
        found = _at_sizes(job, best, times, *enclosing(known, target), size)
    return found + _thinner(job, best, times, thin)


def _name(size: int) -> str:
    return f"{size}px"


def _at(weights: str, sizes: Sequence[int]) -> dict[str, Network]:
    return {_name(size): Network(weights, size) for size in sizes}


def _at_sizes(job: Job, best: Trial, times: Times, below: int | None, above: int, own: int) -> list[Baseline]:
    """The network that came at the size that is fast enough and at the next one, if that isn't its own; the first also
    finetuned there, where there is time."""
    found = []
    for size in (below, above):
        if size is not None and size != own:
            words = ["--img-size", str(size)]
            each = partial(Baseline, f"the original at {size} px", f"{size} px", latency_ms=times.ms(_name(size)))
            stage = f"baseline-{size}px"
            found.append(each(epochs=0, **_figures(job.test(stage, job.weights, words))))
            tuned = job.train_baseline(f"{stage}-finetune", job.weights, best.epochs, 0.5, words) if size == below else None
            if tuned:
                found.append(each(epochs=best.epochs, **_figures(job.test(f"{stage}-finetune-test", tuned))))
    return found


def _thin(job: Job, aim: Aim, best: Trial) -> str:
    """The checkpoint of the network that has lost the same share of every layer, down to what is left of aim.kind."""
    amount = f"{100 * best.latency_ms / job.anchor:.4g}%" if aim.kind == MILLISECONDS else str(getattr(best, aim.figure))
    pruned = job.prune("baseline-thin", job.weights, aim, amount, ["--importance", "uniform"])
    return job.as_checkpoint("baseline-thin-convert", pruned)


def _thinner(job: Job, best: Trial, times: Times, thin: str) -> list[Baseline]:
    each = partial(Baseline, "a network uniformly thinner", "thinner", latency_ms=times.ms("thin"))
    found = [each(epochs=0, **_figures(job.test("baseline-thin-test", thin)))]
    tuned = job.train_baseline("baseline-thin-finetune", thin, best.epochs, 1.0, [])
    if tuned:
        found.append(each(epochs=best.epochs, **_figures(job.test("baseline-thin-finetune-test", tuned))))
    return found


def _figures(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: figures[key] for key in ("params", "macs", "map50", "map")}


def verdict(after: dict[str, Any], img_size: int, baselines: Sequence[Baseline]) -> str:
    """Whether compressing was worth it, in a sentence; "" without baselines. after: {map50, latency_ms} of the compressed
    network. Slower baselines don't count, but two networks within TOLERANCE of one budget may be twice that apart."""
    if not baselines:
        return ""
    ms, ours = after["latency_ms"], after["map50"]
    rivals = [b for b in baselines if b.latency_ms <= (1 + 2 * TOLERANCE) * ms]
    own = f"the compressed network at {img_size} px {ours:.3f}"
    if not rivals:
        return f"Nothing that it was compared with is as fast as {ms:.2f} ms; {own}."
    best = max(rivals, key=lambda b: b.map50)
    judged = (
        f"{best.title} is better" if best.map50 > ours + EVEN
        else "the compressed one is better" if best.map50 < ours - EVEN
        else f"{best.title} is as good"
    )  # fmt: skip
    return f"At {ms:.2f} ms {', '.join(map(str, rivals))}; {own}: {judged}."
