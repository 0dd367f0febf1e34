"""Milliseconds of a network in a runtime, measured in a process of its own, so that no other's thread pool disturbs it.

Several are measured by taking turns: each process computes a few images and then sleeps while the others have theirs, so
that a machine that is busy with something else slows all of them.
"""

import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from utils.core.devices import select_device
from utils.core.errors import UserError
from utils.runtimes.base import Request
from utils.runtimes.registry import RUNTIMES, load

RUNS, WARM_UP = 5, 2  # of a turn; those that warm up aren't timed


@dataclass(frozen=True)
class Job:
    """What is measured: one file in one runtime, by `threads` threads (None: as many as PyTorch takes)."""

    runtime: str
    request: Request
    threads: int | None = None
    device: str = "cpu"
    precision: str = "auto"


@dataclass
class Timing:
    """What was measured. milliseconds: of single runs at batch 1, decoding included; own: CPU time of all threads of the
    process meanwhile, in milliseconds; pid: of the process; threads: as the runtime itself says; place: what computed, in
    words; size: (height, width) of the input in pixels; file_bytes: of what the runtime read, which an adapter may have made of
    the file that was named."""

    pid: int
    threads: int
    place: str
    size: tuple[int, int]
    milliseconds: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    file_bytes: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Between which the middle half of the runs lies."""
        return middle_half(self.milliseconds)


def middle_half(values: Sequence[float]) -> tuple[float, float]:
    """Their quartiles."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def measure(jobs: Sequence[Job], turns: int) -> list[Timing | UserError]:
    """Each job's timing of `turns` turns of RUNS runs, or why it can't be done."""
    workers = [_Worker(job) for job in jobs]
    try:
        results = [worker.answer() for worker in workers]
        for _ in range(turns):
            for worker, result in zip(workers, results, strict=True):
                if isinstance(result, Timing):
                    for milliseconds, own in worker.answer("your turn"):
                        result.milliseconds.append(milliseconds)
                        result.own.append(own)
        return results
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """The process of one job, seen from here."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would have this process's thread pools
        self.job, (self.pipe, theirs) = job, context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, job), daemon=True)
        self.process.start()
        theirs.close()

    def answer(self, question: str = "") -> Any:
        """What the process says, to a question if there is one."""
        try:
            if question:
                self.pipe.send(question)
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            raise UserError(f"{self.job.runtime}: the process that measured {self.job.request.weights} ended with status "
                            f"{self.process.exitcode}, perhaps for want of memory") from None  # fmt: skip

    def end(self) -> None:
        self.pipe.close()
        self.process.join(1)
        self.process.terminate()


@torch.inference_mode()
def _serve(pipe: Connection, job: Job) -> None:
    """The other process: load, say what was loaded, and compute whenever it is asked to, until the pipe closes."""
    try:
        runtime, device = RUNTIMES[job.runtime], select_device(job.device)
        loaded = load(job.runtime, job.threads, job.request)
        network = loaded.model.inference_copy(device, job.precision)
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(1, network.defs.net.channels, *loaded.shape, generator=generator)
        images = images.to(device, network.dtype, memory_format=torch.channels_last)
        network(images)
    except UserError as error:
        pipe.send(error)
        return
    place = runtime.place(loaded.model, device, job.precision)
    size = file_bytes(getattr(loaded.model, "path", job.request.weights))
    pipe.send(Timing(os.getpid(), runtime.threads(network), place, loaded.shape, file_bytes=size))
    try:
        while pipe.recv():
            pipe.send([_run(network, images, device) for _ in range(WARM_UP + RUNS)][WARM_UP:])
    except (EOFError, OSError, KeyboardInterrupt):
        pass


def file_bytes(path: str | Path) -> int:
    """Of a file, or of all files of a folder; 0 without a name."""
    if not path:
        return 0
    files = Path(path).iterdir() if Path(path).is_dir() else [Path(path)]
    return sum(file.stat().st_size for file in files)


def _run(network: Any, images: torch.Tensor, device: torch.device) -> tuple[float, float]:
    """Milliseconds of one image: of the clock, and of the process."""
    start, own = time.perf_counter(), time.process_time()
    network(images)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - start), 1000 * (time.process_time() - own)
