"""Train a Darknet .cfg detector, from scratch or from weights, densely or towards prunable gammas.

python train.py --data data/bccd/bccd.data --cfg cfg/yolov3tiny/yolov3-tiny.cfg --epochs 60
python train.py --data data/bccd/bccd.data --weights weights/best.pt --prune 0
python train.py --data data/bccd/bccd.data --weights pruned.weights --cfg pruned.cfg --t_weights best.pt --KDstr 4 --finetune
torchrun --nproc_per_node 2 train.py --data data/bccd/bccd.data --cfg cfg/yolov3/yolov3.cfg --batch-size 64
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from utils.core.commands import command, option
from utils.core.distributed import joined
from utils.core.files import check_writable
from utils.core.hyp import Hyp
from utils.core.options import options_of
from utils.core.plots import plot_gammas
from utils.core.ranges import BATCH_SIZE, EPOCHS, NOT_ALL_OR_NONE, SEED, SHARE, WORKERS, Range, whole
from utils.core.tables import write_json
from utils.data.image_cache import CACHE_ROOM, DISK, NONE, RAM
from utils.detection.evaluate import evaluate
from utils.detection.loss import ASSIGNMENTS, DEFAULT
from utils.detection.metrics import Evaluation
from utils.detection.threshold import threshold_line
from utils.network.branches import FORMS
from utils.pruning.sparsity import SCHEDULES, gamma_statistics, gamma_values
from utils.pruning.sparsity_options import SparsityOptions
from utils.pruning.spend import COSTS, NOTHING
from utils.quantized.observers import OBSERVERS
from utils.quantized.settings import SCHEMES
from utils.recipe import FEW
from utils.scripts.cli import Parser, add_device_arguments, add_model_arguments
from utils.scripts.cli import run as run_script
from utils.scripts.distillation import add_distillation_arguments
from utils.scripts.quantization import add_quantization_arguments
from utils.training.checkpoints import RunFiles, read_last, save_run
from utils.training.epoch import train_one_epoch
from utils.training.evolve import check_evolution, evolve
from utils.training.log import RunLog, gammas_line, metrics_line, results_row
from utils.training.options import TrainOptions
from utils.training.run import HURT, Run, fitness
from utils.training.setup import Say, Setup, prepare

PRUNERS = {0: "normal_prune.py", 1: "shortcut_prune.py", 2: "layer_prune.py"}


def get_parser() -> Parser:
    parser = Parser(__doc__.splitlines()[0])
    flag = {"action": "store_true"}
    parser.add_argument("--data", default="", help=".data file: classes, names, train, valid")
    add_model_arguments(parser)
    parser.add_argument("-pt", "--pretrained", **flag, help="weights may be a backbone's, or have heads for other classes")
    parser.add_argument("--epochs", type=EPOCHS, default=100, help="times that all images are seen")
    _add_recipe_arguments(parser)
    _add_sparsity_arguments(parser)
    parser.add_argument("--reparam", nargs="?", choices=FORMS, const=FORMS[0], default="",
                        help="train every 3x3 convolution as 3x3 + 1x1 + identity, folded exactly into the cfg's one wherever "
                        "weights are written: repvgg (default), whose int8 is reported to lose more in PTQ.py; qarepvgg, "
                        "made for int8")  # fmt: skip
    add_distillation_arguments(parser)
    kinds = ", ".join(f"{number} {strategy.title}" for number, strategy in SCHEMES.items())
    parser.add_argument(
        "--quantized",
        type=int,
        choices=list(SCHEMES),
        default=0,
        help=f"train a quantized network: {kinds}; from trained weights with small rates (utils.core.hyp.QUANTIZED)",
    )
    add_quantization_arguments(parser)
    parser.add_argument("--observer", choices=OBSERVERS, default="",
                        help="quantized: how ranges of maps are found, see PTQ.py (default: the strategy's)")  # fmt: skip
    parser.add_argument(
        "--finetune",
        **flag,
        help="for trained weights, such as a pruned network's: a rate that suits the number of steps, and best.pt never "
        "worse than what went in",
    )
    parser.add_argument("--single-cls", **flag, help="all classes count as one; the cfg needs classes=1")
    parser.add_argument("--image-weights", **flag, help="draw images of rare and of badly detected classes more often")
    parser.add_argument("--multi-scale", **flag, help="image sizes vary between 0.67 and 1.5 times --img-size")
    parser.add_argument("--rect", **flag, help="rectangular batches, without mosaic")
    parser.add_argument("--stretch", **flag, help="resize as Darknet does, without keeping the aspect ratio")
    parser.add_argument("--gray-scale", **flag, help="one-channel images and network")
    parser.add_argument("--maxabsscaler", "-mas", **flag, help="images in -1..1 instead of 0..1")
    parser.add_argument("--hyp", default="", metavar="FILE", help="hyper-parameters, JSON or `name: value` lines")
    parser.add_argument("--evolve", nargs="?", type=whole(1, 100_000), const=100, metavar="N",
                        help="train N times (100), each time with hyper-parameters mutated from the best so far in evolve.txt; "
                        "the same command goes on with it")  # fmt: skip
    parser.add_argument("--ema", action=argparse.BooleanOptionalAction, default=True, help="average the weights over steps")
    parser.add_argument("--resume", **flag, help="go on with the run that last.pt belongs to")
    parser.add_argument("--nosave", **flag, help="write last.pt after the last epoch only, and no best.pt")
    parser.add_argument("--notest", **flag, help="evaluate after the last epoch only")
    parser.add_argument("--name", default="", help="writes last_NAME.pt, best_NAME.pt, results_NAME.txt")
    parser.add_argument("--weights-dir", default="weights", help="folder of last.pt and best.pt")
    parser.add_argument("--results-dir", default=".", help="folder of results.txt and results.png")
    parser.add_argument("--logdir", default="runs", help="folder of TensorBoard's files; '' for none")
    parser.add_argument("--workers", type=WORKERS, default=2, help="processes that read images")
    parser.add_argument("--seed", type=SEED, default=0, help="of weights, images and their order")
    add_device_arguments(parser)
    return parser


def _add_recipe_arguments(parser: Parser) -> None:
    switch, few = {"action": argparse.BooleanOptionalAction}, f"default: for up to {FEW:,} images"
    parser.add_argument("--adam", **switch, help=f"AdamW instead of SGD; {few}, but not with --s")
    parser.add_argument("--batch-size", type=BATCH_SIZE,
                        help=f"images a batch, of all processes together; {few} 8, else 16")  # fmt: skip
    parser.add_argument("--accumulate", type=whole(0, 65536),
                        help=f"batches an optimizer step; 0: up to the nominal batch of 64; {few} 1, else 0")  # fmt: skip
    parser.add_argument("--cache-images", nargs="?", choices=[RAM, DISK], const=RAM,
                        help="keep decoded images in memory (ram, as without a word) or in a file that later runs find "
                        f"(disk); default: in memory if they need less than {CACHE_ROOM[None]:.0%}% of it")  # fmt: skip
    parser.add_argument("--no-cache-images", dest="cache_images", action="store_const", const=NONE, help="read the image files")
    parser.add_argument("--assign", choices=ASSIGNMENTS, default=DEFAULT,
                        help="which predictions of [yolo] layers learn a box: those of anchors of a like size, or, aligned, of "
                        "these what fits best at the moment, by score and overlap")  # fmt: skip
    parser.add_argument("--mixedprecision", "-mpt", **switch, default=True,
                        help="compute in bfloat16 or float16 where that is faster")  # fmt: skip


def _add_sparsity_arguments(parser: Parser) -> None:
    parser.add_argument("--prune", type=int, default=-1, choices=[-1, 0, 1, 2],
                        help="sparse training of trained --weights: what is to go is brought to zero; for 0 normal and "
                        "regular, 1 shortcut and slim, 2 layer pruning")  # fmt: skip
    parser.add_argument("--sparse-target", type=NOT_ALL_OR_NONE, default=SparsityOptions.sparse_target,
                        help="directed: share of the channels (2: blocks) to go; dynamic: of gammas under 1e-2")  # fmt: skip
    parser.add_argument("--max-drop", type=SHARE, default=SparsityOptions.max_drop, metavar="D",
                        help="directed: mAP@0.5 ends at most so far below where it began; less may go")  # fmt: skip
    parser.add_argument("--spend", choices=[*COSTS, NOTHING], default=SparsityOptions.spend,
                        help="directed: weigh importance against the parameters or MACs that go with a channel")  # fmt: skip
    parser.add_argument("--s", type=Range(0, 1000), default=0.0, help="instead: one penalty of this strength on all gammas")
    parser.add_argument("--sparse-schedule", choices=SCHEDULES, default="",
                        help="directed (default without --s): the least important channels fade; of --s: constant (default); "
                        "global-decay: from half of the epochs on s/100; local-decay: from half on the smallest gammas keep "
                        "s, others get s/100; dynamic: whatever reaches --sparse-target, without --s")  # fmt: skip
    parser.add_argument("--sparse-keep", type=NOT_ALL_OR_NONE, default=SparsityOptions.sparse_keep,
                        help="local-decay: share of the gammas that keep s")  # fmt: skip


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Train, or with --evolve evolve hyper-parameters; returns the figures that --json writes, or {} for a run that was
    finished already."""
    flags = vars(args)
    if args.evolve is not None:
        check_evolution(resume=args.resume)
        options = options_of(TrainOptions, flags).checked()
        return evolve(options, flags, lambda one: main(argparse.Namespace(**one)))
    files = RunFiles(Path(args.weights_dir), args.name, Path(args.results_dir))
    with joined(args.device) as (world, device):
        say = print if world.is_main else _silent
        checkpoint = None
        if args.resume:
            interrupted = read_last(files.last, flags, getattr(args, "given", frozenset()), get_parser())
            checkpoint, flags = interrupted.checkpoint, interrupted.flags
            if checkpoint.finished:
                say(f"{files.last}: this run of {flags['epochs']} epochs is finished; start a new one with "
                    f"{option('--weights', files.last)}")  # fmt: skip
                return {}
            say(interrupted.note or f"{files.last}: goes on after epoch {checkpoint.epoch + 1} of {flags['epochs']}")
        options = options_of(TrainOptions, flags).checked()
        for path in (files.last, files.results):
            check_writable(path)
        board = flags["logdir"] and f"{flags['logdir']}/{args.name or time.strftime('%Y%m%d-%H%M%S')}"
        flags = flags | {"board": flags.get("board", board)}
        setup = prepare(options, flags, checkpoint, world, device, say)
        results = checkpoint.training_results if checkpoint else ""
        log = RunLog(files.results, flags["board"], results) if world.is_main else None
        try:
            return fit(files, setup, log, say)
        except KeyboardInterrupt:
            kept = checkpoint is not None or setup.run.saved
            raise KeyboardInterrupt("go on with --resume" if kept else "no epoch was saved yet") from None


def _silent(text: str) -> None:
    """What processes other than the first say."""


def fit(files: RunFiles, setup: Setup, log: RunLog | None, say: Say) -> dict[str, Any]:
    """Train, evaluate, log and save, epoch by epoch; returns the figures."""
    options, run, started, evaluation = setup.options, setup.run, time.perf_counter(), None
    begin(files, setup, log, say)
    before = prunable_gammas(run) if not run.step else {}
    while run.epoch < options.epochs:
        figures = train_one_epoch(run, setup.loader)
        final = run.epoch == options.epochs
        evaluation = measure(setup) if setup.valid is not None and (final or not options.notest) else None
        if options.image_weights:
            setup.weigh_images(evaluation)
        gammas = gamma_statistics(run.weights, run.penalty.channels) if run.penalty else None
        if evaluation:
            say(metrics_line(evaluation))
        if gammas:
            say(gammas_line(gammas, run.penalty.note(run.weights)))
        if evaluation and options.finetune and not options.hyp and run.epoch <= max(1, options.epochs // 4):
            quicken_if_hurt(run, evaluation, say)
        is_best = evaluation is not None and run.note_evaluation(evaluation.map50, evaluation.map, evaluation.conf_thres)
        if log:
            log.add(results_row(run.epoch, figures, evaluation, gammas), last=final)
            for line in log.sparsity_warnings(run.plan):
                say(f"warning: {line}")
        if final and run.promise and run.promise.kept and not is_best:
            run.promise.restore_kept(run.weights)
            evaluation = measure(setup)
        if log and (final or not options.nosave):
            save(files, setup, log, evaluation, is_best=is_best, finished=final)
    if log:
        log.close()
        if run.penalty:
            plot_gammas(before | prunable_gammas(run), files.gammas)
            say(f"gammas: {files.gammas}")
    return sum_up(files, setup, evaluation, time.perf_counter() - started, say)


def prunable_gammas(run: Run) -> dict[str, np.ndarray]:
    """{when: |gamma| of what a sparse training may bring to zero}, nothing of another training."""
    if not run.penalty:
        return {}
    when = f"after {run.epoch} epochs" if run.step else "before"
    return {when: gamma_values(run.weights, run.penalty.channels)}


def begin(files: RunFiles, setup: Setup, log: RunLog | None, say: Say) -> None:
    """Evaluate what goes in where a training must not lose it: best.pt holds it until something is better.

    A training that was interrupted has done this already.
    """
    options, run = setup.options, setup.run
    promises = run.promise is not None and run.promise.start is None
    loses_nothing = options.finetune and run.best is None and not run.model.quantization
    if run.step or not (promises or loses_nothing):
        return
    if options.notest or setup.valid is None:
        if promises:
            why = "--notest" if options.notest else "no valid= in the .data file"
            drop = options.sparsity.max_drop
            say(f"warning: {why}: nothing is evaluated on the way, so --max-drop {drop:g} can't be held")
        return
    found = measure(setup)
    say(f"before the first epoch:\n{metrics_line(found)}")
    if promises:
        run.promise.start = found.map50
    if run.note_evaluation(found.map50, found.map, found.conf_thres) and log and not options.nosave:
        save(files, setup, log, found, is_best=True, finished=False)


def quicken_if_hurt(run: Run, evaluation: Evaluation, say: Say) -> None:
    """Let a finetuning go on at the whole rate if one of its first epochs, at a small one, shows that what went in is far
    from what it can be: it is much fitter than the best before, of which the first was evaluated as it went in."""
    usual, before = Hyp(), run.best
    gentle = run.schedule.peak < (usual.lr0_adam if run.plan.adam else usual.lr0)
    if not gentle or before is None or run.promise or run.model.quantization:
        return
    found = {"map50": evaluation.map50, "map": evaluation.map}
    if fitness(found) > HURT * fitness(before):
        run.quicken()
        say(f"mAP {before['map']:.3f} -> {evaluation.map:.3f}: the cut went deep, so at the whole rate of "
            f"{run.schedule.peak:g} from now on")  # fmt: skip


def save(
    files: RunFiles, setup: Setup, log: RunLog, evaluation: Evaluation | None, *, is_best: bool, finished: bool
) -> None:  # fmt: skip
    """evaluation: of the weights that are saved, None if there was none."""
    save_run(setup.run, files, names=setup.data.names, settings=setup.settings, results=log.text,
             flags=setup.flags,
             conf_thres=evaluation.conf_thres if evaluation else None, is_best=is_best and not setup.options.nosave,
             finished=finished)  # fmt: skip


def measure(setup: Setup) -> Evaluation:
    """The evaluation that test.py makes of last.pt."""
    maxabs, weights = setup.prepared.maxabs, setup.run.weights
    return evaluate(
        weights, setup.valid, setup.data.names, device=setup.run.device, maxabs=maxabs, desc="validation", truth=setup.truth
    )


def sum_up(files: RunFiles, setup: Setup, evaluation: Evaluation | None, seconds: float, say: Say) -> dict[str, Any]:
    """Say how it went and what to type next; returns the figures."""
    options, run = setup.options, setup.run
    best = files.best if run.best and not options.nosave else files.last
    curves = files.results.with_suffix(".png")
    say(f"{options.epochs} epochs, {seconds / 60:.1f} minutes; weights in {files.last}, curves in {curves}")
    if run.best:
        where = f": {best}" if best == files.best else ""
        where = where if run.best["epoch"] else f", what went in{where}"
        say(f"best mAP {run.best['map']:.4f} (mAP@.5 {run.best['map50']:.4f}) after epoch {run.best['epoch']}{where}")
    if run.penalty and run.penalty.outcome():
        say(run.penalty.outcome())
    if evaluation:
        say(threshold_line(evaluation.conf_thres if best == files.last else run.best.get("conf_thres"), str(best)))
    amount = run.penalty.amount().split() if run.penalty and not run.model.quantization else []
    if amount and Path(__file__).with_name(PRUNERS[options.sparsity.prune]).exists():
        judged = options.data if evaluation else ""
        say(f"next: {command(PRUNERS[options.sparsity.prune], *amount, data=judged, weights=files.last)}")
    elif options.single_cls or not evaluation:  # test.py needs valid=, and would compare one class with the labels' many
        say(f"next: {command('detect.py', weights=best, source='PICTURES')}")
    else:
        say(f"next: {command('test.py', data=options.data, weights=best)}")
    last = evaluation.to_dict() if evaluation else None
    weights = {"last": str(files.last), "best": str(best)}
    results = {"epochs": options.epochs, "seconds": seconds, "best": run.best, "last": last, "weights": weights}
    if run.world.is_main:
        write_json(options.json, results)
    return results


if __name__ == "__main__":
    run_script(main, get_parser())
