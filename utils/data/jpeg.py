"""What the markers of a JPEG say (ITU T.81, annex B), without decoding it."""

import re
import struct
from typing import NamedTuple

import numpy as np

from utils.data.images import JPEG_END, decode, libraries_silenced

_SOF = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive: of Huffman coding, the only one that all decoders know
_OTHER_SOF = frozenset({*range(0xC3, 0xD0)} - {0xC4, 0xC8, 0xCC})
_DRI, _SOS, _APP1 = 0xDD, 0xDA, 0xE1
_LONGEST = 65500  # pixels of a side that libjpeg takes
_MARKER = re.compile(b"\xff[^\x00\xd0-\xd7\xff]")  # after entropy-coded data, which has FF 00 and restart markers in it
_RESTART = re.compile(b"\xff([\xd0-\xd7])")
_FILLERS = [row.tobytes() for row in np.random.default_rng(0).integers(0, 0xFF, (4, 256), np.uint8)]  # no marker in them


class Header(NamedTuple):
    """`height` and `width` as stored, the APP1 segments (EXIF, XMP) before the first scan, the numbers of the components,
    whether the data has restart markers, and where the first scan's header begins."""

    height: int
    width: int
    metadata: bytes
    components: tuple[int, ...]
    restarts: bool
    scan: int


def read_header(data: bytes) -> Header | None:
    """Walk the segments to the first scan; None where only a decoder can say what it makes of them.

    Raises IndexError or struct.error where the data ends before that.
    """
    at, frame, metadata, restarts = 2, None, b"", False
    while True:
        if data[at] != 0xFF:
            return None
        code = data[at + 1]
        if code == 0xFF:  # fill bytes may stand before a marker
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if code < 0xC0 or 0xD0 <= code <= 0xD9 or code in _OTHER_SOF or length < 2 or (code in _SOF and frame):
            return None
        if code in _SOF:
            frame = _read_frame(data, at + 4, length)
            if frame is None:
                return None
        elif code == _APP1:
            metadata += data[at : at + 2 + length]
        elif code == _DRI:
            restarts = data[at + 4 : at + 6] != b"\0\0"
        elif code == _SOS:
            return Header(*frame[:2], metadata, frame[2], restarts, at) if frame else None
        at += 2 + length


def _read_frame(data: bytes, at: int, length: int) -> tuple[int, int, tuple[int, ...]] | None:
    """(height, width, numbers of the components); None for what libjpeg would refuse, or read otherwise."""
    precision, height, width, count = struct.unpack_from(">BHHB", data, at)
    if precision != 8 or count not in (1, 3, 4) or length != 8 + 3 * count or min(height, width) < 1:
        return None
    parts = [(data[i], data[i + 1] >> 4, data[i + 1] & 15) for i in range(at + 6, at + 6 + 3 * count, 3)]
    if max(height, width) > _LONGEST or any(not (1 <= h <= 4 and 1 <= v <= 4) for _, h, v in parts):
        return None
    return height, width, tuple(number for number, _, _ in parts)


def is_whole(data: bytes, header: Header) -> bool:
    """Is all of the image in the data, whose end mark is missing?

    What a decoder misses it takes from the bytes that follow. So it must give one and the same image whatever they are:
    nothing, several lots of random bytes, and those after one more restart marker, if the data has such.
    """
    if not _has_all_scans(data, header):
        return False
    data = data.rstrip(b"\xff")
    fillers = [b"", *_FILLERS]
    if header.restarts:
        seen = _RESTART.findall(data, header.scan)
        following = bytes([0xFF, 0xD0 + (seen[-1][0] + 1) % 8 if seen else 0xD0])
        fillers += [following + filler for filler in _FILLERS]
    with libraries_silenced():  # libjpeg would complain of each
        first, *others = (decode(data + filler + JPEG_END)[0] for filler in fillers)
    return first is not None and all(np.array_equal(first, other) for other in others)


def _has_all_scans(data: bytes, header: Header) -> bool:
    """Do the scans give every coefficient of every component all of its bits? Those of a progressive JPEG come in turns."""
    missing = {number: [1] * 64 for number in header.components}
    at: int | None = header.scan
    try:
        while at is not None:
            (length,) = struct.unpack_from(">H", data, at + 2)
            if data[at + 1] == _SOS:
                count = data[at + 4]
                first, last, bits = data[at + 5 + 2 * count : at + 8 + 2 * count]
                for number in data[at + 5 : at + 5 + 2 * count : 2]:
                    missing[number][first : last + 1] = [bits & 15] * (last + 1 - first)
            found = _MARKER.search(data, at + 2 + length)
            at = found.start() if found else None
    except (struct.error, IndexError, ValueError, KeyError):  # the data ends in a header
        return False
    return not any(map(any, missing.values()))
