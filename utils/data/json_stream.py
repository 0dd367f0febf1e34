"""Annotation files of gigabytes, an object at a time.

json.load needs seven times a file's size of memory (551 MiB for 83 MB of COCO annotations, 19 MiB here) and a third more time,
and does not refuse a key that stands there twice, of which it keeps the last one.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from utils.core.errors import UserError
from utils.core.files import read_text

_CHUNK = 1 << 20
_SPACE = " \t\r\n"
_MARGIN = 32  # characters: nearer to the end of what has been read, an error may be due to what hasn't


class JsonStream:
    """Iterate over (key, number, item) of a JSON file without ever holding it whole.

    A list at the top gives ("", 0, first item), ("", 1, second item), ...; an object gives the same for each of its values
    that is a list, and (key, -1, value) for each other one. Afterwards `keys` has the keys that were there, "" for a list.
    The file is in UTF-8, UTF-16 or UTF-32, as RFC 8259 and its predecessors allow. Raises UserError naming file and line
    where it isn't JSON, nests too deeply for Python, or has a key at the top twice, of which other programs see one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.keys = path, set[str]()
        self._text, self._at, self._line, self._ended = "", 0, 1, False
        self._decode = json.JSONDecoder().raw_decode

    def __iter__(self) -> Iterator[tuple[str, int, Any]]:
        try:
            with open(self.path, encoding=self._encoding()) as self._file:
                yield from self._top()
        except UnicodeError:
            read_text(self.path, "annotation file")  # which says what encoding it seems to be
            raise UserError.at(self.path, "this is not a text file, so it is no annotation file") from None
        except OSError as error:
            raise UserError.at(self.path, f"this annotation file cannot be read ({error.strerror})") from None

    def _encoding(self) -> str:
        with open(self.path, "rb") as file:
            return "utf-8-sig" if (found := json.detect_encoding(file.read(4))) == "utf-8" else found

    def _top(self) -> Iterator[tuple[str, int, Any]]:
        if self._next_is("["):
            self.keys.add("")
            yield from self._items("")
        else:
            self._expect("{")
            while not self._next_is("}"):
                yield from self._member()
                if not self._next_is(","):
                    self._expect("}")
                    break
        if self._peek():
            self._fail("Extra data", self._at)

    def _member(self) -> Iterator[tuple[str, int, Any]]:
        if self._peek() != '"':
            self._fail("Expecting property name enclosed in double quotes", self._at)
        key, start = self._value(), self._at
        if key in self.keys:
            self._fail(f"{key!r} stands in it twice", start)
        self._expect(":")
        self.keys.add(key)
        if self._next_is("["):
            yield from self._items(key)
        else:
            yield key, -1, self._value()

    def _items(self, key: str) -> Iterator[tuple[str, int, Any]]:
        """The items of a list whose bracket has been read."""
        if self._next_is("]"):
            return
        number = 0
        while True:
            yield key, number, self._value()
            number += 1
            if self._next_is("]"):
                return
            self._expect(",")

    def _value(self) -> Any:
        """Decode one value. Where it fails near the end of what has been read, read more and try again."""
        self._peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _MARGIN
                if not cut or self._ended:
                    self._fail(error.msg, error.pos)
            except RecursionError:
                self._fail("it nests too deeply", self._at)
            except ValueError as error:  # a number of thousands of digits
                self._fail(str(error).partition(";")[0], self._at)
            else:
                if end < len(self._text) or self._ended:  # a number may go on in the next chunk
                    self._at = end
                    return value
            self._fill()

    def _fill(self) -> None:
        """Drop what has been decoded and read on: at least as much again as is left, so that long values cost no squares."""
        self._line += self._text.count("\n", 0, self._at)
        rest = self._text[self._at :]
        more = self._file.read(max(_CHUNK, len(rest)))
        self._ended = not more
        self._text, self._at = rest + more, 0

    def _peek(self) -> str:
        """The next character that isn't space, which becomes the current one; "" at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if self._ended:
                return ""
            self._fill()

    def _next_is(self, character: str) -> bool:
        """Skip `character` if it comes next."""
        found = self._peek() == character
        self._at += found
        return found

    def _expect(self, character: str) -> None:
        if not self._next_is(character):
            self._fail(f"Expecting {character!r}", self._at)

    def _fail(self, message: str, position: int) -> NoReturn:
        line = self._line + self._text.count("\n", 0, position)
        raise UserError.at(f"{self.path}:{line}", f"not valid JSON ({message}); was it copied completely?") from None
