"""benchmark.py --runtimes: the same network in several runtimes and files, side by side."""

import argparse
from pathlib import Path
from typing import Any

from utils.core.errors import UserError
from utils.core.preparation import Preparation
from utils.core.tables import format_table
from utils.data.data_file import read_data
from utils.runtimes.base import Request, check_installed
from utils.runtimes.measure import RUNS, Job, Timing, measure
from utils.runtimes.registry import RUNTIMES, installed, load
from utils.scripts.evaluator import EvaluationOptions, Evaluator

HEADER = ("runtime", "file", "mAP@0.5", "ms", "middle half", "MB", "computed by", "threads")


def compare_runtimes(args: argparse.Namespace, img_size: int | None) -> dict[str, Any]:
    """Print and return {rows: [...], refused: [{runtime, file, reason}]}: every runtime with every file that it can read.

    Raises UserError when a runtime that was named isn't installed, or none could be measured.
    """
    rows: list[dict[str, Any]] = []
    refused: list[dict[str, str]] = []
    jobs = make_jobs(args, img_size)
    scores = [accuracy(args, job) if args.data else None for job in jobs]
    timings = iter(measure([j for j, s in zip(jobs, scores, strict=True) if not isinstance(s, UserError)], args.steps))
    for job, score in zip(jobs, scores, strict=True):
        outcome = score if isinstance(score, UserError) else next(timings)
        name = {"runtime": job.runtime, "file": job.request.weights}
        if isinstance(outcome, Timing):
            rows.append(name | figures(job, outcome, score))
        else:
            refused.append(name | {"reason": str(outcome)})
    if not rows:
        raise UserError(refused[0]["reason"])
    print(report(rows, refused, args.steps))
    return {"rows": rows, "refused": refused}


def make_jobs(args: argparse.Namespace, img_size: int | None) -> list[Job]:
    """Each runtime with each kind of file that it reads."""
    for name in args.runtimes:
        check_installed(name, RUNTIMES[name].packages)
    data = read_data(args.data) if args.data else None
    graphs = [str(path) for path in (args.onnx, args.onnx_int8) if path]
    files = {"torch": [args.weights], "opencv": [args.weights, *graphs]}
    for name in args.runtimes:
        if not files.get(name, graphs):
            raise UserError(f"--runtimes {name}: name an ONNX file with --onnx or --onnx-int8; export.py makes it")
    return [
        Job(name, Request(args.cfg if file == args.weights else "", file, img_size, data), args.threads, args.device)
        for name in args.runtimes or installed()
        for file in files.get(name, graphs)
    ]


def accuracy(args: argparse.Namespace, job: Job) -> float | UserError:
    """mAP@0.5 on the valid= images, as test.py measures it; or why the runtime can't read the file."""
    try:
        loaded = load(job.runtime, job.threads, job.request)
    except UserError as error:
        return error
    own = EvaluationOptions(job.device, job.precision, args.batch_size, args.workers, Preparation())
    evaluator = Evaluator(own, job.request.data, loaded)
    return evaluator.accuracy(loaded.model, f"{job.runtime} {Path(job.request.weights).name}")["map50"]


def figures(job: Job, timing: Timing, map50: float | None) -> dict[str, Any]:
    """A row."""
    return {
        "map50": map50, "ms": timing.median, "ms_quartiles": timing.quartiles, "runs": len(timing.milliseconds),
        "bytes": Path(job.request.weights).stat().st_size, "place": timing.place, "threads": timing.threads,
        "img_size": timing.size,
    }  # fmt: skip


def report(rows: list[dict[str, Any]], refused: list[dict[str, str]], turns: int) -> str:
    """What a user reads."""
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
    lines += [f"{entry['runtime']}: {entry['reason']}" for entry in refused]
    return "\n".join(lines)
