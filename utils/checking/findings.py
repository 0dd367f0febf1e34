"""What a check looks at and what it says: the data, its images and labels, the network; findings with a remedy."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.core.errors import Remark, UserError
from utils.data.data_file import DataConfig
from utils.data.labels import Problems
from utils.network.definitions import Defs

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)


@dataclass(frozen=True)
class Finding:
    """Something that is wrong (error: training breaks or its figures are wrong; warning: it costs accuracy or time; note:
    good to know), how often, where first, and what to do about it."""

    severity: str
    what: str
    count: int
    first: str
    remedy: str

    @property
    def line(self) -> str:
        """All of it in one line."""
        return f"{self.what}: {self.count} (first: {self.first}); {self.remedy}"


def finding_of(said: UserError | Remark, remedy: str = "mend it", severity: str = ERROR) -> Finding:
    """A finding that stands for an error or a remark; a command that mends it is the remedy."""
    command = said.command if isinstance(said, UserError) else ""
    return Finding(severity, said.what, 1, said.place or "-", command or remedy)


@dataclass
class Split:
    """The images of `train` or `valid` that can be read, in the list's order.

    labels: an image's usable boxes, (n, 5) class, cx, cy, w, h within 0..1; shapes: its (height, width) in pixels.
    problems: what was found besides, by kind. prints: files of the same content have the same one; empty where nobody
    looked for that.
    """

    name: str
    source: Path
    paths: list[str] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    shapes: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    problems: Problems = field(default_factory=Problems)
    prints: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))

    def rows(self) -> np.ndarray:
        """(boxes, 5) of all images."""
        return np.concatenate([np.zeros((0, 5), np.float32), *self.labels])

    def class_counts(self, classes: int) -> np.ndarray:
        """(classes,) number of boxes of each class."""
        return np.bincount(self.rows()[:, 0].astype(int), minlength=classes)[:classes]


@dataclass
class Subject:
    """Everything that the checks look at.

    data, defs: None where they can't be read or weren't named; `found` says why they can't. cfg, weights: paths or ''.
    img_size: side of the network's input in pixels. twins: groups of images, as (name of the split, path), of one
    content.
    """

    data: DataConfig | None = None
    splits: list[Split] = field(default_factory=list)
    defs: Defs | None = None
    img_size: int = 0
    stretch: bool = False
    cfg: str = ""
    weights: str = ""
    twins: list[list[tuple[str, str]]] = field(default_factory=list)
    found: list[Finding] = field(default_factory=list)

    def split(self, name: str) -> Split | None:
        return next((s for s in self.splits if s.name == name), None)


CheckFunction = Callable[[Subject], Iterator[Finding]]
