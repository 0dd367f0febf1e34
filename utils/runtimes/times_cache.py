"""Measured milliseconds of layers, kept from one command to the next: a folder for each deployment, a file for each geometry.

Files are replaced whole, so a killed command leaves what it had measured, and of two that write the same file at once the later
one's stays; what it lacks is measured again when it is wanted.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from utils.core.errors import UserError, remark
from utils.core.files import read_text, write_text
from utils.pruning.latency import Geometry, Points
from utils.runtimes.deployment import Deployment

FORMAT = 1


def cache_folder() -> Path:
    """Where the caches of programs are: $XDG_CACHE_HOME, else ~/.cache (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "darkedge" / "layer-times"


class TimesCache:
    """Milliseconds by Widths of every geometry that was measured for a deployment."""

    def __init__(self, deployment: Deployment, folder: Path | None = None) -> None:
        self.key = deployment.key
        self.folder = (folder or cache_folder()) / "-".join(_plain(str(value)) for value in self.key.values())

    def read(self, geometry: Geometry) -> Points:
        """{} where nothing was measured, and for a file that isn't as this class writes it: it is measured again."""
        try:
            values = json.loads(read_text(self._file(geometry)))
            return _points(values, self._head(geometry))
        except (UserError, ValueError):
            return {}

    def add(self, geometry: Geometry, points: Points) -> None:
        """Keep these, too. A folder that can't be written is told, and stops nothing."""
        merged = {**self.read(geometry), **points}
        rows = [[*widths, ms] for widths, ms in sorted(merged.items())]
        try:
            write_text(self._file(geometry), json.dumps(self._head(geometry) | {"points": rows}))
        except UserError as error:
            remark(f"{error}; what was measured isn't kept for the next time")

    def _file(self, geometry: Geometry) -> Path:
        return self.folder / f"{_plain(str(geometry))}.json"

    def _head(self, geometry: Geometry) -> dict[str, Any]:
        return {"format": FORMAT, "geometry": str(geometry)} | self.key


def _points(values: Any, head: dict[str, Any]) -> Points:
    """The points of a file; ValueError for one of another format, deployment or geometry, or with values that can't be."""
    if not isinstance(values, dict) or any(values.get(name) != value for name, value in head.items()):
        raise ValueError
    rows = values.get("points")
    if not isinstance(rows, list) or not all(_is_row(row) for row in rows):
        raise ValueError
    return {(channels, filters): float(ms) for channels, filters, ms in rows}


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, list)
        and [type(value) for value in row] == [int, int, float]
        and row[0] > 0 < row[1]
        and 0 < row[2] < 1e9
    )


def _plain(text: str) -> str:
    """As a file's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", text).strip("_")
