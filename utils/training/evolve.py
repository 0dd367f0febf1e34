"""train.py --evolve: hyper-parameters by evolution, one short training a generation.

    evolve.txt -> generation(n) -> hyper-parameters -> train -> fitness -> evolve.txt, hyp_evolved.txt

Generation 0 is what --hyp says. Every later one takes a parent among the best so far, by fitness, and changes some of its
numbers a little. What generation n tries depends on the rows before it and on (seed, n) alone, and a row is written when
its training is over: killed at any time, the same command goes on as if nothing had happened.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.core.commands import option
from utils.core.errors import UserError
from utils.core.files import make_folder, read_text, write_text
from utils.core.hyp import LIMITS, Hyp, preset
from utils.core.options import flags_of
from utils.core.ranges import SHARE
from utils.core.tables import write_json
from utils.data.data_file import read_data
from utils.detection.losses import LOSSES
from utils.loading import NetworkOptions, choose_cfg
from utils.network.checkpoint import read_checkpoint
from utils.network.file_kind import is_checkpoint
from utils.recipe import settle
from utils.training.options import TrainOptions
from utils.training.run import DivergedError, fitness

PARENTS = 5  # the best so many may have children
CHANGED = 0.5  # probability that a child's number differs from its parent's
STEP = 0.1  # standard deviation of a change, as a share of the range
DIGITS = 5  # of a changed number
PRECISION = 10  # digits that evolve.txt has: what is written is what was trained with
FIGURES = ("fitness", "map50", "map")
# What doesn't matter for comparing generations: where things go and how fast they get there.
FREE = {"evolve", "hyp", "name", "weights_dir", "results_dir", "logdir", "json", "device", "workers", "cache_images", "nosave"}

PLACES = {"data", "cfg", "weights", "t_cfg", "t_weights"}  # what may lie elsewhere by now

Train = Callable[[dict[str, Any]], dict[str, Any]]  # flags of train.py -> its figures


@dataclass(frozen=True)
class Gene:
    """The range in which a hyper-parameter is worth trying; `log`: in steps of its size, else in even ones."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where in the range a value is, 0..1."""
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return (value - low) / (high - low)

    def value(self, place: float) -> float:
        low, high = (math.log(x) if self.log else x for x in (self.low, self.high))
        value = low + (high - low) * place
        return float(f"{math.exp(value) if self.log else value:.{DIGITS}g}")


GENES: dict[str, Gene] = {
    "lr0": Gene(1e-4, 0.1, log=True),
    "lr0_adam": Gene(1e-5, 0.02, log=True),
    "lrf": Gene(1e-3, 1.0, log=True),
    "momentum": Gene(0.6, 0.98),
    "weight_decay": Gene(1e-6, 1e-2, log=True),
    "warmup_epochs": Gene(0.0, 5.0),
    "warmup_momentum": Gene(0.0, 0.95),
    "warmup_bias_lr": Gene(0.0, 0.2),
    "box": Gene(0.02, 0.6, log=True),
    "obj": Gene(0.2, 5.0, log=True),
    "cls": Gene(0.1, 5.0, log=True),
    "dfl_box": Gene(2.0, 20.0, log=True),
    "dfl_cls": Gene(0.1, 4.0, log=True),
    "dfl": Gene(0.4, 6.0, log=True),
    "cls_weights": Gene(0.0, 1.0),
    "anchor_t": Gene(2.0, 8.0),
    "label_smoothing": Gene(0.0, 0.2),
    "hsv_h": Gene(0.0, 0.1),
    "hsv_s": Gene(0.0, 0.9),
    "hsv_v": Gene(0.0, 0.9),
    "degrees": Gene(0.0, 45.0),
    "translate": Gene(0.0, 0.5),
    "scale": Gene(0.0, 0.9),
    "shear": Gene(0.0, 10.0),
    "flipud": Gene(0.0, 1.0),
    "fliplr": Gene(0.0, 1.0),
    "mosaic": Gene(0.0, 1.0),
}


def genes(options: TrainOptions, classes: int, kind: str) -> dict[str, Gene]:
    """Those that a training with these options depends on; kind: of the network's heads."""
    idle = {"lr0", "warmup_bias_lr"} if options.recipe.adam else {"lr0_adam"}
    idle |= {"cls_weights"} if classes == 1 else set()  # one class outweighs no other
    idle |= {"hsv_h", "hsv_s"} if options.images.gray else set()
    idle |= {"mosaic"} if options.loading.rect else set()
    idle |= {name for other, loss in LOSSES.items() if other != kind for name in loss.own_hyp}
    return {name: gene for name, gene in GENES.items() if name not in idle}


@dataclass(frozen=True)
class Generation:
    """One training: its figures (FIGURES) and hyper-parameters, as evolve.txt has them."""

    figures: dict[str, float]
    hyp: dict[str, float]

    @property
    def fitness(self) -> float:
        return self.figures["fitness"]


@dataclass(frozen=True)
class EvolutionFiles:
    """Where an evolution writes; with a name, evolve_NAME.txt and hyp_evolved_NAME.txt. scratch: of the running training."""

    rows: Path
    best: Path
    scratch: Path

    @classmethod
    def of(cls, folder: Path, name: str) -> "EvolutionFiles":
        tail = f"_{name}" if name else ""
        return cls(folder / f"evolve{tail}.txt", folder / f"hyp_evolved{tail}.txt", folder / f".evolve{tail}")


def check_evolution(*, resume: bool) -> None:
    """Raises UserError for what evolution can't be used with."""
    if resume:
        raise UserError("--evolve goes on by itself when it finds its evolve.txt; leave out --resume")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--evolve trains in one process; start it with python, not with torchrun")


def evolve(options: TrainOptions, flags: dict[str, Any], train: Train) -> dict[str, Any]:
    """Train until evolve.txt has as many rows as --evolve says; returns the figures that --json writes.

    flags: the command line that the options are of; train: called with that of one training. A training whose loss doesn't
    stay finite has fitness 0. Raises UserError as `train` does, and when evolve.txt is from trainings that can't be compared.
    """
    files, wanted = EvolutionFiles.of(Path(flags["results_dir"]), options.name), flags["evolve"]
    data = read_data(options.data)
    data.source("valid")  # without it there is no fitness
    course = settle(options.recipe, options.epochs, data, options.sparsity.penalised)
    options = dataclasses.replace(options, recipe=course.recipe)
    flags = flags | flags_of(options)
    quantized = bool(options.quantized and options.network.weights)
    usual = preset(options.finetune, quantized, options.sparsity.directed, course.epochs, course.steps)
    given = dataclasses.asdict(Hyp.load(options.hyp, usual))
    base = {name: type(value)(f"{value:.{PRECISION}g}") for name, value in given.items()}
    active = genes(options, 1 if options.single_cls else data.classes, _kind_of_heads(options.network))
    past = read_rows(files.rows, flags, base)
    print(f"{files.rows}: {len(past)} of {wanted} trainings done; evolving {', '.join(active)}")
    while len(past) < wanted:
        hyp = next_hyp(past, active, base, options.seed)
        figures = _trained(flags, hyp, files.scratch, train, first=not past)
        past.append(Generation(figures, hyp))
        write_text(files.rows, _text(past, flags))
        _write_best(files, past)
        print(f"training {len(past)}/{wanted}: {_figures_line(past[-1])}; best fitness {_best(past).fitness:.4f}")
    _write_best(files, past)  # a run that was killed between the two files, or has nothing left to do
    number, best = past.index(_best(past)), _best(past)
    print(f"best of {len(past)}: number {number + 1}, {_figures_line(best)}; next: {option('--hyp', files.best)}")
    results = {"trainings": len(past), "best": best.figures | {"number": number + 1}, "hyp": best.hyp, "file": str(files.best)}
    write_json(options.json, results)
    return results


def _kind_of_heads(start: NetworkOptions) -> str:
    checkpoint = read_checkpoint(start.weights) if start.weights and is_checkpoint(start.weights) else None
    defs = choose_cfg(start.cfg, start.weights, checkpoint)
    return next((defs[i].kind for i in defs.head_indices()), "")


def next_hyp(past: list[Generation], active: dict[str, Gene], base: dict[str, float], seed: int) -> dict[str, float]:
    """The hyper-parameters of the generation after `past`: `base` for the first, then a mutated one of the best."""
    if not past:
        return dict(base)
    rng = np.random.default_rng((seed, len(past)))
    parents = sorted(past, key=lambda g: -g.fitness)[:PARENTS]
    merits = np.array([g.fitness for g in parents]) - parents[-1].fitness
    merits += max(merits.max() / 10, 1e-9)  # the last of them may have children, too
    parent = parents[int(rng.choice(len(parents), p=merits / merits.sum()))].hyp
    changed = rng.random(len(active)) < CHANGED
    changed[rng.integers(len(active))] = True
    steps = rng.normal(0, STEP, len(active)) * changed
    moved = {name: step for name, step in zip(active, steps.tolist(), strict=True) if step}
    return parent | {name: _mutated(name, active[name], parent[name], step) for name, step in moved.items()}


def _mutated(name: str, gene: Gene, value: float, step: float) -> float:
    """A number one step away, bounced off the ends of its range, within what utils.core.hyp allows. A value that the user put
    outside the range counts as its nearest end."""
    place = gene.place(min(max(value, gene.low), gene.high)) + step
    place = min(max(1 - abs(1 - abs(place)), 0.0), 1.0)
    return min(max(gene.value(place), LIMITS[name].least), LIMITS[name].most)


def _trained(flags: dict[str, Any], hyp: dict[str, float], scratch: Path, train: Train, first: bool) -> dict[str, float]:
    """The figures of one training, which leaves nothing behind; of what it prints, only the first one's warnings are said."""
    shutil.rmtree(scratch, ignore_errors=True)
    path = make_folder(scratch) / "hyp.json"
    write_text(path, json.dumps(hyp))
    own = {"evolve": None, "hyp": str(path), "weights_dir": str(scratch), "results_dir": str(scratch), "logdir": "", "json": "",
           "name": "", "nosave": True}  # fmt: skip
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            best = train(flags | own)["best"]
    except DivergedError as error:
        if first:
            raise
        print(f"this generation dies: {error}")
        best = {"map50": 0.0, "map": 0.0}
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for line in printed.getvalue().splitlines() if first else ():
        if line.startswith("warning: "):
            print(line)
    return {"fitness": round(fitness(best), 6), "map50": round(best["map50"], 6), "map": round(best["map"], 6)}


def _best(past: list[Generation]) -> Generation:
    return max(past, key=lambda g: g.fitness)


def _figures_line(generation: Generation) -> str:
    return ", ".join(f"{name} {generation.figures[name]:.4f}" for name in FIGURES)


def _write_best(files: EvolutionFiles, past: list[Generation]) -> None:
    best = _best(past)
    lines = [f"# the best of {len(past)} trainings: {_figures_line(best)}"]
    write_text(files.best, "\n".join([*lines, *(f"{name}: {value:.{PRECISION}g}" for name, value in best.hyp.items())]) + "\n")


def _comparable(flags: dict[str, Any]) -> dict[str, Any]:
    """The arguments that all rows of an evolve.txt have in common."""
    return {name: value for name, value in sorted(flags.items()) if name not in FREE}


def _text(past: list[Generation], flags: dict[str, Any]) -> str:
    columns = [*FIGURES, *past[0].hyp]
    rows = [[f"{value:.{PRECISION}g}" for value in (g.figures | g.hyp).values()] for g in past]
    lines = [" ".join(f"{cell:>16}" for cell in row) for row in (columns, *rows)]
    return "\n".join([f"# {json.dumps(_comparable(flags))}", *lines]) + "\n"


def read_rows(path: Path, flags: dict[str, Any], base: dict[str, float]) -> list[Generation]:
    """The generations of an evolve.txt, none if there is no such file. Hyper-parameters that an older version didn't know, and
    so didn't write, had their defaults.

    Raises UserError for a file that isn't one, or whose trainings had other arguments or began with other numbers.
    """
    if not path.exists():
        return []
    lines = read_text(path, "evolve.txt").splitlines()
    elsewhere = "go on with those it began with, or choose another --name"
    try:
        known = dict(json.loads(lines[0].removeprefix("# ")))
        columns = lines[1].split()
        rows = [dict(zip(columns, line.split(), strict=True)) for line in lines[2:]]
        if not base.keys() & set(columns):
            raise ValueError("no hyper-parameters")
        new = {k: value for k, value in dataclasses.asdict(Hyp()).items() if k not in columns}
        hyps = [{k: new[k] if k in new else LIMITS[k](row[k]) for k in base} for row in rows]
        past = [Generation({k: SHARE(row[k]) for k in FIGURES}, hyp) for row, hyp in zip(rows, hyps, strict=True)]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError, argparse.ArgumentTypeError):
        raise UserError(f"{path}: not an evolve.txt of this version; move it away, or choose another --name") from None
    for name, value in _comparable(flags).items():
        moved = name in PLACES and isinstance(known.get(name), str) and not Path(known[name]).exists()
        if name in known and known[name] != value and not moved:
            flag = name.replace("_", "-")
            raise UserError(f"{path}: its trainings had --{flag} {known[name]}, not {value}; {elsewhere}")
    for name, value in base.items():
        if past and not math.isclose(past[0].hyp[name], value, rel_tol=1e-6):
            raise UserError(f"{path}: began with {name}={past[0].hyp[name]:g}, but --hyp says {value:g}; {elsewhere}")
    return past
