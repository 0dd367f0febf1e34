"""Fetch the official pretrained weights of Darknet's networks by name.

python fetch_weights.py yolov3-tiny
python fetch_weights.py darknet53.conv.74 yolov4.conv.137 --out weights
python fetch_weights.py --list

A download that broke off goes on where it stopped. Every file is checked: against the checksum that is published for it,
where there is one (yolov3, yolov4, yolov4-tiny: SHA-1 in OpenCV's list of test models; yolov3-tiny: MD5), and against its
network's cfg: it must hold exactly as many values. Its SHA-256 is written beside it, and compared when it is asked for again.
"""

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from utils.core.download import download
from utils.core.errors import UserError
from utils.core.files import read_text, replacing, write_text
from utils.core.tables import format_table
from utils.network.darknet import Darknet
from utils.network.file_kind import is_weights
from utils.network.weights import HEADER_BYTES, darknet_tensors, header_bytes
from utils.scripts.cli import Parser, run

CFG = Path(__file__).parent / "cfg"
REDMON = "https://pjreddie.com/media/files/"
ALEXEY = "https://github.com/AlexeyAB/darknet/releases/download/"


@dataclass(frozen=True)
class Official:
    """Where a file is, and what it must be. layers: the file ends before this layer; digest: `algorithm:hex`, published;
    whole: this file is published only as the beginning of that one."""

    cfg: str
    url: str = ""
    layers: int | None = None
    digest: str = ""
    whole: str = ""

    def value_count(self) -> int:
        """Float32 values that the file must hold."""
        with torch.device("meta"):
            model = Darknet(CFG / self.cfg, 416)
        return sum(t.numel() for i, t in darknet_tensors(model) if self.layers is None or i < self.layers)


FILES = {
    "yolov3": Official("yolov3/yolov3.cfg", REDMON + "yolov3.weights", digest="sha1:520878f12e97cf820529daea502acca380f1cb8e"),
    "yolov3-spp": Official("yolov3/yolov3-spp.cfg", REDMON + "yolov3-spp.weights"),
    "yolov3-tiny": Official(
        "yolov3tiny/yolov3-tiny.cfg", REDMON + "yolov3-tiny.weights", digest="md5:3bcd6b390912c18924b46b26a9e7ff53"
    ),
    "yolov4": Official(
        "yolov4/yolov4.cfg",
        ALEXEY + "darknet_yolo_v3_optimal/yolov4.weights",
        digest="sha1:0143deb6c46fcc7f74dd35bf3c14edc3784e99ee",
    ),
    "yolov4-csp": Official("yolov4/yolov4-csp.cfg", ALEXEY + "darknet_yolo_v4_pre/yolov4-csp.weights"),
    "yolov4-tiny": Official(
        "yolov4tiny/yolov4-tiny.cfg",
        ALEXEY + "yolov4/yolov4-tiny.weights",
        digest="sha1:451caaab22fb9831aa1a5ee9b5ba74a35ffa5dcb",
    ),
    "yolov7-tiny": Official("yolov7tiny/yolov7-tiny.cfg", ALEXEY + "yolov4/yolov7-tiny.weights"),
    "darknet53.conv.74": Official("yolov3/yolov3.cfg", REDMON + "darknet53.conv.74", layers=74),
    "yolov3-tiny.conv.15": Official("yolov3tiny/yolov3-tiny.cfg", layers=15, whole="yolov3-tiny"),
    "yolov4.conv.137": Official("yolov4/yolov4.cfg", ALEXEY + "darknet_yolo_v3_optimal/yolov4.conv.137", layers=137),
    "yolov4-csp.conv.142": Official("yolov4/yolov4-csp.cfg", ALEXEY + "darknet_yolo_v4_pre/yolov4-csp.conv.142", layers=142),
    "yolov4-tiny.conv.29": Official(
        "yolov4tiny/yolov4-tiny.cfg", ALEXEY + "darknet_yolo_v4_pre/yolov4-tiny.conv.29", layers=29
    ),
    "yolov7-tiny.conv.87": Official("yolov7tiny/yolov7-tiny.cfg", ALEXEY + "yolov4/yolov7-tiny.conv.87", layers=87),
}


def get_parser() -> Parser:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="files to fetch; --list shows all")
    parser.add_argument("--list", action="store_true", help="show the files that can be fetched")
    parser.add_argument("--out", type=Path, default=Path("weights"), help="folder of the files")
    parser.add_argument("--mirror", default="", metavar="URL", help="fetch URL/<file name> instead of the official addresses")
    return parser


def main(args: argparse.Namespace) -> list[Path]:
    """Fetch and check the named files; return their paths."""
    if args.list:
        rows = [
            [n, f"{(HEADER_BYTES + 4 * f.value_count()) / 1e6:.1f}", f.url or f"cut from {f.whole}"] for n, f in FILES.items()
        ]
        print(format_table(["name", "MB", "from"], rows))
        return []
    unknown = [n for n in args.names if n not in FILES]
    if unknown or not args.names:
        problem = f"{unknown[0]}: no official file of this name" if unknown else "name a file to fetch"
        raise UserError(f"{problem}; there are: {', '.join(FILES)}")
    return [fetch(name, args.out, args.mirror) for name in args.names]


def fetch(name: str, folder: Path, mirror: str = "") -> Path:
    """The checked file, fetched unless it is there already."""
    official = FILES[name]
    target = folder / (name if official.layers else f"{name}.weights")
    if target.exists():
        check(target, official, f"{target}: already there, but")
        print(f"{target}: already there and intact")
    elif official.whole:
        cut(fetch(official.whole, folder, mirror), target, official)
        print(f"{target}: layers 0-{official.layers - 1} of {official.whole}")
    else:
        part = target.with_name(target.name + ".part")
        download(f"{mirror.rstrip('/')}/{target.name}" if mirror else official.url, part)
        try:
            check(part, official, f"{target.name}: what arrived")
        except UserError:
            part.unlink()  # going on from it would not mend it
            raise
        part.replace(target)
        proof = "checksum as published" if official.digest else f"as many values as {official.cfg} has"
        print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, {proof}")
    return remember(target)


def check(path: Path, official: Official, which: str) -> None:
    """Raise UserError unless the file is the official one, as far as that is known, and unchanged since it was fetched."""
    again = "delete it and fetch it again" if path.suffix != ".part" else "run the command again"
    record = _record(path)
    if record.exists() and read_text(record).split()[0] != hash_of(path, "sha256"):
        raise UserError(f"{which} has changed since it was fetched (its SHA-256 isn't that of {record.name}); {again}")
    if not is_weights(path):
        raise UserError(f"{which} is no Darknet .weights file; {again}")
    values, needed = (path.stat().st_size - header_bytes(path)) / 4, official.value_count()
    if values != needed:
        raise UserError(f"{which} holds {values:.10g} values, and {official.cfg} needs {needed}; {again}")
    algorithm, _, published = official.digest.partition(":")
    if published and hash_of(path, algorithm) != published:
        raise UserError(f"{which} hasn't the published {algorithm.upper()} {published}; {again}")


def cut(whole: Path, target: Path, official: Official) -> None:
    """Write the beginning of a file, up to a layer, as `darknet partial` does."""
    with replacing(target) as temporary, open(whole, "rb") as file:
        temporary.write_bytes(file.read(header_bytes(whole) + 4 * official.value_count()))


def remember(target: Path) -> Path:
    """Write the SHA-256 beside the file, in the format of sha256sum; returns the file."""
    if not _record(target).exists():
        write_text(_record(target), f"{hash_of(target, 'sha256')}  {target.name}\n")
    return target


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def hash_of(path: Path, algorithm: str) -> str:
    """Hexadecimal digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


if __name__ == "__main__":
    run(main, get_parser())
