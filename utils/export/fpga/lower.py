"""From a network quantized with --FPGA to integers, shifts and tables: the steps of utils.export.fpga.integer.

[se] becomes the four steps that it consists of: mean, two 1x1 convolutions, product. What does nothing ([dropout], a [route]
of one map) becomes no step, and heads, which decode boxes in floating point, end the network.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.core.errors import UserError
from utils.data.batch import normalise
from utils.export.fpga.integer import Grid, Network, Step
from utils.network import layers
from utils.network.darknet import Darknet
from utils.network.heads import DflHead, Head, YoloHead
from utils.network.shapes import Shape, output_shapes
from utils.quantized import layers as quantized_layers
from utils.quantized.fake_quantize import FakeQuantize
from utils.quantized.settings import RAW_BITS
from utils.quantized.transform import SLOPE

RAW_LIMITS = (-(1 << (RAW_BITS - 1)), (1 << (RAW_BITS - 1)) - 1)  # of the integers that heads read
SLOPE_BITS = 7  # leaky: SLOPE is a whole number of 2**-7
Options = dict[str, Any]


def grid_of(quantizer: FakeQuantize) -> Grid:
    return Grid(quantizer.exponent, quantizer.quant_min, quantizer.quant_max)


def _relu6(exponent: int) -> tuple[Options, int]:
    widen = max(-exponent, 0)
    return {"widen": widen, "limit": 6 << (exponent + widen)}, exponent + widen


# Activations of sums: exponent of the sums -> what the integer activation needs, and the exponent of what it makes.
FUSED: dict[str, Callable[[int], tuple[Options, int]]] = {
    "linear": lambda exponent: ({}, exponent),
    "relu": lambda exponent: ({}, exponent),
    "relu6": _relu6,
    "leaky": lambda exponent: ({"widen": SLOPE_BITS, "factor": int(SLOPE * 2**SLOPE_BITS)}, exponent + SLOPE_BITS),
}


def lower(model: Darknet, height: int, width: int, maxabs: bool = False) -> Network:
    """The integer network that computes what `model` computes, for images of height x width pixels.

    model: quantized with --FPGA, fused (`Darknet.inference_copy`), on the CPU. maxabs: it sees images in -1..1.
    Raises UserError naming the layer that has no integer counterpart here.
    """
    shapes = output_shapes(model.defs, height, width)
    lowering = _Lowering(model, (model.defs.net.channels, height, width), shapes)
    for index, module in enumerate(model.module_list):
        rule = LOWER.get(type(module))
        if rule is None:
            raise UserError(f"{model.defs.where(index)}: has no integer form here, so it can't be dumped for an FPGA")
        lowering.number[index] = rule(lowering, index, module)
    indices = model.defs.head_indices()
    heads = [lowering.head(index) for index in indices]
    return Network(grid_of(model.input_quantizer), pixel_table(model, maxabs), lowering.steps,
                   [lowering.number[index] for index in indices], {"heads": heads})  # fmt: skip


def pixel_table(model: Darknet, maxabs: bool) -> np.ndarray:
    """(256,) the image's integer for each value of an image's bytes."""
    pixels = normalise(torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16), torch.device("cpu"), maxabs=maxabs)
    return _narrow(model.input_quantizer.integers(pixels)[0].flatten(), model.input_quantizer.config.bits)


def _narrow(integers: Tensor, bits: int) -> np.ndarray:
    return integers.numpy().astype(np.int8 if bits <= 8 else np.int16)


@dataclass
class _Lowering:
    """The steps so far. number: layer -> the step that makes its map; -1: the image."""

    model: Darknet
    image: Shape
    shapes: list[Shape]
    steps: list[Step] = field(default_factory=list)
    number: dict[int, int] = field(default_factory=lambda: {-1: -1})

    def grid(self, number: int) -> Grid:
        return self.steps[number].output if number >= 0 else grid_of(self.model.input_quantizer)

    def shape(self, number: int) -> Sequence[int]:
        return self.steps[number].shape if number >= 0 else self.image

    def sources(self, index: int) -> list[int]:
        return [self.number[s] for s in self.model.sources[index]]

    def add(self, kind: str, layer: int, sources: list[int], shape: Sequence[int], **more: Any) -> int:
        """Append a step; returns its number."""
        exponents = {"inputs": [self.grid(s).exponent for s in sources]} | more.pop("exponents", {})
        self.steps.append(Step(kind, layer, sources, shape=list(shape), exponents=exponents, **more))
        return len(self.steps) - 1

    def move(self, kind: str, index: int, **options: Any) -> int:
        """A step whose map lies on the grid of the one map that it reads."""
        (source,) = self.sources(index)
        return self.add(kind, index, [source], self.shapes[index], output=self.grid(source), options=options)

    def convolution(
        self, layer: int, source: int, kernel: np.ndarray, bits: int, exponent: int, bias: np.ndarray | None, options: Options,
        finish: "_Finish", shape: Sequence[int],
    ) -> int:  # fmt: skip
        """kernel: integers (filters, channels a group, rows, columns) of so many bits, to be multiplied by 2**-exponent;
        bias: (filters,) in units of the sums."""
        sums = self.grid(source).exponent + exponent
        biases = np.zeros(len(kernel), np.int32) if bias is None else bias
        more = finish.at(sums)
        weights = kernel.astype(np.int8 if bits <= 8 else np.int16)
        bound = np.abs(kernel.astype(np.int64)).sum((1, 2, 3)) * self.grid(source).most + np.abs(biases.astype(np.int64))
        more["options"] = {"bits": bits} | options | more["options"]
        more["arrays"] = {"weights": weights, "biases": biases} | more["arrays"]
        kind = "depthwise" if options["groups"] == len(kernel) == self.shape(source)[0] > 1 else "convolutional"
        exponents = {"weights": exponent, "sums": sums}
        return self.add(kind, layer, [source], shape, exponents=exponents, bound=int(bound.max()), **more)

    def head(self, index: int) -> dict[str, Any]:
        """What decoding needs to know of a head."""
        d, (source,) = self.model.defs[index], self.model.sources[index]
        stride = [side // cells for side, cells in zip(self.image[1:], self.shapes[index][1:], strict=True)]
        activation = next((self.model.defs[s].activation for s, i in self.model.head_convolutions() if i == index), "linear")
        return {
            "layer": index, "kind": d.kind, "step": self.number[source], "exponent": self.grid(self.number[source]).exponent,
            "stride": stride, "activation": activation,
        } | d.decoding()  # fmt: skip


@dataclass
class _Finish:
    """What happens to a step's sums: name of the activation, and the quantizers and the function of a quantized layer."""

    name: str
    out: FakeQuantize | None
    pre: FakeQuantize | None = None
    function: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def of(cls, name: str, module: quantized_layers.QuantLayer) -> "_Finish":
        return cls(name, module.out_quant, module.pre_quant, getattr(module.activation, "function", None))

    def at(self, exponent: int) -> dict[str, Any]:
        """Fields of a Step whose sums have this exponent."""
        if self.out is None:  # read by a head, whose activation is float
            return {"output": grid_of(self.pre), "shift": exponent - self.pre.exponent, "options": {}, "arrays": {}}
        if self.pre is None:
            options, exponent = FUSED[self.name](exponent)
            return {"output": grid_of(self.out), "shift": exponent - self.out.exponent, "activation": self.name,
                    "options": options, "arrays": {}}  # fmt: skip
        return {
            "output": grid_of(self.out), "shift": exponent - self.pre.exponent, "activation": "table",
            "index": grid_of(self.pre), "options": {"function": self.name}, "arrays": {"table": self.table()},
        }  # fmt: skip

    def table(self) -> np.ndarray:
        """The output's integer for each of the integers that the activation can read, the lowest first."""
        inputs = torch.arange(self.pre.quant_min, self.pre.quant_max + 1) * 2.0**-self.pre.exponent
        return _narrow(self.out.integers(self.function(inputs))[0], self.out.config.bits)


def _exponent(scale: Tensor) -> int:
    """e of a scale (1,) that is 2**-e."""
    return 1 - math.frexp(scale.item())[1]


def _convolution(low: _Lowering, index: int, module: quantized_layers.QuantConv2d) -> int:
    conv, deployed = module.conv, module.deployed()
    (source,), exponent = low.sources(index), _exponent(deployed.scale)
    bias = deployed.bias.numpy().astype(np.float64) * 2.0 ** (low.grid(source).exponent + exponent)
    name = low.model.defs[index].activation
    readers = [m for m, sources in zip(low.model.module_list, low.model.sources, strict=True) if index in sources]
    if module.out_quant is None and name != "linear" and not all(isinstance(m, Head) for m in readers):
        raise UserError(f"{low.model.defs.where(index)}: its map is read by a head after a float activation={name}, and by "
                        "other layers, too; make it linear, or give them a convolution of their own")  # fmt: skip
    options = {"strides": list(conv.stride), "padding": conv.padding[0], "dilation": conv.dilation[0], "groups": conv.groups}
    return low.convolution(index, source, deployed.kernel.numpy(), module.weight_quant.config.bits, exponent,
                           bias.astype(np.int32), options, _Finish.of(name, module), low.shapes[index])  # fmt: skip


def _shortcut(low: _Lowering, index: int, module: quantized_layers.QuantShortcut) -> int:
    sources = low.sources(index)
    grids = [low.grid(s) for s in sources]
    shared = (max if module.way == 1 else min)(g.exponent for g in grids)
    align = [g.exponent - shared for g in grids]
    bound = sum(g.most << -a if a < 0 else g.most >> a for g, a in zip(grids, align, strict=True))
    more = _Finish.of(low.model.defs[index].activation, module).at(shared)
    return low.add("shortcut", index, sources, low.shapes[index], align=align, exponents={"sums": shared}, bound=bound, **more)


def _product(low: _Lowering, index: int, module: quantized_layers.QuantProduct) -> int:
    finish = _Finish.of(low.model.defs[index].activation, module)
    return _times(low, index, low.sources(index), finish)


def _times(low: _Lowering, index: int, sources: list[int], finish: _Finish) -> int:
    """The product of a factor and a map."""
    factor, scaled = (low.grid(s) for s in sources)
    sums = factor.exponent + scaled.exponent
    return low.add("product", index, sources, low.shapes[index], exponents={"sums": sums}, bound=factor.most * scaled.most,
                   **finish.at(sums))  # fmt: skip


def _mean(low: _Lowering, index: int, source: int, out: FakeQuantize) -> int:
    channels, height, width = low.shape(source)
    grid = low.grid(source)
    return low.add("avgpool", index, [source], (channels, 1, 1), output=grid_of(out), shift=grid.exponent - out.exponent,
                   exponents={"sums": grid.exponent}, bound=grid.most * height * width)  # fmt: skip


def _average(low: _Lowering, index: int, module: quantized_layers.QuantAvgPool) -> int:
    (source,) = low.sources(index)
    return _mean(low, index, source, module.out_quant)


def _squeeze_excite(low: _Lowering, index: int, module: quantized_layers.QuantSqueezeExcite) -> int:
    (source,) = low.sources(index)
    narrow, _, widen, sigmoid = module.se.fc
    relu = _Finish("relu", module.hidden_quant)
    table = _Finish("hard_sigmoid", module.gate_quant, module.se_pre_quant, sigmoid)
    number = _mean(low, index, source, module.mean_quant)
    for linear, quantizer, finish in zip((narrow, widen), module.weight_quants, (relu, table), strict=True):
        integers, scale = quantizer.integers(linear.weight)
        options = {"strides": [1, 1], "padding": 0, "dilation": 1, "groups": 1}
        number = low.convolution(index, number, integers.int().numpy()[:, :, None, None], quantizer.config.bits,
                                 _exponent(scale), None, options, finish, (len(integers), 1, 1))  # fmt: skip
    return _times(low, index, [number, source], _Finish("linear", module.out_quant))


def _concatenation(low: _Lowering, index: int, module: quantized_layers.QuantRoute) -> int:
    sources, output = low.sources(index), grid_of(module.out_quant)
    align = [low.grid(s).exponent - output.exponent for s in sources]
    options = {"groups": module.groups, "group": module.group_id}
    return low.add("route", index, sources, low.shapes[index], output=output, align=align, options=options)


def _route(low: _Lowering, index: int, module: layers.Route) -> int:
    """A part of one map's channels, or all of them, which is no step; or the maps of a head's convolutions."""
    if len(low.sources(index)) > 1:
        return _joined(low, index)
    (source,) = low.sources(index)
    if module.groups == 1:
        return source
    options = {"groups": module.groups, "group": module.group_id}
    return low.add("route", index, [source], low.shapes[index], output=low.grid(source), align=[0], options=options)


def _joined(low: _Lowering, index: int) -> int:
    """Maps of different exponents, brought to the finest without losing anything."""
    sources = low.sources(index)
    finest = max(low.grid(s).exponent for s in sources)
    align = [low.grid(s).exponent - finest for s in sources]
    output = Grid(finest, *(limit << -min(align) for limit in RAW_LIMITS))
    return low.add("route", index, sources, low.shapes[index], output=output, align=align, options={"groups": 1, "group": 0})


def _max_pool(low: _Lowering, index: int, module: layers.MaxPool) -> int:
    return low.move("maxpool", index, size=module.size, strides=list(module.strides), padding=module.total)


# What a layer of a fused model becomes; returns the number of the step that makes its map.
LOWER: dict[type[nn.Module], Callable[[_Lowering, int, Any], int]] = {
    quantized_layers.QuantConv2d: _convolution,
    quantized_layers.QuantShortcut: _shortcut,
    quantized_layers.QuantProduct: _product,
    quantized_layers.QuantAvgPool: _average,
    quantized_layers.QuantSqueezeExcite: _squeeze_excite,
    quantized_layers.QuantRoute: _concatenation,
    layers.Route: _route,
    layers.MaxPool: _max_pool,
    layers.MaxPoolDepth: lambda low, index, module: low.move("maxpool_depth", index, channels=module.out_channels),
    layers.Upsample: lambda low, index, module: low.move("upsample", index, stride=module.factor),
    layers.Reorg: lambda low, index, module: low.move("reorg", index, stride=module.stride),
    layers.Reorg3d: lambda low, index, module: low.move("reorg3d", index, stride=module.stride),
    layers.Dropout: lambda low, index, module: low.sources(index)[0],
    YoloHead: lambda low, index, module: low.sources(index)[0],
    DflHead: lambda low, index, module: low.sources(index)[0],
}
