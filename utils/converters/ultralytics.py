"""A YOLOv5 or YOLOv8 out of its owners' checkpoint: the same network as a cfg, with the same weights.

    Foreign (utils.network.foreign) --> Found: widths and repeats, by the tensors' shapes --> cfg --> tensors, by their names

Nothing is taken on trust: what the pickled modules say of themselves (who reads whom, steps, paddings, residuals) must be what
the cfg says, each tensor must have the shape that the cfg gives it, and none may be left over.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from utils.core.errors import UserError
from utils.core.ranges import IMG_SIZE
from utils.network.architectures import ARCHITECTURES, SIDE, Found, Module, Network, Scale, build
from utils.network.definitions import Convolutional, Defs
from utils.network.foreign import ONLY, Foreign
from utils.network.pickled import Record, attributes
from utils.network.shapes import input_channels, max_stride, output_shapes
from utils.network.weights import checkpoint_classes

STRIDES = (8, 16, 32)  # of the heads, in whose cells anchors are stored
EPSILON, DARKNETS_EPSILON = 1e-3, 1e-5  # of the batch normalisations: where nothing says otherwise, and here
ACTIVATIONS = {
    "SiLU": "swish", "ReLU": "relu", "ReLU6": "relu6", "LeakyReLU": "leaky", "Hardswish": "hard_swish", "Mish": "mish",
    "Identity": "linear",
}  # fmt: skip
HEADS = {"Anchors": "Detect", "Distributions": "Detect"}  # kind of module here -> class there, where they differ
# What modules of a kind must say of themselves, if they say anything of it, to be what a cfg makes of them.
SAY = {
    "MaxPool2d": {"kernel_size": 5, "stride": 1, "padding": 2, "dilation": 1, "ceil_mode": False},
    "Upsample": {"scale_factor": 2.0, "mode": "nearest", "size": None},
    "Concat": {"d": 1},
    "SPPF": {"n": 3, "add": False},
    "LeakyReLU": {"negative_slope": 0.1},
}
IMPLIED = ("num_batches_tracked", ".anchors", ".anchor_grid")  # ends of tensors that a cfg has no need of


@dataclass
class Converted:
    """A checkpoint as this suite has it: a cfg, and the tensors of its convolutions in the order of a .weights file.

    names: of the classes; img_size: of the training, in pixels. assumed: what the checkpoint doesn't tell, in words.
    """

    network: Network
    tensors: dict[int, list[Tensor]]
    names: list[str]
    img_size: int
    assumed: list[str]

    def values(self) -> Iterator[Tensor]:
        """All tensors in the order of a .weights file."""
        for layer in self.tensors.values():
            yield from layer


def convert(found: Foreign) -> Converted:
    """A checkpoint as a cfg; UserError that says in what it isn't the architecture that it looks like."""
    architecture = ARCHITECTURES[found.family]
    for difference in _differences(found.modules, architecture) if found.modules else ():
        raise _other(found, difference)
    tensors = {name: tensor.float() for name, tensor in found.file.tensors(found.tensors).items()}
    network = build(architecture, Scale(), _sizes(found, tensors))
    assumed = [] if found.modules else ["activations and residuals are the published ones, which a state dict doesn't tell"]
    side, names = _img_size(found, max_stride(network.defs), assumed), _names(found, network.defs, assumed)
    network.defs.name, network.defs.net.width, network.defs.net.height = found.file.path, side, side
    return Converted(network, _layers(found, network, tensors), names, side, assumed)


def _other(found: Foreign, difference: str) -> UserError:
    return UserError(
        f"{found.file.path}: looks like a YOLO{found.family[4:]}, but {difference}; {ONLY}, of any width and depth"
    )


def _differences(modules: dict[str, Record], architecture: tuple[Module, ...]) -> Iterator[str]:
    """In what pickled modules aren't those of the architecture, as far as they say it, in words."""
    count = sum(name.isdecimal() for name in modules)
    if count != len(architecture):
        yield f"has {count} modules, not {len(architecture)}, such as P2 and P6 networks have, or those of a yaml of one's own"
        return
    for number, part in enumerate(architecture):
        module = modules.get(str(number), Record())
        if module.kind != HEADS.get(part.kind, part.kind):
            yield f"its module {number} is {module.kind or 'missing'}, not {HEADS.get(part.kind, part.kind)}"
        reads = attributes(module).get("f", list(part.sources))
        if (reads if isinstance(reads, list) else [reads]) != list(part.sources):
            yield f"its module {number} reads {_shown(reads)}, not {', '.join(map(str, part.sources))}"
    for name, module in modules.items():
        says, part = attributes(module), architecture[int(name.partition(".")[0])]
        wanted = {"add": part.shortcut} if module.kind == "Bottleneck" else SAY.get(module.kind, {})
        odd = (_not(says, key, value) for key, value in wanted.items())
        yield from (f"{name} ({module.kind}) has {difference}" for difference in odd if difference)


def _not(says: dict[str, Any], key: str, value: Any) -> str:
    """How a module says something else than it should, "" if it doesn't."""
    found = says.get(key, value)
    return f"{key}={_shown(found)}, not {value}" if found != value else ""


def _shown(value: Any) -> str:
    """A value out of a pickle, in a few letters; numbers may be too long for Python to write them."""
    try:
        return f"{value!s:.40}"
    except ValueError:
        return "a very long number"


def _sizes(found: Foreign, tensors: dict[str, Tensor]) -> Found:
    """Widths, repeats, classes and anchors, from tensors' shapes; activations, from the modules."""
    kernels = {name.removesuffix(".weight").removesuffix(".conv"): t for name, t in tensors.items() if t.dim() == 4}
    filters = {name: len(kernel) for name, kernel in kernels.items()}
    architecture = ARCHITECTURES[found.family]
    head = str(len(architecture) - 1)
    biased = frozenset(name.removesuffix(".conv.bias") for name in tensors if name.endswith(".conv.bias"))
    activations = {name: _activation(found, name) for name, module in found.modules.items() if module.kind == "Conv"}
    try:
        special, channels = _HEADS[architecture[-1].kind](head, filters, tensors), kernels["0"].shape[1]
        return Found(filters, biased, activations, channels=channels, **special)
    except (LookupError, ValueError):
        raise _other(found, "its head or its first convolution aren't there, or of another shape") from None


def _activation(found: Foreign, name: str) -> str:
    """What a cfg calls the activation of a convolution's module."""
    kind = found.modules.get(f"{name}.act", Record()).kind
    if kind not in ACTIVATIONS:
        raise _other(found, f"{name} has the activation {kind or 'of a function'}, which is not supported")
    return ACTIVATIONS[kind]


def _anchored(head: str, filters: dict[str, int], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Classes and anchors of heads with anchors, which are stored (heads, anchors of each, 2), in cells."""
    anchors = tensors[f"{head}.anchors"]
    pixels = (a * stride for a, stride in zip(anchors, STRIDES, strict=True))
    classes = filters[f"{head}.m.0"] // anchors.shape[1] - 5
    if anchors.dim() != 3 or not all(math.isfinite(v) and v > 0 for v in anchors.flatten().tolist()) or classes < 1:
        raise ValueError("no anchors, or no classes")
    return {"anchors": tuple(v for a in pixels for v in a.flatten().tolist()), "classes": classes}


def _anchor_free(head: str, filters: dict[str, int], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Classes and length of the distributions of heads without anchors; ValueError where these aren't of 0, 1, 2, ..."""
    bins = tensors.pop(f"{head}.dfl.conv.weight").flatten()
    if not torch.equal(bins, torch.arange(len(bins), dtype=bins.dtype)):
        raise ValueError("its distributions are of other numbers than 0, 1, 2, ...")
    return {"classes": filters[f"{head}.cv3.0.2"], "reg_max": len(bins)}


_HEADS = {"Anchors": _anchored, "Distributions": _anchor_free}


def _img_size(found: Foreign, stride: int, assumed: list[str]) -> int:
    """Side of the images that it was trained on, as a multiple of the stride."""
    settings = [attributes(facts.get(key)) for key in ("train_args", "opt", "args") for facts in found.facts]
    told = next((s["imgsz"] for s in settings if "imgsz" in s), None)
    sides = told if isinstance(told, list | tuple) else [told]
    side = max((s for s in sides if type(s) is int), default=0)
    if not IMG_SIZE.least <= side <= IMG_SIZE.most:
        assumed.append(f"its input is {SIDE} pixels wide, since it doesn't tell what it was trained with")
        side = SIDE
    return math.ceil(side / stride) * stride


def _names(found: Foreign, defs: Defs, assumed: list[str]) -> list[str]:
    """The classes' names, each in a line."""
    classes = checkpoint_classes(defs)
    told = next((facts["names"] for facts in found.facts if facts.get("names")), None)
    listed = dict(enumerate(told)) if isinstance(told, list) else told
    if not isinstance(listed, dict) or listed.keys() != set(range(classes)):
        assumed.append(f"its {classes} classes are called by their numbers, since it doesn't name them")
        return [str(k) for k in range(classes)]
    return [_plain(listed[k]) or str(k) for k in range(classes)]


def _plain(name: Any) -> str:
    """A class's name as a line of letters that can be shown; "" for anything else."""
    return "".join(c for c in " ".join(name.split()) if c.isprintable()) if isinstance(name, str) else ""


def _layers(found: Foreign, network: Network, tensors: dict[str, Tensor]) -> dict[int, list[Tensor]]:
    """Each convolution's tensors; UserError where one is missing or has another shape, or where some are left."""
    shapes, values, left = output_shapes(network.defs), {}, dict(tensors)
    for index, name in network.names.items():
        d = network.defs[index]
        assert isinstance(d, Convolutional)
        module = name if f"{name}.weight" in left else f"{name}.conv"
        _check_convolution(found, module, d)
        kernel = (d.filters, input_channels(network.defs, shapes, index)[0] // d.groups, d.size, d.size)
        sizes = {f"{module}.weight": kernel}
        if d.batch_normalize:
            sizes = {f"{name}.bn.{part}": kernel[:1] for part in ("bias", "weight", "running_mean", "running_var")} | sizes
        else:
            sizes = {f"{module}.bias": kernel[:1]} | sizes
        values[index] = [_take(found, left, tensor, shape) for tensor, shape in sizes.items()]
        if d.batch_normalize:
            values[index][3] = _with_darknets_epsilon(values[index][3], _epsilon(found, f"{name}.bn"))
    foreign = [name for name in left if not name.endswith(IMPLIED)]
    if foreign:
        raise _other(found, f"also has {foreign[0]} {tuple(left[foreign[0]].shape)}")
    return values


def _epsilon(found: Foreign, name: str) -> float:
    """What a batch normalisation adds to the variance."""
    epsilon = attributes(found.modules.get(name)).get("eps", EPSILON)
    if type(epsilon) is not float or not 0 < epsilon < 1:
        raise _other(found, f"{name} has eps={_shown(epsilon)}")
    return epsilon


def _with_darknets_epsilon(variance: Tensor, epsilon: float) -> Tensor:
    """The variance to which Darknet's epsilon is added with the same sum, to the last bit of float32: dozens of layers would
    magnify the rounding of a difference of both."""
    return ((variance + epsilon).double() - DARKNETS_EPSILON).float()


def _take(found: Foreign, left: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """Take a tensor that must have a shape out of those that are left."""
    if name not in left:
        raise _other(found, f"has no {name} {shape}")
    if left[name].shape != shape:
        raise _other(found, f"its {name} is {tuple(left[name].shape)}, not {shape}")
    return left.pop(name)


def _check_convolution(found: Foreign, name: str, d: Convolutional) -> None:
    """UserError where a pickled convolution says that it steps or pads in another way than the cfg's."""
    pad = (d.zero_padding, d.zero_padding)
    wanted = {"stride": d.strides, "padding": pad, "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
    says = attributes(found.modules.get(name))
    for key, value in wanted.items():
        if _not(says, key, value):
            raise _other(found, f"{name} has {_not(says, key, value)}")
