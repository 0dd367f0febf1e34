"""Where images to detect on come from: files, folders, patterns, videos, cameras and network streams."""

import contextlib
import glob
import os
import re
import stat
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from utils.core.errors import UserError
from utils.data.image_kinds import BESIDE, IMAGE, VIDEO, VIDEO_SUFFIXES, holds_picture, is_image, kind_of, left_out
from utils.data.image_size import measure
from utils.data.images import libraries_silenced, openable, read_picture
from utils.data.labels import Problems, image_paths

DEFAULT_FPS = 25.0  # for cameras and files that don't tell theirs
STREAM_TIMEOUT = 10  # seconds without a frame after which a stream counts as ended


@dataclass
class Item:
    """One image, video or stream. `name` opens it and is shown; `relative` is its place under the output folder."""

    name: str
    relative: Path
    kind: str  # image | video | stream


@dataclass
class Frame:
    """An image to detect on: `image` (height, width, 3) BGR uint8; `number` counts the item's frames from 1.

    fps: frames a second of a video or stream, None for an image; total: frames of the item, None when unknown.
    """

    item: Item
    image: np.ndarray
    number: int = 1
    total: int | None = 1
    fps: float | None = None


def find_items(source: str, exclude: Path | None = None) -> list[Item]:
    """The items that `source` names: an image, a video, a folder (and the folders in it), a pattern such as `a/*.jpg`, a
    text file that lists images and videos, a camera's number or device, or the address of a stream (rtsp://, http://, ...).
    What exists under that very name is meant first: a folder called 2024 is no camera.

    What lies in the folder `exclude` is left out of folders and patterns: results of an earlier run are no input.
    Raises UserError when there is nothing; files that are neither images nor videos are named on stderr.
    """
    path = Path(source)
    if os.path.isdir(source):
        return _files(sorted(path.rglob("*")), path, exclude, source)
    if os.path.isfile(source):
        return _single(path)
    if os.path.exists(source) and stat.S_ISCHR(os.stat(source).st_mode):
        return [Item(source, Path(path.name), "stream")]
    if re.fullmatch("[0-9]+", source):
        return [_camera(source)]
    if "://" in source:
        return [Item(source, Path(_stream_name(source)), "stream")]
    matches = [Path(p) for p in sorted(glob.glob(source, recursive=True))] if glob.has_magic(source) else []
    if not matches:
        raise UserError(f"--source {source}: no such file or folder, and no images or videos match it")
    return _files(matches, _common_folder(matches), exclude, source)


def _single(path: Path) -> list[Item]:
    """The item of a file whose name was typed, or those of the list that it is. Its content counts more than its name."""
    is_picture = holds_picture(path)
    if is_picture or is_image(path):
        return [Item(str(path), Path(path.name), "video" if is_picture and is_animated(path) else "image")]
    if path.suffix.lower() != ".txt":
        return [Item(str(path), Path(path.name), "video")]
    problems = Problems()
    paths = [Path(p) for p in image_paths(path, problems)]
    if problems.counts:
        tqdm.write(f"{path}: {problems.summary()}", file=sys.stderr)
    return _files(paths, _common_folder(paths), None, str(path), listed=True)


def _camera(number: str) -> Item:
    if len(number.lstrip("0")) > 2:  # larger numbers choose OpenCV's way to open a camera
        raise UserError(f"--source {number}: no camera has this number, and there is no such file or folder")
    return Item(number, Path(f"camera{number}"), "stream")


def _files(paths: list[Path], base: Path, exclude: Path | None, source: str, *, listed: bool = False) -> list[Item]:
    """Items of those paths that are images or videos; `relative` counts from the folder `base`. Those that are neither, nor,
    unless they are `listed`, labels and the like, are named on stderr. Raises UserError when nothing is left of `source`."""
    items, others = [], []
    # a folder of results that holds the sources, or is theirs, hides nothing: the caller looks for overwritten inputs
    hidden = exclude.resolve() if exclude and base.resolve() in exclude.resolve().parents else None
    for path in paths:
        if not path.is_file() or hidden in path.resolve().parents:
            continue
        kind = kind_of(path, listed=listed)
        if kind in (IMAGE, VIDEO):
            kind = VIDEO if kind == IMAGE and is_animated(path) else kind
            items.append(Item(str(path), Path(os.path.relpath(path, base)), kind))
        elif kind != BESIDE:
            others.append(path)
    said = left_out(others, len(items) + len(others))
    if not items:
        where = "in this folder" if os.path.isdir(source) else "in it"
        raise UserError(f"--source {source}: there are no images or videos {where}" + (f"; {said}" if said else ""))
    if said:
        tqdm.write(f"{source}: {said}", file=sys.stderr)
    return items


def is_animated(path: str | Path) -> bool:
    """Is this a GIF of several images, which are frames of a video, so to speak?"""
    with open(path, "rb") as file:
        if not file.read(6).startswith(b"GIF8"):
            return False
    try:
        capture = open_capture(os.fspath(path))
    except ValueError:
        return False
    try:
        return capture.read()[0] and capture.read()[0]
    finally:
        capture.release()


def _common_folder(paths: list[Path]) -> Path:
    """The deepest folder that holds all of them, absolute: a list may mix relative paths, `../` and absolute ones."""
    return Path(os.path.commonpath([os.path.abspath(p.parent) for p in paths])) if paths else Path()


def _stream_name(address: str) -> str:
    """A file name for the recording of a stream; what stands before the @ may be a password."""
    text = address.split("://", 1)[1].split("?", 1)[0].rsplit("@", 1)[-1]
    return "".join(c if c.isalnum() or c in "-." else "_" for c in text).strip("_.") or "stream"


def shown(name: str) -> str:
    """The name of an item for messages, without the password of a stream's address."""
    scheme, separator, rest = name.partition("://")
    return f"{scheme}://{rest.rsplit('@', 1)[-1]}" if separator else name


class Frames:
    """The frames of items. Items that can't be read are named on stderr, counted in `skipped` and passed over; UserError
    when none could be read."""

    def __init__(self, items: list[Item]) -> None:
        self.items = items
        self.skipped: list[str] = []

    def read(self, item: Item) -> Iterator[Frame]:
        """The frames of one of the items, none if it can't be read."""
        try:
            yield from _READERS[item.kind](item)
        except ValueError as error:
            self._skip(item, str(error))

    def _skip(self, item: Item, reason: str) -> None:
        self.skipped.append(item.name)
        if len(self.items) == 1:
            raise UserError(f"--source {shown(item.name)}: {reason}")
        tqdm.write(f"{item.name}: {reason}; skipped", file=sys.stderr)
        if len(self.skipped) == len(self.items):
            raise UserError(f"none of the {len(self.items)} images and videos could be read")


def _read_image(item: Item) -> Iterator[Frame]:
    try:
        remark = measure(item.name).remark
    except ValueError as error:
        raise ValueError(f"not a readable image ({error})") from None
    image = read_picture(item.name)
    if image is None:
        raise ValueError("not a readable image")
    if remark:
        tqdm.write(f"{item.name}: {remark}", file=sys.stderr)
    yield Frame(item, image)


def _read_video(item: Item) -> Iterator[Frame]:
    yield from _sequential(item, open_capture(item.name))


def _sequential(item: Item, capture: cv2.VideoCapture) -> Iterator[Frame]:
    """Every frame, in order; then the capture is closed."""
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    number = 0
    try:
        while (answer := capture.read())[0]:
            number += 1
            yield Frame(item, answer[1], number, total if total >= number else None, frame_rate(capture))
    finally:
        capture.release()
    if not number:
        raise ValueError("holds no frame that can be decoded")


def _read_stream(item: Item) -> Iterator[Frame]:
    """The newest frame whenever one is asked for; a video file behind an http address is read frame by frame."""
    capture = open_capture(int(item.name) if item.name.isdigit() else item.name)
    if capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0:
        yield from _sequential(item, capture)
        return
    with contextlib.closing(LatestFrame(capture)) as latest:
        number = 0
        while (image := latest.next()) is not None:
            number += 1
            yield Frame(item, image, number, None, frame_rate(capture))
    if not number:
        raise ValueError(f"sent no frame within {STREAM_TIMEOUT} s")


_READERS = {"image": _read_image, "video": _read_video, "stream": _read_stream}


def open_capture(source: str | int) -> cv2.VideoCapture:
    """An opened capture of a file, address or camera number; raises ValueError when it can't be opened."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg would explain itself on stderr besides our own line
    capture = cv2.VideoCapture()
    with libraries_silenced():
        if isinstance(source, str) and "://" in source:
            wait = 1000 * STREAM_TIMEOUT
            options = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, wait, cv2.CAP_PROP_READ_TIMEOUT_MSEC, wait]
            capture.open(source, cv2.CAP_FFMPEG, options)
        elif isinstance(source, str):
            with openable(source) as name:
                capture.open(name)
        else:
            capture.open(source)
    if capture.isOpened():
        return capture
    if isinstance(source, int):
        raise ValueError("no camera of this number can be opened")
    if "://" in source:
        raise ValueError("this stream cannot be opened; check address and network")
    is_video = os.path.splitext(source)[1].lower() in VIDEO_SUFFIXES
    raise ValueError("not a readable video" if is_video else "neither an image nor a video that OpenCV can read")


def open_writer(path: Path, fourcc: str, fps: float, size: tuple[int, int]) -> cv2.VideoWriter:
    """A writer of a video, opened unless OpenCV can't write this codec into this kind of file, which exists, empty. size:
    (width, height) of the frames."""
    with libraries_silenced(), openable(path) as name:
        return cv2.VideoWriter(name, cv2.VideoWriter_fourcc(*fourcc), fps, size)


def frame_rate(capture: cv2.VideoCapture) -> float:
    """Frames a second as the source states it, or DEFAULT_FPS where it states nonsense."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if 0 < fps <= 1000 else DEFAULT_FPS


class LatestFrame:
    """Reads a live stream in a thread and keeps only its newest frame, so that a slow detector never lags behind."""

    def __init__(self, capture: cv2.VideoCapture) -> None:
        self.capture = capture
        self.frame: np.ndarray | None = None
        self.ended = False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._grab, daemon=True)
        self.thread.start()

    def _grab(self) -> None:
        while not self.ended:
            got, frame = self.capture.read()
            with self.changed:
                self.ended = self.ended or not got
                self.frame = frame if got else self.frame
                self.changed.notify_all()

    def next(self) -> np.ndarray | None:
        """The newest frame that wasn't given out yet, waiting for one if need be; None when the stream has ended."""
        with self.changed:
            self.changed.wait_for(lambda: self.frame is not None or self.ended, STREAM_TIMEOUT)
            frame, self.frame = self.frame, None
            return frame

    def close(self) -> None:
        """Stop the thread and give the camera back."""
        self.ended = True
        self.thread.join(STREAM_TIMEOUT)
        if not self.thread.is_alive():
            self.capture.release()
