"""Folders that are whole or not there: written beside their target, moved into place."""

import contextlib
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from utils.core.errors import UserError
from utils.core.files import make_folder


@contextlib.contextmanager
def replacing_folder(path: Path, own: Collection[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; put it in its place when the block ends without an exception.

    Only an earlier folder of the same kind is replaced: UserError where `path` holds anything else
    than files called as in `own`.
    """
    workplace = make_folder(path.absolute().parent) / f".{path.name}.tmp"
    _recover(workplace, path)
    foreign = sorted(p.name for p in path.iterdir() if p.name not in own) if path.is_dir() else []
    if foreign:
        raise UserError(f"{path}: holds other files ({foreign[0]}); name a folder of its own with --out")
    try:
        fresh = make_folder(workplace / "new")
        yield fresh
        _swap(fresh, path, workplace / "old")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _recover(workplace: Path, path: Path) -> None:
    """Clear away what a killed process left behind; an earlier folder that it had moved aside goes back to its place."""
    aside = workplace / "old"
    if aside.is_dir() and not path.exists():
        aside.replace(path)
    shutil.rmtree(workplace, ignore_errors=True)


def _swap(fresh: Path, path: Path, aside: Path) -> None:
    """Move `fresh` to `path`, what is there to `aside`, and that back if the first fails."""
    if path.is_dir():
        path.replace(aside)
    try:
        fresh.replace(path)
    except OSError:
        if aside.is_dir():
            aside.replace(path)
        raise
