"""Checks of the data: lists, images, labels, classes, and what train and valid have in common."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from utils.checking.files import KINDS, NO_ROW, usable_rows
from utils.checking.findings import ERROR, NOTE, WARNING, Finding, Subject, finding_of
from utils.checking.read import ANY_CLASS
from utils.core.errors import UserError
from utils.data.coco import Said
from utils.data.image_kinds import is_beside
from utils.data.labels import CLIPPED, label_path
from utils.detection.ground_truth import json_ground_truth

SMALLEST, LARGEST = 32, 16384  # pixels: sides of an image that is neither an icon nor a scan of a wall
LONGEST = 10.0  # times as long as it is wide
MOST = 0.5  # share of the boxes that can't reach outside by accident
RARE = 0.1  # share of the boxes that a class would have if all had as many


def unreadable(subject: Subject) -> Iterator[Finding]:
    """What came up while the .data, the lists, the names and the cfg were read."""
    yield from subject.found


def files(subject: Subject) -> Iterator[Finding]:
    """Images and label files that are missing or damaged, rows that can't be used or were mended."""
    for split in subject.splits:
        for kind, count in split.problems.counts.items():
            severity, remedy = KINDS[kind]
            yield Finding(severity, f"{split.name}: {kind}", count, split.problems.first[kind], remedy)


def boxes(subject: Subject) -> Iterator[Finding]:
    """A split that has nothing to learn from or to measure with."""
    for split in subject.splits:
        if not any(map(len, split.labels)):
            looked = label_path(split.paths[0]) if split.paths else split.source
            remedy = "write labels as images/x.jpg -> labels/x.txt, JPEGImages/x.jpg -> labels/x.txt, or beside the images"
            yield Finding(ERROR, f"{split.name}: no usable box in any of the images", len(split.paths), str(looked), remedy)


def corners(subject: Subject) -> Iterator[Finding]:
    """Rows that hold corners x1 y1 x2 y2 where centre and size belong: read as those, most boxes reach outside."""
    for split in subject.splits:
        clipped = split.problems.counts.get(CLIPPED, 0)
        if clipped > MOST * len(split.rows()):
            remedy = "a row is `class cx cy w h`, centre and size: are these corners, or sizes of other images?"
            yield Finding(ERROR, f"{split.name}: most boxes reach outside", clipped, split.problems.first[CLIPPED], remedy)


def coco_annotations(subject: Subject) -> Iterator[Finding]:
    """A coco_json= that doesn't belong to valid, which test.py would measure with."""
    valid, said = subject.split("valid"), list[Said]()
    if valid is not None and subject.data.classes:
        try:
            json_ground_truth(subject.data, valid, said.append)
        except UserError as error:
            yield finding_of(error, "mend or remove coco_json= in the .data file")
    for each in said:
        yield Finding(WARNING, each.what, 1, each.place, "look into coco_json= of the .data file")


def orphans(subject: Subject) -> Iterator[Finding]:
    """Label files beside those that are used, whose image isn't there (an image that no list names may wait for its
    turn)."""
    used: dict[str, set[str]] = defaultdict(set)  # folder of labels -> folders of their images
    labels = set()
    for split in subject.splits:
        for path in split.paths:
            label = label_path(path)
            used[str(label.parent)].add(os.path.dirname(path) or ".")
            labels.add(os.path.abspath(label))
    found = []
    for folder, pictures in used.items():
        stems = {os.path.splitext(name)[0] for p in pictures for name in os.listdir(p) if not is_beside(name)}
        names = sorted(name for name in _text_files(folder) if os.path.splitext(name)[0] not in stems)
        paths = [os.path.join(folder, name) for name in names]
        found += [p for p in paths if os.path.abspath(p) not in labels and _holds_labels(p)]
    if found:
        yield Finding(WARNING, "label files without image", len(found), found[0], "find their images, or remove them")


def _text_files(folder: str) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".txt")] if os.path.isdir(folder) else []


def _holds_labels(path: str) -> bool:
    """Whether a text file holds labels rather than a list of images or names, which may lie beside them."""
    try:
        rows, findings = usable_rows(Path(path).read_text(encoding="utf-8-sig"), path, (1, 1), ANY_CLASS)
    except (OSError, UnicodeDecodeError):
        return False
    return len(rows) > 0 or (bool(findings) and all(kind != NO_ROW for kind, _ in findings))


def shared_labels(subject: Subject) -> Iterator[Finding]:
    """Different images whose names differ only in the suffix: one label file would stand for both."""
    pictures = dict.fromkeys(path for split in subject.splits for path in split.paths)
    suffixes: dict[str, set[str]] = defaultdict(set)
    for path in pictures:
        stem, suffix = os.path.splitext(path)
        suffixes[stem].add(suffix)
    found = [stem for stem, endings in suffixes.items() if len(endings) > 1]
    if found:
        both = f"{found[0]}{{{','.join(sorted(suffixes[found[0]]))}}}"
        yield Finding(WARNING, "images that share a label file", len(found), both, "rename one of them and write its own")


def repeated(subject: Subject) -> Iterator[Finding]:
    """Images of the same content within a split."""
    for split in subject.splits:
        groups = [[path for name, path in group if name == split.name] for group in subject.twins]
        groups = [group for group in groups if len(group) > 1]
        if groups:
            extra, remedy = sum(len(group) - 1 for group in groups), "remove them: training and mAP count them every time"
            yield Finding(WARNING, f"{split.name}: images again", extra, f"{groups[0][1]} = {groups[0][0]}", remedy)


def overlap(subject: Subject) -> Iterator[Finding]:
    """Images that training sees and validation measures."""
    found = []
    for group in subject.twins:
        trained = [path for name, path in group if name == "train"]
        found += [(path, trained[0]) for name, path in group if name == "valid" and trained]
    if found:
        first = found[0][0] if found[0][0] == found[0][1] else f"{found[0][0]} = {found[0][1]}"
        remedy = "keep each image in one of them: mAP of images that were learnt says nothing"
        yield Finding(ERROR, "images of valid that are in train, too", len(found), first, remedy)


SIZES: tuple[tuple[str, Callable[[np.ndarray], np.ndarray], str], ...] = (
    (f"images with a side under {SMALLEST} pixels", lambda s: s.min(1) < SMALLEST, "are they thumbnails?"),
    (f"images with a side over {LARGEST:,} pixels", lambda s: s.max(1) > LARGEST, "cut them into tiles"),
    (f"images over {LONGEST:g} times as long as wide", lambda s: s.max(1) > LONGEST * s.min(1), "cut them into tiles"),
)


def sizes(subject: Subject) -> Iterator[Finding]:
    """Images of absurd sizes."""
    for split in subject.splits:
        for what, is_absurd, remedy in SIZES:
            indices = np.flatnonzero(is_absurd(split.shapes))
            if len(indices):
                height, width = split.shapes[indices[0]]
                first = f"{split.paths[indices[0]]} ({width}x{height})"
                yield Finding(WARNING, f"{split.name}: {what}", len(indices), first, remedy)


def classes(subject: Subject) -> Iterator[Finding]:
    """Classes that nothing teaches, that little teaches, and that nothing measures."""
    if subject.data is None or not subject.data.classes:
        return
    count = subject.data.classes
    used = {split.name: split.class_counts(count) for split in subject.splits if any(map(len, split.labels))}
    train, valid = used.get("train"), used.get("valid")
    if train is not None:
        remedy = "label them, or remove their names: they cost outputs and learn nothing"
        yield from _class_finding(subject, train == 0, WARNING, "train: classes without boxes", remedy, train)
        few = (train > 0) & (train < RARE * train.sum() / count)
        remedy = "more images of them, --image-weights, or cls_weights in --hyp"
        yield from _class_finding(subject, few, WARNING, "train: rare classes", remedy, train)
    if valid is not None:
        remedy = "mAP says nothing about them"
        absent = (valid == 0) & (train > 0 if train is not None else True)
        yield from _class_finding(subject, absent, NOTE, "valid: classes without boxes", remedy, valid)


def _class_finding(
    subject: Subject, chosen: np.ndarray, severity: str, what: str, remedy: str, counts: np.ndarray
) -> Iterator[Finding]:
    ids = np.flatnonzero(chosen)
    if len(ids):
        first = f"{subject.data.names[ids[0]]} ({ids[0]}): {counts[ids[0]]} boxes"
        yield Finding(severity, what, len(ids), first, remedy)
