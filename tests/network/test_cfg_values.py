"""Spellings of values that users' cfgs have: read as Darknet reads them, or refused, and said where they were changed."""

import pytest

from tests.tiny import NET, conv, head
from utils.core.errors import Remark, UserError
from utils.network.cfg import parse_cfg, write_cfg
from utils.network.cfg_values import convert
from utils.network.definitions import Floats, Ints


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("2", int, 2), ("+2", int, 2), ("-2", int, -2), ("2.0", int, 2), ("2.", int, 2), ("007", int, 7), ("255,", int, 255),
        (".001", float, 0.001), ("1.", float, 1.0), ("1e-3", float, 0.001), ("5", int | None, 5),
        ("-1,8", Ints, (-1, 8)), (" -1 , 8 ", Ints, (-1, 8)), ("1.5,2", Floats, (1.5, 2.0)), ("leaky", str, "leaky"),
        ("le aky", str, "leaky"),
    ],
)  # fmt: skip
def test_values_as_c_reads_them(text, kind, value, recwarn):
    assert convert("key", text, kind, "here") == value
    assert not recwarn.list


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("2.5", int, "type int"), ("0x20", int, "type int"), ("1e3", int, "type int"), ("1_000", int, "type int"),
        ("²", int, "type int"), ("٣", int, "type int"), ("3x", int, "type int"), ("", int, "type int"),
        ("2147483648", int, "is more than 2147483647"), ("9" * 5000, int, "is more than|type int|digits"),
        ("nan", float, "type float"), ("inf", float, "type float"), ("1e999", float, "type float"),
        ("0x1", float, "type float"),
        ("2 55", int, "needs commas"), ("10,13 16,30", Floats, "needs commas"), ("-1 8", Ints, "needs commas"),
    ],
)  # fmt: skip
def test_what_would_be_another_number_is_refused(text, kind, said):
    with pytest.raises(ValueError, match=said):
        convert("key", text, kind, "here")


@pytest.mark.parametrize(
    ("key", "text", "kind", "value", "said"),
    [
        ("activation", "none", str, "linear", "here: read as linear"), ("activation", "Leaky", str, "leaky", "read as leaky"),
        ("activation", "SiLU", str, "swish", "read as swish"), ("weights_type", "None", str, "none", "read as none"),
        ("layers", "-1,8,", Ints, (-1, 8), "here: has a comma too many"), ("mask", "0,,1", Ints, (0, 1), "a comma too many"),
    ],
)  # fmt: skip
def test_what_is_read_otherwise_is_said(key, text, kind, value, said):
    with pytest.warns(Remark, match=said):
        assert convert(key, text, kind, "here") == value


def test_a_side_of_0_pixels_is_read_as_1():
    text = NET + head().replace("8,10", "0,3")
    with pytest.warns(Remark, match=r"cfg:11: layer 1 \[yolo\]: an anchor's side of 0 pixels, .* is read as 1"):
        defs = parse_cfg(text)
    assert defs[1].anchors == (1, 3, 20, 16)
    assert "anchors=1,3, 20,16\n" in write_cfg(defs)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (head() + "share_index=1\n", r"layer 1 \[yolo\]: share_index=1 is not supported"),
        (head() + "from=1,2\n", r"layer 1 \[yolo\]: from=1,2 is not supported"),
        (head() + conv(4), r"layer 2 \[convolutional\]: reads layer 1, a \[yolo\]"),
        (head() + "[maxpool]\nsize=2\n", r"layer 2 \[maxpool\]: reads layer 1, a \[yolo\]"),
        (head() + "[route]\nlayers=0,1\n", r"layer 2 \[route\]: reads layer 1, a \[yolo\]"),
        (head() + "[route]\nlayers=0\n[shortcut]\nfrom=-2\n", r"layer 3 \[shortcut\]: reads layer 1, a \[yolo\]"),
        (
            head().replace("mask=0,1\n", "").replace("num=2", "num=1000000000"),
            r"num=1000000000 needs anchors that aren't there",
        ),
        ("[conv\nfilters=4\n", r"cfg:5: expected a \[section\], found: \[conv"),
        ("[conv]\nfilters\n", r"cfg:6: expected `key=value`, found: filters"),
        ("[conv]\n = 3\n", r"cfg:6: expected `key=value`, found: = 3"),
    ],
)
def test_what_is_refused_by_name(layers, said):
    with pytest.raises(UserError, match=said):
        parse_cfg(NET + layers)


def test_short_names_of_sections_and_spaces_within_lines():
    text = "[network]\n wid th\t=\t64\n[ conv ]\nfilters = 4\nactivation=le aky # usual\n[max]\nsize=2\n[avg]\n[local_avg]\n"
    defs = parse_cfg(text)
    assert [d.kind for d in defs] == ["convolutional", "maxpool", "avgpool", "local_avgpool"]
    assert (defs.net.width, defs[0].filters, defs[0].activation) == (64, 4, "leaky")


def test_keys_that_python_spells_otherwise_and_long_fractions_come_back():
    text = NET + conv(4) + "[shortcut]\nfrom=-1\nfrom_=7\nalpha_=1\n[upsample]\nstride=2\nscale=0.12345678901234567\n"
    defs = parse_cfg(text)
    assert defs[1].extra == {"from_": "7", "alpha_": "1"}
    assert parse_cfg(write_cfg(defs)) == defs
    assert write_cfg(parse_cfg(write_cfg(defs))) == write_cfg(defs)
