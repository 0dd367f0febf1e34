"""Milliseconds of single convolutions in a runtime, measured in a process of its own.

Layers of one geometry take turns, so that a machine that is busy with something else slows all of them, and of each layer the
least counts: what else runs can only add to it. Of a single thread it is CPU time, to which it adds next to nothing.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection

import torch
from tqdm import tqdm

from utils.core.devices import select_device
from utils.core.errors import UserError
from utils.network.definitions import Defs
from utils.pruning.latency import Geometry, LayerTimes, Points, Widths, wanted_points
from utils.runtimes.deployment import Deployment
from utils.runtimes.times_cache import TimesCache

SECONDS, LEAST, MOST = 1.0, 4, 12  # that the layers of a geometry take turns; turns at least and at most


def layer_times(deployment: Deployment, defs: Defs, img_size: int, cache: TimesCache | None = None) -> LayerTimes:
    """Of a network, and of all that pruning makes of it: from the cache, and measured where they aren't in it.

    Raises UserError where the runtime can't compute one of the layers.
    """
    cache = cache or TimesCache(deployment)
    wanted = wanted_points(defs, img_size, deployment.step)
    known = {geometry: cache.read(geometry) for geometry in wanted}
    missing = {g: [w for w in points if w not in known[g]] for g, points in wanted.items()}
    missing = {geometry: points for geometry, points in missing.items() if points}
    number = sum(map(len, missing.values()))
    if missing:
        print(f"measuring {number} layers of {len(missing)} kinds on {deployment}, once; they are kept in {cache.folder}")
        with tqdm(total=number, desc="layers", unit="layer", leave=False) as bar:
            for geometry, points in measure_layers(deployment, missing):
                known[geometry] = {**known[geometry], **points}
                cache.add(geometry, points)
                bar.update(len(points))
    return LayerTimes({g: {w: known[g][w] for w in points} for g, points in wanted.items()}, deployment.step)


def measure_layers(deployment: Deployment, wanted: Mapping[Geometry, Sequence[Widths]]) -> Iterator[tuple[Geometry, Points]]:
    """Each geometry with the milliseconds of its layers, as they come. Raises UserError where the runtime can't compute one."""
    context = multiprocessing.get_context("spawn")  # a fork would have this process's thread pools
    pipe, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, deployment, dict(wanted)), daemon=True)
    process.start()
    theirs.close()
    try:
        for _ in wanted:
            answer = pipe.recv()
            if isinstance(answer, UserError):
                raise answer
            yield answer
    except EOFError:
        process.join()
        raise UserError(f"{deployment.runtime}: the process that measured layers ended with status {process.exitcode}, perhaps "
                        "for want of memory") from None  # fmt: skip
    finally:
        pipe.close()
        process.join(1)
        process.terminate()


@torch.inference_mode()
def _serve(pipe: Connection, deployment: Deployment, wanted: Mapping[Geometry, Sequence[Widths]]) -> None:
    """The other process: measure one geometry after the other, and say so."""
    torch.set_num_threads(deployment.threads)  # the other runtimes take PyTorch's number
    device = select_device(deployment.device)
    try:
        make = deployment.adapter.layers(deployment.bits, device, deployment.precision)
        for geometry, widths in wanted.items():
            clock = time.process_time if deployment.is_alone else time.perf_counter
            best = least_milliseconds([make(geometry, each) for each in widths], device, clock)
            pipe.send((geometry, dict(zip(widths, best, strict=True))))
    except UserError as error:
        pipe.send(error)
    except (OSError, KeyboardInterrupt):  # nobody listens any more
        pass


def least_milliseconds(
    calls: Sequence[Callable[[], object]], device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Of each of the calls, which take turns; in a turn each is called twice, and the second time counts. clock: in seconds."""
    best = [float("inf")] * len(calls)
    begin, turn = time.perf_counter(), 0
    while turn < LEAST or (turn < MOST and time.perf_counter() - begin < SECONDS):
        for number, call in enumerate(calls):
            call()
            start = clock()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best[number] = min(best[number], 1000 * (clock() - start))
        turn += 1
    return best
