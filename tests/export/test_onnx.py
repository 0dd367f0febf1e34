"""export.py --format onnx: ONNX Runtime is the independent judge of every graph."""

import copy
import importlib.util
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import export
from tests.tiny import CSP, NET, RESIDUAL, SPP, TOPOLOGIES, conv, head, network, randomise
from utils.core.errors import UserError
from utils.core.preparation import Preparation
from utils.detection.boxes import nms
from utils.network.cfg import write_cfg
from utils.network.checkpoint import save_checkpoint
from utils.network.darknet import Darknet
from utils.network.weights import save_weights
from utils.pruning.masks import Limits
from utils.pruning.pruner import Amount, Pruner
from utils.quantized.settings import Settings
from utils.quantized.transform import quantize, quantizers

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")

from utils.export.onnx import check as onnx_check  # noqa: E402
from utils.export.onnx import job as onnx_job  # noqa: E402
from utils.export.onnx import trace as onnx_export  # noqa: E402
from utils.export.onnx.trace import GraphPlan, build, finish  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
NETWORKS = sorted(p for p in (ROOT / "cfg").glob("*/*.cfg") if "_" not in p.parent.name)
SETTINGS = Preparation()


def session(path: Path, optimised: Path | None = None) -> "ort.InferenceSession":
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def written(model: Darknet, path: Path, **plan: object) -> "ort.InferenceSession":
    ir.save(build(model, GraphPlan((64, 64), **plan)), path)
    onnx.checker.check_model(str(path))
    return session(path)


def pictures(batch: int, height: int = 64, width: int = 64, channels: int = 3) -> torch.Tensor:
    """Whole 255ths, as images are."""
    return torch.randint(256, (batch, channels, height, width), generator=torch.Generator().manual_seed(batch)).float() / 255


@torch.no_grad()
def assert_equal(model: Darknet, run: "ort.InferenceSession", images: torch.Tensor) -> None:
    expected = model(images)[0].numpy()
    (found,) = run.run(None, {"images": images.numpy()})
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def quantized(cfg: str, img_size: int = 64, **settings: object) -> Darknet:
    """A quantized network whose ranges are those of some noise."""
    model = quantize(network(cfg, img_size), Settings(**settings)).eval()
    return calibrate(model, img_size)


@torch.no_grad()
def calibrate(model: Darknet, img_size: int = 64) -> Darknet:
    """Observe some noise, in batches: ranges of a single one would make exact halves of many values."""
    for quantizer in quantizers(model):
        quantizer.train()
    for batch in (4, 3, 2):
        model(pictures(batch, img_size, img_size))
    return model.eval()


def checkpoint(path: Path, model: Darknet, **more: object) -> Path:
    quantization = model.quantization.to_dict() if model.quantization else None
    save_checkpoint(path, {
        "model": model.state_dict(), "cfg": write_cfg(model.defs), "names": ["cat", "dog"], "quantization": quantization,
        "settings": {"img_size": 64}, **more,
    })  # fmt: skip
    return path


def run_script(*arguments: object) -> dict:
    return export.main(export.get_parser().parse_args([str(a) for a in (*arguments, "--workers", 0)]))


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_float_graphs_equal_pytorch_at_any_batch_and_size(name: str, tmp_path: Path) -> None:
    model = network(TOPOLOGIES[name])
    run = written(model, tmp_path / "x.onnx")
    for batch, height, width in ((1, 64, 64), (3, 32, 96)):
        assert_equal(model, run, pictures(batch, height, width))


def test_batch_normalisations_are_folded_and_paddings_are_poolings(tmp_path: Path) -> None:
    """yolov3-tiny's pooling of single steps pads right and below only."""
    model = network(NET + conv(8, stride=2) + "[maxpool]\nsize=2\nstride=1\n" + conv(8) + head())
    run = written(model, tmp_path / "x.onnx", dynamic=False)
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "x.onnx").graph.node)
    assert (kinds["BatchNormalization"], kinds["Pad"], kinds["MaxPool"], kinds["Conv"]) == (0, 0, 1, 3)
    assert_equal(model, run, pictures(2))


def test_pruned_network_of_another_shape(tmp_path: Path) -> None:
    model = network(CSP)
    pruner = Pruner(model, "normal", Limits())
    small = pruner.compact(pruner.choose(Amount(0.5)))
    ir.save(build(small, GraphPlan((32, 96), dynamic=False)), tmp_path / "x.onnx")
    assert small.defs != model.defs
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert_equal(small, session(tmp_path / "x.onnx"), pictures(2, 32, 96))


def test_raw_maps_of_one_size_and_batch(tmp_path: Path) -> None:
    model = network(SPP)
    run = written(model, tmp_path / "x.onnx", dynamic=False, batch=2, outputs="raw", opset=20)
    assert [v.shape for v in run.get_inputs()] == [[2, 3, 64, 64]]
    assert [v.shape for v in run.get_outputs()] == [[2, 1, 32, 32, 7], [2, 1, 64, 64, 7]]
    assert onnx.load(tmp_path / "x.onnx").opset_import[0].version == 20
    with torch.no_grad():
        expected = model(pictures(2))[1]
    for found, raw in zip(run.run(None, {"images": pictures(2).numpy()}), expected, strict=True):
        np.testing.assert_allclose(found, raw.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("max_det", [5, 1000])  # fewer than NMS leaves, and more than there are boxes
def test_nms_in_the_graph_equals_ours(max_det: int, tmp_path: Path) -> None:
    """Of the same boxes: those of PyTorch may differ in their last bits, and come in another order."""
    model, plan = network(RESIDUAL), GraphPlan((64, 64), True, outputs="nms", conf_thres=0.2, iou_thres=0.4, max_det=max_det)
    loaded = type("Loaded", (), {"model": model, "names": ["cat", "dog"], "conf_thres": None})
    ir.save(finish(build(model, plan), loaded, plan, SETTINGS, "fp32"), tmp_path / "x.onnx")
    images = pictures(3)
    (result,) = onnx_check.run_graph(tmp_path / "x.onnx", plan, [images])
    (rows,) = session(tmp_path / "x.onnx").run(None, {"images": images.numpy()})
    np.testing.assert_array_equal(rows, result.rows)
    assert rows.shape == (3, max_det, 6)
    with torch.no_grad():
        np.testing.assert_allclose(result.maps[0], model(images)[0].numpy(), rtol=1e-4, atol=1e-4)
    expected = nms(torch.from_numpy(result.maps[0]), 0.2, 0.4, max_det=max_det)
    assert sum(map(len, expected)) > 10
    for found, kept in zip(rows, expected, strict=True):
        np.testing.assert_allclose(found[: len(kept)], kept.numpy(), rtol=1e-6, atol=1e-4)
        assert not found[len(kept) :].any()


def test_script_float(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Everything that a runtime has to know is aboard, and the figures are those of the file."""
    weights = checkpoint(tmp_path / "x.pt", network(RESIDUAL), settings={"img_size": 64, "maxabs": True})
    figures = run_script("--weights", weights, "--json", tmp_path / "x.json", "--stretch")
    printed, path = capsys.readouterr().out, tmp_path / "x.onnx"
    assert figures["file"] == str(path)
    assert figures["difference"] < 1e-4
    assert figures["tried"] == [[1, 3, 64, 64], [3, 3, 62, 66]]
    assert figures["inputs"] == {"images": ["batch", 3, "height", "width"]}
    assert figures["outputs"] == {"detections": ["batch", "boxes", 7]}
    assert figures["file_bytes"] == {"fp32": path.stat().st_size}
    assert figures["latency_ms"]["fp32"] > 0
    assert json.loads((tmp_path / "x.json").read_text()) == json.loads(json.dumps(figures))
    hint = "hint: 2 convolutions have numbers of filters that 4 doesn't divide"
    for text in ("ONNX fp32", "64x64, batch 1, 1 threads, ONNX Runtime", "opset 18", f"{path}: fp32", hint):
        assert text in printed
    aboard = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert json.loads(aboard["names"]) == ["cat", "dog"]
    assert json.loads(aboard["img_size"]) == [64, 64]
    assert json.loads(aboard["settings"]) == {"gray": False, "maxabs": True, "stretch": True}
    assert json.loads(aboard["heads"]) == [
        {"kind": "yolo", "stride": 2.0, "anchors": [[8, 10], [20, 16]], "classes": 2, "scale_x_y": 1.0, "new_coords": False}
    ]
    assert (aboard["outputs"], aboard["precision"]) == ("decoded", "fp32")


def test_filters_before_yolo_are_not_uneven() -> None:
    """It has 14."""
    assert onnx_job.uneven(network(NET + conv(8) + conv(12) + head())) == 0
    assert onnx_job.uneven(network(NET + conv(8) + conv(13) + conv(2) + head())) == 2


def test_script_quantized(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    weights = checkpoint(tmp_path / "q.pt", quantized(RESIDUAL, strategy=1))
    out = tmp_path / "deep" / "int8.onnx"
    figures = run_script("--weights", weights, "--out", out, "--nms", "--conf-thres", 0.1, "--max-det", 7, "--static",
                         "--img-size", "32x64", "--batch", 2, "--opset", 19)  # fmt: skip
    assert figures["precision"] == "int8"
    assert set(figures["latency_ms"]) == {"fp32", "int8"}
    assert figures["deviation"] < 0.5
    assert figures["inputs"] == {"images": [2, 3, 32, 64]}
    assert figures["outputs"] == {"detections": [2, 7, 6]}
    assert figures["tried"] == [[2, 3, 32, 64]] * 2
    assert "ONNX int8" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["deep", "int8.onnx", "q.pt"]


def test_a_graph_that_computes_something_else_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = checkpoint(tmp_path / "x.pt", network(RESIDUAL))
    real = onnx_job.build

    def wrong(model: Darknet, plan: GraphPlan) -> object:
        other = copy.deepcopy(model)
        other.module_list[0].conv.weight.data[0] *= 1.01
        return real(other, plan)

    monkeypatch.setattr(onnx_job, "build", wrong)
    with pytest.raises(UserError, match=r"not written: ONNX Runtime's outputs differ from PyTorch's by"):
        run_script("--weights", weights, "--static")
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


def test_a_drop_of_map_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --data: 0.8 as a float network, 0.7 in ONNX Runtime."""
    weights = checkpoint(tmp_path / "q.pt", quantized(RESIDUAL, strategy=1))
    (tmp_path / "x.names").write_text("cat\ndog\n")
    data = tmp_path / "x.data"
    data.write_text(f"classes=2\nnames={tmp_path}/x.names\nvalid={tmp_path}\n")
    values = {"PyTorch, float": 0.8, "PyTorch, quantized": 0.75, "ONNX Runtime": 0.7}
    monkeypatch.setattr(onnx_job.Trial, "map50", lambda trial, network, what: values[what])
    monkeypatch.setattr(onnx_job.Trial, "inputs", lambda trial: [pictures(1)])
    with pytest.raises(UserError, match=r"mAP@0.5 falls from 0.8000 to 0.7000, by more than --max-drop 0.09"):
        run_script("--weights", weights, "--data", data, "--max-drop", 0.09)
    assert not (tmp_path / "q.onnx").exists()
    figures = run_script("--weights", weights, "--data", data, "--max-drop", 0.11)
    assert figures["map50"] == {"float": 0.8, "quantized": 0.75, "onnx": 0.7}
    assert (tmp_path / "q.onnx").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--opset", 9], r"--opset 9: must be 18 to 23"),
    (["--conf-thres", 0.5], r"--conf-thres is about the NMS in the graph; add --nms"),
    (["--img-size", 63], r"--img-size 63: this network needs a multiple of 2"),
    (["--img-size", "64x64", "64"], r"--img-size: give one side or height and width, not 3 numbers"),
    (["--max-drop", 0.1], r"--max-drop is about mAP@0.5 on the valid= images of --data; add that"),
    (["--out", "WEIGHTS"], r"x.pt: would overwrite an input; name another file with --out"),
])  # fmt: skip
def test_mistakes(arguments: list, message: str, tmp_path: Path) -> None:
    weights = checkpoint(tmp_path / "x.pt", network(RESIDUAL))
    with pytest.raises(UserError, match=message):
        run_script("--weights", weights, *(weights if a == "WEIGHTS" else a for a in arguments))
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.parametrize("arguments", [["--img-size", "a"], ["--img-size", "1x2x3"], ["--batch", "0"], ["--raw", "--nms"],
                                       ["--workers", "-1"]])  # fmt: skip
def test_arguments_that_cannot_be_read(arguments: list, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        export.get_parser().parse_args(["--weights", "x.pt", *arguments])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_missing_packages_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = checkpoint(tmp_path / "x.pt", network(RESIDUAL))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(UserError, match=r"ONNX needs onnxscript, which isn't installed: pip install onnxscript"):
        run_script("--weights", weights)


def test_what_pytorch_cannot_export_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise torch.onnx.errors.OnnxExporterError("many\nlines") from ValueError("no such operator\nmore")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(UserError, match=r"^cfg: PyTorch can't export it to opset 18 \(no such operator\); --static may help$"):
        onnx_export.trace(network(RESIDUAL), GraphPlan((64, 64)))


def test_errors_are_relative_beyond_one() -> None:
    found, expected = np.array([0.5, 110.0, np.inf, np.nan]), np.array([0.4, 100.0, np.inf, np.nan])
    np.testing.assert_allclose(onnx_check.errors(found, expected), [0.1, 0.1, 0, 0])
    assert onnx_check.difference(found, expected) == pytest.approx(0.1)
    assert onnx_check.difference(found, np.array([0.5, 110.0, 1.0, np.nan])) == np.inf
    assert onnx_check.difference(found, expected[:2]) == np.inf
    one, two, three = [np.array([0.5])], [np.array([0.6])], [np.array([1.0])]
    assert onnx_check.deviation([one], [two], [three]) == pytest.approx(0.1 / 0.4)


@pytest.mark.slow
@pytest.mark.parametrize("path", NETWORKS, ids=lambda p: p.stem)
def test_every_network(path: Path, tmp_path: Path) -> None:
    """At 128 pixels, which is enough for every layer to compute something."""
    torch.manual_seed(0)
    model = randomise(Darknet(path, 128))
    run = written(model, tmp_path / "x.onnx", outputs="raw")
    images = pictures(2, 128, 160)
    with torch.no_grad():
        expected = model(images)[1]
    for found, raw in zip(run.run(None, {"images": images.numpy()}), expected, strict=True):
        np.testing.assert_allclose(found, raw.numpy(), rtol=1e-4, atol=1e-4 * max(1, float(raw.abs().max())))


@pytest.mark.slow
def test_pruned_yolov4_tiny_at_320x416(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomise(Darknet(ROOT / "cfg/yolov4tiny/yolov4-tiny.cfg", 416))
    pruner = Pruner(model, "normal", Limits())
    weights, small = tmp_path / "small.weights", pruner.compact(pruner.choose(Amount(0.5)))
    save_weights(small, weights)
    (tmp_path / "small.cfg").write_text(write_cfg(small.defs))
    run_script("--weights", weights, "--cfg", tmp_path / "small.cfg", "--img-size", 320, 416, "--static")
    assert_equal(small, session(tmp_path / "small.onnx"), pictures(2, 320, 416))


def test_where_float32_is_off_a_graph_may_be_as_far_off_and_no_further():
    """Raw maps of 1e6: sums in another order flip sigmoids, here and there; another kernel moves everything."""
    rng = np.random.default_rng(0)
    raw = rng.normal(0, 1e6, (2, 50_000, 7))
    raw[:, ::100] = rng.normal(0, 2, raw[:, ::100].shape)  # some sums cancel

    def decoded(shift: np.ndarray | float) -> np.ndarray:
        return 1 / (1 + np.exp(-np.clip(raw + shift, -60, 60)))

    mine, theirs = (decoded(rng.normal(0, 2, raw.shape)).astype(np.float32) for _ in range(2))
    wrong, exact = decoded(1e5).astype(np.float32), decoded(0.0)
    assert onnx_check.difference(theirs, mine) > 0.5
    assert onnx_check.imprecision([[theirs]], [[mine]], [[exact]]) == pytest.approx(1, abs=0.1)
    assert onnx_check.imprecision([[wrong]], [[mine]], [[exact]]) > 10
