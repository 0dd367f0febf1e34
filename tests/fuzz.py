"""Properties that hold for any input: how often they are tried, and inputs that are nearly right.

The same examples every time, so that a test fails for a change of the program alone.
"""

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

QUICK = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, print_blob=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
THOROUGH = settings(QUICK, max_examples=1000)

# What readers of numbers, lines and names stumble over.
PIECES = (
    "", "-1", "0", "1", "7", "2.5", "nan", "inf", "1e999", "99999999", "9" * 30, "1_0", "²", "=", ",", "[", "]", "#", ";", " ",
    "\t", "\n", "\r", "\0", "\u2028", "\ufeff", "é", "../", "/", "<", "&", "net", "yolo",
)  # fmt: skip


def always(strategy: st.SearchStrategy, holds: Callable[[Any], None], profile: settings) -> None:
    """Try `holds` on examples of the strategy; raises what it raises, for the smallest example that was found."""
    profile(given(strategy)(holds))()


@st.composite
def mutated(draw: st.DrawFn, *valid: bytes) -> bytes:
    """One of the `valid` files with up to six mistakes: other bytes or values, lines that are gone, copied or moved."""
    lines = draw(st.sampled_from(valid)).splitlines(keepends=True)
    for _ in range(draw(st.integers(0, 3))):
        lines = _other_lines(draw, lines)
    data = b"".join(lines)
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from((0, 0, 1, 2, 5, len(data))))
        data = data[:start] + draw(st.one_of(st.binary(max_size=4), _pieces())) + data[start + length :]
    return data


def _pieces() -> st.SearchStrategy[bytes]:
    return st.sampled_from(PIECES).map(str.encode)


def _other_lines(draw: st.DrawFn, lines: list[bytes]) -> list[bytes]:
    if not lines:
        return lines
    at, other = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
    what = draw(st.sampled_from(("gone", "copied", "moved", "changed", "changed", "changed")))
    if what == "gone":
        return lines[:at] + lines[at + 1 :]
    if what == "changed":
        key, equals, _ = lines[at].partition(b"=")
        words = key.split(b" ") if not equals else [key]
        changed = key + equals + draw(_pieces()) + b"\n" if equals else b" ".join([*words[:-1], draw(_pieces())]) + b"\n"
        return [*lines[:at], changed, *lines[at + 1 :]]
    rest = lines if what == "copied" else lines[:at] + lines[at + 1 :]
    return [*rest[:other], lines[at], *rest[other:]]


def nearly(*valid: bytes) -> st.SearchStrategy[bytes]:
    """Mostly files that are nearly right, and some of any bytes."""
    return st.one_of(mutated(*valid), mutated(*valid), mutated(*valid), st.binary(max_size=200))
