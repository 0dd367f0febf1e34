"""The text of a .cfg's value -> number, list or name.

Darknet reads numbers with C's atoi and atof, which stop where they understand no more: 2.5 filters are 2, and 0x20 are 0.
What both would read as the same is accepted here, the rest is refused rather than read as another network.
"""

import math
import re
import types
import typing
from typing import Any

from utils.core.errors import remark

_WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_GAP = re.compile(r"[0-9.]\s+[-+.0-9]")
LARGEST = 2**31 - 1  # of Darknet's integers
# What other programs call an activation; Darknet takes relu for a name that it doesn't know.
SYNONYMS = {"activation": {"none": "linear", "silu": "swish", "sigmoid": "logistic"}}


def convert(key: str, text: str, kind: Any, place: str) -> Any:
    """The value of `key` as `kind`: int, float, str, a tuple of numbers, or one of them or None.

    Raises ValueError that says what is wrong with it. What isn't read as it stands is remarked upon, with `place` in front.
    """
    if isinstance(kind, types.UnionType):
        kind = typing.get_args(kind)[0]
    if kind is str:
        return _name(key, text, place)
    if _GAP.search(text):
        raise ValueError("needs commas between its numbers; Darknet would read them as one")
    if typing.get_origin(kind) is tuple:
        return _numbers(text, typing.get_args(kind)[0], place)
    return _number(text.rstrip(", \t"), kind)


def _name(key: str, text: str, place: str) -> str:
    written = "".join(text.split())
    name = SYNONYMS.get(key, {}).get(written.lower(), written.lower())
    if name != written:
        remark(f"read as {name}; Darknet doesn't know this spelling", place)
    return name


def _numbers(text: str, kind: type, place: str) -> tuple[int | float, ...]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        remark("has a comma too many, which is left out; Darknet may read a 0 there", place)
    return tuple(_number(item, kind) for item in items if item)


def _number(text: str, kind: type) -> int | float:
    if kind is int:
        if not _WHOLE.fullmatch(text):
            raise ValueError("not a value of type int")
        value = int(text.partition(".")[0])
        if abs(value) > LARGEST:
            raise ValueError(f"is more than {LARGEST}")
        return value
    if not _DECIMAL.fullmatch(text) or not math.isfinite(float(text)):
        raise ValueError(f"not a value of type {kind.__name__}")
    return float(text)
