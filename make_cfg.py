"""Write a network's .cfg for another set of classes, if wanted with other anchors: given, or clustered from its boxes.

python make_cfg.py --cfg cfg/yolov3tiny/yolov3-tiny.cfg --data data/bccd/bccd.data --anchors kmeans
python make_cfg.py --cfg cfg/yolov3/yolov3.cfg --data data/oxfordhand.data --anchors "8,13 14,20 22,25 26,36 35,49 ..."
"""

import argparse
import dataclasses
import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.core.errors import UserError
from utils.core.files import output_place, read_text, write_text
from utils.core.option_list import split_lines
from utils.core.ranges import IMG_SIZE, SEED
from utils.core.tables import format_table, write_json
from utils.data.data_file import DataConfig, read_data
from utils.data.datasets import scan
from utils.detection.anchors import ONE_SIZE, AnchorFit, cluster_anchors, concentration, fit, label_sizes, rarity
from utils.network.cfg import parse_cfg, write_cfg
from utils.network.definitions import Defs, Yolo
from utils.network.shapes import check_img_size, max_stride, output_shapes
from utils.scripts.cli import Parser, run


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
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--cfg", type=Path, required=True, help="the network to start from")
    parser.add_argument("--data", type=Path, required=True, help="the .data file whose classes the new cfg is for")
    parser.add_argument("--anchors", default="keep", metavar="keep|kmeans|LIST|FILE",
                        help="kmeans: fit them to the train boxes, those of rare classes weighing more; or width,height pairs "
                        "in pixels of the input; or a file with such")  # fmt: skip
    parser.add_argument("--img-size", type=IMG_SIZE, help="input side in pixels, written into the cfg, too (default: its own)")
    parser.add_argument("--stretch", action="store_true", help="boxes as stretched, not letterboxed, images show them")
    parser.add_argument("--seed", type=SEED, default=0, help="of the clustering")
    parser.add_argument("--out", type=Path, help="default: <cfg>-<data>.cfg beside the cfg")
    parser.add_argument("--json", default="", metavar="FILE", help="write the printed figures to this file")
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    out = output_place(args.out, args.cfg.with_name(f"{args.cfg.stem}-{args.data.stem}.cfg"))
    text = read_text(args.cfg, "cfg", comments="#;")
    original, data = parse_cfg(args.cfg), read_data(args.data)
    if not original.head_indices():
        raise UserError(f"{args.cfg}: has no {original.heads_named()} layer, so there are no classes to change")
    if args.anchors != "keep" and not original.yolo_indices():
        raise UserError(f"--anchors {args.anchors}: {args.cfg} has {original.heads_named()} heads, which do without anchors; "
                        "leave it out")  # fmt: skip
    defs = parse_cfg(args.cfg)
    if args.anchors == "keep" and args.stretch:
        raise UserError("--stretch is about the boxes that anchors are fitted to; add --anchors kmeans, or leave it out")
    if args.img_size is not None:
        check_img_size(args.img_size, max_stride(defs))
        defs.net.width = defs.net.height = args.img_size
    set_classes(defs, data.classes)
    report: dict[str, Any] = {"cfg": str(args.cfg), "classes": data.classes}
    if args.anchors != "keep":
        report["anchors"] = change_anchors(defs, data, args)
    output_shapes(defs)
    changes = find_changes(original, defs)
    write_text(out, edit(text, changes))
    rows = [["[net]" if c.layer < 0 else f"{c.layer} [{c.kind}]", c.key, c.before or "-", c.after] for c in changes]
    print(format_table(["layer", "key", "before", "after"], rows) if rows else "nothing had to change")
    print(f"{out}: written for the {data.classes} classes of {args.data}")
    report |= {"out": str(out), "changes": [dataclasses.asdict(c) for c in changes]}
    write_json(args.json, report)
    return report


def set_classes(defs: Defs, classes: int) -> None:
    """Set `classes` of every head and the filters of the convolution that makes them, in place.

    Raises UserError for a head that no convolution feeds.
    """
    for index in defs.head_indices():
        if not defs.feeding(index):
            raise UserError(f"{defs.where(index)}: is not fed by a convolution, so the classes can't be changed")
        *others, source = defs.feeding(index)
        defs[index].classes = classes
        defs[source].filters = defs[index].channels - sum(defs[i].filters for i in others)


def used_anchors(defs: Defs) -> np.ndarray:
    """(n, 2) the different anchors that the heads' masks select."""
    return np.array(sorted({size for i in defs.yolo_indices() for size in defs[i].anchor_sizes()}, key=np.prod))


def set_anchors(defs: Defs, anchors: np.ndarray) -> None:
    """Give the heads `anchors` (n, 2), the larger ones to the larger strides.

    n: as many as the masks select, or as places in the list. The order stays, and so do masks that follow the strides,
    where that gives each head larger anchors in the mean than the one of the next smaller stride; otherwise they are
    sorted by area. A place in the list that no mask selects repeats its neighbour.
    """
    _put_anchors(defs, anchors)
    means = [np.prod(defs[i].anchor_sizes(), 1).mean() for i in _by_stride(defs)]
    if not all(a < b for a, b in itertools.pairwise(means)):
        _put_anchors(defs, anchors[np.argsort(anchors.prod(1), kind="stable")])


def _put_anchors(defs: Defs, anchors: np.ndarray) -> None:
    heads = [defs[i] for i in _by_stride(defs)]
    if not _masks_follow(heads):
        start = 0
        for head in heads:
            head.mask = tuple(range(start, start + len(head.mask)))
            start += len(head.mask)
    selected, places = _anchor_counts(defs)
    if len(anchors) != places:
        used = sorted({m for head in heads for m in head.mask})
        anchors = anchors[np.searchsorted(used, np.arange(places)).clip(max=selected - 1)]
    for head in heads:
        head.anchors, head.num = tuple(anchors.ravel().tolist()), places


def _anchor_counts(defs: Defs) -> tuple[int, int]:
    """Anchors that the masks select, and places in the list, after set_anchors."""
    heads = [defs[i] for i in _by_stride(defs)]
    if _masks_follow(heads):
        return len({m for head in heads for m in head.mask}), len(heads[0].anchors) // 2
    return (sum(len(head.mask) for head in heads),) * 2


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


def read_anchors(text: str) -> np.ndarray:
    """(n, 2) widths and heights: those in the file `text`, or those that it lists. Raises UserError for anything else."""
    named = os.path.isfile(text)
    content = re.sub(r"#.*", "", read_text(text, "list of anchors", comments="#")) if named else text
    what = text if named else "--anchors"
    numbers = []
    for word in filter(None, re.split(r"[,;\s]+", content)):
        try:
            numbers.append(float(word))
        except ValueError:
            raise UserError(
                f"{what}: {word!r} is no number; give keep, kmeans, `width,height width,height ...` or such a file"
            ) from None
    if not numbers or len(numbers) % 2:
        raise UserError(f"{what}: {len(numbers)} numbers, but anchors are pairs: width,height width,height ...")
    if min(numbers) < 0 or max(numbers) < 1 or not np.isfinite(numbers).all():
        raise UserError(f"{what}: anchors are widths and heights in pixels of the network's input; found {min(numbers):g}")
    return np.array(numbers).reshape(-1, 2)


def _given(defs: Defs, text: str) -> np.ndarray:
    """The anchors that the user gives, as many as the heads take. No box can be learned with a side of no pixels, so each
    has at least one, as after clustering."""
    anchors, counts = read_anchors(text), _anchor_counts(defs)
    if len(anchors) not in counts:
        raise UserError(f"--anchors: {len(anchors)} anchors, but the masks of {defs.name} select {counts[0]}")
    if anchors.min() < 1:
        print(f"sides of less than a pixel become 1: {_spelled(anchors[anchors.min(1) < 1])}")
    return np.maximum(anchors, 1)


def change_anchors(defs: Defs, data: DataConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Put other anchors into `defs`; print and return how well old and new ones fit the train labels' boxes, which
    clustering needs, and given anchors do without."""
    before = used_anchors(defs)
    if args.anchors == "kmeans":
        sizes, classes = _boxes(defs, data, args)
        set_anchors(defs, cluster_anchors(sizes, _anchor_counts(defs)[0], args.seed, before, rarity(classes)))
    else:
        set_anchors(defs, _given(defs, args.anchors))
        there_are = data.train is not None and data.train.exists()
        sizes, classes = _boxes(defs, data, args) if there_are else (None, None)
    sets = {"old": before, "new": used_anchors(defs)}
    if sizes is None or not len(sizes):
        return {name: {"sizes": a.tolist()} for name, a in sets.items()}
    print(f"anchors for {len(sizes)} boxes at {defs.net.width}x{defs.net.height}:")
    return _compare(sets, sizes, classes)


def _compare(sets: dict[str, np.ndarray], sizes: np.ndarray, classes: np.ndarray) -> dict[str, Any]:
    """Print and return how well old and new anchors fit boxes, and say when most of these have one size."""
    fits = {name: fit(sizes, a) for name, a in sets.items()}
    weighed = {name: fit(sizes, a, weights=rarity(classes)).mean_iou for name, a in sets.items()}
    rows = [[n, _spelled(a), *(f"{v:.4f}" for v in (fits[n].recall, fits[n].mean_iou, weighed[n]))] for n, a in sets.items()]
    print(format_table(["anchors", "width,height", "best possible recall", "mean best IoU", "rare classes weighed"], rows))
    share = concentration(sizes, sets["new"])
    if share > ONE_SIZE:
        print(f"hint: {share:.0%} of the boxes are nearest to a third of these anchors, so most have one size; a line "
              "`most_anchors: 4` in a file for train.py --hyp keeps the other anchors from learning them, too")  # fmt: skip
    reports = {n: _fit_report(a, fits[n]) | {"weighed_iou": weighed[n]} for n, a in sets.items()}
    return {"boxes": len(sizes), "concentration": share} | reports


def _boxes(defs: Defs, data: DataConfig, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) sizes of the train labels' boxes in pixels of the network's input, and (n,) their classes."""
    source = data.source("train")
    found = scan(source, data.classes)
    if found.problems.counts:
        print(f"{source}: {found.problems.summary()}")
    sizes = label_sizes(found.labels, found.shapes, (defs.net.height, defs.net.width), args.stretch)
    return sizes, np.concatenate([rows[:, 0] for rows in found.labels])


def _spelled(anchors: np.ndarray) -> str:
    return " ".join(f"{w:g},{h:g}" for w, h in anchors)


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
    lines = [re.sub(r"^([^#;=]*?)\s*=\s*", r"\1=", line) for line in split_lines(text.removesuffix("\n"))]
    for change in sorted(changes, key=lambda c: -c.line):
        start = change.line  # the line after the section's header, counted from 0
        end = next((i for i in range(start, len(lines)) if lines[i].lstrip().startswith("[")), len(lines))
        pairs = ((i, lines[i].partition("=")) for i in range(start, end))
        place = [i for i, (key, _, value) in pairs if "".join(key.split()) == change.key and value.strip()]
        if place:  # of a key given twice the first counts
            lines[place[0]] = f"{change.key}={change.after}"
        else:
            lines.insert(start, f"{change.key}={change.after}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(main, get_parser())
