"""Checks of a network: its heads, its anchors and strides against the data, its weights."""

import itertools
from collections.abc import Iterator

import numpy as np

from utils.checking.findings import ERROR, NOTE, WARNING, Finding, Subject, finding_of
from utils.core.commands import command
from utils.core.errors import UserError, noting_remarks
from utils.core.memory import available_memory
from utils.detection.anchors import AnchorFit, fit, label_sizes
from utils.loading import load_model
from utils.network.definitions import Defs
from utils.network.footprint import check_memory
from utils.network.shapes import check_img_size, max_stride, output_shapes
from utils.network.weights import broken_tensors

SAMPLE = 20_000  # boxes that anchors are compared with; more change the third digit at most
RECALL, MEAN_IOU = 0.98, 0.5  # anchors that reach less can be bettered
TINY = 0.5  # of the finest stride: a box whose longer side is less than this hardly leaves a trace in the map
MANY = 0.01  # share of the boxes


def heads(subject: Subject) -> Iterator[Finding]:
    """Heads against the data's classes, and the channels before them against what they need."""
    defs, data = subject.defs, subject.data
    if defs is None:
        return
    indices = defs.head_indices()
    if not indices:
        what = f"a network without {defs.heads_named()} layer"
        yield Finding(ERROR, what, 1, defs.name, "it detects nothing; choose another cfg")
    others = [i for i in indices if data is not None and data.classes and defs[i].classes != data.classes]
    if others:
        hint = command("make_cfg.py", cfg=defs.name, data=data.path)
        remedy = f"{hint}, or train with --single-cls" if defs[others[0]].classes == 1 else hint
        what = f"{defs.heads_named()} layers with classes={defs[others[0]].classes}, where the .data has {data.classes}"
        yield Finding(ERROR, what, len(others), defs.where(others[0]), remedy)
    wrong = _wrong_filters(defs)
    if wrong:
        head = defs[wrong[0]]
        *others, source = defs.feeding(wrong[0])
        what = f"filters={defs[source].filters} before a [{head.kind}] that {head.demand()}"
        needed = head.channels - sum(defs[i].filters for i in others)
        remedy = f"set filters={needed}" if needed > 0 else "change it, or the convolutions before it"
        yield Finding(ERROR, what, len(wrong), defs.where(source), remedy)


def _wrong_filters(defs: Defs) -> list[int]:
    """The heads that convolutions feed with the wrong number of channels."""
    fed = {i: sum(defs[s].filters for s in defs.feeding(i)) for i in defs.head_indices()}
    return [i for i, channels in fed.items() if channels not in (0, defs[i].channels)]


def geometry(subject: Subject) -> Iterator[Finding]:
    """Maps that don't fit together, an image size that the strides don't divide, channels that images don't have."""
    defs = subject.defs
    if defs is None or not defs.head_indices() or _wrong_filters(defs):
        return
    net = defs.net
    try:
        check_memory(defs, output_shapes(defs), (net.channels, net.height, net.width), available_memory())
        check_img_size(subject.img_size, max_stride(defs))
    except UserError as error:
        yield finding_of(error)
    if defs.net.channels not in (1, 3):
        what = f"a network for images of {defs.net.channels} channels"
        yield Finding(ERROR, what, 1, f"{defs.name}:{defs.net.line}", "images have 3, or 1 with --gray-scale: set channels=")
    if subject.img_size == defs.net.width != defs.net.height:
        what = f"a cfg for {defs.net.width}x{defs.net.height}, used at {subject.img_size}x{subject.img_size}"
        yield Finding(NOTE, what, 1, defs.name, "images are letterboxed into a square")


def _strides(subject: Subject) -> dict[int, float]:
    """Head -> pixels of the input that a cell of its map covers; empty where the maps don't fit together."""
    if subject.defs is None or not subject.img_size:
        return {}
    try:
        shapes = output_shapes(subject.defs, subject.img_size, subject.img_size)
    except UserError:
        return {}
    return {i: subject.img_size / shapes[i][1] for i in subject.defs.head_indices()}


def _anchored(subject: Subject) -> dict[int, float]:
    """Those of them that have anchors."""
    return {i: stride for i, stride in _strides(subject).items() if i in subject.defs.yolo_indices()}


def anchor_order(subject: Subject) -> Iterator[Finding]:
    """Larger anchors on finer maps than smaller ones: cells that see the least of the largest objects."""
    strides = _anchored(subject)
    areas = {i: float(np.mean([w * h for w, h in subject.defs[i].anchor_sizes()])) for i in strides}
    ordered = sorted(strides, key=lambda i: strides[i])
    found = [i for i, j in itertools.pairwise(ordered) if strides[i] < strides[j] and areas[i] > areas[j]]
    if found:
        remedy = "give the small anchors to the fine maps, or python make_cfg.py --anchors kmeans"
        yield Finding(WARNING, "masks that give large anchors to fine maps", len(found), subject.defs.where(found[0]), remedy)


def box_sizes(subject: Subject) -> np.ndarray:
    """(n, 2) width and height in pixels of the network's input of train's boxes, a fixed sample of many."""
    train = subject.split("train")
    if train is None or not subject.img_size:
        return np.zeros((0, 2))
    rows = train.rows()
    if not len(rows):
        return np.zeros((0, 2))
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE)).astype(int)
    owners = np.repeat(np.arange(len(train.labels)), [len(labels) for labels in train.labels])[chosen]
    side = (subject.img_size, subject.img_size)
    return label_sizes([rows[i : i + 1] for i in chosen], train.shapes[owners], side, subject.stretch)


def anchor_figures(subject: Subject) -> AnchorFit | None:
    """How well the anchors of all heads fit train's boxes; None without anchors or boxes."""
    strides, sizes = _anchored(subject), box_sizes(subject)
    if not strides or not len(sizes):
        return None
    return fit(sizes, np.array(sorted({size for i in strides for size in subject.defs[i].anchor_sizes()})))


def anchor_fit(subject: Subject) -> Iterator[Finding]:
    """Anchors against the boxes: best possible recall and mean IoU, as make_cfg.py prints them."""
    result = anchor_figures(subject)
    if result and (result.recall < RECALL or result.mean_iou < MEAN_IOU):
        what = f"anchors with best possible recall {result.recall:.3f}, mean IoU {result.mean_iou:.3f}"
        data = subject.data.path if subject.data else "FILE.data"
        remedy = command("make_cfg.py", cfg=subject.defs.name, data=data, anchors="kmeans")
        missed = round(len(subject.split("train").rows()) * (1 - result.recall))
        yield Finding(WARNING, what, max(missed, 1), subject.defs.where(subject.defs.yolo_indices()[0]), remedy)


def tiny_boxes(subject: Subject) -> Iterator[Finding]:
    """Boxes too small for the finest map."""
    strides, sizes = _strides(subject), box_sizes(subject)
    if not strides or not len(sizes):
        return
    limit = TINY * min(strides.values())
    share = float((sizes.max(1) < limit).mean())
    if share:
        count = round(share * len(subject.split("train").rows()))
        what = f"train: boxes under {limit:g} pixels at --img-size {subject.img_size}, {share:.1%} of all"
        remedy = "a larger --img-size, tiles, or a network with a finer map"
        yield Finding(WARNING if share > MANY else NOTE, what, count, _smallest(subject), remedy)


def _smallest(subject: Subject) -> str:
    """The image with the smallest box, as a share of the image."""
    train = subject.split("train")
    smallest = [rows[:, 3:].max(1).min() if len(rows) else np.inf for rows in train.labels]
    return train.paths[int(np.argmin(smallest))]


def weights(subject: Subject) -> Iterator[Finding]:
    """Weights against the cfg, and whether their values are numbers."""
    if not subject.weights or subject.defs is None or _wrong_filters(subject.defs):
        return
    size = subject.img_size or None
    try:
        with noting_remarks():  # they are findings already
            loaded = load_model(subject.cfg, subject.weights, size, unchecked=True)
    except UserError as error:
        yield _misfit(subject, error)
        return
    broken = broken_tensors(loaded.model)
    if broken:
        first = f"{subject.weights}: {broken[0]}"
        yield Finding(
            ERROR, "tensors with NaN or infinite values", len(broken), first, "go back to weights that were saved before"
        )
    names = loaded.checkpoint.names if loaded.checkpoint else []
    if names and subject.data and len(names) == subject.data.classes and names != subject.data.names:
        place = next(i for i, pair in enumerate(zip(names, subject.data.names, strict=True)) if pair[0] != pair[1])
        what = f"classes that are called otherwise in {subject.weights}"
        differing = sum(a != b for a, b in zip(names, subject.data.names, strict=True))
        first = f"{place}: {names[place]} there, {subject.data.names[place]} here"
        yield Finding(WARNING, what, differing, first, "the same classes in the same order? else the outputs are mixed up")


def _misfit(subject: Subject, error: UserError) -> Finding:
    """Weights that don't fit: of no use, or a start for training all the same."""
    try:
        with noting_remarks():
            load_model(subject.cfg, subject.weights, subject.img_size or None, pretrained=True, prefix=True, unchecked=True)
    except UserError:
        return finding_of(error, "use the cfg they belong to")
    found = finding_of(error)
    return Finding(WARNING, found.what, 1, found.first, "train.py -pt can start from them; nothing else can use them")
