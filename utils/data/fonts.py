"""Fonts for class names: OpenCV's has ASCII only; matplotlib brings one for most alphabets, and others may be installed."""

import functools
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.core.errors import remark

INVISIBLE = ("Cc", "Cf", "Zs")  # Unicode's categories of control characters, marks of format, and spaces
ALWAYS = "0123456789. "  # of the confidence behind a name
NO_FONT = "last"  # LastResort draws frames for everything


def legible(names: Sequence[str]) -> list[str]:
    """The names as they can be drawn: `class 3` for those with letters that no font on this machine has, which is remarked."""
    return list(_legible(tuple(names)))


@functools.lru_cache(maxsize=8)
def _legible(names: tuple[str, ...]) -> tuple[str, ...]:
    missing = [name for name in names if not name.isascii() and not font_of(name)]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        remark(f"no font on this machine has the letters of {shown}; images show the class's number instead; install one for "
               "this language (the Noto fonts have all)")  # fmt: skip
    return tuple(f"class {number}" if name in missing else name for number, name in enumerate(names))


@functools.lru_cache(maxsize=4096)
def font_of(text: str) -> Path | None:
    """The file of a font that has all letters of `text` and digits: matplotlib's own, else an installed one."""
    needed = sorted({ord(c) for c in text + ALWAYS if unicodedata.category(c) not in INVISIBLE})
    return next((path for path in font_files() if np.isin(needed, letters_of(path), kind="sort").all()), None)


@functools.cache
def font_files() -> list[Path]:
    """matplotlib's DejaVu Sans, then the installed fonts, upright and of usual weight first."""
    import matplotlib
    from matplotlib import font_manager

    own = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    installed = [Path(p) for p in font_manager.findSystemFonts() if not Path(p).name.lower().startswith(NO_FONT)]
    special = ("bold", "italic", "oblique", "light", "thin", "black", "mono", "serif", "condensed")
    return [own, *sorted(installed, key=lambda p: (sum(word in p.stem.lower() for word in special), p.name))]


@functools.cache
def letters_of(path: Path) -> np.ndarray:
    """The code points that a font has images for; none for a font that can't be opened or not be drawn in any size."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(str(path))
        return np.fromiter(font.get_charmap() if font.scalable else (), np.uint32)
    except (OSError, RuntimeError):
        return np.zeros(0, np.uint32)


def families(texts: Sequence[str]) -> list[str]:
    """matplotlib's `font.family` for these texts: its usual fonts, then those that have the rest of their letters."""
    import matplotlib
    from matplotlib import font_manager

    found = list(matplotlib.rcParams["font.family"])
    for path in dict.fromkeys(font_of(text) for text in texts if not text.isascii()):
        if path and path != font_files()[0]:
            font_manager.fontManager.addfont(path)
            found.append(font_manager.FontProperties(fname=path).get_name())
    return found
