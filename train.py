"""Train a Darknet .cfg detector, from scratch or from weights, densely or towards prunable gammas.

    python train.py --data data/bccd/bccd.data --cfg cfg/yolov3tiny/yolov3-tiny.cfg --epochs 60 -mpt
    python train.py --data data/bccd/bccd.data --weights weights/best.pt --s 0.01 --prune 0
    torchrun --nproc_per_node 2 train.py --data data/bccd/bccd.data --cfg cfg/yolov3/yolov3.cfg --batch-size 64
"""

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from test import json_ground_truth
from utils.cfg import DataConfig, parse_cfg, read_data, write_cfg
from utils.cli import Loaded, Parser, add_device_arguments, add_model_arguments, load_model, run, write_json
from utils.datasets import create_loader
from utils.devices import training_dtype
from utils.distributed import World, joined
from utils.engine import evaluate
from utils.errors import UserError
from utils.files import make_folder
from utils.hyp import Hyp
from utils.logger import RunLog, gammas_line, metrics_line, results_row
from utils.metrics import Evaluation
from utils.sparsity import gamma_statistics
from utils.train_epoch import train_one_epoch
from utils.training import Plan, Run
from utils.weights import load_checkpoint, save_checkpoint

EVALUATION_BATCH = 16  # test.py's: rectangular batches pad pictures depending on which others they come with
THIS_MACHINE = {"resume", "device", "workers", "cache_images", "json", "name", "weights_dir"}  # not taken from last.pt
PRUNERS = {0: "normal_prune.py", 1: "shortcut_prune.py", 2: "layer_prune.py"}


def get_parser() -> Parser:
    parser = Parser(__doc__.splitlines()[0])
    flag = {"action": "store_true"}
    parser.add_argument("--data", default="", help=".data file: classes, names, train, valid")
    add_model_arguments(parser)
    parser.add_argument("-pt", "--pretrained", **flag, help="weights may be a backbone's, or have heads for other classes")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=16, help="pictures a batch, of all processes together")
    parser.add_argument("--accumulate", type=int, default=0, help="batches an optimizer step; 0: up to the nominal batch")
    parser.add_argument("--s", type=float, default=0.0, help="sparse training: strength of the penalty on gammas")
    parser.add_argument("--prune", type=int, default=-1, choices=[-1, 0, 1, 2],
                        help="gammas to penalise: 0 normal and regular, 1 shortcut and slim, 2 layer pruning")  # fmt: skip
    parser.add_argument("--multi-scale", **flag, help="picture sizes vary between 0.67 and 1.5 times --img-size")
    parser.add_argument("--rect", **flag, help="rectangular batches, without mosaic")
    parser.add_argument("--stretch", **flag, help="resize as Darknet does, without keeping the aspect ratio")
    parser.add_argument("--gray-scale", **flag, help="one-channel pictures and network")
    parser.add_argument("--maxabsscaler", "-mas", **flag, help="pictures in -1..1 instead of 0..1")
    parser.add_argument("--cache-images", **flag, help="keep decoded pictures in memory")
    parser.add_argument("--hyp", default="", metavar="FILE", help="hyper-parameters, JSON or `name: value` lines")
    parser.add_argument("--adam", **flag, help="AdamW instead of SGD")
    parser.add_argument("--ema", action=argparse.BooleanOptionalAction, default=True, help="average the weights over steps")
    parser.add_argument("--mixedprecision", "-mpt", **flag, help="compute in bfloat16 or float16 where that is faster")
    parser.add_argument("--resume", **flag, help="go on with the run that last.pt belongs to")
    parser.add_argument("--nosave", **flag, help="write last.pt after the last epoch only, and no best.pt")
    parser.add_argument("--notest", **flag, help="evaluate after the last epoch only")
    parser.add_argument("--name", default="", help="writes last_NAME.pt, best_NAME.pt, results_NAME.txt")
    parser.add_argument("--weights-dir", default="weights", help="folder of last.pt and best.pt")
    parser.add_argument("--logdir", default="runs", help="folder of TensorBoard's files; '' for none")
    parser.add_argument("--workers", type=int, default=2, help="processes that read pictures")
    parser.add_argument("--seed", type=int, default=0)
    add_device_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Train; returns the figures that --json writes."""
    with joined(args.device) as (world, device):
        return Training(args, world, device).fit()


class Training:
    """One call of train.py: reads what it is given, wires it up, and writes what comes of it."""

    def __init__(self, args: argparse.Namespace, world: World, device: torch.device) -> None:
        self.args, self.world, self.started = args, world, time.perf_counter()
        suffix = f"_{args.name}" if args.name else ""
        self.last, self.best = (Path(args.weights_dir) / f"{kind}{suffix}.pt" for kind in ("last", "best"))
        checkpoint = self.read_last() if args.resume else None
        check_arguments(args)
        self.data = read_data(args.data)
        hyp = Hyp(**checkpoint["hyp"]) if checkpoint else Hyp.load(args.hyp)
        torch.manual_seed(args.seed)  # the same first weights in all processes
        self.loaded = self.load(checkpoint)
        torch.manual_seed(args.seed + world.rank)
        self.train_loader, self.valid_loader = self.create_loaders(hyp)
        plan = Plan(
            batches=len(self.train_loader), img_size=self.loaded.img_size, maxabs=args.maxabsscaler,
            **{k: getattr(args, k) for k in ("epochs", "batch_size", "seed", "accumulate", "adam", "ema", "multi_scale", "prune", "s")},
        )  # fmt: skip
        self.run = Run(self.loaded.model, hyp, plan, device, self.compute_type(device), world)
        self.finished = bool(checkpoint and checkpoint["finished"])
        if checkpoint and not self.finished:
            self.run.restore(checkpoint)
        self.results = checkpoint["training_results"] if checkpoint else ""
        self.truth = json_ground_truth(self.data, self.valid_loader) if self.valid_loader else None

    def say(self, text: str) -> None:
        if self.world.is_main and text:
            print(text, flush=True)

    def read_last(self) -> dict[str, Any]:
        """last.pt; its arguments replace those of the command line."""
        if not self.last.exists():
            raise UserError(f"{self.last}: there is no run to --resume; start one without it (or give its --name, --weights-dir)")
        checkpoint = load_checkpoint(self.last)
        if not checkpoint.get("finished", "train_model" not in checkpoint) is False and "finished" not in checkpoint:
            raise UserError(f"{self.last}: holds weights, but no training to --resume; start from it with --weights {self.last}")
        defaults, ignored = get_parser(), []
        for name, value in checkpoint["args"].items():
            given = getattr(self.args, name, value)
            if name in THIS_MACHINE:
                continue
            if given not in (value, defaults.get_default(name)):
                ignored.append(f"--{name.replace('_', '-')} {value}")
            setattr(self.args, name, value)
        if ignored:
            self.say(f"--resume goes on as the run began, with {', '.join(ignored)}")
        return checkpoint
