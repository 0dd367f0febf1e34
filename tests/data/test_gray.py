"""One-channel networks, from training to detection: --gray-scale on a colour cfg, and channels=1 in the cfg."""

from pathlib import Path

import cv2
import pytest

import convert
import detect
import test as test_script
import train
from tests.test_train import BASE, here
from tests.tiny import NET, conv, network
from utils.core.errors import UserError
from utils.loading import sees_gray
from utils.network.checkpoint import load_checkpoint

__all__ = ["here"]  # the fixture: a working directory with tiny.cfg and a dataset


def run(script, words: str):
    return script.main(script.get_parser().parse_args(words.split()))


@pytest.mark.parametrize("way", ["flag", "cfg"])
def test_trains_tests_and_detects(here, way):
    if way == "cfg":
        Path("tiny.cfg").write_text(Path("tiny.cfg").read_text().replace("channels=3", "channels=1"))
    flag = "--gray-scale" if way == "flag" else ""
    run(train, f"{BASE} --epochs 1 {flag}")
    last = load_checkpoint("weights/last.pt")
    assert last["settings"]["gray"] is True
    assert last["cfg_name"] == "tiny.cfg"
    assert last["model"]["module_list.0.Conv2d.weight"].shape == (8, 1, 3, 3)
    run(convert, "--weights weights/last.pt")
    files = ["--weights weights/last.pt", "--cfg tiny.cfg --weights weights/last.pt"]
    files += [f"--cfg tiny.cfg --weights weights/last.weights {flag}", "--cfg weights/last.cfg --weights weights/last.weights"]
    common = "--data d.data --device cpu --precision fp32"
    found = [run(test_script, f"{common} --workers 0 {f}") for f in files]
    assert len({(r.map50, r.map, r.f1) for r in found}) == 1
    assert {r.images for r in found} == {4}
    seen = [run(detect, f"{common} --source valid --conf-thres 0 --output out{i} {f}") for i, f in enumerate(files)]
    assert seen[0]["images"] == 4
    assert seen[0]["detections"] > 0
    assert len({str(s["per_class"]) for s in seen}) == 1


def test_gray_pictures_are_luminance(here):
    """An image and the same made gray give the same boxes."""
    run(train, f"{BASE} --epochs 1 --gray-scale --notest")
    picture = cv2.imread("valid/0.png")
    luminance = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    cv2.imwrite("gray.png", luminance)
    words = "--weights weights/last.pt --device cpu --precision fp32 --conf-thres 0 --save-txt"
    for number, source in enumerate(("valid/0.png", "gray.png")):
        run(detect, f"{words} --source {source} --output out{number}")
    assert Path("out0/0.txt").read_text() == Path("out1/gray.txt").read_text() != ""


def test_other_channel_counts_are_refused():
    model = network(NET.replace("channels=3", "channels=2") + conv(4))
    with pytest.raises(UserError, match="channels=2, but images have 3, or 1 with --gray-scale"):
        sees_gray(model)
    assert not sees_gray(network(NET + conv(4)))
