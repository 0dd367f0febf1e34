"""export.py --format onnx of quantized networks: int8 graphs, by what ONNX Runtime makes of them."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.export.test_onnx import ROOT, calibrate, checkpoint, pictures, quantized, run_script, session, written
from tests.network.test_networks import ALL
from tests.tiny import CSP, DEPTHWISE, DIALECT, NET, REORG, RESIDUAL, SPP, conv, head, network, randomise
from utils.core.errors import UserError
from utils.network.darknet import Darknet
from utils.quantized.layers import QuantConv2d
from utils.quantized.settings import Settings
from utils.quantized.transform import quantize

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from utils.export.onnx import check as onnx_check  # noqa: E402
from utils.export.onnx import job as onnx_job  # noqa: E402
from utils.export.onnx.trace import GraphPlan  # noqa: E402

CPU = torch.device("cpu")
HALVED = "[maxpool]\nsize=2\nstride=2\n"
POOLED = NET + conv(8, activation="relu6") + (conv(8) + HALVED) * 2 + conv(12, activation="mish") + head()
KINDS = {"google": Settings(1), "ptq": Settings(1, observer="mse"), "dorefa": Settings(2), "fpga": Settings(1, fpga=True)}


def weights_in(path: Path) -> Counter:
    """How many kernels and matrices a file stores as integers of 8 bits, and how many as floats."""
    tensors = [t for t in onnx.load(path).graph.initializer if len(t.dims) in (2, 4)]
    kinds = Counter(onnx.TensorProto.DataType.Name(t.data_type) for t in tensors if "weight" in t.name)
    return Counter({k: kinds[k] for k in ("INT8", "FLOAT")})


def weighted(model: Darknet) -> int:
    return sum(isinstance(m, torch.nn.Conv2d | torch.nn.Linear) for m in model.modules())


@pytest.mark.parametrize(("cfg", "settings"), [
    (CSP, {"strategy": 1}), (CSP, {"strategy": 1, "a_bit": 4, "w_bit": 4}), (POOLED, {"strategy": 2}),
    (DIALECT, {"strategy": 2, "w_bit": 4}), (DIALECT, {"fpga": True}), (DEPTHWISE, {"strategy": 2}),
    (SPP, {"observer": "mse"}), (RESIDUAL, {"fpga": True}), (RESIDUAL, {"shortcut_way": 2}), (REORG, {"strategy": 1}),
], ids=["csp", "csp-4-bit", "pool-dorefa", "se-dorefa-4-bit", "se-fpga", "depthwise-dorefa", "spp-ptq", "residual-fpga",
        "residual-way-2", "reorg"])  # fmt: skip
def test_quantized_graphs_equal_pytorch(cfg: str, settings: dict, tmp_path: Path) -> None:
    """All values but those that lie within float32's error of the middle between two integers: one in 100,000 falls to the
    other side in a layer, by a step, which the layers behind it carry to their neighbours. Shifts have no such error."""
    model = quantized(cfg, **settings)
    run, images = written(model, tmp_path / "x.onnx", outputs="raw"), pictures(2, 64, 96)
    with torch.no_grad():
        expected = [raw.numpy() for raw in model(images)[1]]
        plain = [raw.numpy() for raw in onnx_job.without_quantizers(model)(images)[1]]
    found = run.run(None, {"images": images.numpy()})
    errors = np.concatenate([onnx_check.errors(f, e).ravel() for f, e in zip(found, expected, strict=True)])
    assert np.mean(errors > 1e-4) < (1e-6 if settings.get("fpga") else 0.02)
    assert onnx_check.deviation([found], [expected], [plain]) < 0.02
    assert not [t.name for t in onnx.load(tmp_path / "x.onnx").graph.initializer if t.name.endswith("bias_zero")]
    assert weights_in(tmp_path / "x.onnx") == {"INT8": weighted(model) - 1, "FLOAT": 1}  # the image's


@pytest.mark.parametrize("settings", [Settings(1), Settings(2, w_bit=4), Settings(1, fpga=True)], ids=str)
@torch.no_grad()
def test_biases_are_whole_steps_of_the_sums(settings: Settings) -> None:
    """As an integer convolution adds them; the inference copy computes with the same ones, and the same matrices of [se]."""
    model = calibrate(quantize(network(DIALECT), settings))
    copied = model.inference_copy(CPU)
    assert torch.equal(copied(pictures(2))[0], model(pictures(2))[0])
    for layer in (m for m in copied.module_list if isinstance(m, QuantConv2d)):
        steps = layer.deployed().bias.double() / (layer.kernel_scale.double() * layer.reads[0].qparams()[0].double())
        torch.testing.assert_close(steps, steps.round(), rtol=1e-6, atol=1e-4)
        assert steps.abs().max() > 10


def behind(graph: "onnx.GraphProto", last: "onnx.NodeProto") -> Iterator["onnx.NodeProto"]:
    """What a node is computed from, but for what is constant."""
    producers = {name: node for node in graph.node for name in node.output}
    waiting, seen = list(last.input), set()
    while waiting:
        node = producers.get(waiting.pop())
        if node is not None and node.output[0] not in seen:
            seen.add(node.output[0])
            waiting += node.input
            yield node


def test_onnx_runtime_computes_in_integers(tmp_path: Path) -> None:
    """All but the convolutions of the image and before [yolo] become QLinearConv, with leaky, poolings and routes between
    them on bytes; relu6 has gone; pooling comes before leaky and, after the image's convolution, before rounding."""
    chosen = NET + conv(8) + (HALVED + conv(8)) * 2 + conv(8, activation="relu6")
    chosen += "[route]\nlayers=-1,-2\n" + head()
    written(quantized(chosen, strategy=1), tmp_path / "x.onnx")
    session(tmp_path / "x.onnx", tmp_path / "fast.onnx")
    fast = onnx.load(tmp_path / "fast.onnx").graph
    kinds = Counter(n.op_type for n in behind(fast, [n for n in fast.node if n.op_type == "Conv"][-1]))
    assert (kinds["QLinearConv"], kinds["Conv"], kinds["QLinearLeakyRelu"], kinds["QLinearConcat"]) == (3, 1, 3, 1)
    assert kinds["MaxPool"] + kinds["NhwcMaxPool"] == 2
    assert not {"LeakyRelu", "Clip", "Concat"} & set(kinds)
    order = [n.op_type for n in onnx.load(tmp_path / "x.onnx").graph.node if n.op_type in ("MaxPool", "LeakyRelu", "Conv")]
    assert order == ["Conv", "MaxPool", "LeakyRelu", "Conv", "MaxPool", "LeakyRelu", "Conv", "LeakyRelu", "Conv", "Conv"]


def test_squeeze_and_excite_computes_in_integers(tmp_path: Path) -> None:
    """Both matrices and the product; the map becomes floats for its mean alone."""
    written(quantized(DIALECT, strategy=1), tmp_path / "x.onnx")
    session(tmp_path / "x.onnx", tmp_path / "fast.onnx")
    fast = onnx.load(tmp_path / "fast.onnx").graph
    kinds = Counter(n.op_type for n in fast.node)
    assert (kinds["QLinearConv"], kinds["QGemm"], kinds["QLinearMul"], kinds["QLinearAdd"]) == (3, 2, 1, 1)
    floats = [n for n in fast.node if n.op_type == "DequantizeLinear"]
    assert not any(n.op_type == "Shape" and n.input[0] in {f.output[0] for f in floats} for n in fast.node)


def test_kernel_that_is_faint_against_its_bias_keeps_the_bias(tmp_path: Path) -> None:
    """Its bias in steps of its sums would not fit 32 bits."""
    cfg = NET + conv(8) + conv(8, bn=0) + head()
    model = network(cfg)
    with torch.no_grad():
        model.module_list[1].conv.weight[3] = 1e-12
        model.module_list[1].conv.bias[3] = 2.0
    calibrate(quantize(model, Settings(strategy=1)))
    run = written(model, tmp_path / "x.onnx")
    with torch.no_grad():
        expected = model(pictures(2))[0].numpy()
    (found,) = run.run(None, {"images": pictures(2).numpy()})
    assert np.mean(np.abs(found - expected) > 1e-2) < 0.01


def test_integer_file_is_a_quarter(tmp_path: Path) -> None:
    """Of a network whose weights are most of its file."""
    model = quantized(NET + conv(64, stride=4) + conv(512) + conv(256, 1) + conv(512) + head(), strategy=1)
    written(model, tmp_path / "int8.onnx", dynamic=False)
    written(onnx_job.without_quantizers(model), tmp_path / "fp32.onnx", dynamic=False)
    sizes = [(tmp_path / f"{name}.onnx").stat().st_size for name in ("int8", "fp32")]
    assert sizes[1] > 4e6
    assert sizes[0] <= 0.27 * sizes[1]


def test_quantizers_that_never_saw_a_value_are_one_line(tmp_path: Path) -> None:
    weights = checkpoint(tmp_path / "x.pt", quantize(network(CSP), Settings(1)))
    with pytest.raises(UserError, match=r"layer 0 .*: its range was never observed; train the network or") as error:
        run_script("--weights", weights)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ptq", "dorefa", "fpga"])
@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_every_quantized_network(path: Path, kind: str, tmp_path: Path) -> None:
    """Untrained. In shifts all values are equal. Else, through a hundred layers with random weights, a single value that falls
    to the other side reaches everything; but two roundings of everything differ by the square root of 2 times what one
    changes, at most."""
    torch.manual_seed(0)
    model = calibrate(quantize(randomise(Darknet(path, 64)), KINDS[kind]))
    plan, images = GraphPlan((64, 64), outputs="raw"), [pictures(1)]
    written(model, tmp_path / "x.onnx", outputs="raw")
    found = [result.maps for result in onnx_check.run_graph(tmp_path / "x.onnx", plan, images)]
    expected = onnx_check.run_torch(model.inference_copy(CPU), plan, images)
    if kind == "fpga":
        assert max(onnx_check.difference(f, e) for f, e in zip(found[0], expected[0], strict=True)) < 1e-4
    plain = onnx_check.run_torch(onnx_job.without_quantizers(model), plan, images)
    assert onnx_check.deviation(found, expected, plain) < 2**0.5
    assert weights_in(tmp_path / "x.onnx") == {"INT8": weighted(model) - 1, "FLOAT": 1}
    assert (tmp_path / "x.onnx").stat().st_size < 0.27 * 4 * sum(p.numel() for p in model.parameters()) + 1e6


@pytest.mark.slow
def test_yolov3_tiny_in_integers(tmp_path: Path) -> None:
    """The file, and how many convolutions ONNX Runtime computes in integers."""
    model = quantized((ROOT / "cfg/yolov3tiny/yolov3-tiny.cfg").read_text(), 416, strategy=1)
    written(model, tmp_path / "int8.onnx")
    written(onnx_job.without_quantizers(model), tmp_path / "fp32.onnx")
    assert (tmp_path / "int8.onnx").stat().st_size <= 0.27 * (tmp_path / "fp32.onnx").stat().st_size
    session(tmp_path / "int8.onnx", tmp_path / "fast.onnx")
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "fast.onnx").graph.node)
    assert kinds["QLinearConv"] == weighted(model) - 3  # the image's and two heads'
