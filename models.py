"""Darknet, a network built from a .cfg; and `python models.py --cfg X`, which shows one layer by layer."""

import argparse
from dataclasses import asdict
from typing import Any

from utils.core.ranges import IMG_SIZE
from utils.core.tables import format_table, write_json
from utils.network.cfg import parse_cfg
from utils.network.darknet import Darknet as Darknet
from utils.network.shapes import Shape
from utils.network.shapes import check_img_size as check_img_size
from utils.network.summary import LayerSummary, summarise, totals
from utils.scripts.cli import Parser, run


def get_parser() -> Parser:
    parser = Parser("Show a network layer by layer: sources, shapes, parameters, multiply-accumulates")
    parser.add_argument("--cfg", required=True, help="Darknet .cfg file")
    parser.add_argument("--img-size", type=IMG_SIZE, default=None, help="side of the input in pixels; default: the cfg's")
    parser.add_argument("--json", default="", metavar="FILE", help="write the printed figures to this file")
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Print the table; return {cfg, width, height, params, macs, bflops, layers}."""
    defs = parse_cfg(args.cfg)
    width, height = args.img_size or defs.net.width, args.img_size or defs.net.height
    layers = summarise(defs, height, width)
    total = totals(layers)
    rows = [[row.index, row.kind, _sources(row), _whc(row.shape), row.parameters, row.macs] for row in layers]
    print(format_table(["layer", "kind", "from", "output WxHxC", "parameters", "MACs"], rows))
    print(
        f"{args.cfg} at {width}x{height}x{defs.net.channels}: {len(layers)} layers, {total['params']:,} parameters, "
        f"{total['macs'] / 1e9:.3f} GMACs ({total['bflops']:.3f} BFLOPs)"
    )
    figures = {"cfg": args.cfg, "width": width, "height": height, **total, "layers": [asdict(row) for row in layers]}
    write_json(args.json, figures)
    return figures


def _sources(row: LayerSummary) -> str:
    return ",".join("image" if s < 0 else str(s) for s in row.sources)


def _whc(shape: Shape) -> str:
    channels, height, width = shape
    return f"{width}x{height}x{channels}"


if __name__ == "__main__":
    run(main, get_parser())
