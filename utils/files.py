"""Files that are whole or not there: written beside their target, moved into place."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from utils.errors import UserError


def make_folder(path: str | Path) -> Path:
    """Create a folder and its parents; raises UserError when that is not possible."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot create this folder ({error.strerror}); choose another") from None
    return folder


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it onto `path` when the block ends without an exception.

    A killed process leaves at most a hidden `.tmp` file, never a half-written `path`.
    Raises UserError when the folder cannot be written or `path` is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise UserError(f"{target}: is a folder, but a file is to be written there")
    make_folder(target.parent)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=f".tmp{target.suffix}", dir=target.parent)
    except OSError as error:
        raise UserError(f"{target.parent}: cannot write here ({error.strerror}); choose another folder") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; users expect theirs to be as readable as any other
        temporary.replace(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror})") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_text(path: str | Path, what: str = "file") -> str:
    """The text of `path`; raises UserError naming the path when it is missing or not text."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: this {what} does not exist; check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: this is not a text file, so it is no {what}") from None
    except OSError as error:
        raise UserError(f"{path}: this {what} cannot be read ({error.strerror})") from None
