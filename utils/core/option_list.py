"""Lines `key=value`, comments, and keys given twice: what .cfg and .data files have in common, as Darknet reads them.

Facts of its reader: a line that begins with `#` or `;` is a comment; a key without value is left out; of a key that is
given twice the first counts.
"""

import re
from collections.abc import Iterator

from utils.core.errors import UserError, remark


def split_lines(text: str) -> list[str]:
    """Lines as files have them; str.splitlines knows other ends, too, which may stand in a path or a name."""
    return re.split(r"\r\n|\r|\n", text)


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of each line that is neither empty nor a comment."""
    for number, line in enumerate(split_lines(text), 1):
        if line.strip() and not line.lstrip().startswith(("#", ";")):
            yield number, line


def split_option(line: str, where: str) -> tuple[str, str]:
    """(key without spaces, what stands behind its `=`); UserError for a line that is none."""
    key, equals, value = line.partition("=")
    key = "".join(key.split())
    if not equals or not key:
        raise UserError.at(where, f"expected `key=value`, found: {line.strip()[:60]}")
    return key, value


class OptionList(dict[str, tuple[str, int]]):
    """key -> (value, line of the file), in the file's order."""

    def __init__(self, repeated: list[tuple[int, str]] | None = None) -> None:
        """repeated: takes (line, what) for each key that was given again, with another value."""
        super().__init__()
        self.repeated = [] if repeated is None else repeated

    def add(self, key: str, value: str, line: int) -> None:
        """Keep an option that has a value, unless the key has one."""
        if not value:
            return
        first, place = self.setdefault(key, (value, line))
        if first != value:
            given = f"{key}={first[:40]} stands in line {place} already"
            self.repeated.append((line, f"{key}={value[:40]} is left out: {given}, and the first counts, as in Darknet"))


def remark_repeated(name: str, repeated: list[tuple[int, str]]) -> None:
    """Say in one line what OptionList.add left out in the file `name`."""
    if repeated:
        more = f" (and {len(repeated) - 1} more)" if len(repeated) > 1 else ""
        line, what = repeated[0]
        remark(f"{what}{more}", f"{name}:{line}")
