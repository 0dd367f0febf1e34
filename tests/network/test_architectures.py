"""YOLOv5 and YOLOv8 as written by cfg/make_networks.py: byte for byte, with the published counts."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cfg import make_networks
from cfg.make_networks import NAMES, write_network
from tests.conftest import ROOT
from tests.network.test_darknet_networks import calm_heads, equals_opencv
from tests.network.test_networks import parameters
from tests.references import read_darknet
from tests.tiny import randomise
from utils.network.architectures import ANCHORS, ARCHITECTURES, SCALES, YOLOV5, Found, build
from utils.network.cfg import parse_cfg
from utils.network.darknet import Darknet
from utils.network.definitions import Route, Shortcut
from utils.network.shapes import output_shapes
from utils.network.weights import save_weights

PARAMETERS = {  # reference/ultralytics.md, 80 classes
    "yolov5/yolov5n": 1_872_157,
    "yolov5/yolov5s": 7_235_389,
    "yolov5/yolov5m": 21_190_557,
    "yolov5/yolov5l": 46_563_709,
    "yolov5/yolov5x": 86_749_405,
    "yolov8/yolov8n": 3_157_200,
    "yolov8/yolov8s": 11_166_560,
    "yolov8/yolov8m": 25_902_640,
    "yolov8/yolov8l": 43_691_520,
    "yolov8/yolov8x": 68_229_648,
}
BINS = {"yolov5": 0, "yolov8": 16}  # of these parameters: the numbers 0..15 of the distributions, which never change


@pytest.mark.parametrize("name", NAMES)
def test_is_what_the_script_writes(name: str, tmp_path: Path) -> None:
    assert write_network(name, tmp_path).read_bytes() == (ROOT / "cfg" / f"{name}.cfg").read_bytes()


def test_the_script_writes_them_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(make_networks, "write_network", lambda name, folder: written.append((name, folder)))
    make_networks.main(make_networks.get_parser().parse_args(["--out", str(tmp_path)]))
    assert written == [(name, tmp_path) for name in PARAMETERS]


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameters_are_the_published_ones(name: str, count: int) -> None:
    assert parameters(parse_cfg(ROOT / "cfg" / f"{name}.cfg")) == count - BINS[name.partition("/")[0]]


@pytest.mark.parametrize("name", [n for n in NAMES if "yolov5" in n])
def test_heads_with_anchors(name: str) -> None:
    """Three heads at strides 8, 16 and 32, each with its third of the published anchors; a residual in the backbone alone."""
    defs = parse_cfg(ROOT / "cfg" / f"{name}.cfg")
    shapes, heads = output_shapes(defs), defs.yolo_indices()
    assert [640 // shapes[i][1] for i in heads] == [8, 16, 32]
    assert [a for i in heads for a in defs[i].anchor_sizes()] == list(zip(ANCHORS[::2], ANCHORS[1::2], strict=True))
    pyramid = next(i for i, d in enumerate(defs) if isinstance(d, Route) and len(d.layers) == 4)
    assert all(i < pyramid for i, d in enumerate(defs) if isinstance(d, Shortcut))


@pytest.mark.parametrize("name", [n for n in NAMES if "yolov8" in n])
def test_heads_without_anchors(name: str) -> None:
    """Three heads at strides 8, 16 and 32, each fed by the branch of the boxes, then that of the classes."""
    defs = parse_cfg(ROOT / "cfg" / f"{name}.cfg")
    shapes, heads = output_shapes(defs), defs.head_indices()
    assert [640 // shapes[i][1] for i in heads] == [8, 16, 32]
    assert [(defs[i].classes, defs[i].reg_max) for i in heads] == [(80, 16)] * 3
    assert [[defs[s].filters for s in defs.feeding(i)] for i in heads] == [[64, 80]] * 3


@pytest.mark.parametrize("size", ["n", pytest.param("s", marks=pytest.mark.slow), pytest.param("m", marks=pytest.mark.slow)])
def test_yolov5_equals_opencv(size: str, tmp_path: Path) -> None:
    model = randomise(Darknet(ROOT / f"cfg/yolov5/yolov5{size}.cfg", 64), 0.1)
    images = [np.random.default_rng(0).random((1, 3, *shape), dtype=np.float32) for shape in ((64, 64), (64, 96))]
    calm_heads(model, images)
    save_weights(model, tmp_path / "random.weights")
    equals_opencv(model, tmp_path / "random.weights", images)


@pytest.mark.parametrize(("family", "count", "last"), [("yolov5", 60, "24.m.2"), ("yolov8", 63, "22.cv3.2.2")])
def test_every_convolution_has_the_name_of_its_module(family: str, count: int, last: str) -> None:
    network = build(ARCHITECTURES[family], SCALES[family]["n"])
    convolutions = [i for i, d in enumerate(network.defs) if d.kind == "convolutional"]
    assert list(network.names) == convolutions
    assert len(set(network.names.values())) == len(convolutions) == count
    assert network.names[0] == "0"
    assert network.names[convolutions[-1]] == last


def test_found_widths_repeats_and_classes_take_the_place_of_the_scale() -> None:
    filters = {"0": 24, "2.cv2": 10, "2.m.0.cv1": 6, "2.m.1.cv1": 7, "2.m.2.cv2": 5, "24.m.0": 14}
    found = Found(
        filters=filters, biased=frozenset({"0"}), activations={"0": "relu"}, classes=2, anchors=tuple(range(1, 13)), channels=1
    )
    network = build(YOLOV5, SCALES["yolov5"]["n"], found)
    defs, at = network.defs, {name: index for index, name in network.names.items()}
    assert {name: defs[at[name]].filters for name in filters} == filters
    assert (defs[0].batch_normalize, defs[1].batch_normalize, defs[0].activation, defs.net.channels) == (0, 1, "relu", 1)
    assert [defs[i].mask for i in defs.yolo_indices()] == [(0, 1), (2, 3), (4, 5)]
    assert defs[at["24.m.1"]].filters == 2 * (5 + 2)
    assert "2.m.2.cv1" in at
    assert "2.m.3.cv1" not in at
    with torch.device("meta"):
        Darknet(parse_cfg(network.text("x")), 64)


def test_opencv_reads_the_cfg_as_it_is_written() -> None:
    assert read_darknet(str(ROOT / "cfg/yolov5/yolov5n.cfg")).getLayerNames()
