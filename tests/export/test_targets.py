"""export.py --target: what each runtime expects is what is written, what contradicts it is one line, and the runtime itself
tries the file where it is installed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import export
from tests.tiny import CSP, SPP, network
from utils.core.errors import UserError
from utils.core.options import options_of
from utils.export.options import OnnxOptions
from utils.export.targets import TARGETS, settle
from utils.network.cfg import write_cfg
from utils.network.checkpoint import save_checkpoint
from utils.quantized.settings import Settings
from utils.quantized.transform import quantize
from utils.runtimes.registry import RUNTIMES, installed
from utils.scripts.cli import Arguments

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def parsed(*arguments: object) -> Arguments:
    return export.get_parser().parse_args([str(a) for a in ("--weights", "x.pt", *arguments)])


def settled(*arguments: object) -> OnnxOptions:
    args = parsed(*arguments)
    return settle(options_of(OnnxOptions, vars(args)), args.given)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "x.pt"
    content = {"model": network(SPP).state_dict(), "cfg": write_cfg(network(SPP).defs), "names": ["cat", "dog"], "settings": {}}
    save_checkpoint(path, content | {"quantization": None})
    return path


@pytest.mark.parametrize(("asked", "said"), [
    ("opencv --batch 8", "--batch 8: OpenCV gets one image at a time, which contradicts --target opencv"),
    ("tensorrt --batch dynamic", "--batch dynamic: TensorRT gets one image at a time, which contradicts --target tensorrt"),
    ("opencv --nms", "--nms: OpenCV gets decoded or raw or maps"),
    ("rknn --decode", "--decode: RKNN gets maps, which contradicts --target rknn"),
    ("ncnn --layout ultralytics", "--layout ultralytics: ncnn gets maps"),
    ("rknn --opset 21", "--opset 21: RKNN reads at most 19"),
    ("opencv --half", "--half: is about ncnn's files, which contradicts --target opencv"),
])  # fmt: skip
def test_what_contradicts_the_target_is_one_line(asked: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        settled("--target", *asked.split())
    assert "\n" not in str(caught.value)


def test_half_without_target_and_target_of_another_format() -> None:
    with pytest.raises(UserError, match="--half is about --target ncnn, which is missing"):
        settled("--half")
    with pytest.raises(UserError, match="--target: means something with --format onnx only, not with fpga"):
        export.refuse_foreign(parsed("--target", "rknn", "--format", "fpga"))


@pytest.mark.parametrize(("asked", "wanted"), [
    ("onnxruntime", (False, None, "decoded")), ("openvino --static --batch 4 --raw", (True, 4, "raw")),
    ("opencv", (True, 1, "decoded")), ("ncnn", (True, 1, "maps")), ("tensorrt", (True, 1, "decoded")),
    ("rknn", (True, 1, "maps")),
])  # fmt: skip
def test_what_the_target_decides(asked: str, wanted: tuple) -> None:
    options = settled("--target", *asked.split())
    assert (options.static, options.batch, options.outputs) == wanted


def test_adapters_are_targets() -> None:
    assert set(RUNTIMES) - {"torch"} == {name for name, target in TARGETS.items() if target.runtime}
    assert all(target.runtime in ("", name) for name, target in TARGETS.items())


def test_maps_are_what_the_last_convolutions_give(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Nothing lies behind them, each is an output of its own, and it is said that RKNN itself hasn't seen the file."""
    args = parsed("--target", "rknn", "--out", tmp_path / "x.onnx", "--img-size", 64)
    args.weights = str(weights)
    export.main(args)
    graph = onnx.load(tmp_path / "x.onnx").graph
    ends = {output.name for output in graph.output}
    assert [node.op_type for node in graph.node if set(node.output) & ends] == ["Conv", "Conv"]
    assert "RKNN doesn't run here: the file keeps to its documented rules" in capsys.readouterr().out
    image = torch.rand(1, 3, 64, 64)
    seen, model = [], network(SPP)
    for source, _ in model.head_convolutions():
        model.module_list[source].register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    model(image)
    found = ort.InferenceSession(str(tmp_path / "x.onnx")).run(None, {"images": image.numpy()})
    for wanted, got in zip(seen, found, strict=True):
        np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("half", [False, True])
def test_ncnn_gets_a_folder_that_it_has_tried(half: bool, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("pnnx")
    if "ncnn" not in installed():
        pytest.skip("ncnn isn't installed")
    asked = ["--target", "ncnn", "--out", tmp_path / "x_ncnn", "--img-size", 64, *(["--half"] if half else [])]
    figures = export.main(parsed(*asked, "--weights", weights))
    assert figures["target"]["difference"] < 1e-4
    assert {p.name for p in (tmp_path / "x_ncnn").iterdir()} == {"model.ncnn.param", "model.ncnn.bin", "metadata.json"}
    kernels = sum(p.numel() for p in network(SPP).parameters() if p.dim() > 1)
    assert figures["file_bytes"]["model.ncnn.bin"] == pytest.approx(kernels * (2 if half else 4), rel=0.1)
    assert json.loads((tmp_path / "x_ncnn" / "metadata.json").read_text())["outputs"] == "maps"
    assert "in ncnn: boxes differ from PyTorch's by" in capsys.readouterr().out
    (tmp_path / "x_ncnn" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        export.main(parsed(*asked, "--weights", weights))


@pytest.mark.parametrize("name", ["ncnn", "rknn"])
def test_quantized_networks_for_those_that_quantize_by_themselves(name: str) -> None:
    settings = quantize(network(CSP), Settings(1)).quantization
    with pytest.raises(UserError, match="are made of float networks, which its own tools quantize; name the float weights"):
        TARGETS[name].check_network("x.pt", settings)
    TARGETS[name].check_network("x.pt", None)
    TARGETS["openvino"].check_network("x.pt", settings)


def test_quantized_networks_for_tensorrt_lie_around_0() -> None:
    with pytest.raises(UserError, match=r"x.pt: is quantized .*, but TensorRT reads only integers that .* --symmetric"):
        TARGETS["tensorrt"].check_network("x.pt", Settings(1))
    for settings in (None, Settings(1, symmetric=True), Settings(1, fpga=True)):
        TARGETS["tensorrt"].check_network("x.pt", settings)
