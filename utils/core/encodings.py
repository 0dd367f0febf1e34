"""Bytes of text files -> text: UTF-8, UTF-16 and UTF-32 are read; of other encodings the likely one is named."""

import codecs
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# The longer marks first: that of UTF-32 begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip


class Alphabet(NamedTuple):
    """An encoding and the letters that texts in it are made of; common: how often it is met, as a logarithm."""

    codec: str
    letters: str  # a regular expression
    size: int  # how many there are
    common: float = 0.0


def _rows(codec: str, first: int, last: int) -> str:
    """The characters whose first byte lies in first..last, where such standards put those that are in daily use."""
    pairs = (bytes((lead, trail)) for lead in range(first, last + 1) for trail in range(0x40, 0xFF))
    letters = (pair.decode(codec, "ignore") for pair in pairs)
    return "[" + "".join(letter for letter in letters if letter > "\x7f") + "]"


def _alphabets() -> Iterator[Alphabet]:
    """Rows: GB 2312 level 1, JIS X 0208 level 1, KS X 1001's syllables, Big5 level 1."""
    kanji = f"[ぁ-ゖァ-ー]|{_rows('euc_jp', 0xB0, 0xCF)}"
    yield Alphabet("gbk", _rows("gb2312", 0xB0, 0xD7), 3755, common=1.5)
    yield Alphabet("shift_jis", kanji, 1500)  # half of a text is kana
    yield Alphabet("euc_jp", kanji, 1500, common=-6)
    yield Alphabet("euc_kr", _rows("euc_kr", 0xB0, 0xC8), 2350)
    yield Alphabet("big5", _rows("big5", 0xA4, 0xC6), 5401)
    yield Alphabet("windows-1251", "(?<![A-Za-z])[\u0410-\u044f\u0401\u0451]{2,}(?![A-Za-z])", 66)
    yield Alphabet("windows-1252", "(?<![^\0-\x7f])[À-ÖØ-öø-ÿŒœŠšŽž]{1,2}(?![^\0-\x7f])|[\u2018-\u201d\u2013°²]", 66)


def likely_encoding(data: bytes) -> str | None:
    """The encoding in which `data`, which is no UTF-8, reads most like words; None when it does in none.

    Each reading is as likely as its characters are, which all letters of the alphabet are alike, and others hardly.

    >>> likely_encoding("行人".encode("gbk")), likely_encoding("собака".encode("cp1251"))
    ('gbk', 'windows-1251')
    """
    if any(byte < 32 and byte not in b"\t\n\f\r" for byte in data):
        return None
    found: dict[str, float] = {}
    for codec, letters, size, common in _alphabets():
        try:
            text = data.decode(codec)
        except UnicodeDecodeError:
            continue
        foreign = sum(char > "\x7f" for char in text)
        known = sum(len(word) for word in re.findall(letters, text))
        if 2 * known > foreign:
            found[codec] = common - known * math.log(size) - (foreign - known) * math.log(1e6)
    return max(found, key=found.__getitem__, default=None)


class UnknownEncoding(ValueError):
    """Bytes that are neither UTF-8 nor marked as something else. line: where they begin, counted from 1; encoding: the
    likely one, None where they are no text at all; sample: how that line begins in it."""

    def __init__(self, line: int, encoding: str | None, sample: str) -> None:
        super().__init__(f"line {line} isn't UTF-8")
        self.line, self.encoding, self.sample = line, encoding, sample


def decode(data: bytes, comments: str = "", *, paths: bool = False) -> str:
    """The text of `data`, with `\\n` between lines whatever stood there.

    comments: characters that begin a comment, which may be in any encoding: what isn't UTF-8 in it is replaced. paths:
    lines are names of files, which are bytes: what isn't UTF-8 stays as Python keeps such names (surrogateescape).
    Raises UnknownEncoding.
    """
    mark = next((m for m in MARKS if data.startswith(m)), None)
    encoding = MARKS[mark] if mark else _unmarked_utf16(data) or "utf-8"
    try:
        text = data.decode(encoding, "surrogateescape" if paths and encoding.startswith("utf-8") else "strict")
    except UnicodeDecodeError:
        if not encoding.startswith("utf-8"):
            raise UnknownEncoding(1, None, "") from None
        text = _line_by_line(data, comments)
    if "\0" in text:
        raise UnknownEncoding(1, None, "")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _unmarked_utf16(data: bytes) -> str | None:
    """The byte order of UTF-16 without a mark: most of the higher bytes are 0, as those of Latin letters and ends of
    lines, and none of the lower."""
    for higher, lower, encoding in ((data[1::2], data[::2], "utf-16-le"), (data[::2], data[1::2], "utf-16-be")):
        if len(higher) == len(lower) and 2 * higher.count(0) > len(higher) and 0 not in lower and b"\n" not in higher:
            return encoding
    return None


def _line_by_line(data: bytes, comments: str) -> str:
    start = re.compile(b"[" + re.escape(comments.encode()) + b"]" if comments else b"$")
    text = []
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).splitlines(keepends=True), 1):
        comment = start.search(line)
        end = comment.start() if comment else len(line)
        try:
            text.append(line[:end].decode("utf-8"))
        except UnicodeDecodeError:
            encoding = likely_encoding(data)
            raise UnknownEncoding(number, encoding, line.decode(encoding).strip() if encoding else "") from None
        text.append(line[end:].decode("utf-8", "replace"))
    return "".join(text)
