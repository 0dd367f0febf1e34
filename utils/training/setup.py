"""From train.py's arguments to everything that its epochs need."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import torch

from utils.checking.checks import quick_warnings
from utils.checking.findings import Subject
from utils.core.commands import command
from utils.core.devices import training_dtype
from utils.core.distributed import World
from utils.core.errors import UserError
from utils.core.hyp import Hyp, preset
from utils.core.options import flags_of
from utils.core.preparation import Preparation
from utils.data.class_balance import class_counts, image_weights
from utils.data.data_file import DataConfig, read_data
from utils.data.datasets import create_loader, evaluation_loader
from utils.data.loader import Loader
from utils.detection.ground_truth import GroundTruth, json_ground_truth
from utils.detection.metrics import Evaluation
from utils.distillation.distiller import Distiller
from utils.distillation.teacher import load_teacher
from utils.loading import Loaded, load_model, own_cfg
from utils.network.checkpoint import Checkpoint
from utils.network.class_term import mend_class_term
from utils.network.darknet import Darknet
from utils.network.weights import refuse_broken
from utils.quantized.settings import Settings
from utils.quantized.transform import freeze_epoch, quantize, requantize
from utils.recipe import describe_finetuning, settle
from utils.training.options import TrainOptions
from utils.training.reparam import reparametrise
from utils.training.run import Plan, Run

EVALUATION_BATCH = 16  # test.py's: rectangular batches pad images depending on which others they come with
FEW_STEPS = 200  # fewer are too few to fade channels in and to recover from it
Say = Callable[[str], None]


@dataclass
class Setup:
    """Everything that the epochs need. options: what was asked for, with nothing left open; flags: the same as a command line,
    which checkpoints remember. truth: what detections are compared with instead of the labels of `valid`, by the process of
    rank 0. class_map50: the classes' AP@0.5 that --image-weights goes by, None before an evaluation."""

    options: TrainOptions
    flags: dict[str, Any]
    run: Run
    loader: Loader
    valid: Loader | None
    data: DataConfig
    prepared: Preparation
    truth: GroundTruth | None = None
    class_map50: list[float] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What last.pt tells test.py, detect.py and a resumed run of how images are prepared and drawn."""
        found = {"img_size": self.run.plan.img_size, **self.prepared.to_settings()}
        return found if self.class_map50 is None else found | {"class_map50": self.class_map50}

    def weigh_images(self, evaluation: Evaluation | None = None) -> None:
        """Draw images of rare and, after an evaluation, of badly detected classes more often from the next epoch on.
        Classes that weren't measured count as well detected."""
        if evaluation:
            measured = evaluation.per_class
            self.class_map50 = [c["map50"] if c["targets"] else 1.0 for c in measured]
        dataset = self.loader.dataset
        dataset.weights = image_weights(dataset.labels, self.data.classes, self.class_map50)


def prepare(
    options: TrainOptions, flags: dict[str, Any], checkpoint: Checkpoint | None, world: World, device: torch.device, say: Say
) -> Setup:
    """Read data, build the network, and restore the run of `checkpoint` if there is one. flags: the whole command line."""
    data = read_data(options.data)
    if options.single_cls:
        data = data.as_one_class()
    course = settle(options.recipe, options.epochs, data, options.sparsity.penalised, world.size)
    options = replace(options, recipe=course.recipe)
    torch.manual_seed(options.seed)  # the same first weights in all processes
    loaded = load(options, data, checkpoint)
    describe_network(loaded, options.epochs, device, say)
    if options.reparam:
        say(reparametrise(loaded.model, options.reparam, trained=bool(options.network.weights)))
    torch.manual_seed(options.seed + world.rank)
    quantized = bool(loaded.model.quantization and options.network.weights)
    usual = preset(options.finetune, quantized, options.sparsity.directed, course.epochs, course.steps)
    hyp = Hyp.restored(checkpoint.hyp, checkpoint.path) if checkpoint else Hyp.load(options.hyp, usual)
    say(str(course))
    if options.finetune and not quantized and not options.sparsity.directed:
        say(describe_finetuning(hyp, course))
    prepared = Preparation.of(checkpoint.settings) if checkpoint else loaded.preparation(options.images)
    teacher = load_teacher(options.distillation, loaded.model, prepared.gray) if options.distillation.t_weights else None
    loader, valid = create_loaders(options, course.batch_size, data, loaded, prepared, hyp, world)
    truth = None
    if valid is not None and world.is_main:
        truth = json_ground_truth(data, valid.dataset, lambda said: say(str(said)))
    describe_data(data, loaded, prepared, loader, valid, say)
    plan = Plan(
        epochs=course.epochs, batch_size=course.batch_size, batches=len(loader), img_size=loaded.img_size, seed=options.seed,
        accumulate=course.accumulate, adam=course.adam, ema=options.ema, assign=options.assign,
        multi_scale=options.multi_scale, maxabs=prepared.maxabs, sparsity=options.sparsity,
    )  # fmt: skip
    dtype = training_dtype(device) if options.mixedprecision else None
    if options.mixedprecision:
        say(f"mixed precision: {dtype}" if dtype else "mixed precision: this CPU has no bfloat16 of its own; float32 goes on")
    run = Run(loaded.model, hyp, plan, device, dtype, world)
    run.loss.weigh_classes(class_counts(loader.dataset.labels, data.classes))
    if options.sparsity.directed and not checkpoint:
        if not options.network.weights:
            say("warning: directed sparsity takes away what a trained network can do without: begin with --weights of one")
        describe_steps(run, say)
    if teacher:
        distiller = Distiller.of(options.distillation, teacher, device, options.seed, dtype)
        run.distil(distiller)
        distiller.describe(say)
    if checkpoint:
        run.restore(checkpoint)
        for network in (run.model, run.averaged):
            mended = mend_class_term(network, checkpoint)
            refuse_broken(network, checkpoint.path)
        if mended:
            say(mended)
    class_map50 = checkpoint.settings.get("class_map50") if checkpoint else None
    setup = Setup(options, flags | flags_of(options), run, loader, valid, data, prepared, truth, class_map50)
    if options.image_weights:
        setup.weigh_images()
    return setup


def load(options: TrainOptions, data: DataConfig, checkpoint: Checkpoint | None) -> Loaded[Darknet]:
    """The network, with the weights to begin with; those of a resumed run are restored later."""
    if checkpoint:
        return load_resumed(data, checkpoint)
    start, pretrained = options.network, options.pretrained
    loaded = load_model(
        start.cfg, start.weights, start.img_size, None if options.single_cls else data, pretrained=pretrained,
        prefix=pretrained, gray=options.images.gray,
    )  # fmt: skip
    heads = {head.classes for head in loaded.model.heads}
    if options.single_cls and heads != {1}:
        name, kind = loaded.model.defs.name, loaded.model.defs.heads_named()
        raise UserError(f"{name}: --single-cls needs {kind} layers with classes=1, these have {sorted(heads)}; write the "
                        "line classes=1 into a file one.data and run: "
                        f"{command('make_cfg.py', cfg=name, data='one.data')}")  # fmt: skip
    wanted = options.settings()
    if wanted:
        loaded.model = requantize(loaded.model, wanted, start.weights)
    return loaded


def load_resumed(data: DataConfig, checkpoint: Checkpoint) -> Loaded[Darknet]:
    """The network of an interrupted run; UserError for data that belong to another."""
    if checkpoint.names and data.names != checkpoint.names:
        pairs = zip_longest(checkpoint.names, data.names, fillvalue="none")
        number, (theirs, ours) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        raise UserError(f"{data.path}: class {number} is {ours}, but {theirs} in the run of {checkpoint.path}: another dataset")
    defs = own_cfg(checkpoint)
    loaded = load_model(checkpoint.cfg + "\n", "", checkpoint.settings["img_size"], data)
    loaded.model.defs.name = defs.name
    if checkpoint.quantization:
        quantize(loaded.model, Settings.from_dict(checkpoint.quantization, checkpoint.path))
    return loaded


def create_loaders(
    options: TrainOptions, batch_size: int, data: DataConfig, loaded: Loaded[Darknet], prepared: Preparation, hyp: Hyp,
    world: World,
) -> tuple[Loader, Loader | None]:  # fmt: skip
    """Loaders of the training and the validation images; no validation where the .data names none, with --notest."""
    loading = options.loading
    shared: dict[str, Any] = {
        "img_size": loaded.img_size, "stride": loaded.model.max_stride, "workers": loading.workers,
        "cache_images": loading.cache_images, "rank": world.rank, "world_size": world.size,
    }  # fmt: skip
    loader = create_loader(
        data.source("train"), classes=data.classes, label_classes=data.label_classes, training=True, batch_size=batch_size,
        hyp=hyp, rect=loading.rect, stretch=prepared.stretch, gray=prepared.gray, seed=options.seed, **shared,
    )  # fmt: skip
    if data.valid is None and options.notest:
        return loader, None
    return loader, evaluation_loader(data, prepared, batch_size=EVALUATION_BATCH * world.size, **shared)


def describe_network(loaded: Loaded[Darknet], epochs: int, device: torch.device, say: Say) -> None:
    """Say what is trained, and where."""
    parameters = sum(p.numel() for p in loaded.model.parameters())
    say(f"{loaded.model.defs.name}: {parameters:,} parameters, {loaded.img_size} px, {device}")
    if loaded.report.message:
        say(loaded.report.message)
    if loaded.model.quantization:
        say(f"quantized: {loaded.model.quantization}; ranges and statistics stay from epoch {freeze_epoch(epochs)} on")


def describe_steps(run: Run, say: Say) -> None:
    """Say what the steps of a directed sparsity are, and whether they are enough to learn to do without so much."""
    steps = run.schedule.total
    say(f"directed sparsity: {run.plan.sparsity.sparse_target:.0%} are to go, in {steps:,} optimizer steps")
    if steps < FEW_STEPS:
        say(f"warning: {steps} optimizer steps are few to learn to do without so much; take more --epochs, or smaller batches")


def describe_data(
    data: DataConfig, loaded: Loaded[Darknet], prepared: Preparation, loader: Loader, valid: Loader | None, say: Say
) -> None:
    """Say what there is to learn from, and what check.py's quick checks think of it."""
    datasets = {"train": loader.dataset} | ({"valid": valid.dataset} if valid is not None else {})
    for name, dataset in datasets.items():
        background = sum(not len(rows) for rows in dataset.labels)
        without = f", {background} of them background (no boxes)" if background else ""
        say(f"{name}: {len(dataset):,} images{without}, {sum(map(len, dataset.labels)):,} boxes")
    subject = Subject(data, defs=loaded.model.defs, img_size=loaded.img_size, stretch=prepared.stretch)
    for line in quick_warnings(subject, datasets):
        say(f"warning: {line}")
