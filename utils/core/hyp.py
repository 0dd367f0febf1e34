"""Hyper-parameters: every number that shapes training, in one place."""

import argparse
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.core.errors import UserError
from utils.core.files import read_text
from utils.core.option_list import split_lines
from utils.core.ranges import NOT_ALL, SHARE, Range, whole

# What a value may be.
LIMITS: dict[str, Range] = (
    dict.fromkeys(("lr0", "lr0_adam", "warmup_bias_lr", "weight_decay"), Range(0, 100))
    | dict.fromkeys(("lrf", "label_smoothing", "cls_weights", "hsv_h", "hsv_s", "hsv_v"), SHARE)
    | dict.fromkeys(("translate", "flipud", "fliplr", "mosaic"), SHARE)
    | dict.fromkeys(("box", "obj", "cls", "dfl_box", "dfl_cls", "dfl"), Range(0, 1e4))
    | dict.fromkeys(("momentum", "warmup_momentum"), NOT_ALL)
    | {"warmup_epochs": Range(0, 1e5), "warmup_batches": whole(0, 1_000_000), "nominal_batch": whole(1, 65536)}
    | {"least_steps": whole(0, 1_000_000), "ema_share": SHARE, "static_share": SHARE}
    | {"clip_grad": Range(1e-6, 1e6), "anchor_t": Range(1, 1000), "most_anchors": whole(0, 1000)}
    | {"degrees": Range(0, 180), "scale": Range(0, 0.95), "shear": Range(0, 80), "close_mosaic": whole(0, 1_000_000)}
)


@dataclass
class Hyp:
    """Defaults of train.py; `--hyp FILE` overrides any of them with a JSON object or `name: value` lines."""

    lr0: float = 0.01  # peak learning rate of SGD for the nominal batch
    lr0_adam: float = 0.002  # the same with --adam
    lrf: float = 0.01  # last learning rate = peak * lrf (cosine)
    momentum: float = 0.937
    weight_decay: float = 5e-4  # on kernels only, never on BN or biases
    warmup_epochs: float = 3.0
    warmup_batches: int = 100  # the fewest batches of the warm-up, if the training is long enough
    warmup_momentum: float = 0.8
    warmup_bias_lr: float = 0.1  # where SGD's biases start
    nominal_batch: int = 64  # gradients are accumulated to about this many images
    least_steps: int = 0  # fewer images where a training would have fewer optimizer steps than these
    ema_share: float = 0.05  # the share of the steps that averaged weights reach over
    clip_grad: float = 10.0  # largest norm of the whole gradient
    box: float = 0.2  # weights of the loss parts of [yolo] heads
    obj: float = 1.0
    cls: float = 0.5
    dfl_box: float = 7.5  # of [dfl] heads: overlap, classes, distributions of the sides
    dfl_cls: float = 0.5
    dfl: float = 1.5
    cls_weights: float = 0.0  # how much more rare classes weigh in it; 1: by the inverse square root of their boxes
    anchor_t: float = 4.0  # an anchor learns a box if their sides differ by less than this factor,
    most_anchors: int = 0  # and if it is one of so many most similar ones; 0: all. 4 where most boxes have one size
    static_share: float = 0.3  # of the epochs, the first: what fits best is not known yet, so --assign is `anchor`
    label_smoothing: float = 0.0
    hsv_h: float = 0.015  # largest relative change of hue, saturation, value
    hsv_s: float = 0.7
    hsv_v: float = 0.4
    degrees: float = 0.0
    translate: float = 0.1  # largest shift, as a share of the image
    scale: float = 0.5  # zoom between 1 - scale and 1 + scale
    shear: float = 0.0
    flipud: float = 0.0  # probabilities
    fliplr: float = 0.5
    mosaic: float = 1.0
    close_mosaic: int = 10  # the last epochs without mosaic

    @classmethod
    def load(cls, path: str | Path | None, preset: dict[str, Any] | None = None) -> "Hyp":
        """Defaults, overridden by the preset, overridden by the file; raises UserError for a name that isn't a
        hyper-parameter or a bad value."""
        hyp = cls(**(preset or {}))
        for name, value in _read(path).items() if path else ():
            hyp.set(name, value, str(path))
        return hyp

    @classmethod
    def restored(cls, values: dict[str, Any], origin: str) -> "Hyp":
        """From a checkpoint; what this version doesn't know is left out, what the checkpoint doesn't know is the default."""
        hyp = cls()
        for name in {f.name for f in dataclasses.fields(cls)} & values.keys():
            hyp.set(name, values[name], origin)
        return hyp

    def set(self, name: str, value: Any, origin: str) -> None:
        """Override one value, given as a number or its text; `origin` names the file in the error."""
        kinds = {f.name: f.type for f in dataclasses.fields(self)}
        if name not in kinds:
            raise UserError.at(origin, f"{name} is not a hyper-parameter; there are: {', '.join(kinds)}")
        try:
            setattr(self, name, LIMITS[name](str(value)))
        except argparse.ArgumentTypeError as error:
            raise UserError.at(origin, f"{name}={error}") from None


# Trained weights: biases have found their place, what fits best is known, and few epochs should not end at a rate of next to
# nothing.
TRAINED = {"lrf": 0.05, "warmup_epochs": 1.0, "warmup_bias_lr": 0.0, "static_share": 0.0}
# Trained weights and few steps: at the whole rate AdamW trains a network away from what it knows within two epochs, and few
# epochs don't bring it back (EXPERIMENTS.md).
GENTLE = TRAINED | {"lr0": 0.002, "lr0_adam": 0.0003, "warmup_batches": 50, "least_steps": 1000}
# train.py --prune without --s, directed sparsity: gentle, and a rate that still teaches something when the last channels go.
DIRECTED = GENTLE | {"lrf": 0.2}
# train.py --quantized with trained weights: only the rounding is new. Larger rates train the network away from them, mosaics
# make other ranges and statistics than the images that it will see: both cost a point (EXPERIMENTS.md).
QUANTIZED = TRAINED | {"lr0": 0.0001, "lr0_adam": 0.00002, "mosaic": 0.0}
# Finetuning in up to SHORT optimizer steps; from LONG steps on it is best as any training.
BRIEF = {"lr0": 0.0005, "lr0_adam": 0.0001, "lrf": TRAINED["lrf"], "ema_share": 0.2}
SHORT, LONG = 300, 1000


def preset(finetune: bool, quantized: bool, directed: bool = False, epochs: int = 1, steps: int = 0) -> dict[str, float]:
    """The numbers that suit what a training begins with and does: `quantized`: trained weights, and quantizers; `directed`:
    directed sparsity; epochs, steps: those of the training, which finetuning goes by."""
    return QUANTIZED if quantized else DIRECTED if directed else finetuning(epochs, steps) if finetune else {}


def finetuning(epochs: int, steps: int) -> dict[str, float]:
    """train.py --finetune: a pruned network's, for so many epochs and optimizer steps.

    BRIEF's numbers up to SHORT steps become the usual ones at LONG steps, as powers of the steps in between. No more epochs
    than those that a training from scratch ends with, without mosaics, are like these: whole images alone, since mosaics
    move a network away from what it will see.
    """
    usual, whole_pictures = Hyp(), {"mosaic": 0.0} if epochs <= Hyp.close_mosaic else {}
    if steps >= LONG:
        return {name: GENTLE[name] for name in ("warmup_bias_lr", "least_steps", "static_share")} | whole_pictures
    share = max(math.log(max(steps, 1) / SHORT) / math.log(LONG / SHORT), 0.0)
    return GENTLE | {name: low * (getattr(usual, name) / low) ** share for name, low in BRIEF.items()} | whole_pictures


def _read(path: str | Path) -> dict[str, Any]:
    """The named values of a file; UserError for one that isn't JSON, and for a name that stands in it twice: other programs
    take the last one, Darknet's files the first."""
    text = read_text(path, "--hyp file", comments="#")
    if text.lstrip().startswith("{"):
        return _read_json(text, path)
    lines = [line.split("#", 1)[0] for line in split_lines(text)]
    pairs = [line.replace("=", ":").partition(":") for line in lines if line.strip()]
    return _once([(key.strip(), value.strip()) for key, _, value in pairs], path)


def _read_json(text: str, path: str | Path) -> dict[str, Any]:
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, path))
    except json.JSONDecodeError as error:
        raise UserError.at(f"{path}:{error.lineno}", f"not valid JSON ({error.msg})") from None
    except (RecursionError, ValueError):  # a number of thousands of digits
        raise UserError.at(path, "holds what is no hyper-parameter: lists within lists, or endless numbers") from None


def _once(pairs: list[tuple[str, Any]], path: str | Path) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in values if names.count(name) > 1)
        raise UserError.at(path, f"{twice} stands in it twice; leave one of them")
    return values
