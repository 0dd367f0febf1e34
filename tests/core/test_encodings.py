"""utils.core.encodings and files.read_text: texts in the encodings that people's editors write."""

import codecs
import os
import subprocess

import pytest

from utils.core.encodings import likely_encoding
from utils.core.errors import UserError
from utils.core.files import read_text
from utils.data.data_file import read_data, read_names
from utils.network.cfg import parse_cfg

TEXT = "行人\nFußgänger\n\nпешеход\n"  # noqa: RUF001


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        TEXT.replace("\n", "\r\n").encode("utf-16"),
        TEXT.replace("\n", "\r").encode(),
    ],
)
@pytest.mark.parametrize("options", [{}, {"comments": "#"}, {"paths": True}])
def test_marked_texts_are_read(tmp_path, data, options):
    (tmp_path / "x.names").write_bytes(data)
    assert read_text(tmp_path / "x.names", **options) == TEXT


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_utf16_is_known_without_its_mark(tmp_path, codec):
    (tmp_path / "x.names").write_bytes("person\r\nbicycle\r\n".encode(codec))
    assert read_names(tmp_path / "x.names") == ["person", "bicycle"]


WORDS = {
    "gbk": ["红\n绿", "行人\n汽车\n自行车\n狗", "人"],
    "shift_jis": ["歩行者\n自転車", "信号", "ヘルメット"],
    "euc_jp": ["ヘルメット\nマスク"],
    "euc_kr": ["사람\n자동차", "헬멧\n마스크"],
    "big5": ["行人\n汽車\n腳踏車", "安全帽"],
    "windows-1251": ["собака\nкошка", "дом"],  # noqa: RUF001
    "windows-1252": ["Fußgänger\nAuto", "café", "niño", "Übergang\nÄra"],
}


@pytest.mark.parametrize(("encoding", "text"), [(e, t) for e, texts in WORDS.items() for t in texts])
def test_other_encodings_are_named(encoding, text):
    assert likely_encoding(text.encode(encoding)) == encoding


def test_the_remedy_works_as_printed(tmp_path):
    """The command that the message ends with makes a file that is read."""
    names = tmp_path / "my classes.names"
    names.write_bytes("person\n行人\n".encode("gbk"))
    with pytest.raises(UserError, match=r"classes.names:2: isn't UTF-8 but, as it looks, gbk \(行人\); convert it: ") as raised:
        read_names(names)
    subprocess.run(str(raised.value).split("convert it: ")[1], shell=True, check=True)
    assert read_names(tmp_path / "my classes-utf8.names") == ["person", "行人"]


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\0\xff", b"PK\3\4\0\xfe", b"a\0b\n", codecs.BOM_UTF16_LE + b"abc"])
@pytest.mark.parametrize("options", [{}, {"comments": "#"}, {"paths": True}])
def test_what_is_no_text_is_said_to_be_none(tmp_path, data, options):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(UserError, match="x: this is not a text file, so it is no list"):
        read_text(tmp_path / "x", "list", **options)


def test_comments_may_be_in_any_encoding(tmp_path):
    cfg = tmp_path / "x.cfg"
    cfg.write_bytes("# 训练用\n[net]\nwidth=32 ; 宽\nheight=64\n[convolutional]\n".encode("gbk"))
    defs = parse_cfg(cfg)
    assert (defs.net.width, defs.net.height, len(defs.layers)) == (32, 64, 1)
    cfg.write_bytes("# 训练用\n[net]\n宽=32\n".encode("gbk"))
    with pytest.raises(UserError, match=r"x.cfg:3: isn't UTF-8 but, as it looks, gbk \(宽=32\)"):
        parse_cfg(cfg)


def test_paths_are_bytes(tmp_path):
    """The folder's name is GBK, as is the .data that names it."""
    folder = os.fsencode(tmp_path) + "/数据".encode("gbk")
    os.mkdir(folder)
    with open(folder + b"/train.txt", "w") as file:
        file.write("x.jpg\n")
    (tmp_path / "x.data").write_bytes(b"classes=1\ntrain=" + folder + b"/train.txt\n")
    data = read_data(tmp_path / "x.data")
    assert os.fsencode(data.train) == folder + b"/train.txt"
    assert data.train.is_file()
