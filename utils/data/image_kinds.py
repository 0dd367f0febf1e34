"""Which files are images and which are videos: one rule for folders, lists and single files."""

import os
from collections.abc import Sequence
from pathlib import Path

IMAGE, VIDEO, BESIDE, OTHER = "image", "video", "beside", "other"

PICTURE_SUFFIXES = frozenset({
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".hdr", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pam", ".pbm",
    ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".ras", ".sr", ".tif", ".tiff", ".webp",
})  # fmt: skip
VIDEO_SUFFIXES = frozenset({
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv",
})  # fmt: skip
# what lies beside images in a dataset, and of which nobody expects that it is read as one
_BESIDE_SUFFIXES = frozenset({
    ".7z", ".cache", ".cfg", ".csv", ".data", ".db", ".doc", ".docx", ".gz", ".html", ".ini", ".ipynb", ".json", ".jsonl",
    ".log", ".lst", ".m", ".mat", ".md", ".names", ".npy", ".npz", ".onnx", ".pdf", ".pkl", ".pt", ".pth", ".py", ".rar",
    ".rst", ".sh", ".tar", ".tgz", ".tmp", ".tsv", ".txt", ".weights", ".xls", ".xlsx", ".xml", ".yaml", ".yml", ".zip",
})  # fmt: skip
_BESIDE_NAMES = frozenset({"changelog", "copying", "licence", "license", "makefile", "readme"})
# cameras' raw data begins like TIFF, but holds a thumbnail where OpenCV looks for the image
_RAW_SUFFIXES = frozenset({".3fr", ".arw", ".cr2", ".dng", ".iiq", ".nef", ".nrw", ".orf", ".pef", ".rw2", ".srw"})

_SIGNATURES = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+",
    b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51", b"#?RADIANCE", b"#?RGBE", b"\x59\xa6\x6a\x95",
)  # fmt: skip
_LOOK = 32  # bytes that tell a format


def is_image(path: str | Path) -> bool:
    """Does the name end as an image's does?"""
    return os.path.splitext(path)[1].lower() in PICTURE_SUFFIXES


def is_beside(path: str | Path) -> bool:
    """Is this, by its name, a file that lies beside pictures: labels, lists, what systems hide?"""
    name = os.path.basename(path)
    return os.path.splitext(name)[1].lower() in _BESIDE_SUFFIXES or name.startswith(".") or name.lower() in _BESIDE_NAMES


def kind_of(path: str | Path, *, listed: bool = False) -> str:
    """IMAGE, VIDEO, BESIDE (see is_beside) or OTHER. Names that end as an image's do or that lie beside images are
    believed; the content of the others says whether OpenCV can read it as an image. listed: a user wrote this very name
    into a list of images, so that it lies beside nothing."""
    if is_beside(path) and not listed:
        return BESIDE
    suffix = os.path.splitext(path)[1].lower()
    if suffix in PICTURE_SUFFIXES or (suffix not in _RAW_SUFFIXES and holds_picture(path)):
        return IMAGE
    return VIDEO if suffix in VIDEO_SUFFIXES else OTHER


def holds_picture(path: str | Path) -> bool:
    """Does a file begin as images do that OpenCV reads?"""
    try:
        with open(path, "rb") as file:
            head = file.read(_LOOK)
    except OSError:
        return False
    return head.startswith(_SIGNATURES) or _is_bmp(head) or _is_webp(head) or _is_avif(head) or _is_netpbm(head)


def _is_bmp(head: bytes) -> bool:
    """Two letters, the size, two fields that are 0, and the place of the pixels, behind a header of less than 1 KiB or so."""
    return head[:2] == b"BM" and head[6:10] == bytes(4) and head[12:14] == bytes(2)


def _is_webp(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def _is_avif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis")


def _is_netpbm(head: bytes) -> bool:
    """P1 to P6 (PBM, PGM, PPM), then a number or a comment; P7 (PAM); PF and Pf (PFM)."""
    start, rest = head[:2], head[3:].lstrip()
    if start == b"P7":
        return head[2:3] == b"\n"
    is_numbered = start in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"PF", b"Pf")
    return is_numbered and head[2:3].isspace() and (rest[:1].isdigit() or rest[:1] == b"#")


def left_out(paths: Sequence[str | Path], total: int) -> str:
    """What to say of files that are no images; empty without any. total: files that were looked at, these included.

    >>> left_out(["in/a.xyz", "in/b"], 8)
    '2 of 8 files left out, no images that OpenCV can read: a.xyz, b'
    """
    names = [os.path.basename(path) for path in paths]
    if not names:
        return ""
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} of {total} files left out, no images that OpenCV can read: {', '.join(names[:3])}{more}"
