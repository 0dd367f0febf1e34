"""benchmark.py --runtimes: the same network in several runtimes and files, side by side."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.core.errors import UserError
from utils.core.preparation import Preparation
from utils.core.tables import format_table
from utils.data.data_file import read_data
from utils.runtimes.base import Request, check_installed
from utils.runtimes.measure import RUNS, Job, Timing, file_bytes, measure
from utils.runtimes.registry import RUNTIMES, installed, load
from utils.scripts.evaluator import EvaluationOptions, Evaluator

HEADER = ("runtime", "file", "mAP@0.5", "ms", "middle half", "MB", "computed by", "threads")


@dataclass(frozen=True)
class CompareOptions:
    """Which files are computed by which runtimes; runtimes: [] for all that are installed. steps: turns that each has."""

    cfg: str
    weights: str
    onnx: str
    onnx_int8: str
    ncnn: str
    data: str
    runtimes: list[str]
    threads: int | None
    device: str
    precision: str
    steps: int
    batch_size: int
    workers: int


def compare_runtimes(options: CompareOptions, img_size: int | None) -> dict[str, Any]:
    """Print and return {rows: [...], refused: [{runtime, file, reason}]}: every runtime with every file that it can read.

    Raises UserError when a runtime that was named isn't installed, or none could be measured.
    """
    rows: list[dict[str, Any]] = []
    refused: list[dict[str, str]] = []
    jobs = make_jobs(options, img_size)
    scores = [accuracy(options, job) if options.data else None for job in jobs]
    timings = iter(measure([j for j, s in zip(jobs, scores, strict=True) if not isinstance(s, UserError)], options.steps))
    for job, score in zip(jobs, scores, strict=True):
        outcome = score if isinstance(score, UserError) else next(timings)
        name = {"runtime": job.runtime, "file": job.request.weights}
        if isinstance(outcome, Timing):
            rows.append(name | figures(job, outcome, score))
        else:
            refused.append(name | {"reason": str(outcome)})
    if not rows:
        raise UserError(refused[0]["reason"])
    print(report(rows, refused, options.steps, options.runtimes))
    return {"rows": rows, "refused": refused}


def make_jobs(options: CompareOptions, img_size: int | None) -> list[Job]:
    """Each runtime with each kind of file that it reads."""
    for name in options.runtimes:
        check_installed(name, RUNTIMES[name].packages)
    data = read_data(options.data) if options.data else None
    graphs = [str(path) for path in (options.onnx, options.onnx_int8) if path]
    files = {
        "torch": [options.weights], "opencv": [options.weights, *graphs], "ncnn": [options.ncnn or options.weights]
    }  # fmt: skip
    for name in options.runtimes:
        if not files.get(name, graphs):
            raise UserError(f"--runtimes {name}: name an ONNX file with --onnx or --onnx-int8; export.py makes it")

    def request_of(file: str) -> Request:
        return Request(options.cfg if file == options.weights else "", file, img_size, data)

    return [
        Job(name, request_of(file), options.threads, options.device, options.precision)
        for name in options.runtimes or installed()
        for file in files.get(name, graphs)
    ]


def accuracy(options: CompareOptions, job: Job) -> float | UserError:
    """mAP@0.5 on the valid= images, all in one size, as files of one size want them; or why the runtime can't compute the
    file."""
    try:
        loaded = load(job.runtime, job.threads, job.request)
        own = EvaluationOptions(job.device, job.precision, options.batch_size, options.workers, Preparation())
        evaluator = Evaluator(own, job.request.data, replace(loaded, fixed_size=loaded.shape))
        return evaluator.accuracy(loaded.model, f"{job.runtime} {Path(job.request.weights).name}")["map50"]
    except UserError as error:
        return error


def figures(job: Job, timing: Timing, map50: float | None) -> dict[str, Any]:
    """A row."""
    return {
        "map50": map50, "ms": timing.median, "ms_quartiles": timing.quartiles, "runs": len(timing.milliseconds),
        "bytes": timing.file_bytes or file_bytes(job.request.weights), "place": timing.place, "threads": timing.threads,
        "img_size": timing.size,
    }  # fmt: skip


def report(rows: list[dict[str, Any]], refused: list[dict[str, str]], turns: int, asked: list[str]) -> str:
    """What a user reads. asked: names of the runtimes that were asked for, [] for all that are installed."""
    cells = []
    for row in rows:
        low, high = row["ms_quartiles"]
        size = f"{row['bytes'] / 1e6:.2f}"
        cells.append([row["runtime"], Path(row["file"]).name, row["map50"], f"{row['ms']:.2f}", f"{low:.2f} to {high:.2f}",
                      size, row["place"], row["threads"]])  # fmt: skip
    sizes = sorted({"x".join(map(str, row["img_size"])) for row in rows})
    lines = [format_table(HEADER, cells)]
    lines.append(f"ms: median of {turns * RUNS} warm runs at batch 1, {' and '.join(sizes)}, boxes decoded; each row in a "
                 "process of its own, taking turns")  # fmt: skip
    if any(row["map50"] is not None for row in rows):
        lines.append("mAP@0.5: images letterboxed into the network's whole size, as test.py --square does it")
    here = set(installed())
    lines += [f"{name}: not installed: pip install {' '.join(RUNTIMES[name].packages.values())}"
              for name in RUNTIMES if not asked and name not in here]  # fmt: skip
    lines += [f"{entry['runtime']}: {entry['reason']}" for entry in refused]
    return "\n".join(lines)
