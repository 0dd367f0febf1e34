"""Milliseconds: of the stages of a batch."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch

STAGES = ("preprocess", "inference", "nms")


class Stopwatch:
    """Time spent in each stage of a batch. `images` takes the number of pictures of each batch.

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
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
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
