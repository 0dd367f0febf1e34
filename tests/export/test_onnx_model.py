"""A .onnx in a Darknet's place: the same boxes, the same mAP, the same detections, whatever the graph was exported as."""

from pathlib import Path

import numpy as np
import pytest
import torch

import detect
import test as test_script
from tests.rectangles import BLUE, CELLS, RED, cells, write_rectangles
from tests.tiny import RESIDUAL, SPP, network
from utils.core.errors import UserError
from utils.core.preparation import Preparation
from utils.loading import load_model
from utils.network.cfg import write_cfg
from utils.network.checkpoint import save_checkpoint
from utils.network.darknet import Darknet
from utils.network.file_kind import is_onnx
from utils.quantized.settings import Settings
from utils.quantized.transform import quantize, quantizers

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
ir = pytest.importorskip("onnx_ir")

from utils.export.onnx.model import OnnxModel, load_onnx  # noqa: E402
from utils.export.onnx.trace import GraphPlan, build, finish  # noqa: E402

CPU = torch.device("cpu")
PLAIN = {"gray": False, "maxabs": False, "stretch": False}


def write(model: Darknet, path: Path, settings: dict = PLAIN, size: tuple[int, int] = (64, 64), **plan: object) -> Path:
    """What export.py writes, without its checks."""
    chosen = GraphPlan(size, **plan)
    loaded = type("Loaded", (), {"model": model, "names": ["red", "blue"], "conf_thres": None})
    ir.save(finish(build(model, chosen), loaded, chosen, Preparation.of(settings), "fp32"), path)
    return path


def save(model: Darknet, path: Path) -> Path:
    quantization = model.quantization.to_dict() if model.quantization else None
    content = {"model": model.state_dict(), "cfg": write_cfg(model.defs), "quantization": quantization}
    save_checkpoint(path, content | {"names": ["red", "blue"], "settings": {"img_size": 64}})
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cells as a checkpoint, and exported in several ways."""
    folder, model = tmp_path_factory.mktemp("cells"), cells()
    save_checkpoint(folder / "cells.pt", {"model": model.state_dict(), "cfg": CELLS, "names": ["red", "blue"], "settings": {}})
    write(model, folder / "any.onnx")
    write(model, folder / "raw.onnx", outputs="raw")
    write(model, folder / "fixed.onnx", size=(32, 64), dynamic=False, batch=2)
    write(model, folder / "square.onnx", dynamic=False, batch=2)
    write(model, folder / "nms.onnx", outputs="nms", conf_thres=0.1, max_det=20)
    write(model, folder / "stretched.onnx", {**PLAIN, "stretch": True}, size=(32, 64), dynamic=False)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Images of different shapes with blocks of both colours, labelled; some a bit beside the cells."""
    pictures = []
    for number, (height, width) in enumerate(((64, 64), (64, 128), (128, 64), (48, 64), (64, 64))):
        scale, boxes = max(height, width) // 64, []
        for x, y in ((0, 16), (32, 16)):
            x1, y1, side = x * scale + 2 * number, y * scale + number, 16 * scale
            boxes.append((x1, y1, x1 + side, y1 + side))
        pictures.append(((height, width), *boxes))
    return write_rectangles(tmp_path, {"red": RED, "blue": BLUE}, pictures)


def evaluated(data: Path, weights: Path, *more: object) -> object:
    fixed = ("--data", data, "--weights", weights, "--device", "cpu", "--workers", 0, "--batch-size", 3)
    return test_script.main(test_script.get_parser().parse_args([str(a) for a in (*fixed, *more)]))


def most_confident(rows: torch.Tensor) -> torch.Tensor:
    """The row of one image's predictions with the largest objectness x class probability."""
    return rows[(rows[:, 4:5] * rows[:, 5:]).amax(1).argmax()]


@pytest.mark.parametrize("outputs", ["decoded", "raw"])
def test_gives_what_the_network_gives(outputs: str, tmp_path: Path) -> None:
    """Two heads; raw maps are decoded outside the graph."""
    model = network(SPP)
    loaded = load_onnx("", write(model, tmp_path / "x.onnx", outputs=outputs))
    images = torch.rand(2, 3, 32, 96)
    with torch.no_grad():
        expected = model(images)[0]
    run = loaded.model.inference_copy(CPU)
    decoded, raws = run(images)
    torch.testing.assert_close(decoded, expected, rtol=1e-4, atol=1e-4)
    assert (raws, run.dtype, run.max_stride) == ([], torch.float32, model.max_stride)
    assert (loaded.names, loaded.img_size, loaded.shape, loaded.settings) == (["red", "blue"], 64, (64, 64), PLAIN)
    assert run.defs == model.defs
    assert run.runtime(CPU) == "ONNX Runtime on the CPU, fp32"


def test_graph_of_one_size_takes_pictures_of_any(files: Path) -> None:
    """32x64, two at a time: smaller ones are padded on the right and below, larger ones scaled down first."""
    model, images = OnnxModel(files / "fixed.onnx"), torch.zeros(3, 3, 32, 32)
    images[2, 0, 16:, :16] = 1
    with torch.no_grad():
        expected = cells()(images)[0]
    found = model(images)[0]
    assert found.shape == (3, 8, 7)
    torch.testing.assert_close(most_confident(found[2]), most_confident(expected[2]), rtol=1e-4, atol=1e-4)
    large = torch.zeros(1, 3, 64, 64)
    large[0, 2, 32:, 32:] = 1  # a quarter, which becomes one cell
    row = most_confident(model(large)[0][0])
    torch.testing.assert_close(row[:4], torch.tensor([48.0, 48, 32, 32]))
    assert row[6] > row[5]
    stretched = OnnxModel(files / "stretched.onnx")
    wide = torch.zeros(1, 3, 64, 64)
    wide[0, 0, :32, :16] = 1
    row = most_confident(stretched(wide)[0][0])
    torch.testing.assert_close(row[:4], torch.tensor([8.0, 16, 16, 32]))


@pytest.mark.parametrize("name", ["any", "raw", "square", "nms"])
def test_map_is_that_of_the_checkpoint(name: str, data: Path, files: Path, capsys: pytest.CaptureFixture) -> None:
    expected = evaluated(data, files / "cells.pt", "--precision", "fp32", "--img-size", 64)
    found = evaluated(data, files / f"{name}.onnx", "--json", data.parent / "x.json")
    assert found.map == pytest.approx(expected.map, abs=0.003)
    assert found.map50 == pytest.approx(expected.map50, abs=0.003)
    assert 0.2 < expected.map < 0.99
    assert (found.params, found.macs) == (expected.params, expected.macs)
    printed = capsys.readouterr().out
    assert "ONNX Runtime on the CPU, fp32" in printed
    assert ("NMS is in the graph and leaves confidences above 0.1, 20 boxes an image" in printed) == (name == "nms")
    assert (data.parent / "x.json").exists()


@torch.no_grad()
def test_map_of_an_int8_graph_is_that_of_the_quantized_network(data: Path, tmp_path: Path) -> None:
    """Behind two convolutions that change values only by rounding them to 3 bits."""
    same = "[convolutional]\nfilters=3\nsize=1\nactivation=leaky\n"
    cfg = CELLS.replace("[convolutional]", 2 * same + "[convolutional]")
    model, wanted = Darknet(cfg, 64).eval(), cells().module_list[0].conv
    for k in range(2):
        model.module_list[k].conv.weight[..., 0, 0] = torch.eye(3)
        model.module_list[k].conv.bias.fill_(0.1)
    model.module_list[2].conv.load_state_dict(wanted.state_dict())
    images = torch.rand(2, 3, 64, 64)
    plain = model(images)[0]
    quantize(model, Settings(1, a_bit=3))
    for quantizer in quantizers(model):
        quantizer.train()
    assert (model(images)[0] - plain).abs().max() > 0.01
    files = save(model.eval(), tmp_path / "q.pt"), write(model, tmp_path / "int8.onnx")
    expected, found = (evaluated(data, file, "--precision", "fp32", "--img-size", 64) for file in files)
    assert found.map == pytest.approx(expected.map, abs=0.003)
    assert found.map50 == pytest.approx(expected.map50, abs=0.003)
    assert 0.1 < expected.map < 0.99


@pytest.mark.parametrize("name", ["any", "raw", "fixed", "nms"])
def test_detections_are_those_of_the_checkpoint(name: str, data: Path, files: Path, tmp_path: Path, capsys) -> None:
    found = []
    for weights in (files / "cells.pt", files / f"{name}.onnx"):
        out = tmp_path / weights.name
        arguments = ["--weights", weights, "--source", data.parent / "images" / "101.png", "--output", out]
        fixed = ["--save-txt", "--device", "cpu", "--img-size", "64"]
        detect.main(detect.get_parser().parse_args([*map(str, arguments), *fixed]))
        found.append(np.array([line.split() for line in (out / "101.txt").read_text().splitlines()], float))
    assert len(found[0]) == 2
    np.testing.assert_allclose(*found, atol=2e-3)
    assert "1 blue, 1 red" in capsys.readouterr().out


def test_test_time_augmentation_and_benchmark(data: Path, files: Path) -> None:
    assert evaluated(data, files / "any.onnx", "--augment").map50 > 0.5
    with pytest.raises(UserError, match=r"--task benchmark: .*fixed.onnx takes one size only; export it without --static"):
        evaluated(data, files / "fixed.onnx", "--task", "benchmark")


@pytest.mark.parametrize(("name", "arguments", "message"), [
    ("any", {"cfg": "x.cfg"}, r"any.onnx: was exported from another cfg than .*; it carries its own, so leave --cfg out"),
    ("any", {"gray": True}, r"--gray-scale: .*any.onnx was exported for 3 channels"),
    ("fixed", {"img_size": 96}, r"--img-size 96: .*fixed.onnx was exported for 32x64 only"),
    ("any", {"img_size": 70}, r"--img-size 70: this network needs a multiple of 16; the nearest is 64"),
])  # fmt: skip
def test_mistakes(name: str, arguments: dict, message: str, files: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.cfg").write_text(RESIDUAL)
    with pytest.raises(UserError, match=message):
        load_onnx(**{"cfg": "", "weights": files / f"{name}.onnx"} | arguments)


def test_other_classes_and_precisions(data: Path, files: Path) -> None:
    data.write_text(data.read_text().replace("classes=2", "classes=1").replace("x.names", "one.names"))
    (data.parent / "one.names").write_text("red\n")
    with pytest.raises(UserError, match=r"any.onnx: has 2 classes, but .*x.data has 1"):
        evaluated(data, files / "any.onnx")
    with pytest.raises(UserError, match=r"--precision bf16: .*any.onnx computes in fp32, which its export decided"):
        OnnxModel(files / "any.onnx").inference_copy(CPU, "bf16")


def test_files_that_are_not_ours(files: Path, tmp_path: Path) -> None:
    """Recognised by content; what isn't export.py's, or is damaged, or can't be trained, is said in one line."""
    strange = tmp_path / "strange.weights"
    graph = onnx.load(files / "any.onnx")
    del graph.metadata_props[:]
    onnx.save(graph, str(strange))
    assert is_onnx(strange)
    assert not is_onnx(files / "cells.pt")
    with pytest.raises(UserError, match=r"strange.weights: this ONNX file lacks the metadata that export.py writes"):
        load_onnx("", strange)
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes((files / "any.onnx").read_bytes()[:500])
    with pytest.raises(UserError, match=r"damaged.onnx: ONNX Runtime .* can't run this file") as caught:
        load_onnx("", damaged)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"any.onnx: an ONNX file can be run \(test.py, detect.py\), but not changed; name the"):
        load_model("", files / "any.onnx")


@pytest.mark.parametrize(("key", "value", "said"), [
    ("cfg", None, "cfg is missing"),
    ("cfg", "x.cfg", "its own cfg:1: expected a"),
    ("names", '["red"', "names is no JSON"),
    ("names", "[" * 100_000, "names is no JSON"),
    ("names", '["red"]', "its names or heads aren't those of its cfg"),
    ("names", "{0: 'red', 1", "names is no dict"),
    ("names", "{'red', 'blue'}", "names is no dict"),
    ("names", "7", "names is 7, but should be a list"),
    ("outputs", "boxes", "outputs is the text 'boxes', but should be decoded, raw, maps, nms, yolov5, yolov8"),
    ("heads", '[{"scale_x_y": 1, "anchors": [[1]]}]', "its names or heads aren't those of its cfg"),
    ("heads", "[7]", "heads.0. is 7, but should be"),
    ("heads", "[]", "its names or heads aren't those of its cfg"),
    ("img_size", "[64, 1e9]", "img_size.1. is 1000000000.0, but should be a whole number"),
    ("stride", "0", "stride is 0, but should be a whole number of at least 1"),
    ("conf_thres", "NaN", "conf_thres is nan, but should be a finite number between 0 and 1"),
])  # fmt: skip
def test_metadata_that_cannot_be_used(key: str, value: str | None, said: str, files: Path, tmp_path: Path) -> None:
    graph = ir.load(files / "any.onnx")
    graph.metadata_props.pop(key, None)
    graph.metadata_props.update({key: value} if value else {})
    ir.save(graph, tmp_path / "odd.onnx")
    with pytest.raises(UserError, match=f"odd.onnx: .*{said}"):
        load_onnx("", tmp_path / "odd.onnx")


def test_metadata_that_are_no_text(files: Path, tmp_path: Path) -> None:
    content = (files / "any.onnx").read_bytes()
    assert content.count(b"darkedge") == 1
    (tmp_path / "x.onnx").write_bytes(content.replace(b"darkedge", b"dark\xffdge"))
    with pytest.raises(UserError, match=r"x\.onnx: its metadata are no text"):
        OnnxModel(tmp_path / "x.onnx")


def test_cfg_beside_it_may_be_its_own(files: Path, tmp_path: Path) -> None:
    (tmp_path / "x.cfg").write_text(write_cfg(cells().defs))
    assert load_onnx(tmp_path / "x.cfg", files / "any.onnx", 96).img_size == 96
