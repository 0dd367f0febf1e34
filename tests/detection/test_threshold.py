"""The recommended confidence threshold: from an evaluation into the checkpoint, and from there to whoever shows boxes."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import convert
import detect
import export
import PTQ
import test as test_script
from tests.rectangles import cells
from utils.core.errors import UserError
from utils.export.onnx.model import OnnxModel
from utils.network.cfg import write_cfg
from utils.network.checkpoint import load_checkpoint, save_checkpoint
from utils.network.weights import save_weights

BRIGHT, DIM = 255, 107  # of red: scores 1 and 0.17, see tests.rectangles


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Two images of a bright and a dim box of 16x16 pixels, x.data, and net.pt, a checkpoint that finds both."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for number in range(2):
        image = np.zeros((64, 64, 3), np.uint8)
        image[16:32, 16:32, 2], image[32:48, 32:48, 2] = BRIGHT, DIM
        cv2.imwrite(f"images/{number}.png", image)
        Path(f"labels/{number}.txt").write_text("0 .375 .375 .25 .25\n0 .625 .625 .25 .25\n")
    Path("x.names").write_text("red\nblue\n")
    Path("x.data").write_text("classes=2\nnames=x.names\ntrain=images\nvalid=images\n")
    save("net.pt", conf_thres=0.1)
    return tmp_path


def save(path: str, **fields: object) -> None:
    model = cells()
    save_checkpoint(path, {"model": model.state_dict(), "cfg": write_cfg(model.defs), "names": ["red", "blue"]} | fields)


def call(script, text: str):
    return script.main(script.get_parser().parse_args(text.split()))


def found(weights: str, flags: str = "") -> tuple[int, float]:
    """(boxes an image, threshold) of detect.py."""
    figures = call(detect, f"--weights {weights} --source images --device cpu {flags}")
    return figures["detections"] // 2, figures["conf_thres"]


def test_an_evaluation_recommends_what_keeps_both(here, capsys):
    result = call(test_script, "--data x.data --weights net.pt --device cpu --workers 0 --precision fp32 --json out.json")
    score = result.detections[0][1, 4]
    assert 0.1 < score < 0.2
    assert result.conf_thres == pytest.approx(score, abs=1.1e-3)
    assert result.conf_thres < score  # a box with this very score is above the threshold
    assert json.loads(Path("out.json").read_text())["conf_thres"] == result.conf_thres
    assert f"recommended confidence threshold {result.conf_thres:g}: F1 is best there" in capsys.readouterr().out
    assert found("net.pt", f"--conf-thres {result.conf_thres:g} --precision fp32")[0] == 2


def test_nothing_found_recommends_nothing(here, capsys):
    result = call(test_script, "--data x.data --weights net.pt --device cpu --workers 0 --conf-thres 1")
    assert result.conf_thres is None
    assert "no confidence threshold to recommend" in capsys.readouterr().out


def test_detect_takes_the_given_threshold_then_the_recommended_one_then_the_usual_one(here, capsys):
    assert found("net.pt") == (2, 0.1)
    assert "confidence threshold 0.1, recommended by the checkpoint" in capsys.readouterr().out
    assert found("net.pt", "--conf-thres 0.25") == (1, 0.25)
    for name, fields in (("old.pt", {}), ("unevaluated.pt", {"conf_thres": None})):
        save(name, **fields)
        assert found(name) == (1, 0.3)
    assert "recommended" not in capsys.readouterr().out


@pytest.mark.parametrize("value", ["0.5", -0.1, 1.5, float("nan"), True, [0.1]])
def test_what_is_no_threshold_is_refused(here, value):
    save("odd.pt", conf_thres=value)
    with pytest.raises(UserError, match=r"odd.pt.*conf_thres"):
        found("odd.pt")


def test_conversions_keep_it_or_say_it(here, capsys):
    call(convert, "--weights net.pt --out again.pt")
    assert load_checkpoint("again.pt")["conf_thres"] == 0.1
    call(convert, "--weights net.pt --out net.weights")
    assert "detect.py --conf-thres 0.1" in capsys.readouterr().out
    call(convert, "--cfg net.cfg --weights net.weights --out plain.pt")
    assert load_checkpoint("plain.pt")["conf_thres"] is None
    assert found("plain.pt") == (1, 0.3)


def test_a_quantized_network_has_its_own(here, capsys):
    figures = call(PTQ, "--data x.data --weights net.pt --device cpu --workers 0 --a-bit 16 --w-bit 16")
    expected = figures["quantized"]["conf_thres"]
    assert 0.1 < expected < 0.2
    assert load_checkpoint("net_ptq.pt")["conf_thres"] == expected
    assert f"recommended confidence threshold {expected:g}: F1 is best there, kept in net_ptq.pt" in capsys.readouterr().out
    assert found("net_ptq.pt") == (2, expected)


def test_an_onnx_file_carries_it(here, capsys):
    pytest.importorskip("onnxscript")
    call(export, "--weights net.pt --img-size 64")
    assert found("net.onnx") == (2, 0.1)
    assert "confidence threshold 0.1, recommended by the ONNX file" in capsys.readouterr().out
    call(export, "--weights net.pt --img-size 64 --nms --out nms.onnx")
    assert OnnxModel("nms.onnx").nms["conf_thres"] == pytest.approx(0.1)
    assert found("nms.onnx") == (2, 0.1)
    model = cells()
    save_weights(model, "net.weights")
    Path("net.cfg").write_text(write_cfg(model.defs))
    call(export, "--cfg net.cfg --weights net.weights --nms --out usual.onnx")
    assert OnnxModel("usual.onnx").conf_thres is None
    assert found("usual.onnx") == (1, 0.3)
