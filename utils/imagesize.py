"""The size of a picture from the first bytes of its file, so that a large set can be looked through in seconds."""

import os
import struct
from pathlib import Path
from typing import BinaryIO

import cv2

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_END = b"\xff\xd9"
_TAIL = 4096


def is_image(path: str | Path) -> bool:
    """Does the name end as a picture's does?"""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) in pixels of what cv2.imread would return, EXIF orientation applied.

    JPEG and PNG are read from their headers, everything else is decoded. Raises ValueError saying what is wrong with a
    file that is no picture, or that was cut short: OpenCV would decode the latter half gray and say nothing.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(len(_PNG))
            if head[:3] == b"\xff\xd8\xff":
                size = _jpeg_size(file)
            elif head == _PNG:
                size = _png_size(file) or _decoded_size(path)
            else:
                size = _decoded_size(path)
    except (OSError, struct.error) as error:
        raise ValueError(getattr(error, "strerror", None) or "cut short") from None
    if min(size) < 1:
        raise ValueError("a picture without pixels")
    return size


def _decoded_size(path: str | Path) -> tuple[int, int]:
    try:
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    except cv2.error:  # larger than OpenCV's limit, for one
        image = None
    if image is None:
        raise ValueError("not a picture that OpenCV can read")
    return image.shape[0], image.shape[1]


def _png_size(file: BinaryIO) -> tuple[int, int] | None:
    """None for a PNG with EXIF data, whose orientation OpenCV may apply."""
    head = file.read(1024)
    if head[4:8] != b"IHDR":
        raise ValueError("not a PNG picture inside")
    width, height = struct.unpack(">II", head[8:16])
    if b"IEND" not in _tail(file):
        raise ValueError("cut short")
    return None if b"eXIf" in head else (height, width)


def _jpeg_size(file: BinaryIO) -> tuple[int, int]:
    """Walk the segments of a JPEG (ITU T.81, B.1) to its frame header."""
    file.seek(2)
    turned = False
    while True:
        marker = file.read(2)
        while marker[1:] == b"\xff":  # fill bytes may stand before a marker
            marker = marker[1:] + file.read(1)
        if len(marker) < 2 or marker[0] != 0xFF:
            raise ValueError("not a JPEG picture inside")
        (length,) = struct.unpack(">H", file.read(2))
        code = marker[1]
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            _, height, width = struct.unpack(">BHH", file.read(5))
            break
        if code == 0xE1:
            turned = turned or _is_turned(file.read(length - 2))
        else:
            file.seek(length - 2, os.SEEK_CUR)
    frame = file.tell()  # whatever an EXIF thumbnail ends with lies before it
    if _JPEG_END not in _tail(file, frame):
        file.seek(frame)
        if _JPEG_END not in file.read():  # some cameras append kilobytes of their own
            raise ValueError("cut short")
    return (width, height) if turned else (height, width)


def _is_turned(segment: bytes) -> bool:
    """Does this APP1 segment hold an EXIF orientation (TIFF tag 0x0112) that swaps width and height (5 to 8)?"""
    if segment[:6] != b"Exif\0\0" or segment[6:8] not in (b"II", b"MM"):
        return False
    tiff, order = segment[6:], "<" if segment[6:8] == b"II" else ">"
    try:
        (offset,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, offset)
        for entry in range(offset + 2, offset + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == 0x0112:
                return 5 <= value <= 8
    except struct.error:  # broken EXIF data: OpenCV ignores it too
        pass
    return False


def _tail(file: BinaryIO, start: int = 0) -> bytes:
    """The last bytes of a file, none before `start`."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(start, end - _TAIL))
    return file.read()
