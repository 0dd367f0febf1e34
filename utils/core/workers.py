"""Several processes for one kind of work at a time, or none, and what is said when the system ends one."""

import contextlib
import errno
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Self, TypeVar

from tqdm import tqdm

from utils.core.errors import UserError

_CHUNK = 64  # jobs handed over at a time
# PyTorch's handler of SIGCHLD raises a bare RuntimeError: only its text says that a worker died, and only here it is read
_DEAD_WORKER = "DataLoader worker"
_FEW = 200  # jobs that aren't worth a process
Job = TypeVar("Job")
Result = TypeVar("Result")


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerPool:
    """A context in which `each` spreads work over `workers` processes; one works in this process.

    They end with this process, however it ends. Raises UserError when one of them is killed.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def each(self, work: Callable[[Job], Result], jobs: Sequence[Job], title: str) -> Iterator[Result]:
        """The results of `work` in the order of `jobs`, with a progress bar."""
        if self.workers > 1 and len(jobs) > _FEW and self.pool is None:
            # as in utils.data.datasets: fork where it is safe, since it starts at once
            context = multiprocessing.get_context("fork") if sys.platform == "linux" else None
            self.pool = ProcessPoolExecutor(self.workers, context, _start)
        results = self.pool.map(work, jobs, chunksize=_CHUNK) if self.pool else map(work, jobs)
        try:
            yield from tqdm(results, desc=title, total=len(jobs), delay=1)
        except BrokenProcessPool:
            raise UserError("a worker process was killed, perhaps for want of memory; try --workers 1") from None


def _start() -> None:
    """Ctrl-C reaches the whole process group, and the main process ends the workers; if that is killed, they leave too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent: Any = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def dead_worker(error: Exception) -> UserError:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError("a process that reads images was ended by the system, mostly for want of memory: give fewer --workers, "
                     f"or a smaller --batch-size ({text[:100]})")  # fmt: skip


@contextlib.contextmanager
def explained_ends() -> Iterator[None]:
    """Make a UserError of what the system may do to a program at any time: end a worker process, which PyTorch raises in
    whatever the main process is doing then, and have no room left, which Python's locks need in /dev/shm."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError("no space is left, on a disk or in /dev/shm, which df -h shows: make room") from None
    except RuntimeError as error:
        if not str(error).startswith(_DEAD_WORKER):
            raise
        raise dead_worker(error) from None
