"""From train.py's arguments to everything that its epochs need."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from utils.cfg import DataConfig, read_data
from utils.cli import Loaded, load_model, sees_gray
from utils.datasets import create_loader
from utils.devices import training_dtype
from utils.distill import Distiller, load_teacher
from utils.distributed import World
from utils.hyp import Hyp
from utils.training import Plan, Run

EVALUATION_BATCH = 16  # test.py's: rectangular batches pad pictures depending on which others they come with
Say = Callable[[str], None]


@dataclass
class Setup:
    """Everything that the epochs need. settings: how pictures are prepared, which last.pt tells test.py and detect.py."""

    run: Run
    loader: DataLoader
    valid: DataLoader | None
    data: DataConfig
    settings: dict[str, Any]


def prepare(args: argparse.Namespace, checkpoint: dict[str, Any] | None, world: World, device: torch.device, say: Say) -> Setup:
    """Read data, build the network, and restore the run of `checkpoint` if there is one."""
    data = read_data(args.data)
    hyp = Hyp.restored(checkpoint["hyp"]) if checkpoint else Hyp.load(args.hyp, args.finetune)
    torch.manual_seed(args.seed)  # the same first weights in all processes
    loaded = load(args, data, checkpoint)
    torch.manual_seed(args.seed + world.rank)
    parameters = sum(p.numel() for p in loaded.model.parameters())
    say(f"{loaded.model.defs.name}: {parameters:,} parameters, {loaded.img_size} px, {device}")
    if loaded.report.message:
        say(loaded.report.message)
    settings = checkpoint["settings"] if checkpoint else picture_settings(args, loaded)
    teacher = load_teacher(args, loaded.model, settings["gray"]) if args.t_weights else None
    loader, valid = create_loaders(args, data, loaded, settings, hyp, world)
    plan = Plan(
        epochs=args.epochs, batch_size=args.batch_size, batches=len(loader), img_size=loaded.img_size, seed=args.seed,
        accumulate=args.accumulate, adam=args.adam, ema=args.ema, multi_scale=args.multi_scale, maxabs=settings["maxabs"],
        prune=args.prune, s=args.s, sparse_schedule=args.sparse_schedule, sparse_keep=args.sparse_keep,
        sparse_target=args.sparse_target,
    )  # fmt: skip
    dtype = training_dtype(device) if args.mixedprecision else None
    if args.mixedprecision:
        say(f"mixed precision: {dtype}" if dtype else "mixed precision: this CPU has no bfloat16 of its own; float32 goes on")
    run = Run(loaded.model, hyp, plan, device, dtype, world)
    if teacher:
        run.distil(Distiller(teacher, args.KDstr, args.kd_weight, args.kd_temperature, device, args.seed))
        run.distiller.describe(say)
    if checkpoint:
        run.restore(checkpoint)
    return Setup(run, loader, valid, data, settings)


def load(args: argparse.Namespace, data: DataConfig, checkpoint: dict[str, Any] | None) -> Loaded:
    """The network, with the weights to begin with; those of a resumed run are restored later."""
    if checkpoint:
        loaded = load_model(checkpoint["cfg"], "", checkpoint["settings"]["img_size"], data)
        loaded.model.defs.name = checkpoint["cfg_name"]
        return loaded
    start = {"pretrained": args.pretrained, "prefix": args.pretrained, "gray": args.gray_scale}
    return load_model(args.cfg, args.weights, args.img_size, data, **start)


def picture_settings(args: argparse.Namespace, loaded: Loaded) -> dict[str, Any]:
    """Command line, or what the checkpoint that training begins with was trained with."""
    return {
        "img_size": loaded.img_size,
        "gray": sees_gray(loaded.model),
        "maxabs": args.maxabsscaler or bool(loaded.settings.get("maxabs")),
        "stretch": args.stretch or bool(loaded.settings.get("stretch")),
    }


def create_loaders(
    args: argparse.Namespace, data: DataConfig, loaded: Loaded, settings: dict[str, Any], hyp: Hyp, world: World
) -> tuple[DataLoader, DataLoader | None]:
    """Loaders of the training and the validation pictures; no validation where the .data names none, with --notest."""
    shared = {
        "classes": data.classes, "img_size": loaded.img_size, "stride": loaded.model.max_stride, "stretch": settings["stretch"],
        "gray": settings["gray"], "workers": args.workers, "cache_images": args.cache_images, "rank": world.rank,
        "world_size": world.size,
    }  # fmt: skip
    loader = create_loader(
        data.source("train"), training=True, batch_size=args.batch_size, hyp=hyp, rect=args.rect, seed=args.seed, **shared
    )
    if data.valid is None and args.notest:
        return loader, None
    batch, rect = EVALUATION_BATCH * world.size, not settings["stretch"]
    return loader, create_loader(data.source("valid"), training=False, batch_size=batch, rect=rect, **shared)
