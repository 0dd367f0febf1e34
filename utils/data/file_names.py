"""File names as people and programs spell them: which of two paths that were written on two machines are the same file."""

import itertools
import os
import unicodedata

from utils.data.image_kinds import is_image


def folded(text: str) -> str:
    """The same for names that differ in their letters' case or in Unicode's two ways to write an accent."""
    return (text if text.isascii() else unicodedata.normalize("NFC", text)).casefold()


def stem_of(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def without_suffix(name: str) -> str:
    """`name` less an image's suffix; what follows another dot belongs to the name."""
    return os.path.splitext(name)[0] if is_image(name) else name


def path_parts(path: str) -> list[str]:
    """The parts of a path that any system wrote, folded and from the last on, the image's suffix left out.

    >>> path_parts("Cam1\\\\Images/./a.b.JPG")
    ['a.b', 'images', 'cam1']
    """
    parts = [part for part in without_suffix(folded(path.replace("\\", "/"))).split("/") if part not in ("", ".")]
    return parts[::-1]


def shared_parts(one: list[str], other: list[str]) -> int:
    """How many parts two paths have in common, counted from their ends (see path_parts)."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
