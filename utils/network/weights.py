"""A model's tensors: out of Darknet .weights files and .pt checkpoints, and into .weights files.

One ordered walk over a model's tensors (`darknet_tensors`) serves loading and saving. Formats are told apart by
content (utils.network.file_kind), never by suffix; what else a checkpoint holds is read by utils.network.checkpoint.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from utils.core.errors import UserError, remark
from utils.core.files import replacing
from utils.network.checkpoint import MOST_SEEN, Checkpoint, read_checkpoint
from utils.network.class_term import mend_class_term
from utils.network.darknet import Darknet
from utils.network.definitions import Defs, Head
from utils.network.file_kind import first_bytes, is_checkpoint, is_weights

VERSION = (0, 2, 5)
# Names in state dicts that carry no weights: BatchNorm2d's counter, which only a plain average would need, and what FLOP
# profilers leave behind.
COUNTERS = ("num_batches_tracked", "total_ops", "total_params")
OWN_CFG = "use the cfg it was trained with"
HEADER_BYTES = 20  # three int32 of version, one int64 of images seen


@dataclass
class LoadReport:
    """What a load did: `message` says in one line what a user has to know, and is empty after a full load."""

    message: str = ""
    loaded_layers: int = 0
    skipped_layers: list[int] = field(default_factory=list)


def darknet_tensors(model: nn.Module) -> Iterator[tuple[int, Tensor]]:
    """(layer index, tensor) in the order of a .weights file: beta, gamma, mean, variance or bias; then the kernel."""
    for index, module in enumerate(model.module_list):
        for tensor in module.darknet_tensors():
            yield index, tensor


def load_weights(model: Darknet, path: str | Path, *, pretrained: bool = False, prefix: bool = True) -> LoadReport:
    """Load a Darknet .weights file or a .pt checkpoint, told apart by content, into `model`.

    pretrained: heads (the convolution that makes a head's classes) for another number of classes keep their own initial values.
    prefix: accept a .weights file that ends exactly between two layers, such as a backbone's.
    Raises UserError, with the model unchanged, for anything else that doesn't fit.
    """
    if is_checkpoint(path):
        return load_state(model, read_checkpoint(path), pretrained=pretrained)
    if not is_weights(path):
        raise UserError.at(path, "neither a Darknet .weights file nor a .pt checkpoint")
    seen, values = _read_values(path)
    tensors = list(darknet_tensors(model))
    skip = _foreign_heads(model, len(values), tensors) if len(values) != _count(tensors) else {}
    if skip and not pretrained:
        classes = next(iter(skip.values()))[0]
        raise UserError.at(path, f"these weights are for {classes} classes, this cfg has another number; "
                        f"use the cfg they belong to, or -pt to start from them with new heads")  # fmt: skip
    end = _check_fit(model.defs, tensors, values, skip, str(path), prefix)
    model.seen = seen
    return _fill(model, tensors, values, skip, end)


def header_bytes(path: str | Path) -> int:
    """Bytes before the first value of a .weights file: the width of its counter of images depends on the version."""
    major, minor, _ = struct.unpack("<3i", first_bytes(path)[:12])
    return 20 if major * 10 + minor >= 2 else 16


def _read_values(path: str | Path) -> tuple[int, np.ndarray]:
    """(images seen, all float32 values) of a .weights file."""
    size = header_bytes(path)
    with open(path, "rb") as file:
        header, values = file.read(size).ljust(size, b"\0"), np.fromfile(file, dtype="<f4")
    (seen,) = struct.unpack("<q" if size == 20 else "<i", header[12:])
    if not 0 <= seen <= MOST_SEEN:
        remark(f"its header says that {seen} images were seen, which can't be; they are counted from 0", path)
        seen = 0
    rest = max(Path(path).stat().st_size - size, 0)
    if rest % 4:
        raise UserError.at(path, f"truncated: {rest} bytes of values are no whole number of float32; get the file again")
    return seen, values


def _count(tensors: list[tuple[int, Tensor]]) -> int:
    return sum(t.numel() for _, t in tensors)


def _foreign_heads(model: Darknet, count: int, tensors: list[tuple[int, Tensor]]) -> dict[int, tuple[int, int]]:
    """{convolution with a head's classes: (classes, values in the file)} if `count` values are this network with others."""
    heads = {s: model.defs[i] for s, i in model.defs.class_convolutions().items()}
    sizes = {s: sum(t.numel() for i, t in tensors if i == s) for s in heads}
    per_class = {s: sizes[s] // model.defs[s].filters * head.class_channels for s, head in heads.items()}
    if not per_class:
        return {}
    others = {s: sizes[s] - per_class[s] * head.classes for s, head in heads.items()}
    fixed = _count(tensors) - sum(per_class[s] * head.classes for s, head in heads.items())
    classes, rest = divmod(count - fixed, sum(per_class.values()))
    return {s: (classes, others[s] + per_class[s] * classes) for s in heads} if rest == 0 and classes > 0 else {}


def _check_fit(
    defs: Defs, tensors: list[tuple[int, Tensor]], values: np.ndarray, skip: dict[int, tuple[int, int]], path: str, prefix: bool
) -> int:
    """The number of tensors that the file fills; UserError naming the layer at which file and cfg part."""
    needed = _count(tensors) + sum(n - sum(t.numel() for i, t in tensors if i == s) for s, (_, n) in skip.items())
    mismatch = f"the weights hold {len(values)} values, this cfg needs {needed}"
    for k, position in _positions(tensors, skip):
        index, tensor = tensors[k]
        if position == len(values) and prefix and k and tensors[k - 1][0] != index:
            return k
        chunk = values[position : position + tensor.numel()]
        if len(chunk) < tensor.numel() or _is_no_variance(tensors, k, chunk):
            raise UserError.at(path, f"{mismatch}; they part at {_layer(defs, index)}: is it truncated, or another network's?")
    if needed < len(values):
        raise UserError.at(
            path, f"{mismatch}; {len(values) - needed} are left after the last layer: they belong to another cfg"
        )
    return len(tensors)


def _positions(tensors: list[tuple[int, Tensor]], skip: dict[int, tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(k, where its values begin in the file) of each tensor, but for those of the layers `skip`, which hold other numbers
    of values there."""
    position, skipped = 0, set()
    for k, (index, tensor) in enumerate(tensors):
        if index not in skip:
            yield k, position
            position += tensor.numel()
        elif index not in skipped:
            position += skip[index][1]
            skipped.add(index)


def _is_no_variance(tensors: list[tuple[int, Tensor]], k: int, chunk: np.ndarray) -> bool:
    """Whether tensor k is a running variance and the chunk can't be one: a sign that file and cfg have parted."""
    index = tensors[k][0]
    same = [i for i, (j, _) in enumerate(tensors) if j == index]
    is_variance = len(same) >= 4 and same.index(k) == 3
    return is_variance and bool((chunk < 0).any())


def _layer(defs: Defs, index: int) -> str:
    return f"layer {index} [{defs[index].kind}] (line {defs[index].line})"


@torch.no_grad()
def _fill(
    model: Darknet, tensors: list[tuple[int, Tensor]], values: np.ndarray, skip: dict[int, tuple[int, int]], end: int
) -> LoadReport:
    for k, position in _positions(tensors[:end], skip):
        tensor = tensors[k][1]
        tensor.copy_(torch.from_numpy(values[position : position + tensor.numel()]).view_as(tensor))
    skipped = sorted({index for index, _ in tensors[:end]} & set(skip))
    last = tensors[end - 1][0] if end else -1
    report = LoadReport(loaded_layers=len({i for i, _ in tensors[:end]}) - len(skipped), skipped_layers=skipped)
    if skipped:
        report.message = f"heads at layers {skipped} start anew: the weights are for {next(iter(skip.values()))[0]} classes"
    elif end < len(tensors):
        report.message = f"the weights end after layer {last}: layers 0-{last} are loaded, the others start anew"
    return report


def save_weights(model: Darknet, path: str | Path, seen: int | None = None) -> None:
    """Write the model's tensors as a Darknet .weights file (version 0 2 5), atomically."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<3iq", *VERSION, model.seen if seen is None else seen))
        for _, tensor in darknet_tensors(model):
            file.write(tensor.detach().cpu().float().contiguous().numpy().astype("<f4", copy=False).data)


@torch.no_grad()
def load_state(model: Darknet, checkpoint: Checkpoint, *, pretrained: bool = False) -> LoadReport:
    """Copy a checkpoint's tensors into `model`; shapes must agree but for heads with other classes when `pretrained`.

    Raises UserError naming the tensor and both shapes, with the model unchanged.
    """
    state, path = checkpoint.tensors, checkpoint.path
    if checkpoint.quantization and model.quantization is None:
        raise UserError.at(path, "holds a quantized network; give the float weights that it was made from")
    own = model.state_dict()
    heads = {f"module_list.{s}.": s for s in model.defs.class_convolutions()}
    skipped = set()
    for name, tensor in own.items():
        if name not in state and name.endswith(COUNTERS):
            continue
        if name not in state:
            raise UserError.at(path, f"has no {name} {tuple(tensor.shape)}, which this cfg needs; {OWN_CFG}")
        if state[name].shape == tensor.shape:
            continue
        head = next((s for prefix, s in heads.items() if name.startswith(prefix)), None)
        if head is None or not pretrained:
            hint = "use -pt to start from it with new heads" if head is not None else OWN_CFG
            shapes = f"{tuple(state[name].shape)} there, but this cfg makes it {tuple(tensor.shape)}"
            raise UserError.at(path, f"{name} is {shapes}; {hint}")
        skipped.add(head)
    foreign = [n for n in state if n not in own and _is_weight(model.defs, n)]
    if foreign:
        shape = tuple(state[foreign[0]].shape)
        raise UserError.at(path, f"holds {foreign[0]} {shape}, which this cfg has no place for; {OWN_CFG}")
    for name, tensor in own.items():
        if name in state and not any(name.startswith(f"module_list.{s}.") for s in skipped):
            tensor.copy_(state[name])
    model.seen = checkpoint.seen
    anew = f"heads at layers {sorted(skipped)} start anew: their number of classes differs" if skipped else ""
    message = "; ".join(filter(None, (anew, mend_class_term(model, checkpoint, skipped))))
    return LoadReport(message, len(model.module_list) - len(skipped), sorted(skipped))


def broken_tensors(model: nn.Module) -> list[str]:
    """Names of the tensors that hold NaN or infinite values. (The ranges of quantizers are NaN until they see a tensor.)"""
    state = model.state_dict()
    unseen = {k.removesuffix("observed") for k, v in state.items() if k.endswith(".observed") and not v}
    ranges = {prefix + end for prefix in unseen for end in ("low", "high")}
    return [name for name, tensor in state.items() if name not in ranges and not torch.isfinite(tensor).all()]


def refuse_broken(model: nn.Module, path: str | Path) -> None:
    """Raise UserError for a model that was loaded from `path` with tensors that hold NaN or infinite values."""
    broken = broken_tensors(model)
    if broken:
        raise UserError.at(path, f"tensors with NaN or infinite values: {len(broken)}, the first is {broken[0]}; go back to "
                        "weights that were saved before the training went wrong")  # fmt: skip


def _is_weight(defs: Defs, name: str) -> bool:
    """Whether a foreign name in a state dict is a layer's tensor; a head's own buffers (grids, anchors) are none."""
    parts = name.split(".")
    if parts[0] != "module_list" or name.endswith(COUNTERS):
        return False
    index = int(parts[1]) if len(parts) == 3 and parts[1].isdecimal() and len(parts[1]) < 10 else len(defs)
    return not (index < len(defs) and isinstance(defs[index], Head))


def checkpoint_classes(defs: Defs) -> int:
    """Classes of a network's heads; UserError when it has none or they differ."""
    classes = {defs[i].classes for i in defs.head_indices()}
    if len(classes) != 1:
        found = sorted(classes) or f"no {defs.heads_named()} layer"
        raise UserError.at(defs.name, f"needs {defs.heads_named()} layers of one number of classes, has {found}")
    return classes.pop()
