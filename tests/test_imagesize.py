"""utils.imagesize against what OpenCV reads."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.imagesize import image_size


def write_image(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def oriented(path: Path, orientation: int, order: str) -> Path:
    """Put an EXIF orientation into a JPEG file: one TIFF entry, tag 0x0112, type SHORT, count 1."""
    tiff = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIHHHIHHI", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    segment = b"Exif\0\0" + tiff
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:])
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tiff", "ppm"])
def test_image_size(tmp_path, suffix):
    assert image_size(write_image(tmp_path / f"a.{suffix}", np.zeros((33, 57, 3), np.uint8))) == (33, 57)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_size_is_what_opencv_reads(tmp_path, orientation, order):
    path = oriented(write_image(tmp_path / "a.jpg", np.zeros((33, 57, 3), np.uint8)), orientation, order)
    assert image_size(path) == cv2.imread(str(path)).shape[:2]
    assert image_size(path) == ((33, 57) if orientation < 5 else (57, 33))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_image_that_was_cut_short(tmp_path, suffix):
    path = write_image(tmp_path / f"a.{suffix}", np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8))
    data = path.read_bytes()
    for length in (0, 2, 10, 30, len(data) // 2):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cut short|not a"):
            image_size(path)
    path.write_bytes(data + bytes(3000))  # padding behind a picture is no reason to refuse it
    assert image_size(path) == (99, 99)


def test_image_size_of_no_picture(tmp_path):
    (tmp_path / "a.jpg").write_text("hello")
    with pytest.raises(ValueError, match="not a picture"):
        image_size(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="No such file"):
        image_size(tmp_path / "b.jpg")
