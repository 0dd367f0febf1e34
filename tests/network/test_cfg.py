"""utils.network.cfg and utils.network.shapes against Darknet's own record of its networks (shared/darknet/layers.json)."""

import json

import pytest

from tests.tiny import NET, TOPOLOGIES, conv, head
from utils.core.errors import UserError
from utils.data.data_file import read_data
from utils.network.cfg import parse_cfg, write_cfg
from utils.network.definitions import Convolutional, Route, Yolo
from utils.network.shapes import max_stride, output_shapes


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_parse_of_write_is_identity(name):
    defs = parse_cfg(TOPOLOGIES[name])
    text = write_cfg(defs)
    assert parse_cfg(text) == defs
    assert not any(" =" in line or "= " in line for line in text.splitlines())


def test_shapes_of_every_darknet_network_are_darknets_own(shared):
    recorded = json.loads((shared / "darknet/layers.json").read_text())
    for name, record in recorded.items():
        defs = parse_cfg(shared / f"darknet/cfg/{name}.cfg")
        assert parse_cfg(write_cfg(defs)) == defs
        shapes = output_shapes(defs)
        assert len(shapes) == record["layers"]
        for row in record["out"]:
            if row["out_whc"] and row["type"] != "avg":  # for avgpool Darknet prints the input
                width, height, channels = row["out_whc"]
                assert shapes[row["index"]] == (channels, height, width), (name, row)


def test_values_comments_spaces_and_unknown_keys():
    defs = parse_cfg(
        "[net]\nwidth = 96 # pixels\nlearning_rate=0.001\n[convolutional]\nfilters=4\n"
        "[route]\n; comment\nlayers = -1 , 0\nstopbackward=1\n"
    )
    assert defs.net.width == 96
    assert defs.net.extra == {"learning_rate": "0.001"}
    assert defs[1] == Route(layers=(-1, 0), extra={"stopbackward": "1"})
    assert "stopbackward=1" in write_cfg(defs)
    assert isinstance(defs[0], Convolutional)


def test_anchors_are_written_as_darknet_writes_them():
    text = write_cfg(parse_cfg(NET + head()))
    assert "anchors=8,10, 20,16\n" in text
    assert "mask=0,1\n" in text


def test_yolo_without_mask_uses_all_anchors():
    defs = parse_cfg(NET + conv(14, bn=0) + "[yolo]\nanchors=1,2, 3,4\nclasses=2\nnum=2\n")
    assert isinstance(defs[1], Yolo)
    assert defs[1].anchor_sizes() == [(1, 2), (3, 4)]


def test_largest_stride(shared):
    assert max_stride(parse_cfg(shared / "darknet/cfg/yolov4-p5.cfg")) == 32
    assert max_stride(parse_cfg(shared / "darknet/cfg/yolov4-sam-mish-csp-reorg-bfm.cfg")) == 64  # goes down to 64 and back
    assert max_stride(parse_cfg(TOPOLOGIES["csp"])) == 4
    assert max_stride(parse_cfg(TOPOLOGIES["spp"])) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("width=3\n[net]\n", r"cfg:1: expected"),
        ("[convolutional]\nfilters=1\n", r"begins with a \[net\] section"),
        (NET + "[crnn]\nsize=3\n", r"cfg:5: layer 0 \[crnn\]: this kind of layer is not supported"),
        (NET + "[convolutional]\nfilters=many\n", r"cfg:6: layer 0 \[convolutional\]: filters=many: not a value of type int"),
        (NET + "[convolutional]\nfilters=8\n[route]\nlayers=-3\n", r"layer 1 \[route\]: refers to layer -3"),
        (
            NET + "[convolutional]\nfilters=8\n[shortcut]\nactivation=linear\n",
            r"layer 1 \[shortcut\]: the key `from` is missing",
        ),
        (NET + "[convolutional]\nfilters=0\n", r"must be at least 1"),
        (NET + conv(14) + "[yolo]\nmask=0,5\nanchors=1,2, 3,4\nclasses=2\n", r"layer 1 \[yolo\]: mask \(0, 5\) needs anchors"),
        (NET + conv(7) + "[yolo]\nmask=0\nanchors=1,-2\nclasses=2\n", r"layer 1 \[yolo\]: anchors .* above 0"),
        (NET + conv(8) + "[route]\nlayers=,\n", r"layer 1 \[route\]: names no layer to read"),
    ],
)
def test_bad_text_is_one_line_that_names_the_place(text, said):
    with pytest.raises(UserError, match=said):
        parse_cfg(text)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (conv(13, 1) + "[yolo]\nmask=0,1\nanchors=1,2, 3,4\nclasses=2\n", r"layer 1 \[yolo\].*filters=14, not 13"),
        (
            conv(8, stride=2) + conv(8, stride=2) + "[route]\nlayers=-1,-2\n",
            r"layer 2 \[route\]: joins maps of different sizes",
        ),
        (conv(9) + "[route]\nlayers=-1\ngroups=2\n", r"can't take group 0 of 2"),
        (conv(8) + conv(6, groups=4), r"layer 1 \[convolutional\]: 8 channels to 6 filters can't be split into 4 groups"),
    ],
)
def test_maps_that_do_not_fit_are_refused(layers, said):
    with pytest.raises(UserError, match=said):
        output_shapes(parse_cfg(NET + layers))


def test_data_file(tmp_path):
    (tmp_path / "a.names").write_text("cat\ndog\n")
    (tmp_path / "list.txt").write_text("x.jpg\n")
    (tmp_path / "a.data").write_text("classes=2\ntrain = list.txt\nvalid=missing.txt\nnames=a.names\nbackup=b\n")
    data = read_data(tmp_path / "a.data")
    assert (data.classes, data.names, data.train) == (2, ["cat", "dog"], tmp_path / "list.txt")
    assert data.extra == {"backup": "b"}
    (tmp_path / "a.names").write_text("cat\n")
    with pytest.raises(UserError, match="classes=2, but its names file lists 1"):
        read_data(tmp_path / "a.data")
    (tmp_path / "a.data").write_text("classes=2\ntrain=\nvalid=\nnames=\n")
    data = read_data(tmp_path / "a.data")
    assert (data.train, data.valid, data.names) == (None, None, ["0", "1"])
    with pytest.raises(UserError, match="needs a line `train=`"):
        data.source("train")
    (tmp_path / "a.data").write_text("classes=²\n", encoding="utf-8")
    with pytest.raises(UserError, match="needs a line `classes=N`"):
        read_data(tmp_path / "a.data")
    with pytest.raises(UserError, match="does not exist"):
        read_data(tmp_path / "b.data")
