"""What a reader of annotations hands on: entries to look at, and the boxes that one of them holds."""

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.data.data_file import read_names
from utils.data.labels import Problems

SWAPPED = "boxes whose corners are in the wrong order, put right"
TRAIN, VALID, TEST = "train", "valid", "test"
SPLITS = (TRAIN, VALID, TEST)
DATA = Path(__file__).resolve().parents[2] / "data"


@dataclass(slots=True)
class Found:
    """The boxes of one image as its annotation states them, in pixels: four numbers x1, y1, x2, y2 a box in `corners`.

    `place` and a box's number in `numbers` say where the box stands ("a.xml: object 3"); `size` is the (width, height)
    that the annotation states, 0 where it is silent.
    """

    place: str
    size: tuple[int, int] = (0, 0)
    names: list[str] = field(default_factory=list)
    corners: array = field(default_factory=lambda: array("d"))
    numbers: array = field(default_factory=lambda: array("q"))
    problems: Problems = field(default_factory=Problems)

    def add(self, name: str, number: int, corners: tuple[float, float, float, float]) -> None:
        self.names.append(name)
        self.numbers.append(number)
        self.corners.extend(corners)

    def add_corners(self, name: str, number: int, first: tuple[float, float], last: tuple[float, float]) -> None:
        """The box between two corners (x, y); the first is to be the upper left one, and is made it. nan stays where it is,
        to be refused."""
        (x1, y1), (x2, y2) = first, last
        if x1 > x2 or y1 > y2:
            self.problems.add(SWAPPED, self.where(number))
        x1, x2 = (x2, x1) if x1 > x2 else (x1, x2)
        y1, y2 = (y2, y1) if y1 > y2 else (y1, y2)
        self.add(name, number, (x1, y1, x2, y2))

    def where(self, number: int) -> str:
        return f"{self.place}{number}"

    @property
    def seen(self) -> int:
        """Objects so far, those that were left out included."""
        return len(self.numbers) + sum(count for kind, count in self.problems.counts.items() if kind != SWAPPED)

    def leave_out(self, kind: str, number: int) -> None:
        self.problems.add(kind, self.where(number))


@dataclass(slots=True)
class Entry:
    """One image. Of each of `notes` the format's `parse` makes a Found: the path of an annotation file, or a Found.
    No splits: the source doesn't say. misfit: see tree.Match.
    """

    image: str
    splits: tuple[str, ...]
    notes: tuple[Any, ...]
    misfit: Any = 0


@dataclass
class Annotations:
    """What a reader found: the class names in the source's order (None: it has none), what it had to leave out, and what
    the user should know about its choice of files."""

    entries: list[Entry]
    names: list[str] | None = None
    problems: Problems = field(default_factory=Problems)
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Options:
    """What a conversion may be asked for.

    `names`: the classes to keep, in this order. `only`: a part of the paths of the annotation files that count.
    `valid_share`: of the images, held out where the source has no validation set. `out`: not to be read.
    """

    names: tuple[str, ...] | None = None
    skip_difficult: bool = False
    only: str = ""
    valid_share: float = 0.0
    out: Path | None = None


@dataclass(frozen=True)
class Format:
    """How one format is read.

    `read` lists a source's entries in the main process; `parse` turns the note of one into boxes, in any process.
    `published`: data/<published>.names has its classes; `aliases`: other spellings of them. `difficult`: does it know
    difficult objects?
    """

    read: Callable[[Path, Options], Annotations]
    parse: Callable[[Any, Options], Found]
    published: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    difficult: bool = False


def published_names(data: str) -> list[str]:
    """The classes of data/<data>.names, in the order that their owners publish."""
    return read_names(DATA / f"{data}.names")


def as_found(note: Found, options: Options) -> Found:
    """The `parse` of formats whose reader has had to read the boxes already."""
    return note
