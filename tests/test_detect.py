"""detect.py with rectangles.cells, a detector made by hand, whose boxes are known exactly."""

import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import detect
from tests.rectangles import BLUE, CELLS, RED, cells
from utils.core.errors import UserError
from utils.network.checkpoint import save_checkpoint
from utils.network.weights import save_weights


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from the weights/ and output/ of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=[3], ids=["colour"])
def channels(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def model_files(tmp_path: Path, channels: int) -> list[str]:
    """The arguments that name the detector."""
    cfg, weights = tmp_path / "net" / "cells.cfg", tmp_path / "net" / "cells.weights"
    cfg.parent.mkdir()
    cfg.write_text(CELLS.replace("channels=3", f"channels={channels}"))
    save_weights(cells(cfg.read_text()), weights)
    (cfg.parent / "cells.names").write_text("red\nblue\n")
    return ["--cfg", str(cfg), "--weights", str(weights), "--names", str(cfg.parent / "cells.names")]


def picture(path: Path, width: int = 64, height: int = 64, **blocks: tuple[int, int, int, int]) -> Path:
    """A black image with blocks (x1, y1, x2, y2) of colour."""
    image = np.zeros((height, width, 3), np.uint8)
    for colour, (x1, y1, x2, y2) in blocks.items():
        image[y1:y2, x1:x2] = {"red": RED, "blue": BLUE, "white": (255, 255, 255)}[colour]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)
    return path


def run(*arguments: object) -> dict:
    return detect.main(detect.get_parser().parse_args([str(a) for a in (*arguments, "--device", "cpu", "--precision", "fp32")]))


def labels(path: Path) -> list[tuple[float, ...]]:
    return [tuple(float(v) for v in line.split()) for line in path.read_text().splitlines()]


def test_the_figures_of_one_picture_are_of_a_warm_call(tmp_path, model_files, monkeypatch):
    """The first call imports torchvision's NMS, for one."""
    calls, real = [], detect.nms

    def slow_at_first(*arguments: object, **options: object) -> object:
        calls.append(1)
        time.sleep(1.0 if len(calls) == 1 else 0.0)
        return real(*arguments, **options)

    monkeypatch.setattr(detect, "nms", slow_at_first)
    assert cv2.imwrite(str(tmp_path / "one.png"), np.zeros((40, 60, 3), np.uint8))
    figures = run(*model_files, "--source", tmp_path / "one.png", "--output", tmp_path / "out")
    assert len(calls) == 2
    assert figures["speed_ms"]["nms"] < 900


def test_boxes_text_and_picture(tmp_path: Path, model_files: list[str], capsys: pytest.CaptureFixture) -> None:
    source = picture(tmp_path / "a.png", 128, 128, red=(32, 64, 64, 96), blue=(96, 0, 128, 32))
    out = tmp_path / "out"
    figures = run(*model_files, "--source", source, "--output", out, "--save-txt", "--json", out / "x.json")
    confidence = 1 / (1 + np.exp(-10))
    expected = [(0, 0.375, 0.625, 0.25, 0.25, confidence), (1, 0.875, 0.125, 0.25, 0.25, confidence)]
    assert sorted(labels(out / "a.txt")) == [pytest.approx(row, abs=1e-4) for row in expected]
    drawn, original = cv2.imread(str(out / "a.png")), cv2.imread(str(source))
    assert drawn.shape == original.shape
    assert (drawn[64:97, 32] != original[64:97, 32]).any(1).all()  # the left edge of the red block's box
    assert figures["per_class"] == {"red": 1, "blue": 1}
    assert json.loads((out / "x.json").read_text())["detections"] == 2
    assert f"image 1/1 {source}: 1 blue, 1 red (" in capsys.readouterr().out


@pytest.mark.parametrize("stretch", [False, True])
def test_letterbox_and_stretch_find_their_way_back(tmp_path: Path, model_files: list[str], stretch: bool) -> None:
    """In a 128x64 image a cell of the network is 32x32 pixels, or stretched 32x16."""
    height = 16 if stretch else 32
    source = picture(tmp_path / "a.png", 128, 64, red=(32, 32, 64, 32 + height))
    run(*model_files, "--source", source, "--output", tmp_path / "out", "--save-txt", *(["--stretch"] * stretch))
    rows = [row for row in labels(tmp_path / "out" / "a.txt") if row[0] == 0]
    assert rows == [pytest.approx((0, 0.375, (32 + height / 2) / 64, 0.25, height / 64, 1), abs=1e-3)]


@pytest.mark.parametrize("channels", [1], indirect=True, ids=["gray"])
def test_gray_networks_get_gray_pictures(tmp_path: Path, model_files: list[str]) -> None:
    source = picture(tmp_path / "a.png", white=(0, 16, 16, 32))
    run(*model_files, "--source", source, "--output", tmp_path / "out", "--save-txt")
    rows = labels(tmp_path / "out" / "a.txt")
    assert rows
    assert all(row[1:5] == pytest.approx((0.125, 0.375, 0.25, 0.25), abs=1e-5) for row in rows)
    assert cv2.imread(str(tmp_path / "out" / "a.png")).std(2).any()  # the boxes drawn are coloured


def test_only_the_classes_wanted(tmp_path: Path, model_files: list[str]) -> None:
    source = picture(tmp_path / "a.png", red=(0, 0, 16, 16), blue=(32, 32, 48, 48))
    assert run(*model_files, "--source", source, "--output", tmp_path / "out", "--classes", 1)["per_class"] == {"blue": 1}
    assert run(*model_files, "--source", source, "--output", tmp_path / "out", "--conf-thres", 1)["detections"] == 0


def test_video_keeps_rate_and_size(tmp_path: Path, model_files: list[str]) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 12.5, (128, 64))
    for k in range(4):  # a red block that appears in the third frame
        image = np.zeros((64, 128, 3), np.uint8)
        image[0:32, 32:64] = RED if k > 1 else 0
        writer.write(image)
    writer.release()
    for fourcc, name in (("mp4v", "v.mp4"), ("MJPG", "v.avi")):
        out = tmp_path / fourcc
        figures = run(*model_files, "--source", tmp_path / "v.avi", "--output", out, "--save-txt", "--fourcc", fourcc)
        assert figures["images"] == 4
        capture = cv2.VideoCapture(str(out / name))
        facts = [capture.get(p) for p in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FRAME_WIDTH)]
        assert facts == [12.5, 4, 128]
        reds = [[row for row in labels(out / f"v_{k}.txt") if row[0] == 0] for k in (1, 2, 3, 4)]
        assert [len(r) for r in reds] == [0, 0, 1, 1]
        assert sorted(p.name for p in out.iterdir()) == sorted([name, *(f"v_{k}.txt" for k in (1, 2, 3, 4))])


def test_same_names_do_not_collide(tmp_path: Path, model_files: list[str]) -> None:
    source = tmp_path / "in"
    for name in ("a.png", "a.jpg", "x/a.png", "y/a.png"):
        picture(source / name)
    cv2.imwrite(str(source / "y" / "b.pgm"), np.zeros((64, 64), np.uint8))  # a format without colours
    (source / "broken.jpg").write_text("")
    figures = run(*model_files, "--source", source, "--output", tmp_path / "out", "--save-txt")
    written = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*")}
    in_y = {"y/a.png", "y/a.txt", "y/b.png", "y/b.txt"}
    assert written == {"a.jpg", "a.txt", "a_png.png", "a_png.txt", "x/a.png", "x/a.txt"} | in_y
    assert (figures["images"], figures["skipped"]) == (5, [str(source / "broken.jpg")])


def test_inputs_are_never_overwritten(tmp_path: Path, model_files: list[str]) -> None:
    source = picture(tmp_path / "in" / "a.png")
    content = source.read_bytes()
    for named in (source, source.parent):
        with pytest.raises(UserError, match="would overwrite the input"):
            run(*model_files, "--source", named, "--output", source.parent)
    assert source.read_bytes() == content


def test_no_display_is_said_and_does_not_stop(
    tmp_path: Path, model_files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(detect.sys, "platform", "linux")
    source = picture(tmp_path / "a.png")
    assert run(*model_files, "--source", source, "--output", tmp_path / "out", "--view-img")["images"] == 1
    assert capsys.readouterr().err.strip() == "--view-img: there is no display to show a window on; going on without"


def test_a_checkpoint_brings_names_and_settings(tmp_path: Path, model_files: list[str]) -> None:
    """Trained with maxabs and stretched: inputs are -1..1, so that black gives the logit 70 - 120, and red 70 - 40."""
    cfg = Path(model_files[1])
    model = cells()
    model.module_list[0].conv.bias.data[4:] = torch.tensor([70.0, 0, 0])
    settings = {"img_size": 64, "gray": False, "maxabs": True, "stretch": True}
    checkpoint = tmp_path / "cells.pt"
    content = {"model": model.state_dict(), "cfg": cfg.read_text(), "names": ["ruby", "sky"], "settings": settings}
    save_checkpoint(checkpoint, content)
    source = picture(tmp_path / "a.png", 128, 64, red=(32, 32, 64, 48))
    figures = run("--weights", checkpoint, "--source", source, "--output", tmp_path / "out", "--save-txt")
    assert figures["per_class"] == {"ruby": 1}
    (tmp_path / "weights").mkdir()
    checkpoint.rename(tmp_path / "weights" / "best.pt")  # where train.py leaves it
    assert run("--source", source)["per_class"] == {"ruby": 1}
    assert labels(tmp_path / "out" / "a.txt") == [pytest.approx((0, 0.375, 0.625, 0.25, 0.25, 1), abs=1e-3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fourcc", "mp4"], "--fourcc mp4: a codec's code has four characters"),
        (["--classes", "0", "2"], r"--classes 2: the network has the classes 0\.\.1"),
        (["--img-size", "60"], "--img-size 60: this network needs a multiple of 16"),
        (["--weights", ""], "name the detector with --weights"),
        (["--source", "nowhere.jpg"], "--source nowhere.jpg: no such file"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, model_files: list[str], arguments: list[str], message: str) -> None:
    source = picture(tmp_path / "a.png")
    with pytest.raises(UserError, match=message):
        run(*model_files, "--source", source, "--output", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_wrong_count_of_names(tmp_path: Path, model_files: list[str]) -> None:
    (tmp_path / "three.names").write_text("a\nb\nc\n")
    with pytest.raises(UserError, match=r"three.names: lists 3 names, but the network has 2 classes"):
        run(*model_files, "--source", picture(tmp_path / "a.png"), "--names", tmp_path / "three.names")


def test_unknown_codec(tmp_path: Path, model_files: list[str], capfd: pytest.CaptureFixture) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 64))
    writer.write(np.zeros((64, 64, 3), np.uint8))
    writer.release()
    with pytest.raises(UserError, match=r"--fourcc XXXX: OpenCV cannot write \.avi with it"):
        run(*model_files, "--source", tmp_path / "v.avi", "--output", tmp_path / "out", "--fourcc", "XXXX")
    assert capfd.readouterr().err == ""
    assert list((tmp_path / "out").iterdir()) == []
