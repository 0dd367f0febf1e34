"""Decoded images in one mapped file, in memory or on a disk, which any number of processes read without a copy of their own.

    Layout: where which image lies  ->  one process fills the file  ->  all that read map it: ImageCache

A file in memory has no name in any folder, so that nothing of it is left behind however its processes end. A file on a disk
gets its name when it is whole; which images it holds, and how they were prepared, is in that name, so the next run finds it.
"""

import atexit
import contextlib
import hashlib
import mmap
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from utils.core.errors import UserError
from utils.core.files import make_folder
from utils.core.memory import available_memory
from utils.core.torchrun import made_once_a_machine
from utils.core.workers import usable_cores

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

RAM, DISK, NONE = "ram", "disk", ""  # where images are kept; None: in memory if they take a small part of it
# The share of the free memory that decoded images may take: where nobody asked, and where --cache-images did.
CACHE_ROOM = {None: 0.25, RAM: 0.8}
_FORMAT = 1  # of the files and of what is in them; another number makes earlier files useless
Read = Callable[[int], np.ndarray | None]


@dataclass(frozen=True)
class Layout:
    """Where images of `sizes` (n, 2), heights and widths, lie in a file: one after the other, uint8, of 3 channels or 1. Behind
    them a byte an image says whether it is held; one that couldn't be decoded isn't.

    >>> layout = Layout(np.array([[2, 4], [3, 3]]), channels=3)
    >>> layout.place(1), layout.pixels, layout.bytes
    ((24, 51), 51, 53)
    """

    sizes: np.ndarray
    channels: int
    ends: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", np.cumsum(self.sizes.prod(1, dtype=np.int64) * self.channels))

    def place(self, index: int) -> tuple[int, int]:
        """Where image `index` begins and ends."""
        return int(self.ends[index - 1]) if index else 0, int(self.ends[index])

    @property
    def pixels(self) -> int:
        """Bytes of all images."""
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def bytes(self) -> int:
        """Bytes of the file."""
        return self.pixels + len(self.ends)

    def fill(self, file: BinaryIO, read: Read) -> None:
        """Write what `read` gives for each index: the image, or None. Memory holds a few at a time; OSError without room."""
        held, turn = np.zeros(len(self.ends), np.uint8), threading.Lock()

        def keep(index: int) -> None:
            image = read(index)
            if image is None:
                return
            with turn:
                file.seek(self.place(index)[0])
                file.write(np.ascontiguousarray(image).data)
            held[index] = 1

        file.truncate(self.bytes)
        with ThreadPool(usable_cores()) as pool:
            kept = pool.imap_unordered(keep, range(len(held)), chunksize=8)
            for _ in tqdm(kept, desc="Caching images", total=len(held), delay=1, leave=False):
                pass
        file.seek(self.pixels)
        file.write(held.data)
        file.flush()


class ImageCache:
    """`cache[index]`: image (height, width, 3) or (height, width), uint8, read-only; None for one that isn't held.

    path: of a whole file. owner: keeps a file in memory alive. Raises OSError where the file can't be mapped.
    """

    def __init__(self, path: str, layout: Layout, owner: BinaryIO | None = None) -> None:
        self.path, self.layout, self._owner = path, layout, owner
        with open(path, "rb") as file:
            self._bytes = np.frombuffer(mmap.mmap(file.fileno(), layout.bytes, access=mmap.ACCESS_READ), np.uint8)

    def __reduce__(self) -> tuple:
        """Worker processes that aren't forked map the file themselves."""
        return ImageCache, (self.path, self.layout)

    def __len__(self) -> int:
        return len(self.layout.ends)

    def __getitem__(self, index: int) -> np.ndarray | None:
        if not self._bytes[self.layout.pixels :][index]:
            return None
        start, end = self.layout.place(index)
        shape = (*self.layout.sizes[index], self.layout.channels)
        return self._bytes[start:end].reshape(shape if self.layout.channels > 1 else shape[:2])


class DiskPlace(NamedTuple):
    """A file on a disk. series: what its name begins with; there is one such file, of the dataset as it is now."""

    folder: Path
    series: str
    key: str

    @property
    def path(self) -> Path:
        return self.folder / f"{self.series}-{self.key}.images"


def disk_place(source: str | Path, paths: Sequence[str], img_size: int, *, stretch: bool, gray: bool) -> DiskPlace:
    """Where the decoded images of a dataset belong: another place when an image file, their order, or what is made of them
    changes. Files count as the same while size and time of change are."""
    prepared = f"{os.path.abspath(source)} {img_size} {stretch} {gray}".encode(errors="surrogateescape")
    content = hashlib.sha256(f"{_FORMAT} {cv2.__version__}".encode())
    for path in paths:
        try:
            status = os.stat(path)
            state = (status.st_size, status.st_mtime_ns)
        except OSError:
            state = (0, 0)
        content.update(os.fsencode(os.path.abspath(path)) + b"\0%d %d\0" % state)
    name = re.sub(r"[^\w-]", "_", Path(source).stem, flags=re.ASCII)[:40]
    series = f"{name}-{img_size}-{hashlib.sha256(prepared).hexdigest()[:10]}"
    return DiskPlace(_folder(), series, content.hexdigest()[:20])


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "darkedge", "images")


def shared_images(layout: Layout, read: Read, place: DiskPlace | None, room: float = 1.0) -> tuple[ImageCache | None, str]:
    """(the images, read by one process for all of this machine; a line on where they are), or (None, why there is no cache).

    place: of a file on a disk, which stays; None: in memory, of which they may take the share `room` of what is free. To be
    called by all processes of a training, and before a process forks its workers.
    """
    owners: list[BinaryIO] = []

    def make() -> tuple[str, str]:
        try:
            if place is not None:
                return _on_disk(layout, read, place)
            return _in_memory(layout, read, room, owners)
        except OSError as error:
            return "", f"{place.folder if place else 'memory'}: {error.strerror or error}"
        except UserError as error:
            return "", str(error)

    path, line = made_once_a_machine(make)
    if not path:
        return None, line
    try:
        return ImageCache(path, layout, *owners), line
    except OSError as error:
        return None, f"{path}: {error.strerror}"


def _in_memory(layout: Layout, read: Read, room: float, owners: list[BinaryIO]) -> tuple[str, str]:
    free = available_memory()
    if free is not None and layout.bytes > room * free:
        return "", f"{_size(layout.bytes)} needed, {_size(free)} free"
    started = time.perf_counter()
    if hasattr(os, "memfd_create"):  # not in /dev/shm, which is small in containers
        file: BinaryIO = os.fdopen(os.memfd_create("images"), "w+b")
        path = f"/proc/{os.getpid()}/fd/{file.fileno()}"
    else:
        handle, path = tempfile.mkstemp(prefix="images")
        file = os.fdopen(handle, "w+b")
        atexit.register(Path(path).unlink, missing_ok=True)
    layout.fill(file, read)
    owners.append(file)
    return path, f"{len(layout.ends):,} decoded images in memory, {_size(layout.bytes)}, read in {_seconds(started)}"


def _on_disk(layout: Layout, read: Read, place: DiskPlace) -> tuple[str, str]:
    path, started = make_folder(place.folder) / place.path.name, time.perf_counter()
    with _owned(path.with_suffix(".part")) as file:
        found = path.is_file() and path.stat().st_size == layout.bytes
        if not found:
            _remove_others(place)
            free = shutil.disk_usage(place.folder).free
            if layout.bytes > free:
                return "", (f"{_size(layout.bytes)} needed, {_size(free)} free in {place.folder}; the environment variable "
                            "XDG_CACHE_HOME names another folder")  # fmt: skip
            layout.fill(file, read)
            os.fsync(file.fileno())  # a name must not outlast its content when the machine goes down
            os.replace(path.with_suffix(".part"), path)
    took = "found there" if found else f"read in {_seconds(started)}"
    return str(path), f"{len(layout.ends):,} decoded images in {path}, {_size(layout.bytes)}, {took}"


@contextlib.contextmanager
def _owned(path: Path) -> Iterator[BinaryIO]:
    """The file `path`, made where it isn't there, once no other process has it, which one that was killed doesn't. It is
    removed at the end, unless it has got another name."""
    file = _locked(path)
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                path.unlink()
        file.close()


def _locked(path: Path) -> BinaryIO:
    said = False
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        if not _lock(file):
            if not said:
                tqdm.write(f"waiting for another process, which writes {path}", file=sys.stderr)
            said = True
            _lock(file, wait=True)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # by now the other has given it another name, or removed it


def _lock(file: BinaryIO, *, wait: bool = False) -> bool:
    """Whether this process has the file to itself now; the system frees it when the process ends."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _remove_others(place: DiskPlace) -> None:
    """Remove what earlier states of this dataset left: files that are whole, and those of a process that was killed."""
    for path in place.folder.glob(f"{place.series}-*"):
        if path.stem == place.path.stem:
            continue
        with contextlib.suppress(OSError), open(path, "rb") as file:
            if path.suffix == ".images" or _lock(file):
                path.unlink()


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _seconds(started: float) -> str:
    return f"{time.perf_counter() - started:.1f} s"
