"""The one reader and writer of image files, and names of files for libraries that know no bytes but UTF-8.

Python opens the files and OpenCV sees their bytes only: a name that isn't UTF-8 would end the process in OpenCV.
"""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from utils.core.errors import UserError
from utils.core.files import replacing

FEWER_BITS = {8: "16-bit image holding 8 bits, read as 8", 12: "16-bit image holding 12 bits, read as 12"}
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"

_stderr = threading.RLock()  # there is one for all threads

# what OpenCV's decoders warn of would stand among our own lines, which say what matters
_silence = cv2.utils.logging.setLogLevel if hasattr(cv2.utils, "logging") else cv2.setLogLevel  # moved between 4.12 and 4.14
_silence(0)


def read_picture(path: str | Path, gray: bool = False) -> np.ndarray | None:
    """(height, width, 3) BGR uint8, or (height, width) if `gray`, as `decode` gives it; None where OpenCV can't read it."""
    try:
        data = Path(path).read_bytes()
    except OSError:
        return None
    return decode(data, gray)[0]


def decode(data: bytes, gray: bool = False) -> tuple[np.ndarray | None, str]:
    """(what cv2.imread would return for a file of these bytes, EXIF orientation applied; a remark on it, mostly empty).

    16 bits a sample that hold fewer, as cameras and thermographs write them, would become nearly black as OpenCV keeps the
    upper eight: where no sample reaches 4096 they are taken as 12 bits, where none reaches 256 as 8.
    """
    flags = cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR
    is_jpeg = data.startswith(JPEG_START)
    if is_jpeg and not data.endswith(JPEG_END):
        data += JPEG_END  # in a file's place OpenCV's reader adds it, in memory's it gives up
    image = _decoded(data, flags)
    if image is None or is_jpeg or image.max(initial=0) > 4096 >> 8:
        return image, ""
    deep = _decoded(data, flags | cv2.IMREAD_ANYDEPTH)
    if deep is None or deep.dtype != np.uint16 or not 0 < deep.max() < 4096:
        return image, ""
    bits = 8 if deep.max() < 256 else 12
    return (deep >> bits - 8).astype(np.uint8), FEWER_BITS[bits]


def _decoded(data: bytes, flags: int) -> np.ndarray | None:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # no bytes, or more pixels than OpenCV's limit
        return None
    channels = 3 if flags & cv2.IMREAD_COLOR else 1
    if image is None or image[:1, :1].size == channels:
        return image
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if channels == 3 else cv2.COLOR_BGR2GRAY)  # PFM's reader asks no flag


def write_picture(path: str | Path, image: np.ndarray, options: Sequence[int] = ()) -> None:
    """Write BGR or gray uint8 in the format of the name's suffix, whole or not at all; options: as cv2.imwrite takes them.

    Raises UserError where that isn't possible.
    """
    try:
        suffix = os.path.splitext(path)[1].lower()
        encoded, data = cv2.imencode(".jpg" if suffix == ".jfif" else suffix, image, list(options))
    except cv2.error:
        encoded = False
    if not encoded:
        raise UserError(f"{path}: OpenCV cannot write an image of {image.shape[1]}x{image.shape[0]} pixels in this format")
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def openable(path: str | Path) -> Iterator[str]:
    """A name of an existing file that libraries written in C can open, too: its own, or a link's if that isn't UTF-8."""
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        suffix = os.path.splitext(name)[1]
        with tempfile.TemporaryDirectory() as folder:
            link = os.path.join(folder, "file" + (suffix if suffix.isascii() else ""))
            os.symlink(os.path.abspath(name), link)
            yield link
    else:
        yield name


@contextlib.contextmanager
def libraries_silenced(said: int | None = None) -> Iterator[None]:
    """Keep what the libraries in OpenCV write to stderr away from the user, who gets our own line instead; said: descriptor
    of a file that takes it."""
    with _stderr, open(os.devnull, "wb") as nothing:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(nothing.fileno() if said is None else said, 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
