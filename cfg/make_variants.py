"""Write the networks for known datasets with make_cfg.py: their classes, and the anchors published for them.

    python cfg/make_variants.py [--out cfg]

Anchors are widths and heights in pixels that k-means found on the datasets' boxes; `keep` is the network's own.
"""

import sys
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # to be run as a script, too
import make_cfg
from utils.scripts.cli import Parser, run

ROOT = Path(__file__).resolve().parents[1]
HAND = "8,13 14,20 22,25 26,36 35,49 40,31 51,69 63,47 94,103"


@dataclass(frozen=True)
class Variant:
    """cfg/<base>.cfg for the classes of data/<data>.data."""

    base: str
    data: str
    anchors: str = "keep"


VARIANTS = {
    "yolov3/yolov3-hand": Variant("yolov3/yolov3", "oxfordhand", HAND),
    "yolov3/yolov3-visdrone": Variant("yolov3/yolov3", "visdrone"),
    "yolov3/yolov3-bdd100k": Variant("yolov3/yolov3", "bdd100k", "3,7 5,18 6,9 10,32 11,14 17,21 24,36 45,59 93,132"),
    "yolov3/yolov3-onDIOR": Variant("yolov3/yolov3", "dior", "5,5 6,13 10,26 13,6 15,15 27,10 28,33 61,74 167,169"),
    "yolov3tiny/yolov3-tiny-hand": Variant("yolov3tiny/yolov3-tiny", "oxfordhand", "9,13 16,22 27,38 28,27 44,49 79,83"),
    "yolov3tiny/yolov3-tiny_visdrone": Variant("yolov3tiny/yolov3-tiny", "visdrone", "0,3 2,5 3,11 5,6 9,14 22,30"),
    "yolov3tiny/yolov3-tiny_bdd100k": Variant("yolov3tiny/yolov3-tiny", "bdd100k", "3,7 5,18 7,10 12,20 26,38 70,96"),
    "yolov3tiny/yolov3-tiny_onDIOR": Variant("yolov3tiny/yolov3-tiny", "dior", "5,5 8,15 17,9 22,27 54,65 152,155"),
    "yolov3-mobilenet/yolov3-mobilenet-hand": Variant("yolov3-mobilenet/yolov3-mobilenet-coco", "oxfordhand", HAND),
    "yolov3-mobilenet/yolov3-mobilenet-visdrone": Variant("yolov3-mobilenet/yolov3-mobilenet-coco", "visdrone"),
    "yolov3tiny-mobilenet-small/yolov3tiny-mobilenet-small-visdrone": Variant(
        "yolov3tiny-mobilenet-small/yolov3tiny-mobilenet-small-coco", "visdrone", "0,3 2,5 3,11 5,6 9,14 22,30"
    ),
    "yolov4/yolov4-hand": Variant("yolov4/yolov4", "oxfordhand", HAND),
    "yolov4/yolov4-visdrone": Variant("yolov4/yolov4", "visdrone"),
}


def get_parser() -> ArgumentParser:
    """The command line."""
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "cfg", help="folder to write to")
    return parser


def main(args: Namespace) -> None:
    """Write all of them."""
    for name in VARIANTS:
        write_variant(name, args.out)


def write_variant(name: str, folder: Path) -> Path:
    """Write the variant `name` below `folder`, and say what make_cfg.py changed."""
    variant, out = VARIANTS[name], folder / f"{name}.cfg"
    arguments = ["--cfg", ROOT / "cfg" / f"{variant.base}.cfg", "--data", ROOT / "data" / f"{variant.data}.data"]
    arguments += ["--anchors", variant.anchors, "--out", out]
    make_cfg.main(make_cfg.get_parser().parse_args(list(map(str, arguments))))
    return out


if __name__ == "__main__":
    run(main, get_parser())
