"""Loader: a DataLoader whose worker processes end in one line, where they can't go on."""

import contextlib
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from typing import Any

import cv2
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.core.workers import dead_worker, explained_ends
from utils.data.batch import Batch, collate

SHARED_MEMORY = ("/dev/shm holds less than the batches of --workers {workers}, which come through pipes instead, more slowly; "
                 "a larger one (docker run --shm-size=1g) or fewer workers help")  # fmt: skip


def start_worker(worker: int) -> None:
    """Worker processes are the parallelism: OpenCV's own threads would only fight over the cores. Ctrl-C reaches the
    whole process group; the main process ends the workers, so that they need not say anything themselves."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Loader(DataLoader):
    """A DataLoader of Batch. Where shared memory is too small for a batch it goes on without, and says so once.

    Iterating raises UserError when a worker process dies, which the kernel ends if memory runs out.
    """

    dataset: Any  # a DetectionDataset, or a Subset of one

    def __init__(self, dataset: Any, *, workers: int, **options: Any) -> None:
        # fork shares the cache with the workers; where it is unsafe (macOS) or missing (Windows), torch's default stands
        context = multiprocessing.get_context("fork") if workers and sys.platform == "linux" else None
        super().__init__(
            dataset, num_workers=workers, collate_fn=collate, worker_init_fn=start_worker, multiprocessing_context=context,
            **options,
        )  # fmt: skip
        self._said = False

    def __iter__(self) -> Iterator[Batch]:
        with explained_ends():
            batches = super().__iter__()
            try:
                for batch in batches:
                    if batch.piped and not self._said:
                        tqdm.write(f"warning: {SHARED_MEMORY.format(workers=self.num_workers)}", file=sys.stderr)
                        self._said = True
                    yield batch
            except (RuntimeError, ConnectionError, EOFError) as error:
                _let_go(batches)
                if isinstance(error, RuntimeError):
                    raise
                raise dead_worker(error) from None  # it died with a batch on the way


def _let_go(batches: Iterator[Batch]) -> None:
    """End the other workers; until then PyTorch's signal handler raises again, wherever the main process is."""
    with contextlib.suppress(RuntimeError):
        getattr(batches, "_shutdown_workers", lambda: None)()
