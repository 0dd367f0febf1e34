"""A network and what pruning made of it, side by side in the user's runtime."""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from utils.core.errors import UserError
from utils.loading import Loaded
from utils.network.darknet import Darknet
from utils.runtimes.base import Request
from utils.runtimes.deployment import Deployment
from utils.runtimes.measure import RUNS, Job, Timing, measure, middle_half

TURNS = 9


@dataclass(frozen=True)
class Reading:
    """Milliseconds of one image, boxes decoded: the median, and between what the middle half lies."""

    ms: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.ms:.2f} ms ({self.low:.2f} to {self.high:.2f})"


def written(deployment: Deployment, network: Loaded[Darknet], folder: Path) -> Request:
    """A network as the file that its runtime reads, in `folder`, which is made."""
    folder.mkdir()
    return Request(weights=str(deployment.adapter.write(network, deployment.bits, folder)), img_size=network.img_size)


def read_together(deployment: Deployment, requests: Sequence[Request], turns: int = TURNS) -> list[list[float]]:
    """Milliseconds of each network in each of the turns, medians of RUNS runs. Raises UserError where the runtime can't
    compute one."""
    where = (deployment.threads, deployment.device, deployment.precision)
    timings = measure([Job(deployment.runtime, request, *where) for request in requests], turns)
    return [_turns(deployment, timing) for timing in timings]


def _turns(deployment: Deployment, timing: Timing | UserError) -> list[float]:
    if isinstance(timing, UserError):
        raise timing
    runs = timing.own if deployment.is_alone else timing.milliseconds
    return [statistics.median(runs[first : first + RUNS]) for first in range(0, len(runs), RUNS)]


class Bench:
    """The original on its runtime, and whatever is measured beside it.

    Other networks are told in the original's milliseconds as they were at first: in each turn the ratio of both counts, so that
    a machine that has become slower, or faster, since then moves nothing.
    """

    def __init__(self, deployment: Deployment, original: Loaded[Darknet]) -> None:
        self.deployment, self.original = deployment, original
        self.folder = tempfile.TemporaryDirectory()  # gone with the Bench
        self.request = written(deployment, original, Path(self.folder.name) / "original")
        (turns,) = read_together(deployment, [self.request])
        self.reading = Reading(statistics.median(turns), *middle_half(turns))

    def beside(self, model: Darknet) -> Reading:
        """A smaller network, by turns with the original."""
        with tempfile.TemporaryDirectory() as folder:
            request = written(self.deployment, replace(self.original, model=model), Path(folder) / "smaller")
            before, after = read_together(self.deployment, [self.request, request])
        ratios = [small / whole for small, whole in zip(after, before, strict=True)]
        ms = self.reading.ms
        low, high = middle_half(ratios)
        return Reading(ms * statistics.median(ratios), ms * low, ms * high)
