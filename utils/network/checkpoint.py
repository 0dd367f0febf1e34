"""Checkpoint: what a .pt file holds, each field looked at when it is read and nowhere else.

    x.pt -- load_checkpoint --> a dict of data -- Checkpoint.of --> typed fields

A file may be another program's: a plain state dict, {"state_dict": it}, or the layout of this dialect's older suites,
{epoch, best_fitness, training_results, model, optimizer}. Then everything but the tensors is missing, and has its default.
"""

import pickle
import struct
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.core.errors import UserError
from utils.core.fields import Fields, is_plain
from utils.core.files import replacing
from utils.core.preparation import PREPARATION
from utils.core.ranges import IMG_SIZE
from utils.network.file_kind import is_checkpoint
from utils.network.foreign import Foreign, refused_state

# What torch.load raises for a file that was cut short or written over, depending on where.
DAMAGES = (RuntimeError, OSError, EOFError, ValueError, LookupError, AssertionError, AttributeError, TypeError, struct.error)
MOST_SEEN = 2**53  # pictures: no training comes near, and there is room to go on counting in a header's 63 bits


@dataclass(kw_only=True)
class Checkpoint:
    """What came with a network's tensors. `path` is for messages.

    tensors: the state dict, under the names of utils.network.darknet.Darknet. settings: how images are prepared: img_size in
    pixels, gray, maxabs, stretch, and class_map50 with --image-weights; what isn't known isn't in it. quantization: for
    Settings.from_dict. seen: images that the network has learnt from. epoch: the last one, counted from 0; -1: none. hyp: for
    Hyp.restored.
    class_term: whether one class had its class term in training, see utils.network.class_term. conf_thres: the confidence
    threshold that an evaluation of these weights recommends, see utils.detection.threshold.
    finished: whether the run that wrote it is over, None for weights without a run; args: that run's command line;
    run: what --resume needs besides, for Run.restore.
    """

    path: str = ""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    cfg: str = ""
    cfg_name: str = ""
    names: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    quantization: dict[str, Any] = field(default_factory=dict)
    seen: int = 0
    epoch: int = -1
    best_fitness: float | None = None
    training_results: str = ""
    hyp: dict[str, Any] = field(default_factory=dict)
    class_term: bool = False
    conf_thres: float | None = None
    finished: bool | None = None
    args: dict[str, Any] = field(default_factory=dict)
    run: Fields | None = None

    @classmethod
    def of(cls, data: Any, path: str | Path) -> "Checkpoint":
        """From a checkpoint's content; UserError naming `path` and the field that isn't what it should be."""
        named = Fields.of(data, str(path))
        return cls(
            path=str(path),
            tensors=state_dict(named.values.get("model"), path),
            cfg=named.text("cfg"),
            cfg_name=named.line("cfg_name"),
            names=named.lines("names"),
            settings=picture_settings(named.fields("settings")),
            quantization=named.fields("quantization").values,
            seen=named.whole("seen", most=MOST_SEEN),
            epoch=named.whole("epoch", default=-1, least=-1),
            best_fitness=named.number("best_fitness", default=None),
            training_results=named.text("training_results"),
            hyp=named.fields("hyp").values,
            class_term=named.flag("class_term"),
            conf_thres=named.number("conf_thres", default=None, least=0, most=1),
            finished=named.flag("finished") if "finished" in named else None,
            args=named.fields("args").values if "finished" in named else {},
            run=named if "finished" in named else None,
        )


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a .pt checkpoint on the CPU, without running code from it; UserError for one that can't be used."""
    data = load_checkpoint(path)
    if not _is_own(data["model"]) and (refusal := refused_state(path)):
        raise refusal
    return Checkpoint.of(data, path)


def picture_settings(fields: Fields) -> dict[str, Any]:
    """How images are prepared; only what the fields tell."""
    settings: dict[str, Any] = {k: fields.flag(k) for k in PREPARATION if k in fields}
    if "img_size" in fields:
        settings["img_size"] = fields.whole("img_size", least=IMG_SIZE.least, most=IMG_SIZE.most)
    if "class_map50" in fields:
        settings["class_map50"] = fields.floats("class_map50", 0, 1)
    return settings


def state_dict(state: Any, path: str | Path) -> dict[str, Tensor]:
    """The tensors of a state dict, under the names they have here: DataParallel and others put `module.` before each."""
    named = {n: v for n, v in state.items() if isinstance(n, str) and isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not named:
        raise UserError.at(path, "holds no weights (its optimizer may have been stripped, or it is another program's)")
    odd = next((n for n, v in named.items() if not is_plain(v)), None)
    if odd:
        raise UserError.at(path, f"{odd} is no plain tensor of real numbers, so no weight of a network here")
    prefixes = {n.split("module_list.", 1)[0] for n in named if "module_list." in n}
    if len(prefixes) != 1:
        return named
    (prefix,) = prefixes
    return {n.removeprefix(prefix): v for n, v in named.items()}


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """A .pt file's content on the CPU, without running code from it, for Checkpoint.of.

    A plain state dict becomes {"model": it}. Raises UserError for a damaged file, and for one that holds more than data.
    """
    if not is_checkpoint(path):
        raise UserError.at(path, "not a .pt checkpoint")
    try:
        with torch.serialization.safe_globals(_numpy_numbers()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch.load thinks of other formats than its own
            data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise Foreign.of(path).refusal from None
    except DAMAGES as error:
        found = Foreign.of(path)
        damaged = UserError.at(path, f"damaged or truncated ({_gist(error)})")
        raise (found.refusal if found.file.is_program else damaged) from None
    if not isinstance(data, dict):
        raise UserError.at(path, "holds no state dict")
    return data if "model" in data else {"model": data.get("state_dict", data)}


def _is_own(state: Any) -> bool:
    """Whether a state dict's names are those of utils.network.darknet.Darknet."""
    return isinstance(state, dict) and any(isinstance(name, str) and "module_list." in name for name in state)


def _numpy_numbers() -> list[Any]:
    """What a checkpoint may name beside tensors: NumPy numbers and arrays of them, which older ones of the dialect keep as
    best_fitness; their makers also under the names that NumPy 1 gave them."""
    makers = (np._core.multiarray.scalar, np._core.multiarray._reconstruct)
    aliases = [(f, f"numpy.{core}.multiarray.{f.__name__}") for f in makers for core in ("core", "_core")]
    return [np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}, *aliases]


def _gist(error: Exception) -> str:
    """The beginning of a library's message, on one line."""
    return str(error).splitlines()[0][:80] if str(error) else type(error).__name__


def save_checkpoint(path: str | Path, data: dict[str, Any]) -> None:
    """Write a checkpoint atomically; UserError where it can't be written."""
    with replacing(path) as temporary:
        try:
            torch.save(data, temporary)
        except RuntimeError as error:  # what torch makes of a full disk
            raise UserError.at(path, f"cannot be written ({_gist(error)}); is the disk full?") from None
