"""Properties that hold for any input: how often they are tried, and inputs that are nearly right.

The same examples every time, so that a test fails for a change of the program alone.
"""

import re
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

QUICK = settings(
    max_examples=100, deadline=None, derandomize=True, database=None, print_blob=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
THOROUGH = settings(QUICK, max_examples=1000)

# What readers of numbers, and of lines and names, stumble over.
NUMBERS = ("", "-1", "0", "1", "2.5", "nan", "inf", "1e999", "99999999", "9" * 30, "1_0", "²")
PIECES = (
    "", "=", ",", "[", "]", "#", ";", " ", "\t", "\n", "\r", "\0", "\u2028", "\ufeff", "é", "<", "&", "net", "yolo",
)  # fmt: skip
_NUMBERS, _PIECES = (st.sampled_from(texts).map(str.encode) for texts in (NUMBERS, PIECES))


def always(strategy: st.SearchStrategy, holds: Callable[[Any], None], profile: settings) -> None:
    """Try `holds` on examples of the strategy; raises what it raises, for the smallest example that was found."""
    profile(given(strategy)(holds))()


@st.composite
def mutated(draw: st.DrawFn, *valid: bytes) -> bytes:
    """One of the `valid` files with up to five mistakes: lines gone, copied or moved, other numbers, words and bytes."""
    data = draw(st.sampled_from(valid))
    for change in draw(st.lists(st.sampled_from((_number, _number, _word, _lines, _bytes)), min_size=1, max_size=5)):
        data = change(draw, data)
    return data


def _lines(draw: st.DrawFn, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    if not lines:
        return data
    at, other = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
    rest = lines if draw(st.booleans()) else lines[:at] + lines[at + 1 :]
    return b"".join([*rest[:other], lines[at], *rest[other:]] if draw(st.booleans()) else rest)


def _number(draw: st.DrawFn, data: bytes) -> bytes:
    return _with_other(draw, data, rb"-?[0-9][0-9.]*", _NUMBERS)


def _word(draw: st.DrawFn, data: bytes) -> bytes:
    return _with_other(draw, data, rb"[\w.+-]+", _PIECES)


def _with_other(draw: st.DrawFn, data: bytes, pattern: bytes, pieces: st.SearchStrategy[bytes]) -> bytes:
    """One of the pieces in place of something that fits the pattern."""
    places = list(re.finditer(pattern, data))
    if not places:
        return data
    place = draw(st.sampled_from(places))
    return data[: place.start()] + draw(pieces) + data[place.end() :]


def _bytes(draw: st.DrawFn, data: bytes) -> bytes:
    start, length = draw(st.integers(0, len(data))), draw(st.sampled_from((0, 1, 2, 5, len(data))))
    return data[:start] + draw(st.one_of(st.binary(max_size=4), _PIECES)) + data[start + length :]


def nearly(*valid: bytes) -> st.SearchStrategy[bytes]:
    """Mostly files that are nearly right, and some of any bytes."""
    return st.one_of(mutated(*valid), mutated(*valid), mutated(*valid), st.binary(max_size=200))
