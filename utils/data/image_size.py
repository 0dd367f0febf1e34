"""The size of an image from the first bytes of its file, so that a large set can be looked through in seconds.

Pillow's reading of headers takes a third longer, and sees neither that a file was cut short nor which EXIF blocks OpenCV obeys.
"""

import functools
import io
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np

from utils.data import jpeg
from utils.data.images import JPEG_END, JPEG_START, decode

NO_END = "JPEG without end mark, otherwise whole"
_PNG = b"\x89PNG\r\n\x1a\n"
_HEAD, _TAIL = 1 << 12, 1 << 12  # bytes: of most files all that has to be read
_CHUNK = 1 << 14  # bytes: more than libpng puts into one chunk unless told otherwise
_THUMBNAIL = 1 << 17  # bytes: as far as EXIF data with a thumbnail and such reaches
_MOST = 1 << 30  # pixels that OpenCV decodes, unless told otherwise


class CutShortError(ValueError):
    """An image that ends before its pixels do."""

    def __init__(self, text: str = "cut short") -> None:
        super().__init__(text)


class Measured(NamedTuple):
    """What cv2.imread would return has `height` and `width` pixels; remark: how the file had to be understood, if worth a
    word (NO_END, or of utils.data.images.FEWER_BITS)."""

    height: int
    width: int
    remark: str = ""


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) as of `measure`, which raises ValueError."""
    return measure(path)[:2]


def measure(path: str | Path) -> Measured:
    """Measure an image as OpenCV reads it, EXIF orientation applied.

    JPEG and PNG are read from their headers where these leave no doubt, everything else is decoded. Raises ValueError saying
    what is wrong with a file that is no image, and CutShortError, which is one, for a file that was cut short: OpenCV would
    decode that half gray and say nothing.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(_HEAD)
            if head.startswith(JPEG_START):
                return _measure_jpeg(file, head)
            if head.startswith(_PNG):
                return _measure_png(file, head)
            return _measure_decoded(head + file.read())
    except OSError as error:
        raise ValueError(error.strerror or "cannot be read") from None


def _measure_decoded(data: bytes) -> Measured:
    image, remark = decode(data)
    if image is None:
        raise ValueError("not an image that OpenCV can read")
    return Measured(*image.shape[:2], remark)


def _measure_jpeg(file: BinaryIO, data: bytes) -> Measured:
    for more in (0, _THUMBNAIL, -1):
        data += file.read(more)
        try:
            header = jpeg.read_header(data)
            break
        except (IndexError, struct.error):
            pass
    else:
        raise CutShortError
    if header is None or header.height * header.width > _MOST:
        return _measure_decoded(data + file.read())
    remark = ""
    if JPEG_END not in _tail(file, data, header.scan):
        file.seek(header.scan)  # whatever an EXIF thumbnail ends with lies before it
        data = data[: header.scan] + file.read()
        if JPEG_END not in data[header.scan :]:  # some cameras append kilobytes of their own
            if not jpeg.is_whole(data, header):
                raise CutShortError
            remark = NO_END
    turned = bool(header.metadata) and _is_turned(header.metadata)
    return Measured(*(header[1::-1] if turned else header[:2]), remark)


def _is_turned(metadata: bytes) -> bool:
    """Does OpenCV swap the sides of a JPEG with these APP1 segments? It is asked with a small one: which of several EXIF
    blocks counts, and which broken ones, differs from version to version."""
    small = _small_jpeg()
    image, _ = decode(small[:2] + metadata + small[2:])
    return image is not None and image.shape[0] > image.shape[1]


@functools.cache
def _small_jpeg() -> bytes:
    """Wider than high."""
    return cv2.imencode(".jpg", np.zeros((1, 2), np.uint8))[1].tobytes()


def _measure_png(file: BinaryIO, head: bytes) -> Measured:
    """OpenCV has the last word on a PNG with EXIF data, whose orientation it may apply, with 16 bits, or with frames."""
    header = head[len(_PNG) : len(_PNG) + 25]  # length, type, 13 bytes, checksum (PNG specification, 5.3 and 11.2.2)
    if len(header) < 25:
        raise CutShortError
    width, height, bits = struct.unpack(">IIB", header[8:17])
    is_sound = header[4:8] == b"IHDR" and zlib.crc32(header[4:21]) == int.from_bytes(header[21:], "big")
    kinds = _png_chunks(file, head)
    if b"IEND" not in kinds:
        raise CutShortError
    if not is_sound or not 0 < width * height <= _MOST or bits == 16 or kinds & {b"eXIf", b"acTL"}:
        file.seek(0)
        return _measure_decoded(file.read())
    return Measured(height, width)


def _png_chunks(file: BinaryIO, head: bytes) -> set[bytes]:
    """The types of a PNG's chunks. Those of the pixels, IDAT, follow each other: what lies between one in the file's first
    bytes and one in its last need not be read."""
    kinds = _walk_chunks(io.BytesIO(head), len(_PNG))
    if b"IEND" in kinds:
        return kinds
    tail = _tail(file, head, len(_PNG), _CHUNK)
    last = tail.rfind(b"IDAT")
    if b"IDAT" in kinds and last >= 4:
        behind = _walk_chunks(io.BytesIO(tail), last - 4)
        if b"IEND" in behind:
            return kinds | behind
    return _walk_chunks(file, len(_PNG))


def _walk_chunks(file: BinaryIO, at: int) -> set[bytes]:
    """The types of the chunks from the place `at` on, to the last, or to where the file ends."""
    kinds: set[bytes] = set()
    while b"IEND" not in kinds:
        file.seek(at)
        start = file.read(8)
        if len(start) < 8 or not start[4:].isalpha():
            break
        kinds.add(start[4:])
        at += 12 + int.from_bytes(start[:4], "big")  # length, type, that many bytes, checksum
    return kinds


def _tail(file: BinaryIO, head: bytes, start: int, size: int = _TAIL) -> bytes:
    """The last bytes of a file that begins with `head`, none before `start`."""
    end = file.seek(0, os.SEEK_END)
    first = max(start, end - size)
    if end <= len(head):
        return head[first:]
    file.seek(first)
    return file.read()
