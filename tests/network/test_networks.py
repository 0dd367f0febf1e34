"""The networks in cfg/ against Darknet's own files and the published parameter counts."""

import dataclasses
from pathlib import Path

import pytest

from tests.references import reference
from utils.network.cfg import parse_cfg, write_cfg
from utils.network.definitions import Convolutional, Defs, LayerDef, SqueezeExcite
from utils.network.shapes import input_channels, output_shapes

ROOT = Path(__file__).resolve().parents[2]
OURS_AND_DARKNETS = [
    ("yolov3/yolov3", "yolov3"),
    ("yolov3/yolov3-spp", "yolov3-spp"),
    ("yolov3tiny/yolov3-tiny", "yolov3-tiny"),
    ("yolov3tiny/yolov3-tiny3", "yolov3-tiny_3l"),
    ("yolov4/yolov4", "yolov4"),
    ("yolov4/yolov4-csp", "yolov4-csp"),
    ("yolov4tiny/yolov4-tiny", "yolov4-tiny"),
    ("yolov4tiny/yolov4-tiny-3l", "yolov4-tiny-3l"),
    ("yolov7tiny/yolov7-tiny", "yolov7-tiny"),
]
PARAMETERS = {  # reference/networks.md; at 80 classes and 3 channels
    "yolov3/yolov3": 61_949_149,
    "yolov3tiny/yolov3-tiny": 8_852_366,
    "yolov3-mobilenet/yolov3-mobilenet-coco": 24_209_877,
    "yolov3tiny-mobilenet-small/yolov3tiny-mobilenet-small-coco": 3_041_430,
    "yolov4/yolov4": 64_363_101,
    "yolov4tiny/yolov4-tiny": 6_056_606,
}
ALL = [ROOT / "cfg" / f"{n}.cfg" for n in sorted({o for o, _ in OURS_AND_DARKNETS} | set(PARAMETERS) | {"yolov4/yolov4-relu"})]


def ours(name: str) -> Defs:
    return parse_cfg(ROOT / "cfg" / f"{name}.cfg")


def darknets(name: str) -> Defs:
    return parse_cfg(reference(f"darknet/cfg/{name}.cfg"))


def facts(defs: Defs, index: int) -> dict[str, object]:
    """All that decides what layer `index` computes; references resolved, so that either spelling counts as the same."""
    layer: LayerDef = defs[index]
    values = {f.name: getattr(layer, f.name) for f in dataclasses.fields(layer) if f.compare and f.name != "extra"}
    for key in ("layers", "from_"):
        values.pop(key, None)
    return {"kind": layer.kind, "sources": defs.sources(index), **values}


def parameters(defs: Defs) -> int:
    """Trainable parameters by hand: kernels, beta and gamma or biases, and the two matrices of each [se]."""
    shapes, total = output_shapes(defs), 0
    for index, d in enumerate(defs):
        channels = input_channels(defs, shapes, index)[0]
        if isinstance(d, Convolutional):
            groups = channels if d.kind == "depthwise" else d.groups
            total += d.filters * (channels // groups * d.size**2 + (2 if d.batch_normalize else 1))
        elif isinstance(d, SqueezeExcite):
            total += 2 * channels * (channels // d.reduction)
    return total


@pytest.mark.parametrize(("name", "reference"), OURS_AND_DARKNETS)
def test_equals_darknets_network(name: str, reference: str) -> None:
    mine, theirs = ours(name), darknets(reference)
    assert (mine.net.width, mine.net.height, mine.net.channels) == (theirs.net.width, theirs.net.height, theirs.net.channels)
    assert len(mine) == len(theirs)
    for index in range(len(mine)):
        assert facts(mine, index) == facts(theirs, index), mine.where(index)
    assert output_shapes(mine) == output_shapes(theirs)


def test_relu_variant_differs_from_yolov4_in_activations_only() -> None:
    mish, relu = ours("yolov4/yolov4"), ours("yolov4/yolov4-relu")
    assert len(mish) == len(relu)
    swapped = 0
    for index in range(len(mish)):
        expected = facts(mish, index)
        if expected.get("activation") == "mish":
            expected["activation"] = "relu"
            swapped += 1
        assert facts(relu, index) == expected
    assert swapped == 72  # CSPDarknet-53's convolutions


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_count(name: str, count: int) -> None:
    assert parameters(ours(name)) == count


def test_mobilenets_have_the_published_layers() -> None:
    large, small = (ours(n) for n in PARAMETERS if "mobilenet" in n)
    assert (len(large), large.yolo_indices()) == (97, [72, 84, 96])
    assert (len(small), small.yolo_indices()) == (61, [53, 60])
    assert (large.sources(76), large.sources(88)) == ([75, 49], [87, 25])
    assert small.sources(57) == [56, 34]
    for defs in (large, small):
        for index, d in enumerate(defs):
            if isinstance(d, SqueezeExcite):
                assert defs[index - 1].kind == "depthwise"
                assert d.filters == output_shapes(defs)[index][0]
    assert [sum(isinstance(d, SqueezeExcite) for d in defs) for defs in (large, small)] == [8, 9]


DARKNETS_OWN = {"iou_normalizer", "cls_normalizer", "obj_normalizer", "nms_kind", "beta_nms"}


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_written_for_this_project(path: Path) -> None:
    """Deployment parsers need no spaces around `=`; every key is one that the suite knows or that Darknet itself trains with;
    the text survives a round trip."""
    defs = parse_cfg(path)
    assert parse_cfg(write_cfg(defs)) == defs
    assert not defs.net.extra
    assert {key for d in defs for key in d.extra} <= DARKNETS_OWN
    assert not [line for line in path.read_text().splitlines() if "=" in line and not line.startswith("#") and " =" in line]
    strides = [defs.net.height // output_shapes(defs)[i][1] for i in defs.yolo_indices()]
    assert set(strides) <= {8, 16, 32}
    assert len(set(strides)) == len(strides)
