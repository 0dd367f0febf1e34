"""What every prune script does: load, score, choose, measure original, masked and compact model, write, report."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.core.commands import command
from utils.core.errors import UserError
from utils.core.files import make_folder, write_text
from utils.core.plots import plot_channels, plot_sweep
from utils.core.ranges import BATCH_SIZE, NOT_ALL, SHARE, WORKERS, whole
from utils.core.tables import format_table, write_json
from utils.data.data_file import read_data
from utils.loading import NetworkOptions, load_model
from utils.network.cfg import write_cfg
from utils.network.cost import network_size
from utils.network.darknet import Darknet
from utils.network.weights import save_weights
from utils.pruning.amounts import Goal, GoalOptions, Milliseconds, Target, goal_of, largest_amount, smallest_amount, sweep
from utils.pruning.masks import POLICIES, Limits
from utils.pruning.pruner import STRATEGIES, Amount, Choice, Pruner
from utils.pruning.spend import MILLISECONDS as MS
from utils.recipe import count, finetuning_epochs
from utils.runtimes.deployment import Deployment
from utils.scripts.cli import Parser, add_device_arguments, add_inference_arguments, add_model_arguments
from utils.scripts.evaluator import EvaluationOptions, Evaluator
from utils.scripts.latency import Clock, LatencyOptions, add_latency_arguments, deployment_of
from utils.scripts.mending import MendingOptions, add_mending_arguments, mend_and_measure, mended, stage_columns
from utils.scripts.ranking import RankingOptions, add_ranking_arguments, check_ranking, choose_importance, rank, settle_spend

WORTH_SPLITTING = 0.1  # share of its channels that a convolution has to be spared to be written in parts
DEAD_MAP50 = 0.05  # an mAP@0.5 below this share of the original's is called dead
NOTES = """\
Which strategy (measured on BCCD, see EXPERIMENTS.md): normal first: yolov3-tiny at --percent 0.7 keeps 9 % of its parameters
and loses 0.009 of mAP@0.5 once finetuned. regular: the same in multiples of 8, for targets that compute in groups. shortcut and
slim: residual networks, shared channels too; tiny-mobilenet-small at 0.65 keeps 23 % of its parameters (normal 24 %, regular
26 %) and loses 1.5 and 2.5 points (normal 0.6). layer: fewer layers, where latency counts. layer_channel: both. On yolov3
slim at 0.7 keeps 10 % of the parameters and loses 1.1 points, layer with 12 of 23 blocks gone keeps 50 % and loses 3.3,
layer_channel with both keeps 8 % and loses 2.9, and is the fastest.
Which channels: by gamma (--importance gamma) only after sparse training, when what goes is weak already. The gammas count as
not sparse if the strongest removed one is above 0.1 and above a tenth of the median of all that could go (blocks: of the mean
gammas at their ends); then auto takes gradients of 64 training images instead: taylor, or with --refit obs, which knows
what that makes up for. The strategies' rules for shared channels are for gammas; by other criteria a shared channel is worth
the sum of its members, by obs what all its readers lose. --refit 64 costs seconds to minutes and gains more than any choice
of channels. An mAP@0.5 under 5 % of the original's is called out before anything is written.
Without --data nothing is evaluated."""


@dataclass(frozen=True)
class LimitOptions:
    """What every layer keeps at least; see utils.pruning.masks.Limits."""

    layer_keep: float
    min_channels: int
    round_to: int | None
    split_halves: bool | None

    def limits(self, usual: int) -> Limits:
        """usual: what counts are rounded up to if nothing is asked for."""
        split = {None: WORTH_SPLITTING, True: 0.0, False: None}[self.split_halves]
        return Limits(self.min_channels, self.layer_keep, self.round_to or usual, split)


@dataclass(frozen=True)
class PruneOptions:
    """The command line of a prune script."""

    strategy: str
    data: str
    network: NetworkOptions
    percent: float
    shortcuts: int | None
    goal: GoalOptions
    ranking: RankingOptions
    mending: MendingOptions
    limits: LimitOptions
    latency: LatencyOptions
    evaluation: EvaluationOptions
    dry_run: bool
    force: bool
    save_dir: str
    json: str


def prune_parser(strategy: str, description: str) -> Parser:
    """The command line of a prune script; all have the same options, with the strategy's defaults."""
    defaults = STRATEGIES[strategy]
    parser = Parser(description)
    parser.epilog = NOTES
    add_model_arguments(parser)
    parser.add_argument("--data", default="", help=".data file; without it nothing is evaluated")
    _add_amounts(parser, strategy)
    add_ranking_arguments(parser)
    add_mending_arguments(parser)
    add_latency_arguments(parser)
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--layer_keep", type=SHARE, default=defaults.layer_keep, help="share of every layer that stays at least"
    )
    limits.add_argument("--min-channels", type=whole(1, 65536), default=1, help="channels that every layer keeps at least")
    limits.add_argument("--round-to", type=whole(1, 1024), default=None, metavar="N",
                        help="counts are rounded up to multiples of N; 4 for ONNX Runtime, 8 for most hardware; if not given "
                        f"{POLICIES[defaults.policy].round_to}, with --runtime what that computes at once")  # fmt: skip
    limits.add_argument("--split-halves", action=argparse.BooleanOptionalAction, default=None,
                        help="where a route with groups= cuts the map of a convolution (YOLOv8's C2f, CSP), write that as one "
                        "for each part, so that parts may keep different numbers of channels: wherever that spares any, or "
                        "nowhere (default: where it spares a tenth of the convolution's)")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true",
                        help="write no network: a table and an image of what a sweep of amounts would leave")  # fmt: skip
    parser.add_argument("--force", action="store_true",
                        help="where the amount asked for can't be had, take the nearest instead of stopping")  # fmt: skip
    parser.add_argument("--save-dir", default="", help="write cfg, weights and image here instead of cfg/ and weights/")
    parser.add_argument("--batch-size", type=BATCH_SIZE, default=16, help="images a batch, for the evaluation")
    parser.add_argument("--workers", type=WORKERS, default=2, help="processes that load images")
    add_device_arguments(parser)
    add_inference_arguments(parser)
    parser.set_defaults(strategy=strategy)
    return parser


def _add_amounts(parser: Parser, strategy: str) -> None:
    defaults = STRATEGIES[strategy]
    usual = f"{defaults.shortcuts}, or all if there are fewer" if defaults.shortcuts else "0"
    parser.add_argument("--shortcuts", "--shortcut", type=whole(0, 10_000), default=None, metavar="N",
                        help=f"residual blocks to drop, the weakest first (default: {usual})")  # fmt: skip
    amounts = parser.add_argument_group("how many channels (layer_prune: blocks)").add_mutually_exclusive_group()
    amounts.add_argument("--percent", type=NOT_ALL, default=defaults.percent, help="share of the prunable channels to remove")
    amounts.add_argument("--max-drop", type=SHARE, metavar="D",
                         help="with --data: as many as cost at most D of mAP@0.5 before any finetuning")  # fmt: skip
    amounts.add_argument("--target-params", type=Target, metavar="F",
                         help="as many as leave at most F parameters: a share (0.2) or a number (2.5M)")  # fmt: skip
    amounts.add_argument("--target-macs", type=Target, metavar="F", help="the same for multiply-accumulates of one image")
    amounts.add_argument("--target-ms", type=Milliseconds, metavar="T",
                         help="as many as leave about T milliseconds an image on --runtime, to 3 %%: 12, or 50%%")  # fmt: skip


def prune(options: PruneOptions) -> dict[str, Any]:
    """Prune by a strategy; returns the figures that --json writes."""
    deployment = check_arguments(options)
    data, network = read_data(options.data) if options.data else None, options.network
    loaded = load_model(network.cfg, network.weights, network.img_size, data, gray=options.evaluation.images.gray)
    if loaded.report.message:
        print(loaded.report.message)
    if loaded.model.quantization:
        raise UserError(f"{network.weights}: is quantized; prune the float network first, then quantize what is left of it "
                        "(PTQ.py, or train.py --quantized)")  # fmt: skip
    pruner = Pruner(loaded.model, options.strategy, limits_of(options, deployment))
    amount = pruner.check(options.percent, options.shortcuts, options.force)
    say_what_there_is(pruner)
    output_paths(options, loaded.model, amount)
    evaluator = Evaluator(options.evaluation, data, loaded)
    clock = Clock.of(deployment, loaded, options.goal.target_ms) if deployment else None
    pruner.times = clock.times if clock else None
    if options.dry_run:
        return dry_run(options, evaluator, pruner, amount, clock)
    before = evaluator.measure(loaded.model, "original") | (clock.before() if clock else {})
    goal = goal_of(options.goal, before)
    (pruner,), spend = ranked(options, evaluator, pruner, amount, goal)
    choice = settle(options, pruner, evaluator, amount, goal, clock) if goal else pruner.choose(amount)
    amount = choice.amount
    targets = output_paths(options, loaded.model, amount)
    say_choice(pruner, choice)
    masked = pruner.masked(choice)
    masked_figures = evaluator.accuracy(masked, "masked")
    small = pruner.compact(choice)
    figures = {
        "strategy": options.strategy, **pruner.summary(choice), "goal": vars(goal) if goal else None, "spend": spend,
        "cfg": str(targets.cfg), "weights": str(targets.weights), "before": before, "masked": masked_figures,
        "after": evaluator.measure(small, "compact") | (clock.after(small) if clock else {}),
        "layers": pruner.layer_counts(choice),
        "max_abs_diff": max_difference(masked, small, loaded.img_size),
    }  # fmt: skip
    figures |= mend_and_measure(options.mending, evaluator, pruner, choice, small, figures["after"])
    warn_if_dead(before, figures["after"], amount)
    save(small, figures, targets)
    report(figures, options, evaluator, clock)
    write_json(options.json, figures)
    return figures


def check_arguments(options: PruneOptions) -> Deployment | None:
    """Where milliseconds are measured, if they are asked for; UserError for arguments that can't be used."""
    if not options.network.weights:
        raise UserError("name the trained network with --weights FILE: the gammas to prune by are in it")
    mending, goal = options.mending, options.goal
    wanting = {"--refit": mending.refit, "--bn-recal": mending.bn_recal, "--max-drop": goal.max_drop is not None}
    if not options.data and any(wanting.values()):
        raise UserError(
            f"{next(flag for flag, wanted in wanting.items() if wanted)} needs --data FILE.data: images to measure on"
        )
    check_ranking(options.ranking, data=options.data, dry_run=options.dry_run)
    if options.dry_run and goal.is_given:
        raise UserError("--dry-run shows what every amount leaves; leave --max-drop and --target-... out")
    asking = {"--target-ms": goal.target_ms, "--spend ms": options.ranking.spend == MS, "--dry-run": options.dry_run}
    wanted = next((flag for flag, value in asking.items() if value), "")
    evaluation = options.evaluation
    return deployment_of(options.latency, wanted=wanted, device=evaluation.device, precision=evaluation.precision)


def limits_of(options: PruneOptions, deployment: Deployment | None) -> Limits:
    """What every layer keeps: in whole steps of what the runtime computes at once, if one is named."""
    usual = POLICIES[STRATEGIES[options.strategy].policy].round_to
    return options.limits.limits(max(usual, deployment.step) if deployment else usual)


def say_what_there_is(pruner: Pruner) -> None:
    """How much of the network is at the strategy's disposal."""
    channels = pruner.graph.count - pruner.model.defs.net.channels
    print(f"{int(pruner.pool.sum()):,} prunable channels of {channels:,}; {len(pruner.blocks)} residual blocks can be dropped")
    if pruner.graph.grouped:
        print(f"left whole, being grouped convolutions: layers {', '.join(map(str, pruner.graph.grouped))}")


def say_choice(pruner: Pruner, choice: Choice) -> None:
    """What was asked for, what comes out, and what the user should know about it before it is written."""
    amount, mask = choice.amount, choice.mask
    if amount.percent:
        print(f"highest percent that empties no layer: {mask.limit:.3f}; "
              f"requested {amount.percent:g}, achieved {mask.achieved:.3f}")  # fmt: skip
    if amount.percent > mask.limit:
        print(f"warning: above {mask.limit:.3f} whole layers would be empty; their strongest channels stay")
    divided = pruner.divided(choice)
    if divided:
        print(f"written in parts, which keep different numbers of channels: layers {', '.join(map(str, divided))}")
    if choice.dropped:
        print(f"dropped: {len(choice.dropped)} of {len(pruner.blocks)} residual blocks, those that end in the shortcuts "
              f"{', '.join(str(b.shortcut) for b in choice.dropped)}")  # fmt: skip
    warning = pruner.sparsity_warning(choice)
    if warning:
        print(f"warning: {warning}")


def ranked(
    options: PruneOptions, evaluator: Evaluator, first: Pruner, base: Amount, goal: Goal | None
) -> tuple[list[Pruner], str]:
    """A pruner for each criterion that is asked for, and what importance is weighed against. first: ranks by gammas; base,
    goal: see utils.scripts.ranking.choose_importance."""
    asked, names = options.ranking, options.ranking.importance
    if len(names) == 1:
        refits = bool(options.mending.refit)
        names = [choose_importance(names[0], first, evaluator, base, goal, refits=refits)]
    spend = settle_spend(asked.spend, names[0], goal)
    return rank(first, names, evaluator, asked.importance_images, spend), spend


def settle(
    options: PruneOptions, pruner: Pruner, evaluator: Evaluator, base: Amount, goal: Goal, clock: Clock | None
) -> Choice:  # fmt: skip
    """What reaches the goal; see utils.pruning.amounts and utils.pruning.budget."""
    if clock and goal.kind == MS:
        return clock.settle(pruner, base, goal.value, options.force)
    if goal.kind != "map50":
        return pruner.choose(smallest_amount(pruner, base, goal, evaluator.loaded.img_size, options.force))

    def accuracy(amount: Amount) -> float:
        found = evaluator.accuracy(mended(options.mending, evaluator, pruner, pruner.choose(amount)), str(amount))["map50"]
        print(f"{amount}: mAP@0.5 {found:.4f}")
        return found

    return pruner.choose(largest_amount(pruner, base, goal, accuracy, options.force))


def dry_run(
    options: PruneOptions, evaluator: Evaluator, first: Pruner, base: Amount, clock: Clock | None
) -> dict[str, Any]:  # fmt: skip
    """A table and an image of a sweep of amounts, by each criterion asked for; writes no network. first: ranks by gammas."""
    model, size = first.model, evaluator.loaded.img_size
    mending = bool(options.mending.stages)
    before = network_size(Darknet, model.defs, size) | evaluator.accuracy(model, "original")
    before |= clock.before() if clock else {}
    pruners, spend = ranked(options, evaluator, first, base, None)
    rows = []
    for pruner in pruners:

        def accuracy(amount: Amount, pruner: Pruner = pruner) -> float:
            choice = pruner.choose(amount)
            network = mended(options.mending, evaluator, pruner, choice) if mending else pruner.masked(choice)
            return evaluator.accuracy(network, f"{pruner.importance} {amount}")["map50"]

        found = sweep(pruner, base, size, accuracy if evaluator.loader else None)
        if clock:
            clock.correct(pruner, found)
        rows += [{"importance": pruner.importance} | row for row in found]
    what = "shortcuts" if base.shortcuts and not base.percent else "percent"
    picture = output_paths(options, model, None).picture
    costs = {"params": "parameters", "macs": "MACs", "channels": "channels"} | ({MS: "ms"} if clock else {})
    keys = ("importance", what, "achieved", *costs, "map50")
    stage = "mended" if mending else "masked"
    print(f"\n{options.strategy} pruning, {size} px, original: {before['params']:,} parameters, {before['macs']:,} MACs")
    header = ["importance", what, "achieved", *costs.values(), f"mAP@0.5, {stage}"]
    print(format_table(header, [[row[k] for k in keys] for row in rows]))
    if clock:
        print(clock.note(rows))
    plot_sweep(rows, before, what, stage, picture)
    print(f"picture:  {picture}")
    figures = {"strategy": options.strategy, "spend": spend, "before": before, "sweep": rows, "picture": str(picture)}
    write_json(options.json, figures)
    return figures


def warn_if_dead(before: dict[str, Any], after: dict[str, Any], amount: Amount) -> None:
    """Say, before anything is written, that the pruned network detects next to nothing."""
    if before["map50"] and after["map50"] < DEAD_MAP50 * before["map50"]:
        print(f"warning: with {amount} mAP@0.5 falls from {before['map50']:.3f} to {after['map50']:.3f}; "
              f"finetuning starts nearly from scratch. Remove less, refit (--refit 64), or train sparse first")  # fmt: skip


@dataclass(frozen=True)
class Targets:
    cfg: Path
    weights: Path
    picture: Path


def output_paths(options: PruneOptions, model: Darknet, amount: Amount | None) -> Targets:
    """cfg/<strategy>_<amount>_<family>/..., weights/<same>/..., or all in --save-dir; UserError if it can't be written.

    Without an amount: those of a sweep.
    """
    source = Path(model.defs.name)
    parts = [f"{amount.percent:g}"] if amount and (amount.percent or not amount.shortcuts) else []
    parts += [str(amount.shortcuts)] if amount and amount.shortcuts else []
    label = "_".join([options.strategy, *(parts or ["sweep"])])
    name = f"{label}_{source.stem}"
    if options.save_dir:
        cfg_folder = weights_folder = Path(options.save_dir)
    else:
        folder = f"{label}_{source.resolve().parent.name}"
        cfg_folder, weights_folder = Path("cfg") / folder, Path("weights") / folder
    targets = Targets(cfg_folder / f"{name}.cfg", weights_folder / f"{name}.weights", cfg_folder / f"{name}.png")
    for path in (targets.cfg, targets.weights):
        if path.is_dir():
            raise UserError(f"{path}: is a folder, but a file is to be written there; use --save-dir")
    return targets


@torch.no_grad()
def max_difference(masked: Darknet, small: Darknet, img_size: int) -> float:
    """Largest absolute difference of the raw outputs of masked and compact network on a random image (seed 0) of at most
    eight strides: constants differ at borders, of which small images have no fewer kinds."""
    img_size = min(img_size, 8 * masked.max_stride)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, masked.defs.net.channels, img_size, img_size, generator=generator)
    pairs = zip(masked.cpu().eval()(image)[1], small.cpu().eval()(image)[1], strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def save(small: Darknet, figures: dict[str, Any], targets: Targets) -> None:
    for path in (targets.cfg, targets.weights):
        make_folder(path.parent)
    write_text(targets.cfg, write_cfg(small.defs))
    save_weights(small, targets.weights)
    plot_channels(figures["layers"], targets.picture)


def report(figures: dict[str, Any], options: PruneOptions, evaluator: Evaluator, clock: Clock | None) -> None:
    """The table before/after and the next command."""
    before, after = figures["before"], figures["after"]
    stages = [("masked", figures["masked"]), *stage_columns(figures)]
    blank = [None] * len(stages[1:-1])
    rows = [[label, before[k], *(stage[k] for _, stage in stages), None] for label, k in _ACCURACIES]
    rows += [[label, before[k], None, *blank, after[k], f"{100 * (1 - after[k] / before[k]):.1f} %"] for label, k in _COSTS]
    header = ["", "original", *(name for name, _ in stages), "saved"]
    here = f"{evaluator.device}, fused, --precision {options.evaluation.precision}"
    print(f"\n{options.strategy} pruning; latency: median, batch 1, {clock.bench.deployment if clock else here}")
    print(format_table(header, rows))
    if clock:
        low, high = after["latency_quartiles_ms"]
        print(f"latency by turns with the original; middle half of the turns: {low:.2f} to {high:.2f} ms")
    print(f"largest difference of raw outputs, masked - compact: {figures['max_abs_diff']:.2g}")
    print(f"cfg:      {figures['cfg']}\nweights:  {figures['weights']}")
    files = {"data": options.data or "...", "cfg": figures["cfg"], "weights": figures["weights"]}
    epochs = str(finetuning_epochs(count(evaluator.data))) if evaluator.data and evaluator.data.train else "..."
    print(f"next:     {command('train.py', '-pt', '--finetune', *evaluator.loaded.flags, '--epochs', epochs, **files)}")


_ACCURACIES = (("mAP@0.5", "map50"), ("mAP@0.5:0.95", "map"))
_COSTS = (("parameters", "params"), ("MACs", "macs"), ("bytes of .weights", "bytes"), ("latency, ms", "latency_ms"))
