"""What a network needs at least, before it is built."""

import pytest

from tests.tiny import NET, TOPOLOGIES, conv, head
from utils.checking import network as check_network
from utils.checking.findings import Subject
from utils.core import memory
from utils.core.errors import UserError
from utils.core.memory import available_memory
from utils.network.cfg import parse_cfg
from utils.network.darknet import Darknet
from utils.network.footprint import check_memory, weight_count
from utils.network.shapes import input_channels, output_shapes
from utils.network.summary import summarise
from utils.network.weights import darknet_tensors


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_weights_are_those_of_the_network(name):
    model = Darknet(TOPOLOGIES[name], 64)
    shapes = output_shapes(model.defs, 64, 64)
    counted = [weight_count(d, input_channels(model.defs, shapes, i)[0]) for i, d in enumerate(model.defs)]
    held = [0] * len(model.defs)
    for index, tensor in darknet_tensors(model):
        held[index] += tensor.numel()
    assert counted == held


def test_the_limit_is_the_weights_and_the_maps_around_one_layer():
    """3x3x3x8 + 4 * 8 and 8x14 + 14 weights; the first convolution's maps are 3x64x64 and 8x64x64, the largest."""
    defs = parse_cfg(NET + conv(8) + head())
    needed = 4 * (3 * 3 * 3 * 8 + 4 * 8 + 8 * 14 + 14 + 2 * 14 * 64 * 64)
    shapes = output_shapes(defs)
    check_memory(defs, shapes, (3, 64, 64), needed)
    check_memory(defs, shapes, (3, 64, 64), None)
    with pytest.raises(
        UserError, match=r"layer 1 \[convolutional\]: .* 0.0 GiB of memory at 64x64, .* 126 weights .* output of 64x64x14"
    ):
        check_memory(defs, shapes, (3, 64, 64), needed - 1)


@pytest.mark.parametrize(
    ("text", "layer"),
    [
        (NET + conv(99999999) + head(), 0),
        (NET + "[upsample]\nstride=100000\n" + conv(3, 1) + "[maxpool]\nsize=6400000\nstride=6400000\n", 1),
        (NET.replace("64", "2000000000") + conv(8), 0),
        (NET + conv(4, 2147483647, stride=1), 0),
        (NET + conv(2147483647) + conv(2147483647), 1),
        (NET + conv(3 * (5 + 700_000_000), 1) + "[yolo]\nmask=0,1,2\nanchors=1,2,3,4,5,6\nclasses=700000000\n", 0),
    ],
)
def test_what_no_machine_holds_is_refused_before_it_is_built(text, layer):
    defs = parse_cfg(text)
    with pytest.raises(UserError, match=rf"layer {layer} \[.*GiB of memory"):
        Darknet(defs, (defs.net.height, defs.net.width))
    found = [f.what for f in check_network.geometry(Subject(defs=defs, img_size=defs.net.width))]
    assert not defs.yolo_indices() or any("GiB of memory" in what for what in found)


def test_a_table_needs_no_memory():
    defs = parse_cfg(NET + conv(99999999) + head())
    assert summarise(defs)[0].parameters == 99999999 * (27 + 2)


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    for name, text in {"high": "max\n", "low": "4096\n"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_LIMITS", (str(tmp_path / "high"), str(tmp_path / "absent")))
    assert available_memory() > 4096
    monkeypatch.setattr(memory, "_LIMITS", (str(tmp_path / "high"), str(tmp_path / "low")))
    assert available_memory() == 4096
