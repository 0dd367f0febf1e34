"""--runtime: the milliseconds that a prune script aims at and shows are those of the runtime that is named."""

import argparse
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.core.errors import UserError
from utils.loading import Loaded
from utils.network.darknet import Darknet
from utils.pruning.amounts import Milliseconds, axis
from utils.pruning.budget import TOLERANCE, Trial, approach, levels, nearest, sides
from utils.pruning.latency import LayerTimes
from utils.pruning.pruner import Amount, Choice, Pruner
from utils.pruning.remainder import Filler
from utils.runtimes.deployment import Deployment
from utils.runtimes.layer_times import layer_times
from utils.runtimes.registry import RUNTIMES
from utils.runtimes.whole import Bench, Reading
from utils.scripts.cli import add_threads_argument

SWEPT = 3  # amounts of a sweep that are measured


@dataclass(frozen=True)
class LatencyOptions:
    """Where the network is to run; see add_latency_arguments."""

    runtime: str = ""
    threads: int | None = None
    bits: int | None = None


def add_latency_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("milliseconds")
    group.add_argument("--runtime", choices=list(RUNTIMES), default="",
                       help="what they are measured on, for --target-ms, --spend ms and --dry-run; counts are then rounded "
                       "up to multiples of what it computes at once")  # fmt: skip
    add_threads_argument(group)
    group.add_argument("--bits", type=int, choices=[32, 8], default=None, help="of the file that will run; 32 if not given")


def deployment_of(options: LatencyOptions, *, wanted: str, device: str, precision: str) -> Deployment | None:
    """Where milliseconds are measured, None where none are. wanted: the flag that asks for them, "" without one. Raises
    UserError where one of both is missing."""
    given = [flag for flag, value in (("--runtime", options.runtime), ("--threads", options.threads), ("--bits", options.bits))
             if value]  # fmt: skip
    if wanted and not options.runtime and (wanted != "--dry-run" or given):
        names = ", ".join(RUNTIMES)
        raise UserError(f"{given[0] if wanted == '--dry-run' else wanted}: name the runtime of the milliseconds with --runtime "
                        f"({names})")  # fmt: skip
    if given and not wanted:
        raise UserError(f"{given[0]}: is about milliseconds; add --target-ms T, --spend ms or --dry-run, or leave it out")
    if not options.runtime:
        return None
    return Deployment.of(options.runtime, options.threads, options.bits or 32, device or "cpu", precision)


@dataclass
class Clock:
    """What the original takes as a whole, and its layers one by one, which are scaled so that they add up to the same.
    settled: what was measured of the network that `settle` chose."""

    bench: Bench
    times: LayerTimes
    settled: Reading | None = None

    @classmethod
    def of(cls, deployment: Deployment, loaded: Loaded[Darknet], target: Milliseconds | None) -> "Clock":
        """Measured, or from the cache. Raises UserError for a target that the original keeps to already."""
        bench = Bench(deployment, loaded)
        print(f"original: {bench.reading} on {deployment}")
        if target is not None and bench.reading.ms <= (1 + TOLERANCE) * target.of(bench.reading.ms):
            raise UserError(f"--target-ms {target}: the network takes {bench.reading.ms:.3g} ms on {deployment}, so there is "
                            "nothing to do; give less")  # fmt: skip
        times = layer_times(deployment, loaded.model.defs, loaded.img_size)
        return cls(bench, times.scaled(bench.reading.ms / times.total(loaded.model.defs, loaded.img_size)))

    def before(self) -> dict[str, Any]:
        """What --json says of the original's milliseconds."""
        return self._figures(self.bench.reading)

    def after(self, small: Darknet) -> dict[str, Any]:
        """The same of what pruning left."""
        return self._figures(self.settled or self.bench.beside(small))

    def _figures(self, reading: Reading) -> dict[str, Any]:
        where = self.bench.deployment
        return {"latency_ms": reading.ms, "latency_quartiles_ms": [reading.low, reading.high], "runtime": where.runtime,
                "threads": where.threads, "bits": where.bits}  # fmt: skip

    def settle(self, pruner: Pruner, base: Amount, target: float, force: bool) -> Choice:
        """What leaves about `target` milliseconds. Raises UserError where everything that may be chosen leaves more; with
        `force` the fastest is taken."""
        readings: dict[float, Reading] = {}
        choose = functools.cache(Filler(pruner, axis(pruner, base, 0.001), functools.partial(self.foretell, pruner)).fill)

        def measure(level: float) -> float:
            choice = choose(level)
            reading = readings[level] = self.bench.beside(pruner.compact(choice))
            print(f"{choice.mask.achieved:.1%} of the channels gone: {reading}, {self.foretell(pruner, choice):.2f} foretold")
            return reading.ms

        whole = self.bench.reading.ms
        original = Trial(whole, whole, whole)
        trials = approach(levels(whole), lambda level: self.foretell(pruner, choose(level)), measure, target, original)
        if not trials:
            raise UserError(
                f"--target-ms {target:g}: nothing that {pruner.strategy} pruning may remove makes this network faster"
            )
        best = nearest(trials, target)
        if best.ms > (1 + TOLERANCE) * target and not force:
            raise UserError(f"--target-ms {target:g}: {best.ms:.3g} ms is the nearest that {pruner.strategy} pruning comes to "
                            "it here; --force takes that, or choose another strategy or smaller limits")  # fmt: skip
        if not best.is_near(target):
            print(_told_nearest([original, *trials], target, best))
        self.settled = readings[best.level]
        return choose(best.level)

    def foretell(self, pruner: Pruner, choice: Choice) -> float:
        """Milliseconds of what a choice leaves, by the table."""
        return self.times.total(pruner.defs(choice), self.bench.original.img_size)

    def correct(self, pruner: Pruner, rows: list[dict[str, Any]]) -> None:
        """Measure some networks of a sweep, rows with {percent, shortcuts, ms}, as a whole, and correct what the layers
        foretell of the others by them, in place; `ms_measured` says which is which."""
        foretold = [row["ms"] for row in rows]
        places = np.unique(np.linspace(0, len(rows) - 1, SWEPT + 1).round().astype(int))[1:]
        known = {self.bench.reading.ms: 1.0}
        for place in places:
            amount = Amount(rows[place]["percent"], rows[place]["shortcuts"])
            known[foretold[place]] = self.bench.beside(pruner.compact(pruner.choose(amount))).ms / foretold[place]
        ratios = np.interp(foretold, sorted(known), [known[ms] for ms in sorted(known)])
        for number, (row, ratio) in enumerate(zip(rows, ratios, strict=True)):
            row |= {"ms": row["ms"] * float(ratio), "ms_measured": number in places}

    def note(self, rows: list[dict[str, Any]]) -> str:
        """What the milliseconds of a sweep are."""
        measured = ", ".join(str(Amount(row["percent"], row["shortcuts"])) for row in rows if row["ms_measured"])
        known = f"the original, {self.bench.reading}, and {measured}"
        return f"ms: on {self.bench.deployment}; measured: {known}; the others by their layers"


def _told_nearest(trials: Sequence[Trial], target: float, best: Trial) -> str:
    """What came near a budget that couldn't be met."""
    found = " and ".join(f"{ms:.3g}" for ms in sides(trials, target) if ms is not None)
    return f"--target-ms {target:g}: nothing is within {TOLERANCE:.0%} of it; nearest to it are {found} ms; {best.ms:.3g} taken"
