"""Which file holds the result of which image, video and frame: planned for all of them before the first is written.

>>> items = [Item(name, Path(name), kind) for name, kind in (("a.jpg", "image"), ("a.png", "image"), ("v.avi", "video"))]
>>> outputs = plan_outputs(Path("out"), items, "mp4v")
>>> [str(o.path) for o in outputs.values()], str(outputs["v.avi"].labels(7))
(['out/a.jpg', 'out/a_png.png', 'out/v.mp4'], 'out/v_7.txt')
"""

import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from utils.core.errors import UserError, remark
from utils.data.sources import Item

MP4_CODES = frozenset({"mp4v", "avc1", "h264", "x264", "hevc", "hev1", "hvc1"})  # the others go into .avi
WRITABLE = frozenset({".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})  # with colours


@dataclass(frozen=True)
class Output:
    """The files of one item: `path`, the image or video with boxes, and texts with the boxes of its frames."""

    path: Path
    is_video: bool

    def labels(self, number: int) -> Path:
        """The text of frame `number`."""
        return self.path.with_name(f"{self.path.stem}_{number}.txt") if self.is_video else self.path.with_suffix(".txt")


def plan_outputs(folder: Path, items: list[Item], fourcc: str, inputs: Iterable[Path] = ()) -> dict[str, Output]:
    """Item name -> its output: files of the item's own name, or of a longer one where another item has those already.

    No two are one file, not even where upper and lower case are the same; nor is one a folder of another. Images choose
    first, since how many frames a video has, and so which texts, is only known at its end. Raises UserError when a result
    would take the place of an item or of one of the `inputs`.
    """
    names = _Names({_folded(parent) for item in items for parent in item.relative.parents})
    kept = {path.resolve() for path in (*inputs, *(Path(item.name) for item in items if item.kind != "stream"))}
    outputs: dict[str, Output] = {}
    longer: list[str] = []
    for item in sorted(items, key=lambda item: item.kind != "image"):
        if item.name in outputs:
            continue
        suffix, is_video = _suffix(item, fourcc), item.kind != "image"
        number, stem = next(s for s in enumerate(_stems(item)) if names.take(_folded(s[1]), suffix, is_video))
        output = outputs[item.name] = Output(folder / stem.with_name(stem.name + suffix), is_video)
        for path in (output.path, output.labels(1)):
            if path.resolve() in kept:
                raise UserError(f"--output {folder}: would overwrite the input {path}; choose another folder")
        longer += [f"{item.relative} -> {output.path}"] * (number > 0)
    if longer:
        remark(f"results with longer names, since others are called the same: {len(longer)} (first: {longer[0]})")
    return outputs


def _suffix(item: Item, fourcc: str) -> str:
    if item.kind != "image":
        return ".mp4" if fourcc.lower() in MP4_CODES else ".avi"
    suffix = item.relative.suffix.lower()
    return suffix if suffix in WRITABLE else ".png"


def _stems(item: Item) -> Iterator[Path]:
    """Names without suffix that an item could have, the best first: without end."""
    yield item.relative if item.kind == "stream" else item.relative.with_suffix("")
    whole = item.relative.name.replace(".", "_")
    yield item.relative.with_name(whole)
    yield from (item.relative.with_name(f"{whole}-{number}") for number in itertools.count(2))


def _folded(path: Path) -> str:
    """What all spellings have in common that some file system takes for the same name."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path.as_posix()).casefold())


def _family(stem: str) -> str | None:
    """`clip_#` for `clip_12`: the texts of a video `clip` are called so; None for a name without number."""
    return re.sub(r"_[0-9]+$", "_#", stem) if re.search(r"_[0-9]+$", stem) else None


@dataclass
class _Names:
    """The names that are given away, folded. families: of the texts of images, and of folders that are called like such
    a text; frames: of the texts of videos."""

    folders: set[str]
    files: set[str] = field(default_factory=set)
    families: set[str | None] = field(default_factory=set)
    frames: set[str | None] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.families |= {_family(name.removesuffix(".txt")) for name in self.folders if name.endswith(".txt")}

    def take(self, stem: str, suffix: str, is_video: bool) -> bool:
        """Give the names of an item with this stem away; False, and nothing is, where one of them isn't free."""
        files = {stem + suffix} if is_video else {stem + suffix, f"{stem}.txt"}
        family = f"{stem}_#" if is_video else _family(stem)
        if files & (self.files | self.folders) or (family and family in (self.families if is_video else self.frames)):
            return False
        self.files |= files
        (self.frames if is_video else self.families).add(family)
        return True
