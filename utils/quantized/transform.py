"""From a float network to a quantized one, and what can be done to all of its quantizers together."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from utils.core.errors import UserError
from utils.network import definitions
from utils.network.activations import ACROSS_CHANNELS
from utils.network.darknet import Darknet
from utils.quantized.fake_quantize import FakeQuantize
from utils.quantized.layers import (
    QUANTIZED,
    QuantConv2d,
    QuantLayer,
    QuantShortcut,
    QuantSqueezeExcite,
    RoundedActivation,
    rounds,
)
from utils.quantized.settings import RAW_BITS, WHOLE, Settings

FREEZE = 0.8  # share of the epochs after which ranges stay and batch normalisations use their running statistics
SLOPE = 13 / 128  # of leaky with --FPGA: a multiplication by 13 and a shift by 7 for Darknet's 0.1
INTEGER_ACTIVATIONS = {"leaky": lambda: nn.LeakyReLU(SLOPE, inplace=True)}


def quantize(model: Darknet, settings: Settings) -> Darknet:
    """Put quantizers into a float network, in place; returns it. Its training and eval interface stays what it was.

    Raises UserError for a network that is quantized already, and naming layer and reason where integers can't do what the
    network does (--FPGA); the network is unchanged then.
    """
    if model.quantization is not None:
        raise UserError.at(model.defs.name, f"is quantized already ({model.quantization})")
    if settings.fpga:
        check_integer(model.defs)
    model.input_quantizer = FakeQuantize(settings.image(), "image")
    places = _Places(model, settings)
    grids: dict[int, FakeQuantize] = {-1: model.input_quantizer}
    for index, module in enumerate(model.module_list):
        sources = model.sources[index]
        if not places.rounds(index):
            grids[index] = grids[sources[0]]
            continue
        quantized = QUANTIZED[type(module)].from_float(module, [grids[s] for s in sources])
        places.fill(index, quantized)
        model.module_list[index] = quantized
        grids[index] = quantized.grid
    model.quantization = settings
    return model.train(model.training)


@dataclass
class _Places:
    """Where quantizers go: the layers of one network, and how many bits each has."""

    model: Darknet
    settings: Settings

    def __post_init__(self) -> None:
        model, self.plan = self.model, self.settings.plan
        self.heads, self.joining = {s for s, _ in model.head_convolutions()}, model.defs.joining()
        owners = {-1: -1}  # layer -> the layer whose grid its output lies on
        for index, sources in enumerate(model.sources):
            owners[index] = index if self.rounds(index) else owners[sources[0]]
        first = next(i for i, d in enumerate(model.defs) if isinstance(d, definitions.Convolutional))
        keep = self.settings.keep_first_last
        self.whole_kernels = {first, *self.heads} if keep else set()
        self.whole_maps = {owners[model.sources[i][0]] for i in self.heads} if keep else set()

    def rounds(self, index: int) -> bool:
        """Whether a layer's output needs a grid of its own; what a head reads keeps those of the convolutions."""
        return index not in self.joining and rounds(self.model.module_list[index], len(self.model.sources[index]))

    def fill(self, index: int, module: QuantLayer) -> None:
        """Give a layer that has just become a quantized one its quantizers."""
        d, where = self.model.defs[index], f"{self.model.defs.where(index)}"
        least = WHOLE if index in self.whole_maps else 0
        activation, pre = self.settings.activation(least), self.settings.activation(WHOLE)
        kernel = self.settings.kernel(index in self.whole_kernels)
        if isinstance(module, QuantConv2d):
            module.prepare(kernel, where, self.plan.transform, self.plan.fold, self.settings.fpga)
        elif isinstance(module, QuantSqueezeExcite):
            module.prepare(kernel, activation, pre, where)
        elif isinstance(module, QuantShortcut):
            module.way = self.settings.shortcut_way
        name = getattr(d, "activation", "linear")
        if self.settings.fpga and name in INTEGER_ACTIVATIONS:
            module.activation = INTEGER_ACTIVATIONS[name]()
        if index in self.heads:  # the activation, if any, belongs to the decoding, which stays float
            pre = self.settings.activation(RAW_BITS)
        elif name in self.plan.fused:
            pre = None
        if pre is not None:
            module.activation = RoundedActivation(FakeQuantize(pre, f"{where}: pre_quant"), module.activation)
        module.out_quant = None if index in self.heads else FakeQuantize(activation, f"{where}: out_quant")


def check_integer(defs: definitions.Defs) -> None:
    """Raise UserError naming the first layer that integers and shifts can't compute."""
    for index, d in enumerate(defs):
        for reason in _not_integer(d):
            raise UserError.at(defs.where(index), f"--FPGA: {reason}; train without --FPGA, or change the cfg")


def _not_integer(d: definitions.LayerDef) -> Iterator[str]:
    name = getattr(d, "activation", "linear")
    if name in ACROSS_CHANNELS:
        yield f"activation={name} divides by a sum over the channels"
    if getattr(d, "antialiasing", 0):
        yield f"antialiasing={d.antialiasing} isn't made for integers here"
    if isinstance(d, definitions.LocalAvgPool):
        yield "its windows are divided by different counts"
    if isinstance(d, definitions.BatchNorm):
        yield "a batch normalisation without convolution can't be folded into a kernel"
    if isinstance(d, definitions.Shortcut) and d.weights_type != "none":
        yield f"weights_type={d.weights_type} multiplies maps by numbers that aren't powers of two"
    if isinstance(d, definitions.Upsample) and d.scale != 1:
        yield f"scale={d.scale:g} multiplies the map"


def quantizers(model: nn.Module) -> list[FakeQuantize]:
    """All quantizers of a network, in the order of its layers."""
    return [m for m in model.modules() if isinstance(m, FakeQuantize)]


def layer_quantizers(model: Darknet) -> dict[int, list[FakeQuantize]]:
    """{layer: its quantizers}; -1: the image's."""
    found = {-1: quantizers(model.input_quantizer)}
    found |= {i: quantizers(m) for i, m in enumerate(model.module_list)}
    return {i: some for i, some in found.items() if some}


def grids(model: Darknet) -> dict[int, FakeQuantize]:
    """{layer: the quantizer on whose grid its output lies}, -1 for the image; layers that give values on share one."""
    found = {-1: model.input_quantizer}
    for index, module in enumerate(model.module_list):
        found[index] = module.grid if isinstance(module, QuantLayer) else found[model.sources[index][0]]
    return found


def requantize(model: Darknet, settings: Settings, name: str = "") -> Darknet:
    """The network with these settings: quantized if it is a float one; else it has to have them already, but for the
    observer. Raises UserError naming both where it hasn't. name: of its file, for the message."""
    if model.quantization is None:
        return quantize(model, settings)
    if model.quantization != settings:
        raise UserError.at(name or model.defs.name, f"is quantized already: {model.quantization}; give these settings, or "
                        f"begin with float weights for: {settings}")  # fmt: skip
    state, training = model.state_dict(), model.training
    again = quantize(type(model)(model.defs, model.img_size), settings)
    again.load_state_dict(state)
    again.seen = model.seen
    return again.train(training)


def freeze_epoch(epochs: int) -> int:
    """The epoch, counted from 1, before which `freeze` is due; trainings of less than 5 epochs never are."""
    return math.ceil(FREEZE * epochs) + 1


def freeze(model: nn.Module) -> None:
    """From here on training leaves observed ranges and running statistics as they are, and uses them as eval mode does
    (Jacob et al. 2018, section 3.1); kernels still have the range of their values. `model.train()` undoes it."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) or (isinstance(module, FakeQuantize) and not module.config.dynamic):
            module.eval()


@contextlib.contextmanager
def switched(some: list[FakeQuantize], enabled: bool) -> Iterator[None]:
    """Inside the block these quantizers round, or let values pass."""
    before = [q.enabled for q in some]
    for q in some:
        q.enabled = enabled
    try:
        yield
    finally:
        for q, was in zip(some, before, strict=True):
            q.enabled = was
