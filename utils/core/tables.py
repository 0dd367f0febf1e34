"""Figures as text: tables to read, and JSON for programs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.core.files import write_text


def format_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A plain text table; the first column is left-aligned, floats get four digits."""
    cells = [[_cell(v) for v in row] for row in (header, *rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(header))]
    lines = [
        "  ".join(v.ljust(w) if k == 0 else v.rjust(w) for k, (v, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def write_json(path: str | Path, figures: dict[str, Any]) -> None:
    """Write figures to `path` unless it is empty."""
    if path:
        write_text(path, json.dumps(figures, indent=2, default=float) + "\n")
