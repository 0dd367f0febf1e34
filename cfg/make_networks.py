"""Write YOLOv5 and YOLOv8 in their five sizes, from the tables of width and depth.

python cfg/make_networks.py [--out cfg]
"""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # to be run as a script, too
from utils.core.files import write_text
from utils.network.architectures import ARCHITECTURES, SCALES, build
from utils.scripts.cli import Parser, run

ROOT = Path(__file__).resolve().parents[1]
NAMES = [f"{family}/{family}{scale}" for family in SCALES for scale in SCALES[family]]


def get_parser() -> ArgumentParser:
    """The command line."""
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "cfg", help="folder to write to")
    return parser


def main(args: Namespace) -> None:
    """Write all of them."""
    for name in NAMES:
        print(write_network(name, args.out))


def write_network(name: str, folder: Path) -> Path:
    """Write the network `name`, such as yolov5/yolov5n, below `folder`."""
    family, out = name.partition("/")[0], folder / f"{name}.cfg"
    size = name[-1]
    scale = SCALES[family][size]
    limit = f", {scale.most} channels at most before that" if family == "yolov8" else ""
    title = f"YOLO{family[4:]}{size}: depth {scale.depth:g} and width {scale.width:g} of the full network{limit}"
    write_text(out, build(ARCHITECTURES[family], scale).text(title))
    return out


if __name__ == "__main__":
    run(main, get_parser())
