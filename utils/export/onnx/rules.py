"""Rules of runtimes that don't run here, looked for in the file that was written for them.

Where each is from is told in docs/runtimes.md.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from utils.core.errors import UserError
from utils.export.onnx.graph import value_of
from utils.export.onnx.int8 import WEIGHTED
from utils.export.targets import Target

PAIR = ("QuantizeLinear", "DequantizeLinear")
REMEDY = "make the network with PTQ.py --symmetric in 8 bits"


@dataclass(frozen=True)
class Rule:
    """says: what holds of a file; broken: the nodes, or inputs, of a graph where it doesn't; remedy: what to do then."""

    says: str
    broken: Callable[[ir.Graph], Iterator[str]]
    remedy: str = REMEDY


def _nodes(graph: ir.Graph, *kinds: str) -> Iterator[ir.Node]:
    return (node for node in graph if node.op_type in kinds)


def _of_kernel(node: ir.Node) -> bool:
    """Whether DequantizeLinear gives a kernel."""
    return value_of(node.inputs[0]) is not None


def _other_zeros(graph: ir.Graph) -> Iterator[str]:
    for node in _nodes(graph, *PAIR):
        zero = value_of(node.inputs[2]) if len(node.inputs) > 2 else None
        if zero is None or zero.dtype != np.int8 or zero.any():
            yield node.name


def _integer_biases(graph: ir.Graph) -> Iterator[str]:
    for node in _nodes(graph, *WEIGHTED):
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and (value_of(bias) is None or value_of(bias).dtype != np.float32):
            yield node.name


def _other_scales(graph: ir.Graph) -> Iterator[str]:
    for node in _nodes(graph, *PAIR):
        scale = value_of(node.inputs[1])
        if scale is None or not (scale > 0).all():
            yield node.name
        elif node.op_type == "DequantizeLinear" and _of_kernel(node):
            filters = len(value_of(node.inputs[0]))
            if scale.size > 1 and (scale.shape != (filters,) or node.attributes.get_int("axis", 1) != 0):
                yield node.name
        elif scale.size > 1:
            yield node.name


def _parted_pairs(graph: ir.Graph) -> Iterator[str]:
    for node in _nodes(graph, "QuantizeLinear"):
        if any(use.node.op_type != "DequantizeLinear" for use in node.outputs[0].uses()):
            yield node.name


def _half_quantized(graph: ir.Graph) -> Iterator[str]:
    for node in _nodes(graph, *WEIGHTED):
        producers = [value.producer() for value in node.inputs[:2]]
        if len({producer is not None and producer.op_type == "DequantizeLinear" for producer in producers}) > 1:
            yield node.name


def _open_sizes(graph: ir.Graph) -> Iterator[str]:
    return (value.name for value in graph.inputs if not all(isinstance(side, int) for side in value.shape))


def _integers(graph: ir.Graph) -> Iterator[str]:
    return (node.name for node in _nodes(graph, *PAIR))


def _other_ends(graph: ir.Graph) -> Iterator[str]:
    for value in graph.outputs:
        last = value.producer()
        makers = [v.producer() for v in last.inputs] if last is not None and last.op_type == "Concat" else [last]
        if any(maker is None or maker.op_type != "Conv" for maker in makers):
            yield value.name


RULES = {
    "fixed": Rule("it takes one size of one image", _open_sizes, "export it with --static --batch 1"),
    "zeros": Rule("integers are signed bytes with zero point 0", _other_zeros),
    "scales": Rule("scales are positive, one a map, one a filter (axis 0) of a kernel", _other_scales),
    "pairs": Rule("nothing lies between QuantizeLinear and DequantizeLinear", _parted_pairs),
    "whole": Rule("a convolution's map and kernel are both quantized, or neither", _half_quantized),
    "biases": Rule("biases are float32", _integer_biases),
    "float": Rule("it has no integers", _integers, "name the float weights"),
    "ends": Rule("each output is what convolutions give", _other_ends, "export it without --decode and --raw"),
}


def check_rules(path: Path, target: Target) -> list[str]:
    """What was found to hold of a file, in words. Raises UserError naming the first rule of the target that it breaks, and
    where."""
    graph = ir.load(path).graph
    for rule in map(RULES.__getitem__, target.rules):
        place = next(rule.broken(graph), None)
        if place is not None:
            raise UserError(f"not written: {target.title} asks that {rule.says}, which doesn't hold at {place}; {rule.remedy}")
    return [RULES[name].says for name in target.rules]
