"""What every prune script does: load, score, choose, measure original, masked and compact model, write, report."""

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import Darknet
from utils import cli
from utils.cfg import DataConfig, read_data, write_cfg
from utils.compact import compact_model, mask_model
from utils.datasets import create_loader
from utils.devices import select_device
from utils.engine import evaluate
from utils.errors import UserError
from utils.files import make_folder, write_text
from utils.graph import ChannelGraph
from utils.hyp import Hyp
from utils.importance import gamma_scores
from utils.masks import POLICIES, Limits, Mask, Policy, candidates, global_mask
from utils.measure import costs
from utils.plots import plot_channels
from utils.weights import save_weights

DEAD_MAP50 = 0.05  # a masked mAP@0.5 below this share of the original's is called dead


def prune_parser(strategy: str, description: str) -> cli.Parser:
    """The command line of a channel-pruning script."""
    parser = cli.Parser(description)
    cli.add_model_arguments(parser)
    parser.add_argument("--data", default="", help=".data file; without it nothing is evaluated")
    parser.add_argument("--percent", type=float, default=0.5, help="share of the prunable channels to remove, 0..1")
    parser.add_argument("--min-channels", type=int, default=1, help="channels that every layer keeps at least")
    parser.add_argument("--save-dir", default="", help="write cfg, weights and picture here instead of cfg/ and weights/")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures a batch, for the evaluation")
    parser.add_argument("--workers", type=int, default=2, help="processes that load pictures")
    cli.add_device_arguments(parser)
    cli.add_inference_arguments(parser)
    parser.set_defaults(strategy=strategy)
    return parser


@dataclass
class Judge:
    """Measures models of one size on one device: mAP with a dataset, what they cost in any case."""

    args: argparse.Namespace
    data: DataConfig | None
    loaded: cli.Loaded

    def __post_init__(self) -> None:
        self.device = select_device(self.args.device)
        self.loader = None
        if self.data is not None:
            settings = self.loaded.settings
            stretch = self.args.stretch or settings.get("stretch", False)
            self.loader = create_loader(
                self.data.source("valid"), classes=self.data.classes, img_size=self.loaded.img_size,
                batch_size=self.args.batch_size, training=False, hyp=Hyp(), stride=self.loaded.model.max_stride,
                rect=not stretch, stretch=stretch, gray=self.loaded.model.defs.net.channels == 1, workers=self.args.workers,
            )  # fmt: skip

    def accuracy(self, model: Darknet, what: str) -> dict[str, Any]:
        """{map50, map}, None without a dataset."""
        if self.loader is None:
            return {"map50": None, "map": None}
        maxabs = self.loaded.settings.get("maxabs", False)
        result = evaluate(model, self.loader, self.loaded.names, device=self.device, precision=self.args.precision,
                          maxabs=maxabs, desc=what)  # fmt: skip
        return {"map50": result.map50, "map": result.map}

    def measure(self, model: Darknet, what: str) -> dict[str, Any]:
        return self.accuracy(model, what) | costs(model, self.loaded.img_size, self.device, self.args.precision)


def prune_channels(args: argparse.Namespace) -> dict[str, Any]:
    """Prune by the policy `args.strategy`; returns the figures that --json writes."""
    policy = POLICIES[args.strategy]
    if not 0 <= args.percent < 1:
        raise UserError(f"--percent {args.percent:g}: give a share of the channels, at least 0 and below 1")
    if not args.weights:
        raise UserError("name the trained network with --weights FILE: the gammas to prune by are in it")
    data = read_data(args.data) if args.data else None
    loaded = cli.load_model(args.cfg, args.weights, args.img_size, data)
    model, graph = loaded.model, ChannelGraph(loaded.model.defs)
    targets = output_paths(args, model)
    mask = choose(args, model, graph, policy)
    judge = Judge(args, data, loaded)
    before = judge.measure(model, "original")
    masked = mask_model(model, graph, mask.keep)
    masked_figures = judge.accuracy(masked, "masked")
    warn_if_dead(before, masked_figures, args)
    small = compact_model(model, graph, mask.keep)
    after = judge.measure(small, "compact")
    figures = {
        "strategy": args.strategy, "requested": args.percent, "achieved": mask.achieved, "limit": mask.limit,
        "cfg": str(targets.cfg), "weights": str(targets.weights), "before": before, "masked": masked_figures,
        "after": after, "layers": layer_counts(model, small),
        "max_abs_diff": max_difference(masked, small, loaded.img_size),
    }  # fmt: skip
    save(small, figures, targets)
    report(figures, args, judge.device)
    cli.write_json(args.json, figures)
    return figures


def choose(args: argparse.Namespace, model: Darknet, graph: ChannelGraph, policy: Policy) -> Mask:
    """The keep-mask of the policy, with what the user should know about it printed."""
    scores = gamma_scores(model, graph, policy.combine)
    pool = candidates(graph, policy)
    if not pool.any():
        raise UserError(f"{model.defs.name}: {args.strategy} pruning finds no channel that may go; try shortcut or slim")
    limits = Limits(args.min_channels, round_to=policy.round_to)
    mask = global_mask(graph, scores, policy, args.percent, limits)
    print(f"{int(pool.sum()):,} prunable channels of {graph.count - model.defs.net.channels:,}; "
          f"highest percent that empties no layer: {mask.limit:.3f}; "
          f"requested {args.percent:g}, achieved {mask.achieved:.3f}")  # fmt: skip
    if args.percent > mask.limit:
        print(f"warning: above {mask.limit:.3f} whole layers would be empty; their strongest channels stay")
    typical = float(np.median(scores[pool]))
    if mask.threshold > 0.1 * typical and mask.threshold > 0.1:
        print(f"warning: the gammas aren't sparse: removed ones reach {mask.threshold:.3f}, the median is {typical:.3f}. "
              f"Expect a large drop; train with --s first (train.py --s ... --prune), or use a smaller --percent")  # fmt: skip
    return mask


def warn_if_dead(before: dict[str, Any], masked: dict[str, Any], args: argparse.Namespace) -> None:
    """Say, before anything is written, that the pruned network detects next to nothing."""
    if before["map50"] and masked["map50"] < DEAD_MAP50 * before["map50"]:
        print(f"warning: with --percent {args.percent:g} mAP@0.5 falls from {before['map50']:.3f} to {masked['map50']:.3f}; "
              f"finetuning starts nearly from scratch. Use a smaller --percent, or train sparser (--s)")  # fmt: skip


@dataclass(frozen=True)
class Targets:
    cfg: Path
    weights: Path
    picture: Path


def output_paths(args: argparse.Namespace, model: Darknet) -> Targets:
    """cfg/<strategy>_<amount>_<family>/..., weights/<same>/..., or all in --save-dir; UserError if it can't be written."""
    source = Path(model.defs.name)
    amount = f"{args.strategy}_{args.percent:g}"
    name = f"{amount}_{source.stem}"
    if args.save_dir:
        cfg_folder = weights_folder = Path(args.save_dir)
    else:
        folder = f"{amount}_{source.resolve().parent.name}"
        cfg_folder, weights_folder = Path("cfg") / folder, Path("weights") / folder
    targets = Targets(cfg_folder / f"{name}.cfg", weights_folder / f"{name}.weights", cfg_folder / f"{name}.png")
    for path in (targets.cfg, targets.weights):
        make_folder(path.parent)
        if path.is_dir():
            raise UserError(f"{path}: is a folder, but a file is to be written there; use --save-dir")
    return targets


def layer_counts(model: Darknet, small: Darknet) -> list[dict[str, int]]:
    """Filters of each convolution before and after."""
    pairs = zip(model.defs, small.defs, strict=True)
    return [{"index": i, "before": a.filters, "after": b.filters} for i, (a, b) in enumerate(pairs) if hasattr(a, "dilation")]


@torch.no_grad()
def max_difference(masked: Darknet, small: Darknet, img_size: int) -> float:
    """Largest absolute difference of the raw outputs of masked and compact network on a random picture (seed 0)."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, masked.defs.net.channels, img_size, img_size, generator=generator)
    pairs = zip(copy.deepcopy(masked).cpu().eval()(image)[1], copy.deepcopy(small).cpu().eval()(image)[1], strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def save(small: Darknet, figures: dict[str, Any], targets: Targets) -> None:
    write_text(targets.cfg, write_cfg(small.defs))
    save_weights(small, targets.weights)
    plot_channels(figures["layers"], targets.picture)


def report(figures: dict[str, Any], args: argparse.Namespace, device: torch.device) -> None:
    """The table before/after and the next command."""
    before, after = figures["before"], figures["after"]
    rows = [
        ["mAP@0.5", before["map50"], figures["masked"]["map50"], after["map50"], None],
        ["mAP@0.5:0.95", before["map"], figures["masked"]["map"], after["map"], None],
        *([label, before[k], None, after[k], f"{100 * (1 - after[k] / before[k]):.1f} %"] for label, k in _COSTS),
    ]
    print(f"\n{args.strategy} pruning; latency: median, batch 1, {device}, fused, --precision {args.precision}")
    print(cli.format_table(["", "original", "masked", "compact", "saved"], rows))
    print(f"largest difference of raw outputs, masked - compact: {figures['max_abs_diff']:.2g}")
    print(f"cfg:      {figures['cfg']}\nweights:  {figures['weights']}")
    data = args.data or "..."
    print(f"next:     python train.py --data {data} --cfg {figures['cfg']} --weights {figures['weights']} -pt --epochs ...")


_COSTS = (("parameters", "params"), ("MACs", "macs"), ("bytes of .weights", "bytes"), ("latency, ms", "latency_ms"))
