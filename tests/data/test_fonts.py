"""utils.data.fonts: names in any alphabet are drawn where a font has their letters, and numbered where none has."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image

from tests.raw import convert, make_voc, voc_object
from utils.converters.image import draw_report
from utils.core.errors import Remark
from utils.data import fonts
from utils.data.draw import class_colour, draw_boxes

WALKER = "行人"
BOX = np.array([[20, 60, 180, 180, 0.87, 0]])


def write_font(path: Path, letters: str) -> Path:
    """A font in which each letter is a black square."""
    names = {ord(c): f"u{ord(c):x}" for c in letters}
    pen = TTGlyphPen(None)
    for place in ((0, 0), (0, 700), (700, 700), (700, 0)):
        (pen.lineTo if place != (0, 0) else pen.moveTo)(place)
    pen.closePath()
    square, builder = pen.glyph(), FontBuilder(1000, isTTF=True)
    order = [".notdef", *names.values()]
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap(names)
    builder.setupGlyf(dict.fromkeys(order, square))
    builder.setupHorizontalMetrics(dict.fromkeys(order, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture(params=[True, False], ids=["font", "no font"])
def installed(request, tmp_path, monkeypatch) -> Iterator[bool]:
    """Whether a font is installed that has WALKER; no other is."""
    font = write_font(tmp_path / "squares.ttf", WALKER + fonts.ALWAYS)
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(broken), *[str(font)] * request.param])
    caches = (fonts._legible, fonts.font_of, fonts.font_files)
    for cache in caches:
        cache.cache_clear()
    yield request.param
    for cache in caches:
        cache.cache_clear()


def test_names_without_a_font_are_numbers_and_it_is_said_once(installed):
    names = ["cat", "Fußgänger", WALKER, "κύων"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert fonts.legible(names) == ["cat", "Fußgänger", WALKER if installed else "class 2", "κύων"]
    said = [str(w.message) for w in caught if issubclass(w.category, Remark)]
    assert len(said) == (0 if installed else 1)
    assert installed or f"no font on this machine has the letters of {WALKER};" in said[0]


@pytest.mark.filterwarnings("ignore::utils.core.errors.Remark")
def test_boxes_show_the_letters(installed):
    """Two squares of ink in a row for the two letters, or exactly what is drawn for the class's number."""
    image = np.zeros((200, 200, 3), np.uint8)
    drawn = draw_boxes(image, BOX, [WALKER])
    if not installed:
        assert np.array_equal(drawn, draw_boxes(image, BOX, ["class 0"]))
        return
    label = drawn[30:60, 20:180]
    ink = np.abs(label.astype(int) - class_colour(0)).sum(2) * (label.any(2)) > 200
    rows = np.flatnonzero(ink.sum(1) > 8)
    middle = ink[rows[len(rows) // 2]]
    starts = np.flatnonzero(middle[1:] & ~middle[:-1])
    assert len(starts) >= 2 + len("0.87")  # a square each; the point is one, too
    assert fonts.font_of(WALKER).name == "squares.ttf"


def test_letters_of_the_bundled_font_need_no_other(monkeypatch):
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    fonts.font_files.cache_clear()
    for name in ("Fußgänger", "пешеход", "κύων", "niño", "Žába", "αβ-1 x"):
        assert fonts.font_of(name).name == "DejaVuSans.ttf"
    assert fonts.font_of("\ud8ff") is None  # half of a letter: a byte of a name that is no text
    fonts.font_files.cache_clear()


@pytest.mark.parametrize("corner", [(0, 0), (280, 0), (280, 8), (-20, -20)])
@pytest.mark.parametrize("shape", [(200, 300, 3), (12, 300, 3), (200, 15, 3)])
def test_labels_of_all_letters_stay_in_the_picture(corner, shape):
    box = np.array([[*corner, corner[0] + 20, corner[1] + 20, 0.5, 0]])
    drawn = draw_boxes(np.zeros(shape, np.uint8), box, ["Fußgänger"])
    assert drawn.shape == shape
    assert drawn.any()


def test_accents_are_drawn():
    image = np.zeros((200, 200, 3), np.uint8)
    seen = {draw_boxes(image, BOX, [name]).tobytes() for name in ("a", "ä", "á", "à", "?", "??")}
    assert len(seen) == 6


def test_pictures_of_figures_lack_no_letter(installed, tmp_path):
    """matplotlib warns of every letter that it can't draw: there is no warning but our own remark."""
    objects = "".join(voc_object(name, 20, 10, 60, 50) for name in (WALKER, "Fußgänger", "a$b$"))
    source = make_voc(tmp_path / "src", dict.fromkeys((WALKER, "$", "x_^"), objects))
    report = convert("voc", source, tmp_path / f"{WALKER}$")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draw_report(report, tmp_path / "x.png")
    found = [w.category for w in caught if w.category is not ResourceWarning]  # of other tests' objects, collected by now
    assert found == ([] if installed else [Remark])
    assert Image.open(tmp_path / "x.png").size == (1120, 960)
