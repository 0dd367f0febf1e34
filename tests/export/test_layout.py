"""export.py --layout ultralytics: outputs and metadata as the owners' programs and everyone's deployment code expect them."""

import ast
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import detect
import export
from tests.tiny import DFL, SPP, network
from utils.core.errors import UserError
from utils.network.cfg import write_cfg
from utils.network.checkpoint import save_checkpoint
from utils.network.darknet import Darknet
from utils.quantized.settings import Settings
from utils.quantized.transform import quantize, quantizers

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from utils.export.onnx.model import OnnxModel, load_onnx  # noqa: E402

NAMES = ["red", "don't \u00e9"]


def exported(model: Darknet, folder: Path, *words: object, settings: dict | None = None) -> Path:
    held = {
        "model": model.state_dict(),
        "cfg": write_cfg(model.defs),
        "names": NAMES,
        "settings": {"img_size": 64} | (settings or {}),
    }
    quantization = model.quantization.to_dict() if model.quantization else None
    save_checkpoint(folder / "x.pt", held | {"quantization": quantization})
    arguments = ["--weights", folder / "x.pt", "--layout", "ultralytics", *words]
    export.main(export.get_parser().parse_args([str(a) for a in arguments]))
    return folder / "x.onnx"


def run(path: Path, images: torch.Tensor) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [v.name for v in session.get_inputs()] == ["images"]
    assert [v.name for v in session.get_outputs()] == ["output0"]
    return session.run(["output0"], {"images": images.numpy()})[0]


@torch.no_grad()
def test_heads_without_anchors_give_a_column_a_box_without_objectness(tmp_path):
    model, images = network(DFL), torch.rand(2, 3, 64, 96)
    path = exported(model, tmp_path)
    expected = model(images)[0]
    found = run(path, images)
    assert found.shape == (2, 4 + 2, expected.shape[1])
    np.testing.assert_allclose(found, np.delete(expected.numpy(), 4, 2).transpose(0, 2, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(OnnxModel(path)(images)[0], expected, rtol=1e-4, atol=1e-5)
    cv2.imwrite(str(tmp_path / "a.png"), np.full((48, 64, 3), 90, np.uint8))
    words = ["--weights", path, "--source", tmp_path / "a.png", "--output", tmp_path / "out", "--device", "cpu"]
    detect.main(detect.get_parser().parse_args([str(w) for w in words]))
    assert (tmp_path / "out/a.png").exists()


@torch.no_grad()
def test_heads_with_anchors_give_a_row_a_box_as_yolov5_does(tmp_path):
    model, images = network(SPP), torch.rand(2, 3, 64, 96)
    path = exported(model, tmp_path)
    expected = model(images)[0]
    np.testing.assert_allclose(run(path, images), expected.numpy(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(OnnxModel(path)(images)[0], expected, rtol=1e-4, atol=1e-4)


def test_metadata_are_the_literals_that_their_programs_read(tmp_path):
    path = exported(network(DFL), tmp_path, "--static", "--batch", 3, "--img-size", "32x64")
    facts = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map
    assert ast.literal_eval(facts["names"]) == {0: NAMES[0], 1: NAMES[1]}
    assert ast.literal_eval(facts["imgsz"]) == [32, 64]
    assert (int(facts["stride"]), int(facts["batch"]), int(facts["channels"])) == (network(DFL).max_stride, 3, 3)
    assert facts["task"] == "detect"
    assert ast.literal_eval(facts["args"]) == {"batch": 3, "dynamic": False, "half": False, "int8": False, "nms": False}
    assert OnnxModel(path).names == NAMES


@torch.no_grad()
def test_integers_lie_in_the_same_way(tmp_path):
    model = quantize(network(DFL), Settings()).eval()
    for quantizer in quantizers(model):
        quantizer.train()
    model(torch.rand(4, 3, 64, 64))
    path, images = exported(model.eval(), tmp_path), torch.rand(1, 3, 64, 64)
    assert run(path, images).shape == (1, 4 + 2, model(images)[0].shape[1])
    assert load_onnx("", path).model.precision == "int8"


@pytest.mark.parametrize(("words", "settings", "message"), [
    (["--raw"], {}, "--layout ultralytics is about decoded boxes, so it doesn't go with --raw"),
    (["--nms"], {}, "so it doesn't go with --nms"),
    ([], {"maxabs": True}, r"their programs give images in 0\.\.1, but this network was trained with --maxabsscaler"),
    (["--format", "fpga"], {}, "--layout: means something with --format onnx only, not with fpga"),
])  # fmt: skip
def test_what_does_not_go_with_it(words, settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        exported(network(DFL), tmp_path, *words, settings=settings)
    assert not (tmp_path / "x.onnx").exists()
