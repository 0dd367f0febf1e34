"""What a network consists of, layer by layer: the table of `python models.py --cfg X`."""

import argparse
from dataclasses import asdict, dataclass
from typing import Any

import torch

from models import Darknet
from utils.cfg import parse_cfg
from utils.cli import Parser, format_table, write_json
from utils.definitions import Defs
from utils.measure import layer_macs
from utils.ranges import IMG_SIZE
from utils.shapes import Shape, output_shapes


@dataclass(frozen=True)
class LayerSummary:
    """One layer: where its maps come from (-1 is the image), the shape of its output, and what it costs a picture."""

    index: int
    kind: str
    sources: list[int]
    shape: Shape  # channels, height, width
    parameters: int
    macs: int


def summarise(defs: Defs, height: int | None = None, width: int | None = None) -> list[LayerSummary]:
    """Every layer of a network for an input of the given size, or the cfg's own.

    Parameters are the trainable ones; MACs: see utils.measure. The network has no memory ("meta"), so that the largest takes
    no longer than the smallest.
    Raises UserError for what can't be built, and for a size that isn't a multiple of the network's stride.
    """
    height, width = height or defs.net.height, width or defs.net.width
    with torch.device("meta"):
        model = Darknet(defs, (height, width))
    macs = layer_macs(model, height, width)
    return [
        LayerSummary(
            index=i, kind=defs[i].kind, sources=defs.sources(i), shape=shape,
            parameters=sum(p.numel() for p in model.module_list[i].parameters()),
            macs=macs[i],
        )
        for i, shape in enumerate(output_shapes(defs, height, width))
    ]  # fmt: skip


def totals(layers: list[LayerSummary]) -> dict[str, float]:
    """{params, macs, bflops}. Darknet's BFLOPs count each multiply-accumulate as two operations, and also one for each value
    in a pooling window and each addition of a shortcut (0.01 to 0.25 % of a detector's, left out here)."""
    macs = sum(row.macs for row in layers)
    return {"params": sum(row.parameters for row in layers), "macs": macs, "bflops": 2 * macs / 1e9}


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
