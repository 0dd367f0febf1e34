"""A network as an ONNX graph: traced by PyTorch's exporter, tidied, with its names, anchors and settings aboard.

Darknet -> trace -> tidy (utils.export.onnx.graph) -> describe -> onnx_ir.Model, which utils.export.onnx.check then tries
"""

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18 as op
from torch import Tensor, nn
from torch.export import Dim

from utils.core.errors import UserError
from utils.core.preparation import Preparation
from utils.detection.threshold import CONF_THRES, USUAL
from utils.export.onnx.graph import add_nms, name_dimensions, tidy
from utils.export.onnx.int8 import to_integers
from utils.export.targets import THEIRS
from utils.loading import Loaded
from utils.network.cfg import write_cfg
from utils.network.darknet import Darknet
from utils.network.heads import Head
from utils.network.shapes import output_shapes

OPSETS = range(18, 24)  # what torch.onnx's translations are written for, and what it converts them to
INPUT, OUTPUT = "images", "detections"


@dataclass(frozen=True)
class GraphPlan:
    """What the graph should take and give.

    size: (height, width) in pixels, also where any other size will do (dynamic); batch: None for any.
    outputs: see OUTPUTS. signed: of a quantized network, see utils.export.onnx.int8. conf_thres, iou_thres, max_det: of the
    NMS in the graph.
    """

    size: tuple[int, int]
    dynamic: bool = True
    batch: int | None = None
    opset: int = OPSETS[0]
    outputs: str = "decoded"
    signed: bool = False
    conf_thres: float = USUAL
    iou_thres: float = 0.6
    max_det: int = 300


# What a graph gives, as its metadata call it -> in words.
OUTPUTS = {
    "decoded": "(batch, boxes, 5 + classes): cx cy w h in pixels of the input, objectness, class probabilities",
    "raw": "a map a head (batch, anchors or 1, rows, columns, values), before any sigmoid",
    "maps": "a map a head (batch, anchors * values, rows, columns), as the convolution before the head gives it",
    "nms": "(batch, max_det, 6): x1 y1 x2 y2 in pixels of the input, confidence, class; best first, then zeros",
    "yolov5": "(batch, boxes, 5 + classes), as YOLOv5's own: cx cy w h in pixels of the input, objectness, class probabilities",
    "yolov8": "(batch, 4 + classes, boxes), as YOLOv8's own: cx cy w h in pixels of the input, class probabilities",
}
DIMENSIONS = {  # of the outputs; those that may vary are called so
    "decoded": ("batch", "boxes", "values"),
    "raw": ("batch", "anchors", "rows", "columns", "values"),
    "maps": ("batch", "channels", "rows", "columns"),
    "nms": ("batch", "boxes", "values"),
    "yolov5": ("batch", "boxes", "values"),
    "yolov8": ("batch", "values", "boxes"),
}


def given(outputs: str, decoded: Tensor, raws: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What a graph with such outputs gives, but for NMS, from what a network gives in eval mode."""
    if outputs == "raw":
        return tuple(raws)
    if outputs == "maps":
        return tuple(raw.permute(0, 1, 4, 2, 3).flatten(1, 2) for raw in raws)
    if outputs == "yolov8":
        return (torch.cat((decoded[..., :4], decoded[..., 5:]), -1).transpose(1, 2),)
    return (decoded,)


def _round_in_onnx(x: Any, scale: float, zero_point: int, low: int, high: int) -> Any:
    """torch.fake_quantize_per_tensor_affine as ONNX: a pair of unsigned bytes where those suffice.

    255 levels (-127..127) take a byte's upper ones; that the byte has one more below isn't worth another operator.
    """
    step = op.Constant(value_float=scale)
    if high - low > 255:
        steps = op.Round(op.Mul(x, 1 / scale))  # as PyTorch does it: x / scale may fall to another side of a half
        return op.Mul(op.Clip(steps, float(low - zero_point), float(high - zero_point)), step)
    shift = 255 - high if high - low == 254 else -low
    zero, least, most = (op.Cast(op.Constant(value_int=v + shift), to=ir.DataType.UINT8) for v in (zero_point, low, high))
    integers = op.QuantizeLinear(x, step, zero)
    if high - low < 254:
        integers = op.Clip(integers, least, most)
    return op.DequantizeLinear(integers, step, zero)


@torch.library.register_fake("aten::fake_quantize_per_tensor_affine_cachemask")
def _(x: Tensor, scale: float, zero_point: int, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Shapes alone, which PyTorch needs for inputs of any size and doesn't know of this operator."""
    return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)


def _kernel_in_onnx(x: Any, scale: Any, zero_point: Any, axis: int, low: int, high: int) -> Any:
    """torch.fake_quantize_per_channel_affine of a kernel, which lies on its grid already: more than a byte stays float."""
    if high > 127:
        return op.Identity(x)
    zero = op.Cast(zero_point, to=ir.DataType.INT8)
    return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero, axis=axis), scale, zero, axis=axis)


TRANSLATIONS = {
    torch.ops.aten.fake_quantize_per_tensor_affine.default: _round_in_onnx,
    torch.ops.aten.fake_quantize_per_channel_affine.default: _kernel_in_onnx,
}


class _Through(Head):
    """A head that gives on what it reads, for graphs without any reshaping behind the last convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def decode(self, raw: Tensor, height: int) -> Tensor:
        """Rows of one value, which nobody reads: in a shape that can be joined with other heads'."""
        return raw.flatten(1)[..., None]


class Traced(nn.Module):
    """A network whose forward gives only what the graph should; the model's heads change for `maps`."""

    def __init__(self, model: nn.Module, outputs: str) -> None:
        super().__init__()
        self.model, self.outputs = model, outputs
        if outputs == "maps":
            self.outputs = "raw"  # its heads leave the convolutions' maps as they are
            for index in model.defs.head_indices():
                model.module_list[index] = _Through(model.defs[index])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return given(self.outputs, *self.model(images))


def build(model: Darknet, plan: GraphPlan) -> ir.Model:
    """The graph of a network, its batch normalisations folded, without metadata and NMS: in float, or in integers if it is
    quantized (and its quantizers are switched on)."""
    graph = tidy(trace(copy.deepcopy(model).eval().requires_grad_(False).fuse(), plan))
    return to_integers(graph, plan.signed) if model.quantization else graph


def trace(model: nn.Module, plan: GraphPlan) -> ir.Model:
    """The graph of `model` (eval mode, float32) as PyTorch's exporter makes it; UserError where that fails."""
    stride = model.max_stride
    shapes: dict[int, Any] = {} if plan.batch else {0: Dim("batch")}
    size = plan.size
    if plan.dynamic:
        shapes |= {2: stride * Dim("rows"), 3: stride * Dim("columns")}
        size = (2 * stride, 3 * stride)  # sides of 1 would be taken for constants, equal ones for one another
    example = torch.rand(plan.batch or 2, model.defs.net.channels, *size)
    names = [f"map_{k}" for k in range(len(model.heads))] if plan.outputs in ("raw", "maps") else [OUTPUT]
    names = ["output0"] if plan.outputs in THEIRS else names
    try:
        with _silence(), torch.no_grad():
            program = torch.onnx.export(
                Traced(model, plan.outputs).eval(), (example,), dynamo=True, dynamic_shapes={INPUT: shapes},
                opset_version=plan.opset, input_names=[INPUT], output_names=names, verbose=False,
                custom_translation_table=TRANSLATIONS,
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        hint = "; --static may help" if plan.dynamic else ""
        raise UserError(f"{model.defs.name}: PyTorch can't export it to opset {plan.opset} ({_cause(error)}){hint}") from None
    return program.model


def _cause(error: BaseException) -> str:
    """The first line of what was behind the exporter's long message."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporter's notes are about its own future."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def finish(graph: ir.Model, loaded: Loaded, plan: GraphPlan, prepared: Preparation, precision: str) -> ir.Model:
    """Add NMS where the plan wants it, names of dimensions, and the metadata.

    prepared: how images have to be prepared; precision: fp32 or int8.
    """
    if plan.outputs == "nms":
        add_nms(graph.graph, plan.conf_thres, plan.iou_thres, plan.max_det)
    name_dimensions(graph.graph, ("batch", "channels", "height", "width"), DIMENSIONS[plan.outputs])
    graph.metadata_props.update(metadata(loaded, plan, prepared, precision))
    return graph


def metadata(loaded: Loaded, plan: GraphPlan, prepared: Preparation, precision: str) -> dict[str, str]:
    """What detect.py, test.py and other programs need to use the graph; values that aren't words are JSON."""
    model = loaded.model
    name = model.defs.name.encode(errors="backslashreplace").decode()  # ONNX knows no names of files that aren't UTF-8
    facts: dict[str, Any] = {
        "format": "darkedge", "cfg": write_cfg(model.defs), "cfg_name": name, "precision": precision,
        "outputs": plan.outputs, "names": loaded.names, "img_size": plan.size, "stride": model.max_stride,
        "dynamic_size": plan.dynamic, "heads": heads(model), "settings": prepared.to_settings(),
    }  # fmt: skip
    if loaded.conf_thres is not None:
        facts[CONF_THRES] = loaded.conf_thres
    if plan.outputs == "nms":
        facts["nms"] = {"conf_thres": plan.conf_thres, "iou_thres": plan.iou_thres, "max_det": plan.max_det}
    if plan.outputs in THEIRS:
        facts |= for_ultralytics(loaded, plan)
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}


def for_ultralytics(loaded: Loaded, plan: GraphPlan) -> dict[str, str]:
    """What their programs look for; values are Python's literals. `names` takes the place of this suite's own."""
    names, batch = dict(enumerate(loaded.names)), plan.batch or 1
    args = {"batch": batch, "dynamic": plan.dynamic, "half": False, "int8": False, "nms": False}
    values = {"names": names, "imgsz": list(plan.size), "batch": batch, "args": args}
    values["channels"] = loaded.model.defs.net.channels
    return {"task": "detect"} | {key: str(value) for key, value in values.items()}


def heads(model: Darknet) -> list[dict[str, Any]]:
    """Kind, stride and what decoding needs to know of each head; sizes of anchors in pixels of the input."""
    side = 32 * model.max_stride
    shapes = output_shapes(model.defs, side, side)
    return [
        {"kind": model.defs[i].kind, "stride": side / shapes[i][1]} | model.defs[i].decoding()
        for i in model.defs.head_indices()
    ]  # fmt: skip
