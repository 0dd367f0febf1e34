"""Measure how fast convert_dataset.py and check.py are, and how much memory they take, on files generated for them.

python benchmark_data.py --format visdrone --files 100000 --folder /some/disk
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from utils.core.commands import typed
from utils.core.errors import UserError
from utils.core.files import make_folder
from utils.core.ranges import PROCESSES, SEED, whole
from utils.core.tables import format_table, write_json
from utils.core.workers import usable_cores
from utils.scripts.cli import Parser, run

PICTURE_SIZE = (48, 64)  # height, width: only the header is read
ROOT = Path(__file__).resolve().parent


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--format", choices=sorted(WRITERS), default="visdrone", help="how the generated files are annotated")
    parser.add_argument("--files", type=whole(1, 10_000_000), default=100_000, help="images, each with an annotation file")
    parser.add_argument("--boxes", type=whole(1, 10_000), default=10, help="an image")
    parser.add_argument("--workers", type=PROCESSES, default=usable_cores(), help="processes that convert")
    parser.add_argument("--folder", type=Path, help="where to write the files, which are removed again (default: the system's)")
    parser.add_argument("--seed", type=SEED, default=0, help="of the boxes")
    parser.add_argument("--json", default="", metavar="FILE", help="write the printed figures to this file")
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=make_folder(args.folder) if args.folder else None) as folder:
        source, out = Path(folder, "raw"), Path(folder, "converted")
        generate(source, args)
        runs = {name: convert(source, out, args) for name in ("first", "again")}
        runs["check"] = measured(["check.py", "--data", str(next(out.glob("*.data"))), "--workers", str(args.workers)])
    rows = [[name, r["seconds"], r["cpu_seconds"], round(args.files / r["seconds"]), r["peak_gib"]] for name, r in runs.items()]
    print(f"{args.files:,} {args.format} files of {args.boxes} boxes, {args.workers} processes:")
    print(format_table(["run", "seconds", "CPU seconds", "files/s", "peak memory GiB"], rows))
    figures = {"format": args.format, "files": args.files, "boxes": args.boxes, "workers": args.workers, **runs}
    write_json(args.json, figures)
    return figures


def generate(source: Path, args: argparse.Namespace) -> None:
    """Write small images with annotations; the images differ, so that none is a link to another."""
    for split in ("train", "val"):
        for kind in ("images", "annotations"):
            make_folder(source / split / kind)
    generator, write = np.random.default_rng(args.seed), WRITERS[args.format]
    picture = cv2.imencode(".jpg", np.zeros((*PICTURE_SIZE, 3), np.uint8))[1].tobytes()[2:]
    limits = np.array(PICTURE_SIZE[::-1])
    for number in tqdm(range(args.files), desc="Generating", delay=1):
        folder = source / ("val" if number % 10 == 0 else "train")
        comment = b"\xff\xfe\x00\x09%07d" % number  # makes each file another
        (folder / "images" / f"{number:07d}.jpg").write_bytes(b"\xff\xd8" + comment + picture)
        corners = generator.integers(0, limits - 8, (args.boxes, 2))
        write(folder / "annotations" / f"{number:07d}", corners, generator.integers(4, 8, (args.boxes, 2)))


def write_visdrone(path: Path, corners: np.ndarray, sizes: np.ndarray) -> None:
    lines = [f"{x},{y},{w},{h},1,{1 + x % 10},0,0\n" for (x, y), (w, h) in zip(corners, sizes, strict=True)]
    path.with_suffix(".txt").write_text("".join(lines))


def write_voc(path: Path, corners: np.ndarray, sizes: np.ndarray) -> None:
    height, width = PICTURE_SIZE
    objects = "".join(
        f"<object>\n<name>class{x % 10}</name>\n<difficult>0</difficult>\n<bndbox>\n<xmin>{x}</xmin>\n<ymin>{y}</ymin>\n"
        f"<xmax>{x + w}</xmax>\n<ymax>{y + h}</ymax>\n</bndbox>\n</object>\n"
        for (x, y), (w, h) in zip(corners, sizes, strict=True)
    )
    size = f"<size>\n<width>{width}</width>\n<height>{height}</height>\n<depth>3</depth>\n</size>\n"
    path.with_suffix(".xml").write_text(f"<annotation>\n{size}{objects}</annotation>\n")


WRITERS: dict[str, Callable[[Path, np.ndarray, np.ndarray], None]] = {"visdrone": write_visdrone, "voc": write_voc}


def convert(source: Path, out: Path, args: argparse.Namespace) -> dict[str, float]:
    """The figures of one conversion."""
    return measured(
        ["convert_dataset.py", args.format, "--src", str(source), "--out", str(out), "--workers", str(args.workers)]
    )


def measured(words: list[str]) -> dict[str, float]:
    """Of a script: seconds, start of Python included, those that it computed, and the most memory that all its processes
    held at once. Raises UserError when it fails.
    """
    command = [sys.executable, str(ROOT / words[0]), *words[1:]]
    start, before, peak = time.perf_counter(), cpu_seconds(), 0.0
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            time.sleep(0.05)
        seconds = time.perf_counter() - start
        if process.returncode:
            log.seek(0)
            raise UserError(f"{typed(command)} failed: {log.read().decode(errors='replace')[-300:]}")
    if not peak:  # no /proc: of the largest process only
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {"seconds": seconds, "cpu_seconds": cpu_seconds() - before, "peak_gib": peak}


def cpu_seconds() -> float:
    """Of all processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def memory_of(pid: int) -> float:
    """GiB that a process and its children hold, pages that they share counted once (Linux); 0 where that isn't known."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    own = next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return own / 2**20 + sum(memory_of(int(child)) for child in children)


if __name__ == "__main__":
    run(main, get_parser())
