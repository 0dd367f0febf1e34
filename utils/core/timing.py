"""How long calls take, and the stages of a batch."""

import contextlib
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch

STAGES = ("preprocess", "inference", "nms")
LEAST_RUNS = 3  # however slow the calls are


def median_seconds(
    calls: Sequence[Callable[[], object]], device: torch.device, *, runs: int, warm_up: int, limit: float = math.inf,
    before: Callable[[int], object] = lambda number: None,
) -> list[float]:  # fmt: skip
    """Median seconds of each of `calls`, which take turns, so that all meet the same load of the machine.

    Each is called `runs` times after `warm_up` calls that don't count; less often, but LEAST_RUNS times, where that takes more
    than `limit` seconds a call's share. before: called with a call's number before each time it runs, unmeasured.
    (torch.utils.benchmark.Timer measures one statement after the other.)
    """
    times: list[list[float]] = [[] for _ in calls]
    while (done := len(times[0])) < warm_up + runs:
        if done >= warm_up + LEAST_RUNS and sum(map(sum, times)) >= limit * len(calls):
            break
        for number, (call, record) in enumerate(zip(calls, times, strict=True)):
            before(number)
            start = time.perf_counter()
            call()
            _wait_for(device)
            record.append(time.perf_counter() - start)
    return [statistics.median(record[warm_up:]) for record in times]


def _wait_for(device: torch.device) -> None:
    """Until the work that was queued on a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Time spent in each stage of a batch. `images` takes the number of images of each batch.

    Figures are of warm calls: the first of all imports, allocates and chooses algorithms, which may take seconds.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.images: list[int] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the block; on CUDA up to the end of the work it queued."""
        start = time.perf_counter()
        yield
        _wait_for(self.device)
        self.seconds[name].append(time.perf_counter() - start)

    def warm_up(self, stages: Callable[[], object]) -> None:
        """Before anything was measured, call what is going to be measured, once, and forget how long it took."""
        if not self.images:
            stages()
            self.seconds.clear()

    def milliseconds(self) -> dict[str, float]:
        """Milliseconds an image and stage; the first batch, whose size is new to the caches, counts only if it is the only
        one, which has to be warmed up for then."""
        first = 1 if len(self.images) > 1 else 0
        images = max(sum(self.images[first:]), 1)
        return {name: 1000 * sum(self.seconds[name][first:]) / images for name in STAGES}
