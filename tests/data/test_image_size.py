"""utils.data.image_size against what OpenCV reads: formats, orientations, and where files keep them."""

import contextlib
import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from utils.data import image_size as imagesize
from utils.data.image_size import NO_END, image_size, measure
from utils.data.images import read_picture

HEIGHT, WIDTH = 33, 57
XMP = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>"


def picture(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Without symmetry, and of more than one block in each direction."""
    small = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(suffix: str, options: tuple[int, ...] = ()) -> bytes:
    return cv2.imencode(suffix, picture(), options)[1].tobytes()


def pillow(kind: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture()).convert(mode).save(file, kind, **options)
    return file.getvalue()


def tiff(orientation: int, order: str = "<", value_type: int = 3) -> bytes:
    """EXIF as TIFF 6.0 puts it: one entry, tag 0x0112, of type SHORT or LONG."""
    value = struct.pack(order + ("HH" if value_type == 3 else "I"), orientation, *([0] if value_type == 3 else []))
    head = b"II" if order == "<" else b"MM"
    return head + struct.pack(order + "HIHHHI", 42, 8, 1, 0x0112, value_type, 1) + value + bytes(4)


def exif(orientation: int, order: str = "<") -> bytes:
    return b"Exif\0\0" + tiff(orientation, order)


def app1(payload: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload


def chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def with_segments(*payloads: bytes, at: int = 2, jpeg: bytes = b"") -> bytes:
    jpeg = jpeg or encoded(".jpg")
    return jpeg[:at] + b"".join(map(app1, payloads)) + jpeg[at:]


def with_chunk(piece: bytes, before: bytes, png: bytes = b"") -> bytes:
    png = png or encoded(".png")
    place = png.index(before) - 4
    return png[:place] + piece + png[place:]


def webp_with_exif(orientation: int) -> bytes:
    return pillow("WEBP", exif=exif(orientation))


JPEG = encoded(".jpg")
PLACES = {
    "EXIF": lambda o: with_segments(exif(o)),
    "EXIF, big-endian": lambda o: with_segments(exif(o, ">")),
    "EXIF, then XMP": lambda o: with_segments(exif(o), XMP),
    "XMP, then EXIF": lambda o: with_segments(XMP, exif(o)),
    "behind JFIF": lambda o: with_segments(exif(o), at=20),
    "two EXIF, the first upright": lambda o: with_segments(exif(1), exif(o)),
    "two EXIF, the second upright": lambda o: with_segments(exif(o), exif(1)),
    "of type LONG": lambda o: with_segments(b"Exif\0\0" + tiff(o, value_type=4)),
    "padded": lambda o: with_segments(exif(o) + bytes(5000)),
    "behind 100 KB of other data": lambda o: with_segments(XMP + bytes(60000), XMP + bytes(60000), exif(o)),
    "without its mark": lambda o: with_segments(tiff(o)),
    "with a broken mark": lambda o: with_segments(b"Exif\0\1" + tiff(o)),
    "cut": lambda o: with_segments(exif(o)[:-9]),
    "before the scan": lambda o: with_segments(exif(o), at=JPEG.index(b"\xff\xda")),
    "behind the scan": lambda o: with_segments(exif(o), at=len(JPEG) - 2),
    "progressive": lambda o: with_segments(exif(o), jpeg=pillow("JPEG", progressive=True)),
    "gray": lambda o: with_segments(exif(o), jpeg=pillow("JPEG", "L")),
    "CMYK": lambda o: with_segments(exif(o), jpeg=pillow("JPEG", "CMYK")),
    "restart markers": lambda o: with_segments(exif(o), jpeg=encoded(".jpg", (cv2.IMWRITE_JPEG_RST_INTERVAL, 1))),
    "with a thumbnail": lambda o: with_segments(exif(o) + encoded(".jpg")),
    "fill bytes": lambda o: JPEG[:2] + b"\xff\xff" + app1(exif(o)) + b"\xff" + JPEG[2:],
    "MPO": lambda o: with_segments(exif(o), jpeg=pillow("MPO", save_all=True, append_images=[Image.new("RGB", (9, 200))])),
    "Pillow's": lambda o: pillow("JPEG", exif=exif(o)),
    "PNG, before the pixels": lambda o: with_chunk(chunk(b"eXIf", tiff(o)), b"IDAT"),
    "PNG, behind the pixels": lambda o: with_chunk(chunk(b"eXIf", tiff(o, ">")), b"IEND"),
    "PNG, long before the pixels": lambda o: with_chunk(chunk(b"teXt", bytes(90000)) + chunk(b"eXIf", tiff(o)), b"IDAT"),
    "PNG, long behind the pixels": lambda o: with_chunk(chunk(b"eXIf", tiff(o)) + chunk(b"teXt", bytes(90000)), b"IEND"),
    "PNG, as text": lambda o: with_chunk(
        chunk(b"tEXt", b"Raw profile type exif\0\nexif\n32\n" + exif(o).hex().encode()), b"IDAT"
    ),
    "PNG, damaged": lambda o: with_chunk(chunk(b"eXIf", tiff(o))[:-1] + b"?", b"IDAT"),
    "PNG, Pillow's": lambda o: pillow("PNG", exif=exif(o)),
    "PNG, 16 bits": lambda o: with_chunk(
        chunk(b"eXIf", tiff(o)), b"IDAT", cv2.imencode(".png", picture().astype(np.uint16) * 257)[1].tobytes()
    ),
    "WebP": webp_with_exif,
    "TIFF": lambda o: pillow("TIFF", tiffinfo={0x0112: o}),
    "AVIF": lambda o: pillow("AVIF", exif=exif(o)),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("place", PLACES)
def test_orientation_is_what_opencv_reads(tmp_path: Path, place: str, orientation: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(PLACES[place](orientation))
    read = cv2.imread(str(path))
    if read is None:  # OpenCV 4.14 reads a TIFF on its side from memory only
        assert place == "TIFF"
        read = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert image_size(path) == read.shape[:2]
    assert np.array_equal(read_picture(path), read)
    if place in ("EXIF", "EXIF, big-endian", "EXIF, then XMP", "PNG, before the pixels", "WebP", "TIFF"):  # all versions agree
        assert read.shape[:2] == ((HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT))


@pytest.mark.parametrize(
    "data",
    [encoded(s) for s in (".jpg", ".png", ".bmp", ".webp", ".tiff", ".ppm", ".gif", ".ras")]
    + [pillow("JPEG2000"), pillow("PPM", "L"), pillow("PPM", "1"), pillow("AVIF")]
    + [pillow("PNG", mode) for mode in ("1", "L", "LA", "P", "RGBA")]
    + [pillow("TIFF", mode) for mode in ("1", "L", "LA", "P", "CMYK")]
    + [pillow("PNG", save_all=True, append_images=[Image.new("RGB", (9, 9))])],
)
def test_size_in_any_format(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    assert measure(tmp_path / "a") == (*cv2.imread(str(tmp_path / "a")).shape[:2], "") == (HEIGHT, WIDTH, "")


def test_headers_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of 100,000 images isn't decoded to be measured."""
    monkeypatch.setattr(imagesize, "_measure_decoded", lambda _: pytest.fail("decoded"))
    noise = np.random.default_rng(0).integers(0, 256, (300, 500, 3), np.uint8)
    for data in (JPEG, with_segments(exif(6), XMP), encoded(".png"), pillow("PNG"), cv2.imencode(".png", noise)[1].tobytes()):
        (tmp_path / "a").write_bytes(data)
        image_size(tmp_path / "a")


HEADERS = [
    with_segments(exif(6), XMP), with_segments(exif(3, ">")), with_segments(exif(8), jpeg=pillow("JPEG", progressive=True)),
    with_chunk(chunk(b"eXIf", tiff(6)), b"IDAT"), webp_with_exif(6), pillow("TIFF", tiffinfo={0x0112: 6}),
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(kind=st.integers(0, len(HEADERS) - 1), changes=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=4))
@example(kind=0, changes=[(2, 0x00)])
def test_changed_headers_are_measured_as_opencv_reads_them(tmp_path_factory, kind, changes) -> None:
    """Or refused; where OpenCV refuses a damage that isn't in the header, it will be said when the image is decoded."""
    mutable = bytearray(HEADERS[kind])
    for place, value in changes:
        mutable[place % len(mutable)] = value
    path = tmp_path_factory.getbasetemp() / "changed"
    path.write_bytes(mutable)
    read = None
    with contextlib.suppress(cv2.error):  # for sizes that are too large
        read = cv2.imdecode(np.frombuffer(mutable, np.uint8), cv2.IMREAD_COLOR)
    try:
        size = image_size(path)
    except ValueError:
        assert read is None
    else:
        assert read is None or size == read.shape[:2]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff", ".gif"])
def test_image_that_was_cut_short(tmp_path: Path, suffix: str) -> None:
    path, data = tmp_path / f"a{suffix}", encoded(suffix)
    for length in (0, 2, 10, 30, len(data) // 2, len(data) - 20):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cut short|not an image"):
            image_size(path)
    path.write_bytes(data + bytes(30000))  # padding behind an image is no reason to refuse it
    assert image_size(path) == (HEIGHT, WIDTH)


WHOLE = {
    "baseline": encoded(".jpg"),
    "progressive": pillow("JPEG", progressive=True),
    "gray": pillow("JPEG", "L"),
    "restart markers": encoded(".jpg", (cv2.IMWRITE_JPEG_RST_INTERVAL, 1)),
    "with a thumbnail": with_segments(exif(1) + encoded(".jpg")),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_jpeg_that_lacks_its_end_mark_only_is_whole(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture) -> None:
    path, data = tmp_path / "a.jpg", WHOLE[kind]
    for end in (1, 2):
        path.write_bytes(data[:-end])
        assert measure(path) == (HEIGHT, WIDTH, NO_END)
    assert capfd.readouterr().err == ""  # of libjpeg's


@pytest.mark.parametrize("kind", WHOLE)
def test_a_jpeg_that_lacks_anything_else_is_cut_short(tmp_path: Path, kind: str) -> None:
    """Wherever it ends: what is accepted has all pixels as they were."""
    path, data = tmp_path / "a.jpg", WHOLE[kind]
    whole, accepted = cv2.imdecode(np.frombuffer(data, np.uint8), 1), 0
    for length in (*range(0, len(data) - 60, 11), *range(len(data) - 60, len(data) - 2)):
        path.write_bytes(data[:length])
        with contextlib.suppress(ValueError):
            measure(path)
            accepted += 1
            assert np.array_equal(cv2.imdecode(np.frombuffer(data[:length] + b"\xff\xd9", np.uint8), 1), whole)
    assert accepted <= 2  # of the last bytes, which may be padding


def test_image_size_of_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("hello")
    with pytest.raises(ValueError, match="not an image"):
        image_size(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="No such file"):
        image_size(tmp_path / "b.jpg")
