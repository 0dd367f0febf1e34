"""What an exported file says of itself, read without any runtime: its metadata, and how many images its input holds.

The file is protobuf (https://protobuf.dev/programming-guides/encoding): records of a key, `number << 3 | wire type`, and a
value. Numbers of fields are those of onnx.proto3 (https://github.com/onnx/onnx).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.core.errors import UserError
from utils.core.files import read_text

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
GRAPH, METADATA = 7, 14  # of ModelProto
KEY, VALUE = 1, 2  # of StringStringEntryProto
INPUT_BATCH = (11, 2, 1, 2, 1)  # GraphProto.input, its type, tensor_type, shape, dim: of each the first
MOST_PICTURES = 2**31 - 1
METADATA_FILE = "metadata.json"  # of a folder
DIM_VALUE = 1  # of a dimension: its number; one that any number will do for has a name instead


@dataclass
class Header:
    """metadata: words by name; batch: images that the first input holds, None for any number."""

    metadata: dict[str, str]
    batch: int | None


def read_header(path: str | Path) -> Header:
    """The header of a file that is_onnx, or of a folder that export.py --target ncnn wrote; UserError for one that is damaged,
    or whose metadata are no text."""
    if Path(path).is_dir():
        return _of_folder(Path(path))
    try:
        model = memoryview(Path(path).read_bytes())
        entries = [dict(_fields(entry)) for number, entry in _fields(model) if number == METADATA]
        batch = next(content for number, content in _fields(model) if number == GRAPH)
        for wanted in INPUT_BATCH:
            batch = next(content for number, content in _fields(batch) if number == wanted)
        size = dict(_fields(batch)).get(DIM_VALUE)
        fixed = size if isinstance(size, int) and 0 < size <= MOST_PICTURES else None
        return Header({_text(e.get(KEY)): _text(e.get(VALUE)) for e in entries}, fixed)
    except UnicodeDecodeError:
        raise UserError(f"{path}: its metadata are no text: the file is damaged; export it again") from None
    except (IndexError, TypeError, ValueError, StopIteration):
        raise UserError(f"{path}: is no whole ONNX file: it is damaged; export it again") from None


def _of_folder(folder: Path) -> Header:
    """What lies in a file of its own where a runtime's format has no place for it."""
    try:
        facts = json.loads(read_text(folder / METADATA_FILE, "metadata"))
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict) or not all(isinstance(value, str) for value in facts.values()):
        raise UserError(f"{folder / METADATA_FILE}: isn't what export.py writes: the file is damaged; export it again")
    return Header(facts, 1)


def _text(content: memoryview | int | None) -> str:
    return str(content, "utf-8") if content is not None else ""


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(number, value) of each record of a message; ValueError or IndexError where it is none."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire == BYTES:
            length, position = _varint(message, position)
        elif wire in (FIXED64, FIXED32):
            length = 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if position + length > len(message):
            raise ValueError("ends within a field")
        yield number, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """(a number of seven bits a byte, the lowest first; the position behind it)."""
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
