"""Write a network's .cfg for another set of classes, if wanted with anchors clustered from its boxes."""

import argparse
import dataclasses
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models import check_img_size
from utils.anchors import AnchorFit, cluster_anchors, fit, label_sizes
from utils.cfg import DataConfig, parse_cfg, read_data, write_cfg
from utils.cli import Parser, format_table, natural, run, write_json
from utils.datasets import scan
from utils.definitions import Convolutional, Defs, Yolo
from utils.errors import UserError
from utils.files import read_text, write_text
from utils.shapes import max_stride, output_shapes


@dataclass
class Change:
    """One key of one section; `layer` -1 is [net]."""

    layer: int
    kind: str
    line: int
    key: str
    before: str | None
    after: str


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--cfg", type=Path, required=True, help="the network to start from")
    parser.add_argument("--data", type=Path, required=True, help="the .data file whose classes the new cfg is for")
    parser.add_argument("--anchors", choices=("keep", "kmeans"), default="keep", help="kmeans: fit them to the train boxes")
    parser.add_argument("--img-size", type=int, help="input side in pixels, also written into the cfg (default: the cfg's)")
    parser.add_argument("--stretch", action="store_true", help="boxes as stretched, not letterboxed, pictures show them")
    parser.add_argument("--seed", type=natural, default=0, help="of the clustering")
    parser.add_argument("--out", type=Path, help="default: <cfg>-<data>.cfg beside the cfg")
    parser.add_argument("--json", default="", metavar="FILE", help="write the printed figures to this file")
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    text = read_text(args.cfg, "cfg")
    original, data = parse_cfg(args.cfg), read_data(args.data)
    if not original.yolo_indices():
        raise UserError(f"{args.cfg}: has no [yolo] layer, so there are no classes to change")
    defs = parse_cfg(args.cfg)
    if args.img_size:
        check_img_size(args.img_size, max_stride(defs))
        defs.net.width = defs.net.height = args.img_size
    set_classes(defs, data.classes)
    report: dict[str, Any] = {"cfg": str(args.cfg), "classes": data.classes}
    if args.anchors == "kmeans":
        report["anchors"] = _recluster(defs, data, args)
    output_shapes(defs)
    changes = find_changes(original, defs)
    out = args.out or args.cfg.with_name(f"{args.cfg.stem}-{args.data.stem}.cfg")
    write_text(out, edit(text, changes))
    rows = [["[net]" if c.layer < 0 else f"{c.layer} [{c.kind}]", c.key, c.before or "-", c.after] for c in changes]
    print(format_table(["layer", "key", "before", "after"], rows) if rows else "nothing had to change")
    print(f"{out}: written for the {data.classes} classes of {args.data}")
    report |= {"out": str(out), "changes": [dataclasses.asdict(c) for c in changes]}
    write_json(args.json, report)
    return report


def set_classes(defs: Defs, classes: int) -> None:
    """Set `classes` of every [yolo] layer and the filters of the convolution that feeds it, in place.

    Raises UserError for a [yolo] layer that no convolution feeds.
    """
    for index in defs.yolo_indices():
        head = defs[index]
        source = defs.sources(index)[0]
        if source < 0 or not isinstance(defs[source], Convolutional):
            raise UserError(f"{defs.where(index)}: is not fed by a convolution, so the classes can't be changed")
        head.classes = classes
        defs[source].filters = len(head.mask) * (5 + classes)


def used_anchors(defs: Defs) -> np.ndarray:
    """(n, 2) the different anchors that the heads' masks select."""
    return np.array(sorted({size for i in defs.yolo_indices() for size in defs[i].anchor_sizes()}, key=np.prod))


def set_anchors(defs: Defs, anchors: np.ndarray) -> None:
    """Give the heads `anchors` (as many as their masks select; (n, 2), sorted by area), the largest to the largest stride.

    Masks that follow this already stay; a place in the list that no mask selects repeats its neighbour.
    """
    heads = [defs[i] for i in _by_stride(defs)]
    if not _masks_follow(heads):
        start = 0
        for head in heads:
            head.mask = tuple(range(start, start + len(head.mask)))
            start += len(head.mask)
        places = start
    else:
        places = len(heads[0].anchors) // 2
    used = sorted({m for head in heads for m in head.mask})
    listed = anchors[np.searchsorted(used, np.arange(places)).clip(max=len(used) - 1)]
    for head in heads:
        head.anchors, head.num = tuple(listed.ravel().tolist()), places


def _anchor_count(defs: Defs) -> int:
    """Anchors that set_anchors needs."""
    heads = [defs[i] for i in _by_stride(defs)]
    if _masks_follow(heads):
        return len({m for head in heads for m in head.mask})
    return sum(len(head.mask) for head in heads)


def _by_stride(defs: Defs) -> list[int]:
    """Indices of the [yolo] layers, smallest stride (largest map) first."""
    shapes = output_shapes(defs)
    return sorted(defs.yolo_indices(), key=lambda i: -shapes[i][1])


def _masks_follow(heads: list[Yolo]) -> bool:
    """Do all heads share one list of anchors, and do larger strides select later places of it?"""
    if len({head.anchors for head in heads}) > 1:
        return False
    masks = [head.mask for head in heads]
    return all(min(a) < min(b) and max(a) < max(b) for a, b in itertools.pairwise(masks))


def _recluster(defs: Defs, data: DataConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Cluster the train labels' boxes, put the anchors into `defs`, print and return how well old and new ones fit."""
    source = data.source("train")
    found = scan(source, data.classes)
    if found.problems.counts:
        print(f"{source}: {found.problems.summary()}")
    sizes = label_sizes(found.labels, found.shapes, (defs.net.height, defs.net.width), args.stretch)
    before = used_anchors(defs)
    set_anchors(defs, cluster_anchors(sizes, _anchor_count(defs), args.seed))
    fits = {"old": (before, fit(sizes, before)), "new": (used_anchors(defs), fit(sizes, used_anchors(defs)))}
    print(f"anchors for {len(sizes)} boxes at {defs.net.width}x{defs.net.height}:")
    rows = [[n, " ".join(f"{w:g},{h:g}" for w, h in a), f"{f.recall:.4f}", f"{f.mean_iou:.4f}"] for n, (a, f) in fits.items()]
    print(format_table(["anchors", "width,height", "best possible recall", "mean best IoU"], rows))
    return {"boxes": len(sizes)} | {name: _fit_report(*entry) for name, entry in fits.items()}


def _fit_report(anchors: np.ndarray, result: AnchorFit) -> dict[str, Any]:
    return {"sizes": anchors.tolist(), **dataclasses.asdict(result)}


def find_changes(before: Defs, after: Defs) -> list[Change]:
    """The keys whose written values differ between two versions of the same network."""
    changes = []
    sections = zip((before.net, *before), write_cfg(before).split("\n\n"), write_cfg(after).split("\n\n"), strict=True)
    for index, (layer, *texts) in enumerate(sections, -1):
        old, new = (dict(line.split("=", 1) for line in text.strip().splitlines()[1:]) for text in texts)
        changes += [Change(index, layer.kind, layer.line, k, old.get(k), v) for k, v in new.items() if old.get(k) != v]
    return changes


def edit(text: str, changes: list[Change]) -> str:
    """The cfg text with these keys set, everything else as it was but for spaces around `=`; comments are kept."""
    lines = [re.sub(r"^([^#;=]*?)\s*=\s*", r"\1=", line) for line in text.splitlines()]
    for change in sorted(changes, key=lambda c: -c.line):
        start = change.line  # the line after the section's header, counted from 0
        end = next((i for i in range(start, len(lines)) if lines[i].lstrip().startswith("[")), len(lines))
        place = [i for i in range(start, end) if lines[i].strip().partition("=")[0] == change.key]
        if place:
            lines[place[-1]] = f"{change.key}={change.after}"
        else:
            lines.insert(start, f"{change.key}={change.after}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(main, get_parser())
