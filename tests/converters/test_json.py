"""utils.data.json_stream against json.loads."""

import io
import json

import pytest

from utils.core.errors import UserError
from utils.data import json_stream as jsonstream
from utils.data.json_stream import JsonStream

DOCUMENTS = {
    "list": [{"name": "a", "labels": None}, [], 5, -1.5e10, 'ü\n"]', True, {}],
    "empty list": [],
    "object": {"info": {"a": [1]}, "images": [{"id": 1}, {"id": 2}], "none": [], "n": 123456, "long": ["x" * 200, "y" * 90]},
    "empty object": {},
}


def expected(document) -> list[tuple]:
    sections = {"": document} if isinstance(document, list) else document
    return [
        item
        for key, value in sections.items()
        for item in ([(key, i, v) for i, v in enumerate(value)] if isinstance(value, list) else [(key, -1, value)])
    ]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_items(tmp_path, monkeypatch, name, indent, chunk):
    monkeypatch.setattr(jsonstream, "_CHUNK", chunk)
    path = tmp_path / "a.json"
    text = json.dumps(DOCUMENTS[name], indent=indent, ensure_ascii=False)
    path.write_text(f"\ufeff {text}\n".replace("\n", "\r\n"), encoding="utf-8", newline="")
    stream = JsonStream(path)
    assert list(stream) == expected(DOCUMENTS[name])
    assert stream.keys == ({""} if name.endswith("list") else set(DOCUMENTS[name]))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_of_unicode(tmp_path, encoding):
    (tmp_path / "a.json").write_text('["ü行"]', encoding=encoding)
    assert list(JsonStream(tmp_path / "a.json")) == [("", 0, "ü行")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": [1],\n"b": 2,\n"a": [3]}', r"a.json:3: not valid JSON \('a' stands in it twice\)"),
        ("[" + "[" * 100_000 + "]" * 100_000 + "]", r"a.json:1: not valid JSON \(it nests too deeply\)"),
        ("[" + "1" * 10_000 + "]", r"a.json:1: not valid JSON \(Exceeds the limit"),
    ],
)
def test_what_python_has_no_error_of_its_own_for(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message):
        list(JsonStream(tmp_path / "a.json"))


@pytest.mark.parametrize("chunk", [1, 1 << 20])
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1), ("{", 1), ("[1,\n2", 2), ("[1\n2]", 2), ('{"a"\n1}', 2), ("{1: 2}", 1), ('{"a": [1],\n\n"b": tru}', 3),
        ('["x\n', 1), ("[] 5", 1), ('[{"a": 1},\n{"a": 1,},\n' + '{"a": 1},\n' * 20 + "]", 2), ("5", 1),
    ],
)  # fmt: skip
def test_what_is_no_json(tmp_path, monkeypatch, text, line, chunk):
    monkeypatch.setattr(jsonstream, "_CHUNK", chunk)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=rf"a.json:{line}: not valid JSON \(.*\); was it copied completely\?$"):
        list(JsonStream(tmp_path / "a.json"))
    with pytest.raises(json.JSONDecodeError):
        if isinstance(json.loads(text), int):  # a number alone is JSON, but no annotation
            raise json.JSONDecodeError("", "", 0)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\x89PNG\r\n\xff\0\1\2")
    with pytest.raises(UserError, match="this is not a text file"):
        list(JsonStream(tmp_path / "a.json"))
    (tmp_path / "a.json").write_bytes('["行人", "行人"]'.encode("gbk"))
    with pytest.raises(UserError, match="a.json:1: isn't UTF-8 but, as it looks, gbk"):
        list(JsonStream(tmp_path / "a.json"))
    with pytest.raises(UserError, match="gone.json: this annotation file cannot be read .No such file"):
        list(JsonStream(tmp_path / "gone.json"))


def test_a_mistake_is_found_without_reading_on(tmp_path, monkeypatch):
    """Not only after the rest of the gigabyte."""
    reads = []

    class Counted(io.StringIO):
        def read(self, size):
            reads.append(size)
            return super().read(size)

    text = '[{"a": 1}, {"a" 1}, ' + '{"a": 1}, ' * 10_000 + "]"
    monkeypatch.setattr(jsonstream, "_CHUNK", 1000)
    monkeypatch.setattr(jsonstream, "open", lambda *_, **__: Counted(text), raising=False)
    monkeypatch.setattr(JsonStream, "_encoding", lambda _: "utf-8")
    with pytest.raises(UserError, match="Expecting ':' delimiter"):
        list(JsonStream(tmp_path / "a.json"))
    assert reads == [1000]
