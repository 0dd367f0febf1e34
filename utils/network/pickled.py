"""What torch.save wrote, read without running any of it: containers, numbers and texts are rebuilt, other objects are inert.

A pickle is a program: it names classes and functions, and whoever unpickles it calls them. Here every name stands for a class
of Records, which only remember what they were called and filled with; tensors are among them, and are made on demand:

    >>> import io
    >>> content, origins = unpickle(io.BytesIO(b"cos\\nsystem\\n(S'rm -rf /'\\ntR."))
    >>> content.origin, content.arguments, origins
    ('os.system', ('rm -rf /',), ['os.system'])
"""

import math
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar

import torch
from torch import Tensor

from utils.core.errors import UserError

# What reading a file raises that was cut short or written over, depending on where.
DAMAGES = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError,
    ValueError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
MAGIC = 0x1950A86A20F9469CFC6C  # with which files of PyTorch before 1.6 begin, whose pickles follow one another
DTYPES = {
    "Half": torch.float16, "Float": torch.float32, "Double": torch.float64, "BFloat16": torch.bfloat16, "Bool": torch.bool,
    "Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16, "Int": torch.int32, "Long": torch.int64,
}  # fmt: skip
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")  # around a tensor


class Record:
    """An object that a pickle asks for, and that isn't made: what it would be called with, and what it would be filled with.

    origin: module and name of its class or function. arguments: of the call; state: what __setstate__ would get; items: what
    would be put into it by keys; members: what would be appended or added.
    """

    origin: ClassVar[str] = ""

    def __new__(cls, *arguments: Any, **named: Any) -> "Record":
        record = object.__new__(cls)
        record.arguments, record.state, record.items, record.members = arguments, named, {}, []
        return record

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.arguments: tuple[Any, ...]
        self.state: Any
        self.items: dict[Any, Any]
        self.members: list[Any]

    @property
    def kind(self) -> str:
        """The name of its class without the module."""
        return self.origin.rpartition(".")[2]

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        self.members.append(value)

    def extend(self, values: Iterable[Any]) -> None:
        self.members.extend(values)

    add = append

    def __call__(self, *arguments: Any) -> "Record":
        """What a call of it would give: another Record."""
        return record_class(f"{type(self).origin}()")(*arguments)


def record_class(origin: str) -> type[Record]:
    """A class of Records for one name."""
    return type("Record", (Record,), {"origin": origin})


@dataclass(frozen=True)
class Stored:
    """A tensor's memory, by the name that it has in the file: `count` numbers of a kind such as torch.HalfStorage."""

    kind: str
    key: str
    count: int

    @classmethod
    def of(cls, name: Any) -> "Stored":
        """From what torch.save calls it; pickle.UnpicklingError for anything else."""
        if not (isinstance(name, tuple) and len(name) >= 5 and name[0] == "storage" and isinstance(name[4], int)):
            raise pickle.UnpicklingError("a reference to something outside that is no tensor's memory")
        return cls(getattr(name[1], "origin", ""), str(name[2]), name[4])

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.kind.rpartition(".")[2].removesuffix("Storage")]

    @property
    def size(self) -> int:
        """In bytes."""
        return self.count * self.dtype.itemsize


class _Reader(pickle._Unpickler):
    """The unpickler that is written in Python: the other one makes room for as many objects as a damaged number says."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self.origins: dict[str, type[Record]] = {}
        self.stored: dict[str, Stored] = {}

    def find_class(self, module: str, name: str) -> type[Record]:
        origin = f"{module}.{name}"
        return self.origins.setdefault(origin, record_class(origin))

    def persistent_load(self, name: Any) -> Any:
        """A tensor's memory; a module's class, which PyTorch before 1.6 kept with its source text."""
        if isinstance(name, tuple) and len(name) == 4 and name[0] == "module":
            return name[1]
        stored = Stored.of(name)
        return self.stored.setdefault(stored.key, stored)


def unpickle(file: IO[bytes]) -> tuple[Any, list[str]]:
    """(content, names of the classes and functions that it asks for) of the next pickle in a file; one of DAMAGES for none."""
    reader = _Reader(file)
    return reader.load(), list(reader.origins)


@dataclass
class TorchFile:
    """A file of torch.save. origins: names that its pickle asks for, in their order; is_program: whether it is TorchScript."""

    path: str
    content: Any
    origins: list[str]
    is_program: bool
    read: Callable[[list[Stored]], dict[str, bytes]] = field(repr=False)

    def tensors(self, records: Mapping[str, Record]) -> dict[str, Tensor]:
        """The tensors that Records stand for, on the CPU; UserError for a file that lacks part of their memory."""
        try:
            layouts = {name: Layout.of(record) for name, record in records.items()}
            memory = self.read([layout.stored for layout in layouts.values()])
            return {name: layout.tensor(memory[layout.stored.key]) for name, layout in layouts.items()}
        except DAMAGES as error:
            raise _damaged(self.path, error) from None


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in its memory."""

    stored: Stored
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, record: Record) -> "Layout":
        """ValueError where it reaches out of its memory, or is no tensor's layout at all."""
        stored, offset, shape, strides = bare(record).arguments[:4]
        shape, strides = (tuple(x.arguments[0]) if isinstance(x, Record) else x for x in (shape, strides))  # torch.Size
        numbers = (offset, *shape, *strides)
        if not isinstance(stored, Stored) or not all(type(n) is int and n >= 0 for n in numbers) or len(shape) != len(strides):
            raise ValueError("a tensor without a layout")
        end = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1
        if math.prod(shape) > stored.count or (0 not in shape and end > stored.count):
            raise ValueError("a tensor that is larger than its memory")
        return cls(stored, offset, shape, strides)

    def tensor(self, memory: bytes) -> Tensor:
        """The tensor, in memory of its own."""
        dtype = self.stored.dtype
        flat = torch.frombuffer(bytearray(memory), dtype=dtype) if memory else torch.empty(0, dtype=dtype)
        return flat.as_strided(self.shape, self.strides, self.offset).clone()


def is_tensor(value: Any) -> bool:
    """Whether a value stands for a tensor or a parameter."""
    return isinstance(value, Record) and bare(value).origin in TENSORS


def bare(record: Record) -> Record:
    """A parameter's tensor, a tensor itself."""
    inner = record.arguments[0] if record.origin in PARAMETERS and record.arguments else None
    return inner if isinstance(inner, Record) else record


def attributes(value: Any) -> dict[str, Any]:
    """What is stored under names: in a dict, an OrderedDict, or an object's own dict; {} for anything else."""
    if isinstance(value, Record):
        value = value.items or value.state
    return {k: v for k, v in value.items() if isinstance(k, str)} if isinstance(value, dict) else {}


def read_torch_file(path: str | Path) -> TorchFile:
    """A .pt file's content but for the values of its tensors; UserError for one that is damaged, or a zip of other things."""
    try:
        with open(path, "rb") as file:
            is_zip = file.read(2) == b"PK"
        return _from_zip(str(path)) if is_zip else _from_pickles(str(path))
    except DAMAGES as error:
        raise _damaged(path, error) from None


def _damaged(path: str | Path, error: BaseException) -> UserError:
    gist = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
    return UserError.at(path, f"damaged or truncated ({gist})")


def _from_zip(path: str) -> TorchFile:
    """PyTorch 1.6 and later: <name>/data.pkl, and <name>/data/<key> for the memory of each tensor."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        top = next((n.removesuffix("data.pkl") for n in names if n.count("/") == 1 and n.endswith("/data.pkl")), None)
        if top is None:
            raise UserError.at(path, "is a zip archive, but not one that PyTorch wrote")
        with archive.open(f"{top}data.pkl") as file:
            content, origins = unpickle(file)
        order = archive.read(f"{top}byteorder").decode() if f"{top}byteorder" in names else "little"
        is_program = any(n.startswith(f"{top}code/") for n in names)

    def read(wanted: list[Stored]) -> dict[str, bytes]:
        with zipfile.ZipFile(path) as archive:
            return {s.key: _native(archive.read(f"{top}data/{s.key}"), s, order) for s in set(wanted)}

    return TorchFile(path, content, origins, is_program, read)


def _native(data: bytes, stored: Stored, order: str) -> bytes:
    """A tensor's memory in this machine's order of bytes; ValueError where it is too short."""
    if len(data) < stored.size:
        raise ValueError(f"{len(data)} bytes where {stored.size} should be")
    width = stored.dtype.itemsize
    if order == sys.byteorder or width == 1:
        return data[: stored.size]
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, width).flip(1).numpy().tobytes()


def _from_pickles(path: str) -> TorchFile:
    """Before PyTorch 1.6: a magic number, versions, the content, the keys of its tensors' memory, then that memory. What lacks
    the number is some pickle."""
    with open(path, "rb") as file:
        magic, origins = unpickle(file)
        if magic != MAGIC:
            return TorchFile(path, magic, origins, False, lambda wanted: {})
        unpickle(file), unpickle(file)
        reader = _Reader(file)
        content = reader.load()
        places: dict[str, int] = {}
        for key in unpickle(file)[0]:
            (count,) = struct.unpack("<q", file.read(8))
            places[key] = file.tell()
            file.seek(count * reader.stored[key].dtype.itemsize, 1)

    def read(wanted: list[Stored]) -> dict[str, bytes]:
        found = {}
        with open(path, "rb") as file:
            for stored in set(wanted):
                file.seek(places[stored.key])
                found[stored.key] = _native(file.read(stored.size), stored, "little")
        return found

    return TorchFile(path, content, list(reader.origins), False, read)
