"""From a traced quantized network to a graph that a runtime computes in integers.

What is traced rounds maps and kernels (QuantizeLinear, then DequantizeLinear: a pair). ONNX Runtime makes an integer kernel
of `DequantizeLinear -> operator -> QuantizeLinear` only, so here

    absorb_limits    relu and relu6 go where rounding to bytes cuts the same off
    ask_behind       whoever asks for the shape of an operator's output asks behind its pair
    pool_early       pooling goes before activation and rounding, which then have a quarter of the work
    stay_on_grid     what moves values without changing them (pooling, upsampling, routes) gets a pair of its own
    round_in_float   the convolution of the image stays a float one, which is faster
    store_integers   the other kernels become int8 and biases int32 initialisers

TensorRT takes signed integers around 0 alone, and no integer biases, so for it only kernels are stored, on the grids of maps

    center           the integer that stands for 0 becomes 0: unsigned bytes become signed ones

Each step leaves every value as it was, but for biases, which are rounded to the 32-bit accumulator's step.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from utils.export.onnx.graph import clean, constant, value_of

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
MOVES = frozenset({"Concat", "MaxPool", "Reshape", "Resize", "Slice", "Split", "Transpose"})  # keep each value as it is
RISING = frozenset({"LeakyRelu", "Relu", "Clip", "Sigmoid", "Tanh"})  # so the largest of a window stays the largest
SAME_STEP = 1e-6  # relative difference of two scales that are meant to be one
BIAS_LIMIT = 2.0**30
MIDDLE = 128  # the unsigned byte that stands for 0 in maps with as many integers below it as above


@dataclass(frozen=True)
class Pair:
    """QuantizeLinear, perhaps Clip of its integers, DequantizeLinear: the nodes, in this order."""

    nodes: tuple[ir.Node, ...]

    @property
    def source(self) -> ir.Value:
        """What is rounded."""
        return self.nodes[0].inputs[0]

    @property
    def scale(self) -> np.ndarray:
        """() or (filters,)."""
        return value_of(self.nodes[0].inputs[1])

    @property
    def zero_point(self) -> int:
        """The integer that stands for 0, of a map."""
        return value_of(self.nodes[0].inputs[2]).item()

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest integer of a map."""
        least, most = (value_of(v).item() for v in self.nodes[1].inputs[1:]) if len(self.nodes) == 3 else (0, 255)
        return least, most

    @property
    def grid(self) -> tuple[float, int, tuple[int, int]]:
        """What two maps' pairs have in common when the values of one lie on the other's grid."""
        return self.scale.item(), self.zero_point, self.limits


def to_integers(model: ir.Model, signed: bool) -> ir.Model:
    """All steps, in place; signed: those for runtimes that take signed integers around 0 alone."""
    unsigned = absorb_limits, ask_behind, pool_early, stay_on_grid, round_in_float, store_integers
    for step in (stay_on_grid, store_kernels, center) if signed else unsigned:
        step(model.graph)
    clean(model)
    return model


def pair_at(value: ir.Value) -> Pair | None:
    """The pair that a value comes from, None for other values."""
    nodes: list[ir.Node] = []
    for kind in ("DequantizeLinear", "Clip", "QuantizeLinear"):
        node = value.producer()
        if node is not None and node.op_type == kind:
            nodes.insert(0, node)
            value = node.inputs[0]
    found = [node.op_type for node in nodes]
    return Pair(tuple(nodes)) if found[:1] == ["QuantizeLinear"] and found[-1:] == ["DequantizeLinear"] else None


def is_float(node: ir.Node | None) -> bool:
    """Whether a node multiplies in float: with a kernel that isn't rounded to bytes, or the image, whose few channels ONNX
    Runtime's integer kernel takes longer for than its float one."""
    if node is None or node.op_type not in WEIGHTED:
        return False
    pair = pair_at(node.inputs[0])
    return pair_at(node.inputs[1]) is None or (pair.source if pair else node.inputs[0]).is_graph_input()


def ask_behind(graph: ir.Graph) -> None:
    """Let Shape read the integers of a pair instead of what goes into it, or comes out: a second reader of those would have
    ONNX Runtime compute them, too."""
    for node in [n for n in graph if n.op_type == "Shape"]:
        asked = node.inputs[0]
        before = [use.node.outputs[0] for use in asked.uses() if use.node.op_type == "QuantizeLinear"]
        pair = pair_at(asked)
        integers = pair.nodes[0].outputs[:1] if pair else before if asked.producer() is not None else []
        if integers:
            node.replace_input_with(0, integers[0])


def absorb_limits(graph: ir.Graph) -> None:
    """Remove relu and relu6 where the pair behind them ends at the same integers. (ONNX Runtime does, too, but not where 6
    and 255 steps differ by their last bit.)"""
    for node in [n for n in graph if n.op_type in ("Relu", "Clip") and len(n.outputs[0].uses()) == 1]:
        (use,) = node.outputs[0].uses()
        if use.node.op_type != "QuantizeLinear":
            continue
        limits = (0.0, np.inf) if node.op_type == "Relu" else [value_of(v) for v in node.inputs[1:]]
        scale, zero = (value_of(v) for v in use.node.inputs[1:])
        least, most = (np.round(np.float64(limit) / scale) + zero for limit in limits)
        if least <= 0 and most >= 255:
            use.node.replace_input_with(0, node.inputs[0])


def pool_early(graph: ir.Graph) -> None:
    """Move each MaxPool up through pairs and activations that rise with their input, as far as a map of integers, or the
    output of a float convolution, goes."""
    for pool in [node for node in graph if node.op_type == "MaxPool"]:
        passed: list[ir.Node] = []
        best, value = 0, pool.inputs[0]
        while len(value.uses()) == 1 and value.producer() is not None:
            pair, node = pair_at(value), value.producer()
            if pair is None and node.op_type not in RISING:
                break
            passed += reversed(pair.nodes) if pair else [node]
            value = passed[-1].inputs[0]
            if pair_at(value) or is_float(value.producer()):
                best = len(passed)
        if best:
            _move_before(graph, pool, passed[:best][::-1])
            _add_bias_later(graph, pool)


def _move_before(graph: ir.Graph, pool: ir.Node, chain: list[ir.Node]) -> None:
    """value -> chain -> pool becomes value -> pool -> chain."""
    pooled, last = pool.outputs[0], chain[-1].outputs[0]
    ir.convenience.replace_all_uses_with(pooled, last, replace_graph_outputs=True)
    pool.replace_input_with(0, chain[0].inputs[0])
    chain[0].replace_input_with(0, pooled)
    graph.remove(pool)
    graph.insert_before(chain[0], pool)
    for node in chain:
        node.outputs[0].shape = pooled.shape


def _add_bias_later(graph: ir.Graph, pool: ir.Node) -> None:
    """Float convolution -> pool -> bias: an addition keeps ONNX Runtime from rounding before it pools."""
    convolution, pooled = pool.inputs[0].producer(), pool.outputs[0]
    if not is_float(convolution) or len(convolution.inputs) < 3:
        return
    bias = constant(graph, value_of(convolution.inputs[2]).reshape(1, -1, 1, 1), f"{convolution.inputs[2].name}_later")
    users = list(pooled.uses())
    addition = ir.Node("", "Add", [pooled, bias], num_outputs=1)
    graph.insert_after(pool, addition)
    convolution.resize_inputs(2)
    for use in users:
        use.node.replace_input_with(use.idx, addition.outputs[0])


def stay_on_grid(graph: ir.Graph) -> None:
    """Behind whatever moves values of one grid on their way to a convolution, add that grid's pair."""
    on_the_way = _before_convolutions(graph)
    for node in list(graph):
        if node.op_type not in MOVES or node not in on_the_way:
            continue
        pairs = [pair_at(value) for value in (node.inputs if node.op_type == "Concat" else node.inputs[:1])]
        if None in pairs or len({pair.grid for pair in pairs}) > 1:
            continue
        for output in node.outputs:
            if any(use.node.op_type != "QuantizeLinear" for use in output.uses()):
                _append_pair(graph, output, pairs[0])


def _before_convolutions(graph: ir.Graph) -> set[ir.Node]:
    """The nodes whose values reach a convolution."""
    found: set[ir.Node] = set()
    waiting = [node for node in graph if node.op_type == "Conv"]
    while waiting:
        producers = {value.producer() for value in waiting.pop().inputs if value is not None} - found - {None}
        found |= producers
        waiting += producers
    return found


def _append_pair(graph: ir.Graph, value: ir.Value, like: Pair) -> None:
    """Put a copy of the pair `like` behind a value."""
    users, last, position = list(value.uses()), value, value.producer()
    for node in like.nodes:
        copied = ir.Node("", node.op_type, [last, *node.inputs[1:]], node.attributes.values(), num_outputs=1)
        graph.insert_after(position, copied)
        last, position = copied.outputs[0], copied
    for use in users:
        use.node.replace_input_with(use.idx, last)


def round_in_float(graph: ir.Graph) -> None:
    """Round what float convolutions read by float operators, and take their kernels as they are: a pair there would have
    ONNX Runtime round the kernel anew. Whole 255ths, which images are already, aren't rounded at all."""
    for node in [n for n in graph if is_float(n)]:
        pair, kernel = pair_at(node.inputs[0]), pair_at(node.inputs[1])
        if kernel is not None:
            node.replace_input_with(1, kernel.source)
        if pair is None:
            continue
        tape, rounded = Tape(), pair.source
        if not (rounded.is_graph_input() and _is_255ths(pair)):
            numbers = (pair.scale, np.float32(1) / pair.scale, *(limit - pair.zero_point for limit in pair.limits))
            step, per_step, *limits = (constant(graph, np.array(v, np.float32), "grid") for v in numbers)
            whole = tape.op("Clip", [tape.op("Round", [tape.op("Mul", [rounded, per_step])]), *limits])
            rounded = tape.op("Mul", [whole, step])
        graph.insert_before(node, tape.nodes)
        node.replace_input_with(0, rounded)


def _is_255ths(pair: Pair) -> bool:
    return pair.zero_point == 0 and pair.limits == (0, 255) and abs(255 * pair.scale.item() - 1) < SAME_STEP


def store_kernels(graph: ir.Graph) -> None:
    """Store each rounded kernel as int8."""
    store_integers(graph, biases=False)


def center(graph: ir.Graph) -> None:
    """Let signed bytes with 0 for 0 stand for maps of unsigned ones that have 128 for it, of which none is cut off elsewhere
    than at the ends."""
    for node in [n for n in graph if n.op_type in ("QuantizeLinear", "DequantizeLinear")]:
        zero = value_of(node.inputs[2])
        if zero.dtype == np.uint8 and (zero == MIDDLE).all():
            node.replace_input_with(2, constant(graph, np.zeros(zero.shape, np.int8), "zero"))
            if node.op_type == "QuantizeLinear":
                node.outputs[0].type = ir.TensorType(ir.DataType.INT8)


def store_integers(graph: ir.Graph, biases: bool = True) -> None:
    """Store each rounded kernel as int8 and, where a convolution's input lies on a grid, its bias as int32."""
    for node in [n for n in graph if n.op_type in WEIGHTED and pair_at(n.inputs[1])]:
        kernel, pair = pair_at(node.inputs[1]), pair_at(node.inputs[0])
        values, scale = value_of(kernel.source), np.atleast_1d(kernel.scale)
        bias = value_of(node.inputs[2]) if len(node.inputs) > 2 else None
        if biases and pair is not None and bias is not None:
            # in filters so faint that their bias would not fit the accumulator, larger steps
            scale = np.maximum(scale, np.abs(bias) / (BIAS_LIMIT * pair.scale)).astype(np.float32)
            step = scale.astype(np.float64) * pair.scale
            node.replace_input_with(2, _dequantized(graph, node, 2, np.round(bias / step).astype(np.int32), step))
        integers = np.round(values / scale.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8)
        node.replace_input_with(1, _dequantized(graph, node, 1, integers, scale))


def _dequantized(graph: ir.Graph, node: ir.Node, index: int, integers: np.ndarray, scale: np.ndarray) -> ir.Value:
    """DequantizeLinear of constants, one scale for each index of the first axis, for an input of `node`. ONNX Runtime
    asks for the zero points of kernels; those of biases would only make the file larger."""
    source = node.inputs[index]
    name, tape = (pair_at(source).source if pair_at(source) else source).name, Tape()
    factors = constant(graph, scale.astype(np.float32), f"{name}_scale")
    inputs = [constant(graph, integers, f"{name}_integers"), factors]
    if index == 1:
        inputs.append(constant(graph, np.zeros(scale.shape, integers.dtype), f"{name}_zero"))
    value = tape.op("DequantizeLinear", inputs, {"axis": 0})
    graph.insert_before(node, tape.nodes)
    return value
