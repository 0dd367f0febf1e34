"""Changes to an ONNX graph (onnx_ir): what PyTorch's exporter leaves to be tidied, and non-maximum suppression."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnx_ir.tape import Tape


def constant(graph: ir.Graph, array: np.ndarray, name: str) -> ir.Value:
    """A new initialiser; `name` gets a number if it is taken."""
    unique, number = name, 0
    while unique in graph.initializers:
        number += 1
        unique = f"{name}_{number}"
    return Tape(graph).initializer(ir.tensor(array, name=unique))


def value_of(value: ir.Value | None) -> np.ndarray | None:
    """The array of a constant, None for anything computed from the input."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


def tidy(model: ir.Model) -> ir.Model:
    """Fewer and plainer nodes, in place: paddings move into their poolings, what nobody reads goes."""
    for node in list(model.graph):
        if node.op_type == "MaxPool":
            _absorb_padding(node)
    clean(model)
    return model


def clean(model: ir.Model) -> None:
    """Put nodes in the order of computing, remove what nobody reads, and what the exporter noted about its own source lines."""
    model.graph.sort()
    passes.RemoveUnusedNodesPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)


def name_dimensions(graph: ir.Graph, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give the dimensions of inputs and outputs that may vary plain names, numbered where there are several outputs."""
    for values, names in ((graph.inputs, inputs), (graph.outputs, outputs)):
        for k, value in enumerate(values):
            number = f"_{k}" if len(values) > 1 else ""
            value.shape = ir.Shape([
                size if isinstance(size, int) else name if name == "batch" else name + number
                for size, name in zip(value.shape, names, strict=True)
            ])  # fmt: skip
    for node in graph:  # shapes in between are told in the old names
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None


def _absorb_padding(pool: ir.Node) -> None:
    """Pad(-inf) -> MaxPool becomes a MaxPool with these pads: ONNX's own padding never wins a maximum, either."""
    pad = pool.inputs[0].producer()
    if pad is None or pad.op_type != "Pad" or any(pool.attributes.get_ints("pads", [0])):
        return
    pads, fill = value_of(pad.inputs[1]), value_of(pad.inputs[2])
    if pads is None or fill is None or fill.item() != -np.inf or len(pads) != 8 or pads[[0, 1, 4, 5]].any():
        return
    pool.attributes["pads"] = ir.AttrInt64s("pads", [int(p) for p in pads[[2, 3, 6, 7]]])
    pool.replace_input_with(0, pad.inputs[0])


def add_nms(graph: ir.Graph, conf_thres: float, iou_thres: float, max_det: int) -> None:
    """Put non-maximum suppression behind the graph's decoded boxes: the same boxes in the same order as
    utils.detection.boxes.nms.

    Output (batch, max_det, 6): x1 y1 x2 y2 confidence class, most confident first, filled up with rows of zeros.
    ONNX's NonMaxSuppression names the boxes; their confidences, everything else being 0, are then sorted an image.
    """
    tape = Tape(graph)
    decoded = graph.outputs[0]
    rows = decoded.shape[2]

    def number(value: object, name: str, kind: type = np.int64) -> ir.Value:
        return constant(graph, np.array(value, kind), f"nms_{name}")

    def columns(first: int, last: int) -> ir.Value:
        return tape.op("Slice", [decoded, number([first], "from"), number([last], "to"), number([2], "axis")])

    half = tape.op("Mul", [columns(2, 4), number(0.5, "half", np.float32)])
    corners = tape.op("Concat", [tape.op(sign, [columns(0, 2), half]) for sign in ("Sub", "Add")], {"axis": 2})
    scores = tape.op("Mul", [columns(4, 5), columns(5, rows)])  # (batch, boxes, classes)
    limits = [number([max_det], "boxes"), *(number([t], "threshold", np.float32) for t in (iou_thres, conf_thres))]
    by_class = tape.op("Transpose", [scores], {"perm": [0, 2, 1]})
    kept = tape.op("NonMaxSuppression", [corners, by_class, *limits])  # (kept, 3): image, class, box
    place = tape.op("Gather", [kept, number([0, 2, 1], "order")], {"axis": 1})
    empty = tape.op("ConstantOfShape", [tape.op("Shape", [scores])], {"value": ir.tensor(np.zeros(1, np.float32))})
    alive = tape.op("ScatterND", [empty, place, tape.op("GatherND", [scores, place])])
    flat = tape.op("Reshape", [alive, number([0, -1], "flat")])
    filled = tape.op("Pad", [flat, number([0, 0, 0, max_det], "fill")])  # there may be fewer than max_det to choose from
    best, position = tape.op_multi_out("TopK", [filled, limits[0]], {"axis": 1}, num_outputs=2)
    found = tape.op("Greater", [best, number(0, "none", np.float32)])
    position = tape.op("Where", [found, position, number(0, "first")])
    classes = number(rows - 5, "classes")
    last = number([2], "axis")
    index = tape.op("Unsqueeze", [tape.op("Div", [position, classes]), last])
    boxes = tape.op("GatherND", [corners, index], {"batch_dims": 1})
    label = tape.op("Cast", [tape.op("Mod", [position, classes])], {"to": ir.DataType.FLOAT})
    table = tape.op("Concat", [boxes, *(tape.op("Unsqueeze", [v, last]) for v in (best, label))], {"axis": 2})
    mask = tape.op("Cast", [tape.op("Unsqueeze", [found, last])], {"to": ir.DataType.FLOAT})
    result = tape.op("Mul", [table, mask])
    graph.outputs[0], result.name, decoded.name = result, decoded.name, "decoded"
    result.shape, result.type = ir.Shape([decoded.shape[0], max_det, 6]), ir.TensorType(ir.DataType.FLOAT)
