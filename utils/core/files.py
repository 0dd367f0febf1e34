"""Files that are whole or not there: written beside their target, moved into place."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from utils.core.commands import beside
from utils.core.encodings import UnknownEncoding, decode
from utils.core.errors import UserError


def make_folder(path: str | Path) -> Path:
    """Create a folder and its parents; raises UserError when that is not possible."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError.at(folder, f"cannot create this folder ({error.strerror}); choose another") from None
    return folder


def check_writable(path: str | Path) -> None:
    """Raise UserError, before the work whose result it is to hold, where `replacing` couldn't write the file `path`."""
    _check_kind(path)
    place = os.path.dirname(os.path.abspath(path))
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise UserError.at(path, f"cannot be written, since {place} is no folder; choose another")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError.at(path, f"cannot be written, since {place} belongs to others; choose another")
    for name in Path(os.path.abspath(path)).relative_to(place).parts:
        try:
            os.lstat(os.path.join(place, name))
        except FileNotFoundError:
            pass
        except OSError as error:  # mostly of a name that is too long
            raise UserError.at(path, f"cannot be written ({error.strerror}); choose another") from None


def output_place(out: str | Path | None, default: Path, *, is_folder: bool = False) -> Path:
    """What --out names, else `default`, which lies beside an input; checked before the work, whose result it is to hold.

    Raises UserError where it can't be written, and for a default in a folder that isn't the user's own, or is kept from
    being written to: what lies there may be shared, so nothing is added to it unless --out says so.
    """
    if not out and not _is_own(default.absolute().parent):
        raise UserError.at(default.parent, "isn't a folder of yours that can be written; say with --out where the result goes")
    place = Path(out or default)
    if is_folder and place.exists() and not place.is_dir():
        raise UserError.at(place, "is a file, but a folder is to be written there; name another with --out")
    check_writable(place / "file" if is_folder else place)
    return place


def _is_own(folder: Path) -> bool:
    """Whether an existing folder belongs to who asks and may be written; permission bits count for root, too."""
    if not folder.is_dir():
        return True  # of another mistake, which is told elsewhere
    status, user = folder.stat(), getattr(os, "geteuid", lambda: 0)()
    return bool(status.st_mode & 0o222) and user in (0, status.st_uid) and os.access(folder, os.W_OK | os.X_OK)


def _check_kind(path: str | Path) -> None:
    """Raise UserError for what a file must not take the place of: /dev/null, for one, would be gone for all programs."""
    if os.path.isdir(path):
        raise UserError.at(path, "is a folder, but a file is to be written there")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError.at(path, "is a device or a pipe, but a file is to be written there")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it onto `path` when the block ends without an exception.

    A killed process leaves at most a hidden `.tmp` file, never a half-written `path`.
    Raises UserError when the folder cannot be written or `path` is anything else than a file.
    """
    target = Path(path)
    _check_kind(target)
    make_folder(target.parent)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.stem[:40]}.", suffix=f".tmp{target.suffix[:20]}", dir=target.parent)
    except OSError as error:
        raise UserError.at(target.parent, f"cannot write here ({error.strerror}); choose another folder") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; users expect theirs to be as readable as any other
        temporary.replace(target)
    except OSError as error:
        raise UserError.at(target, f"cannot be written ({error.strerror})") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8; bytes of names that are none (os.fsdecode) become these bytes again."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def read_text(path: str | Path, what: str = "file", *, comments: str = "", paths: bool = False) -> str:
    """The text of `path`, in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    comments: characters that begin a comment, in which any bytes may stand; paths: each line is or names a file, whose
    name may be any bytes (they become what os.fsdecode makes of them).
    Raises UserError naming the path when it is missing or not text, and the likely encoding when that is another one.
    """
    try:
        return decode(Path(path).read_bytes(), comments, paths=paths)
    except FileNotFoundError:
        raise UserError.at(path, f"this {what} does not exist; check the path") from None
    except UnknownEncoding as error:
        raise _mistaken(path, what, error) from None
    except (OSError, ValueError) as error:  # the latter for names with a NUL byte
        raise UserError.at(path, f"this {what} cannot be read ({getattr(error, 'strerror', error)})") from None


def _mistaken(path: str | Path, what: str, error: UnknownEncoding) -> UserError:
    """Where the text stops being UTF-8, what it seems to be, and the command that makes UTF-8 of it."""
    if not error.encoding:
        return UserError.at(path, f"this is not a text file, so it is no {what}")
    utf8 = Path(path).with_stem(f"{Path(path).stem}-utf8")
    command = f"iconv -f {error.encoding} -t utf-8 {beside(path)} > {beside(utf8)}"
    found = f"isn't UTF-8 but, as it looks, {error.encoding} ({error.sample[:30]})"
    return UserError.at(f"{path}:{error.line}", found, command=command, what_it_does="convert it")
