"""Networks of a single convolution, with which a runtime is asked how long a layer takes in it.

PyTorch's exporter takes seconds for a graph, so each kind of convolution is traced once, in few channels, and then gets the
kernels of other widths and an input of another size: what doesn't depend on them, its nodes, stays as it was exported.
"""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from utils.export.onnx.graph import clean, tidy
from utils.export.onnx.int8 import absorb_limits, pair_at, store_integers
from utils.export.onnx.trace import GraphPlan, trace
from utils.network.darknet import Darknet
from utils.network.definitions import Defs, Net
from utils.pruning.latency import DEPTHWISE, Geometry, Widths
from utils.quantized.calibrate import calibrate
from utils.quantized.settings import Settings
from utils.quantized.transform import quantize

SIDE = 32  # pixels of the map that a traced layer reads
TRACED = (40, 56)  # its channels and filters; no kernel has such sides, so they are told apart from everything else
PICTURE_CHANNELS = 4  # at most; what reads a picture stays a float convolution in integer graphs (utils.export.onnx.int8)


class SingleLayer(Darknet):
    """One convolution, which gives its map in the place of boxes."""

    def __init__(self, geometry: Geometry, widths: Widths) -> None:
        net = Net(width=SIDE, height=SIDE, channels=widths[0])
        super().__init__(Defs(net, [geometry.definition(widths)], str(geometry)), SIDE)
        self.img_size = geometry.height, geometry.width
        self.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.module_list[0](self.input_quantizer(x)), []


class LayerGraphs:
    """ONNX graphs of single convolutions, in float or in integers of `bits` bits."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.traced: dict[tuple[Geometry, Widths, int], ir.Model] = {}

    def write(self, geometry: Geometry, widths: Widths, path: Path) -> np.ndarray:
        """Write the graph; gives an input for it: float images, or integers as the layer before would give them."""
        bits = 32 if widths[0] <= PICTURE_CHANNELS else self.bits
        kind, old = traced_as(geometry, widths)
        key = (kind, old, bits)
        if key not in self.traced:
            self.traced[key] = _trace(*key)
        model = ir.from_proto(ir.to_proto(self.traced[key]))
        _widen(model.graph, dict(zip(old, widths, strict=True)))
        shape = (1, widths[0], geometry.height, geometry.width)
        model.graph.inputs[0].shape = ir.Shape(shape)
        model.graph.outputs[0].shape = ir.Shape((1, widths[1], "rows", "columns"))  # OpenCV refuses a graph without
        ir.save(model, path)
        noise = np.random.default_rng(0).random(shape, np.float32)
        return noise if bits == 32 else (255 * noise).astype(np.uint8)


def traced_as(geometry: Geometry, widths: Widths) -> tuple[Geometry, Widths]:
    """What is exported for a layer, and then widened: one of its kind in few channels. Layers of several groups stay as they
    are."""
    old = TRACED if geometry.groups == 1 else (TRACED[0],) * 2 if geometry.groups == DEPTHWISE else widths
    return replace(geometry, height=SIDE, width=SIDE), old


def _trace(geometry: Geometry, widths: Widths, bits: int) -> ir.Model:
    layer = SingleLayer(geometry, widths)
    if bits == 8:
        quantize(layer, Settings())
        calibrate(layer, [torch.rand(1, widths[0], SIDE, SIDE)], 1)
    plan = GraphPlan((SIDE, SIDE), dynamic=False, batch=1)
    model = tidy(trace(copy.deepcopy(layer).requires_grad_(False).fuse(), plan))
    if bits == 8:
        absorb_limits(model.graph)
        store_integers(model.graph)
        _cut_ends(model.graph)
        clean(model)
    return model


def _cut_ends(graph: ir.Graph) -> None:
    """Let the graph read and give integers: in a network the layers around it do."""
    image = graph.inputs[0]
    first = next(use.node for use in image.uses() if use.node.op_type == "QuantizeLinear")
    integers = ir.Value(name="integers", type=ir.TensorType(ir.DataType.UINT8))
    ir.convenience.replace_all_uses_with(first.outputs[0], integers)
    graph.inputs[0] = integers
    pair = pair_at(graph.outputs[0])
    if pair is not None:
        graph.outputs[0] = pair.nodes[-1].inputs[0]
        graph.outputs[0].type = ir.TensorType(ir.DataType.UINT8)


def _widen(graph: ir.Graph, widths: dict[int, int]) -> None:
    """Repeat constants along every side that is a key of `widths`, until it is as long as the value; groups likewise."""
    for value in graph.initializers.values():
        array = value.const_value.numpy()
        for axis, side in enumerate(array.shape):
            if side in widths:
                array = np.take(array, np.arange(widths[side]) % side, axis)
        value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
        value.shape = ir.Shape(array.shape)
    for node in graph:
        groups = node.attributes.get_int("group", 1)
        if groups in widths:
            node.attributes["group"] = ir.AttrInt64("group", widths[groups])
        for value in node.outputs:
            value.shape = None
