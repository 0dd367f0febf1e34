"""utils.data.images: what is read and written under any name, and 16-bit images that hold fewer bits."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

import check
from tests.data.test_image_size import picture as drawn
from tests.data.test_image_size import pillow
from utils.core.errors import UserError
from utils.data.image_size import measure
from utils.data.images import FEWER_BITS, decode, openable, read_picture, write_picture
from utils.data.labels import Problems, image_paths
from utils.data.sources import Frames, find_items, open_writer

NAMES = ["红".encode("gbk"), "é".encode("latin-1"), "红".encode(), b"a b", b"\xff\xfe"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_written_and_read(tmp_path: Path, name: bytes) -> None:
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    path = folder / os.fsdecode(name + b".png")
    write_picture(path, drawn())
    assert np.array_equal(read_picture(path), drawn())
    assert measure(path) == (*drawn().shape[:2], "")
    assert image_paths(folder, Problems()) == [str(path)]
    (frame,) = Frames(find_items(str(path))).read(find_items(str(path))[0])
    assert np.array_equal(frame.image, drawn())


@pytest.mark.parametrize("name", NAMES)
def test_videos_of_any_name(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name + b".avi")
    path.touch()
    writer = open_writer(path, "MJPG", 10.0, (64, 48))
    for value in (0, 100, 200):
        writer.write(np.full((48, 64, 3), value, np.uint8))
    writer.release()
    items = find_items(str(path))
    assert [round(f.image.mean() / 100) for f in Frames(items).read(items[0])] == [0, 1, 2]


@pytest.mark.parametrize("channels", [1, 3])
def test_pfm_has_the_channels_that_are_asked_for(channels: int) -> None:
    """OpenCV's reader of this format gives what the file has."""
    size = (4, 6, 3)[: 2 + channels // 2]
    data = cv2.imencode(".pfm", np.random.default_rng(0).uniform(0, 255, size).astype(np.float32))[1].tobytes()
    assert decode(data)[0].shape == (4, 6, 3)
    assert decode(data, gray=True)[0].shape == (4, 6)


def test_a_name_that_is_utf8_is_opened_itself(tmp_path: Path) -> None:
    with openable(tmp_path / "红") as name:
        assert name == str(tmp_path / "红")
    with openable(tmp_path / os.fsdecode(b"\xff.avi")) as name:
        assert name.isascii()
        assert name.endswith(".avi")
    assert not os.path.lexists(name)


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")]
    + [("TIFF", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")]
    + [("JPEG", mode) for mode in ("L", "RGB", "CMYK")],
)
def test_the_same_as_opencvs_own_reading(tmp_path: Path, kind: str, mode: str, gray: bool) -> None:
    (tmp_path / "a").write_bytes(pillow(kind, mode))
    expected = cv2.imread(str(tmp_path / "a"), cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR)
    assert np.array_equal(read_picture(tmp_path / "a", gray), expected)


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm"])
@pytest.mark.parametrize(("bits", "read_as"), [(8, 8), (12, 12), (13, 16), (16, 16)])
def test_sixteen_bits_that_hold_fewer(tmp_path: Path, suffix: str, bits: int, read_as: int) -> None:
    samples = (np.arange(64, dtype=np.uint32).reshape(8, 8) * ((1 << bits) - 1) // 63).astype(np.uint16)
    path = tmp_path / f"a{suffix}"
    assert cv2.imwrite(str(path), samples)
    expected = (samples >> (read_as - 8)).astype(np.uint8)
    assert np.array_equal(read_picture(path, gray=True), expected)
    assert np.array_equal(read_picture(path), np.dstack([expected] * 3))
    assert measure(path) == (8, 8, FEWER_BITS.get(read_as, ""))


def test_dark_pictures_of_eight_bits_stay_dark() -> None:
    dark = np.full((8, 8, 3), 9, np.uint8)
    image, remark = decode(cv2.imencode(".png", dark)[1].tobytes())
    assert np.array_equal(image, dark)
    assert remark == ""


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.webp: OpenCV cannot write an image of 20000x1 pixels in this format"):
        write_picture(tmp_path / "a.webp", np.zeros((1, 20000, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_a_set_with_names_of_bytes_is_checked_and_cleaned(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode("红".encode("gbk"))
    for split in ("train", "valid"):
        write_picture(tmp_path / split / "images" / f"{name}.png", drawn() // (1 if split == "train" else 2))
        (tmp_path / split / "labels").mkdir()
        (tmp_path / split / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
        (tmp_path / f"{split}.txt").write_bytes(os.fsencode(f"{split}/images/{name}.png\n"))
    Path("x.data").write_text("classes=1\ntrain=train.txt\nvalid=valid.txt\n")
    report = check.main(check.get_parser().parse_args(["--data", "x.data", "--fix", "--workers", "1"]))
    assert report["fixed"]["counts"]["error"] == report["counts"]["error"] == 0
    (listed,) = (tmp_path / "x-clean" / "train.txt").read_bytes().splitlines()
    assert os.fsdecode(listed) in image_paths("x-clean/train.txt", Problems())
