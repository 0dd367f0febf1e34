"""Rules of TensorRT and RKNN: files keep to them, as onnx reads them, compute what PyTorch does, and one that breaks a rule
isn't written."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.export.test_onnx import pictures, quantized, written
from tests.tiny import CSP, DFL, DIALECT, RESIDUAL, SPP, network
from utils.core.errors import UserError
from utils.export.targets import TARGETS

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from utils.export.onnx import check as onnx_check  # noqa: E402
from utils.export.onnx import job as onnx_job  # noqa: E402
from utils.export.onnx.rules import RULES, check_rules  # noqa: E402

ONE_IMAGE = {"dynamic": False, "batch": 1}
INT8, UINT8, FLOAT = onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT
TENSORRT, RKNN = TARGETS["tensorrt"], TARGETS["rknn"]


@pytest.mark.parametrize(("cfg", "settings"), [
    (CSP, {"symmetric": True}), (SPP, {"symmetric": True, "observer": "mse"}), (RESIDUAL, {"fpga": True}),
    (DIALECT, {"strategy": 2, "symmetric": True}), (DFL, {"symmetric": True, "shortcut_way": 2}),
    (CSP, {"symmetric": True, "w_bit": 4}),
], ids=["csp", "spp-ptq", "residual-fpga", "se-dorefa", "dfl", "csp-4-bit-kernels"])  # fmt: skip
def test_integers_for_tensorrt(cfg: str, settings: dict, tmp_path: Path) -> None:
    """What onnx reads: signed bytes around 0, a scale a filter, float biases; what ONNX Runtime makes of it: PyTorch's maps."""
    model, path = quantized(cfg, **settings), tmp_path / "x.onnx"
    run = written(model, path, outputs="raw", signed=True, **ONE_IMAGE)
    assert check_rules(path, TENSORRT) == [RULES[name].says for name in TENSORRT.rules]
    graph = onnx.load(path).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    types = {"QuantizeLinear": 0, "DequantizeLinear": 0}
    for node in graph.node:
        if node.op_type in types:
            types[node.op_type] += 1
            zero = constants[node.input[2]]
            assert zero.data_type == INT8
            assert not onnx.numpy_helper.to_array(zero).any()
        if node.op_type == "Conv":
            assert constants[node.input[2]].data_type == FLOAT
    assert types["DequantizeLinear"] > types["QuantizeLinear"] > 4
    assert not [tensor.name for tensor in graph.initializer if tensor.data_type == UINT8]
    images = pictures(1)
    with torch.no_grad():
        expected = [raw.numpy() for raw in model(images)[1]]
        plain = [raw.numpy() for raw in onnx_job.without_quantizers(model)(images)[1]]
    found = run.run(None, {"images": images.numpy()})
    assert onnx_check.deviation([found], [expected], [plain]) < 0.1


@pytest.mark.parametrize(("what", "said"), [
    ("zero", "integers are signed bytes with zero point 0"), ("scale", "scales are positive"), ("axis", "axis 0"),
    ("pair", "nothing lies between"), ("whole", "both quantized, or neither"), ("bias", "biases are float32"),
    ("size", "it takes one size of one image"),
])  # fmt: skip
def test_a_file_that_breaks_a_rule_of_tensorrt(what: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    written(quantized(CSP, symmetric=True), path, signed=True, **ONE_IMAGE)
    model = onnx.load(path)
    nodes = model.graph.node
    quantize = next(n for n in nodes if n.op_type == "QuantizeLinear")
    convolution = next(n for n in nodes if n.op_type == "Conv")
    kernel = next(n for n in nodes if convolution.input[1] in n.output)
    if what == "zero":
        _replace(model, quantize.input[2], np.uint8(128))
    elif what == "scale":
        _replace(model, quantize.input[1], np.float32(-1))
    elif what == "axis":
        next(a for a in kernel.attribute if a.name == "axis").i = 1
    elif what == "pair":
        nodes.append(onnx.helper.make_node("Identity", [quantize.output[0]], ["more"]))
        model.graph.output.append(onnx.helper.make_tensor_value_info("more", INT8, None))
    elif what == "whole":
        convolution.input[0] = "images"
    elif what == "bias":
        _replace(model, convolution.input[2], np.zeros(8, np.int32))
    else:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, path)
    with pytest.raises(UserError, match=f"not written: TensorRT asks that .*{said}.*, which doesn't hold at .*; ") as caught:
        check_rules(path, TENSORRT)
    assert "\n" not in str(caught.value)


def _replace(model: "onnx.ModelProto", name: str, value: np.ndarray) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(value), name))


def test_files_for_rknn(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    for cfg in (SPP, DFL):  # heads that read one convolution, and several
        written(network(cfg), path, outputs="maps", **ONE_IMAGE)
        check_rules(path, RKNN)
    written(network(SPP), path, **ONE_IMAGE)
    with pytest.raises(UserError, match="RKNN asks that each output is what convolutions give, which doesn't hold at"):
        check_rules(path, RKNN)
    written(quantized(CSP), path, outputs="maps", **ONE_IMAGE)
    with pytest.raises(UserError, match="RKNN asks that it has no integers, which doesn't hold at"):
        check_rules(path, RKNN)
