"""Fields: a dict that came out of a file. Each value's type and range is looked at before anything uses it."""

import math
import numbers
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.core.errors import UserError

WHOLE = 2**63 - 1  # the largest integer that counters of files and tensors can hold


@dataclass(frozen=True)
class Fields:
    """Named values of a file, as `Fields.of(value, "x.pt")` finds them.

    origin: the file, with which errors begin; where: this dict's own place in it, such as `settings.`, "" for the outermost.
    A value that is None counts as missing; what is missing is the default. All methods raise UserError, naming file and
    field, for a value that isn't what was asked for.
    """

    values: dict[str, Any]
    origin: str
    where: str = ""

    @classmethod
    def of(cls, values: Any, origin: str, where: str = "") -> "Fields":
        """The fields of what should be a dict with names as keys."""
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise UserError.at(origin, f"{where.rstrip('.') or 'its content'} {_unlike(values, 'named values')}")
        return cls(values, origin, where)

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def wrong(self, name: str, wanted: str) -> UserError:
        """The error for a field that isn't what it should be."""
        return UserError.at(self.origin, f"{self.where}{name} {_unlike(self.values.get(name), wanted)}")

    def text(self, name: str, default: str = "") -> str:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, str) or "\0" in value:
            raise self.wrong(name, "a text")
        return value

    def line(self, name: str, default: str = "") -> str:
        """A text of one line, as lines of files end; a path may hold what else str.splitlines splits at."""
        value = self.text(name, default)
        if not {"\n", "\r"}.isdisjoint(value):
            raise self.wrong(name, "a text of one line")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, int | np.bool_) or value not in (0, 1):
            raise self.wrong(name, "true or false")
        return bool(value)

    def whole(self, name: str, default: int = 0, least: int = 0, most: int = WHOLE) -> int:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not least <= value <= most:
            raise self.wrong(name, f"a whole number of at least {least}" + (f", at most {most}" if most < WHOLE else ""))
        return int(value)

    def number(self, name: str, default: float | None = 0.0, least: float = -math.inf, most: float = math.inf) -> float | None:
        """A finite number; an array of NumPy's with a single one will do."""
        value = self.values.get(name)
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.item()
        if value is None:
            return default
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        if not is_number or not least <= value <= most:
            limits = f" between {least:g} and {most:g}" if least > -math.inf or most < math.inf else ""
            raise self.wrong(name, f"a finite number{limits}")
        return float(value)

    def items(self, name: str) -> "Fields":
        """A list's elements as fields `name[0]`, `name[1]`, ...; none if it is missing."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, list | tuple):
            raise self.wrong(name, "a list")
        return Fields({f"{name}[{i}]": item for i, item in enumerate(value or ())}, self.origin, self.where)

    def lines(self, name: str) -> list[str]:
        """A list of texts of one line; [] if it is missing."""
        items = self.items(name).required("a text")
        return [items.line(key) for key in items.values]

    def floats(self, name: str, least: float = -math.inf, most: float = math.inf) -> list[float]:
        """A list of finite numbers; [] if it is missing."""
        items = self.items(name).required("a finite number")
        return [items.number(key, least=least, most=most) for key in items.values]

    def required(self, wanted: str, *names: str) -> "Fields":
        """Itself; UserError where one of `names`, or of all its values where none are named, is missing."""
        for name in names or self.values:
            if name not in self:
                raise self.wrong(name, wanted)
        return self

    def fields(self, name: str) -> "Fields":
        """A dict with names as keys; an empty one if it is missing."""
        value = self.values.get(name)
        return Fields.of({} if value is None else value, self.origin, f"{self.where}{name}.")

    def tensors(self, name: str) -> dict[str, Tensor]:
        """A state dict: every value is a tensor that can be copied into a network's."""
        inner = self.fields(name)
        return {key: inner.tensor(key) for key in inner.values}

    def tensor(self, name: str) -> Tensor:
        value = self.values.get(name)
        if not is_plain(value):
            raise self.wrong(name, "a tensor of real numbers")
        return value


def is_plain(value: Any) -> bool:
    """Whether it is a tensor of real numbers that are there and lie in memory one by one: neither complex nor sparse,
    quantized by PyTorch's own means, or of the device `meta`, which has no values."""
    return (
        isinstance(value, Tensor) and value.layout == torch.strided and not value.is_complex() and not value.is_quantized
        and not value.is_nested and value.device.type == "cpu"
    )  # fmt: skip


def _unlike(value: Any, wanted: str) -> str:
    return f"is {described(value)}, but should be {wanted}: the file is damaged, or another program's"


def described(value: Any) -> str:
    """A value in a few words."""
    if value is None:
        return "missing"
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number of more than 64 bits"
    if isinstance(value, bool | numbers.Number):
        return str(value)[:40]
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    return f"a {type(value).__name__}"
