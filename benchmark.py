"""Measure, in one run, what the suite's way of training and inference gains over the plain one on this machine.

Plain: float32, NCHW, batch normalisation unfused, freed memory returned to the system (glibc's default). The suite's:
what train.py -mpt, test.py and detect.py really run.
Both take turns, so that a machine that is busy with other things slows both; medians are printed.
--profile says where a training step spends its time on the CPU, and how fast its convolutions could be alone.
--runtimes measures a network of yours instead, in every runtime that is installed, in each file that is named.

python benchmark.py --cfg cfg/yolov3/yolov3-tiny.cfg
python benchmark.py --profile --cfg cfg/yolov3/yolov3-tiny.cfg --threads 1
python benchmark.py --runtimes --weights x.pt --onnx x.onnx --onnx-int8 y.onnx --data my.data --threads 1
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from utils.core.devices import PRECISIONS, inference_dtype, select_device, training_dtype
from utils.core.distributed import World
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.memory import reuse_memory
from utils.core.options import options_of
from utils.core.ranges import BATCH_SIZE, IMG_SIZE, SEED, WORKERS, whole
from utils.core.tables import format_table, write_json
from utils.core.timing import median_seconds
from utils.data.batch import Batch, normalise
from utils.data.datasets import create_loader
from utils.data.image_cache import DISK, NONE, RAM
from utils.data.images import write_picture
from utils.data.loader import Loader
from utils.network.cfg import parse_cfg
from utils.network.cost import layer_macs
from utils.network.darknet import Darknet
from utils.runtimes.registry import RUNTIMES
from utils.scripts.cli import Parser, add_device_arguments, add_threads_argument, run
from utils.scripts.compare_runtimes import CompareOptions, compare_runtimes
from utils.training.epoch import memory_gib
from utils.training.profile import profile_step, report_profile
from utils.training.run import Plan, Run

OF_WAYS = {"parts", "seed", "images", "profile"}  # arguments that --runtimes has no use for
OF_RUNTIMES = {"weights", "onnx", "onnx_int8", "ncnn", "precision", "data"}  # and those that only it has
OF_TURNS = {"parts", "images", "workers"}  # and those that --profile has none for
PARTS = ("training", "inference", "peak", "pipeline")
BOXES = 8  # an image
KEPT = {NONE: "from image files", RAM: "decoded in memory", DISK: "decoded on a disk"}  # ways of the pipeline
PICTURE_SIZE = (480, 640)


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--cfg", default="", help="the network to measure; a .pt carries its own")
    parser.add_argument("--img-size", type=IMG_SIZE, default=416, help="side of the network's input in pixels")
    parser.add_argument("--batch-size", type=BATCH_SIZE, default=16, help="of training, and of inference besides single ones")
    parser.add_argument("--steps", type=whole(1, 10_000), default=5, help="repetitions of which the median counts")
    parser.add_argument("--workers", type=WORKERS, default=2, help="processes that feed the image pipeline")
    parser.add_argument("--images", type=whole(1, 1_000_000), default=64, help="of the data set that the image pipeline reads")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--seed", type=SEED, default=0, help="of weights, images and boxes")
    parser.add_argument("--profile", action="store_true", help="measure what a training step on the CPU consists of")
    parser.add_argument("--runtimes", nargs="*", choices=list(RUNTIMES), default=None,
                        help="measure a network's files in these runtimes; without a name: in all that are there")  # fmt: skip
    parser.add_argument("--weights", default="", help="--runtimes: .pt or .weights file")
    parser.add_argument("--onnx", default="", help="--runtimes: the .onnx that export.py made of it")
    parser.add_argument("--onnx-int8", default="", help="--runtimes: the .onnx of the quantized network")
    parser.add_argument("--ncnn", default="", help="--runtimes: the folder that export.py --target ncnn made of it")
    parser.add_argument("--precision", choices=["auto", *PRECISIONS], default="auto",
                        help="--runtimes: of what isn't integers; auto: bf16 in PyTorch where "
                        "the CPU has it, fp32 in others")  # fmt: skip
    parser.add_argument("--data", default="", help="--runtimes: .data file, for mAP@0.5 on its valid= images in each")
    add_threads_argument(parser)
    add_device_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    check_arguments(args)
    if args.runtimes is not None:
        figures = compare_runtimes(options_of(CompareOptions, vars(args)), args.img_size if "img_size" in args.given else None)
    else:
        figures = profile(args) if args.profile else compare_ways(args)
    write_json(args.json, figures)
    return figures


def check_arguments(args: argparse.Namespace) -> None:
    """UserError for what is missing, and for flags that don't go together."""
    foreign = sorted(args.given & (OF_WAYS if args.runtimes is not None else OF_RUNTIMES))
    if foreign:
        which = "doesn't go with --runtimes" if args.runtimes is not None else "is about --runtimes, which is missing"
        raise UserError(f"--{foreign[0].replace('_', '-')} {which}")
    unused = sorted(args.given & OF_TURNS) if args.profile else []
    if unused:
        raise UserError(f"--{unused[0]} doesn't go with --profile")
    if args.runtimes is not None and not args.weights:
        raise UserError("--runtimes: name the network with --weights FILE, its ONNX files with --onnx and --onnx-int8")
    if args.runtimes is None and not args.cfg:
        raise UserError("name the network with --cfg FILE")


def prepare(args: argparse.Namespace) -> tuple[Darknet, torch.device]:
    """The network with random weights, and where it is measured."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    return Darknet(parse_cfg(args.cfg), args.img_size), select_device(args.device)


def profile(args: argparse.Namespace) -> dict[str, Any]:
    """What a training step of the suite consists of. UserError on a GPU, where operators only queue their work."""
    model, device = prepare(args)
    if device.type != "cpu":
        raise UserError(f"--profile measures on the CPU, not on {device}; add --device cpu")
    reuse_memory()
    training, batch = suite_run(model, device, args), random_batch(model.defs.net.channels, args)
    dtype = training.dtype or torch.float32
    found = profile_step(training, lambda: normalise(batch.images, device, dtype), batch.targets, args.steps)
    threads = torch.get_num_threads()
    head = f"{args.cfg} at {args.img_size}, batch {args.batch_size}, {threads} threads, {dtype}".replace("torch.", "")
    print(head, report_profile(found, args.batch_size), f"peak memory: {memory_gib(device):.2f} GiB", sep="\n")
    shape = {"cfg": args.cfg, "img_size": args.img_size, "batch_size": args.batch_size, "threads": threads}
    return shape | {"profile": vars(found), "peak_memory_gib": memory_gib(device)}


def compare_ways(args: argparse.Namespace) -> dict[str, Any]:
    """The suite's way against the plain one."""
    model, device = prepare(args)
    gflop = 2e-9 * sum(layer_macs(model, args.img_size, args.img_size))
    figures: dict[str, Any] = {
        "cfg": args.cfg, "img_size": args.img_size, "batch_size": args.batch_size, "device": str(device),
        "threads": torch.get_num_threads(), "forward_gflop": gflop,
    }  # fmt: skip
    if "training" in args.parts:
        figures["training"] = measure_training(model, device, args)
    if "inference" in args.parts:
        figures["inference"] = {str(n): measure_inference(model, device, n, args) for n in sorted({1, args.batch_size})}
    if "peak" in args.parts:
        dtypes = dict.fromkeys(d for d in (torch.float32, training_dtype(device), inference_dtype(device)) if d)
        figures["peak_gflops"] = {str(d).removeprefix("torch."): peak_gflops(d, device) for d in dtypes}
    if "pipeline" in args.parts:
        figures["pipeline_images_per_s"] = pipeline_speeds(model, args)
    print(report(figures, gflop))
    return figures


def compare(
    plain: Callable[[], object], suite: Callable[[], object], repetitions: int, device: torch.device
) -> dict[str, float]:
    """Median times of both ways, run in turn after two warm-ups each, the plain one with the system's allocator settings."""
    slow, fast = median_seconds(
        (plain, suite), device, runs=repetitions, warm_up=2, before=lambda number: reuse_memory(number == 1)
    )
    return {"plain_s": slow, "suite_s": fast, "ratio": slow / fast}


def random_batch(channels: int, args: argparse.Namespace) -> Batch:
    """Noise images in the loader's memory layout, with BOXES boxes each."""
    generator = torch.Generator().manual_seed(args.seed)
    shape = (args.batch_size, args.img_size, args.img_size, channels)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    targets = torch.rand(args.batch_size * BOXES, 6, generator=generator) * 0.4 + 0.3
    targets[:, 0] = torch.arange(len(targets)) // BOXES
    targets[:, 1] = 0
    return Batch(images, targets, [])


def measure_training(model: Darknet, device: torch.device, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of a training step (forward, loss, backward, optimizer, averaging) both ways; memory of the suite's."""
    batch = random_batch(model.defs.net.channels, args)
    suite = suite_run(copy.deepcopy(model), device, args)

    def suite_step() -> None:
        images = normalise(batch.images, device, suite.dtype or torch.float32)
        train_step(suite, images, batch.targets.to(device))

    for _ in range(2):
        suite_step()
    memory = memory_gib(device)  # before the plain way has added its own
    plain = Run(copy.deepcopy(model), suite.hyp, suite.plan, device, None, World())
    plain.model.to(memory_format=torch.contiguous_format)

    def plain_step() -> None:
        train_step(plain, batch.images.to(device).contiguous().float() / 255, batch.targets.to(device))

    return compare(plain_step, suite_step, args.steps, device) | {"peak_memory_gib": memory}


def suite_run(model: Darknet, device: torch.device, args: argparse.Namespace) -> Run:
    """A training as train.py -mpt makes it."""
    plan = Plan(epochs=1, batch_size=args.batch_size, batches=100, img_size=args.img_size, accumulate=1)
    return Run(model, Hyp(), plan, device, training_dtype(device), World())


def train_step(training: Run, images: Tensor, targets: Tensor) -> None:
    """What train.py does with one batch."""
    with training.autocast():
        raws = training.forward(images)
    loss, _ = training.loss(raws, targets, tuple(images.shape[-2:]))
    training.backward(loss)
    training.optimizer_step()


def measure_inference(model: Darknet, device: torch.device, batch_size: int, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of a forward pass of `batch_size` images, decoding included, both ways."""
    plain = copy.deepcopy(model).eval().to(device)
    suite = model.inference_copy(device)
    pictures = torch.rand(batch_size, model.defs.net.channels, args.img_size, args.img_size, device=device)
    converted = pictures.to(inference_dtype(device), memory_format=torch.channels_last)
    with torch.inference_mode():
        return compare(lambda: plain(pictures), lambda: suite(converted), args.steps, device)


def peak_gflops(dtype: torch.dtype, device: torch.device) -> float:
    """The best of several large square matrix products, in GFLOP/s."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
    best = min(compare(lambda: a @ b, lambda: a @ b, 1, device)["suite_s"] for _ in range(5))
    return 2e-9 * size**3 / best


def pipeline_speeds(model: Darknet, args: argparse.Namespace) -> dict[str, float]:
    """Augmented images a second (JPEG decoding, mosaic, affine, HSV, flip) that loaders deliver when nobody waits, by what
    --cache-images keeps: epochs in turn, of which the first, which starts the workers, doesn't count."""
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), args.images, args.seed)
        loaders = {
            name: create_loader(
                folder, classes=1, img_size=args.img_size, batch_size=args.batch_size, training=True, hyp=Hyp(),
                gray=model.defs.net.channels == 1, workers=args.workers, seed=args.seed, cache_images=where,
            )
            for where, name in KEPT.items()
        }  # fmt: skip
        seconds: dict[str, list[float]] = {name: [] for name in loaders}
        for epoch in range(args.steps + 1):
            for name, loader in loaders.items():
                seconds[name].append(epoch_seconds(loader, epoch))
        on_disk = loaders[KEPT[DISK]].dataset.cache
        if on_disk is not None:
            Path(on_disk.path).unlink()
    images = len(loaders[KEPT[NONE]]) * args.batch_size
    return {name: images / statistics.median(found[1:]) for name, found in seconds.items()}


def epoch_seconds(loader: Loader, epoch: int) -> float:
    loader.dataset.set_epoch(epoch)
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


def write_pictures(folder: Path, count: int, seed: int) -> None:
    """`count` JPEG files as rich in detail as photographs, with label files."""
    generator = np.random.default_rng(seed)
    for number in tqdm(range(count), desc="Generating", delay=1):
        coarse = generator.integers(0, 256, (24, 32, 3), np.uint8)
        smooth = cv2.resize(coarse, PICTURE_SIZE[::-1], interpolation=cv2.INTER_CUBIC)
        noise = generator.normal(0, 8, smooth.shape)
        write_picture(folder / f"{number}.jpg", (smooth + noise).clip(0, 255).astype(np.uint8))
        boxes = generator.uniform((0.3, 0.3, 0.1, 0.1), (0.7, 0.7, 0.5, 0.5), (BOXES, 4))
        (folder / f"{number}.txt").write_text("".join(f"0 {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for x, y, w, h in boxes))


def report(figures: dict[str, Any], gflop: float) -> str:
    """The tables that a user reads. gflop: of a forward pass of one image; a training step counts as three."""
    rows, notes, batch = [], [], figures["batch_size"]
    training = figures.get("training")
    if training:
        rows.append(_row(f"training step, batch {batch}", training, 3 * gflop * batch))
    for size, result in figures.get("inference", {}).items():
        rows.append(_row(f"inference, batch {size}", result, gflop * int(size)))
    tables = [format_table(["", "plain ms", "suite ms", "ratio", "plain GFLOP/s", "suite GFLOP/s"], rows)] if rows else []
    for name, value in figures.get("peak_gflops", {}).items():
        notes.append(f"matrix product peak, {name}: {value:.0f} GFLOP/s")
    if "pipeline_images_per_s" in figures:
        speeds = figures["pipeline_images_per_s"]
        note = "image pipeline: " + ", ".join(f"{speed:.0f} images/s {name}" for name, speed in speeds.items())
        if training:
            consumed = batch / training["suite_s"]
            figures["pipeline_ratio"] = speeds[KEPT[NONE]] / consumed
            note += f"; the training step takes {consumed:.0f}"
        notes.append(note)
    if training:
        notes.append(f"peak memory of the suite's training: {training['peak_memory_gib']:.2f} GiB")
    head = f"{figures['cfg']} at {figures['img_size']} on {figures['device']}, {figures['threads']} threads"
    return "\n".join([head, *tables, *notes])


def _row(name: str, result: dict[str, float], gflop: float) -> list[Any]:
    seconds = result["plain_s"], result["suite_s"]
    times, rates = [f"{1000 * s:.1f}" for s in seconds], [f"{gflop / s:.0f}" for s in seconds]
    return [name, *times, f"{result['ratio']:.2f}x", *rates]


if __name__ == "__main__":
    run(main, get_parser())
