"""Read what a check looks at without stopping at the first mistake: what can't be read becomes a finding."""

import os
from collections import defaultdict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TypeVar

import numpy as np

from utils.checking.files import content_hash, survey
from utils.checking.findings import ERROR, WARNING, Finding, Split, Subject, finding_of
from utils.core.errors import UserError, noting_remarks
from utils.core.files import read_text
from utils.core.option_list import split_lines
from utils.core.preparation import Preparation
from utils.data.data_file import DataConfig, class_count, data_options, find_file, read_data, read_names
from utils.data.data_yaml import is_yaml
from utils.loading import choose_cfg
from utils.network.checkpoint import read_checkpoint
from utils.network.file_kind import is_checkpoint

ANY_CLASS = 1 << 31  # where nobody says how many classes there are, every id passes
SPLITS = ("train", "valid")
T = TypeVar("T")


def read_subject(
    data: str,
    cfg: str = "",
    weights: str = "",
    *,
    img_size: int | None = None,
    stretch: bool = False,
    workers: int = 1,
    decode: bool = False,
) -> Subject:
    """The dataset of a .data file, looked through completely (see utils.checking.files.survey), and a network's definitions."""
    subject = Subject(stretch=stretch, cfg=cfg, weights=weights)
    with noting_remarks() as remarks:
        _read_network(subject, img_size)
        try:
            subject.data = _read_data(data, subject.found)
        except UserError as error:
            subject.found.append(finding_of(error, "mend this line"))
    subject.found += [finding_of(each, "write it as it is meant", WARNING) for each in remarks]
    if subject.data is None:
        return subject
    for name in SPLITS:
        source = getattr(subject.data, name)
        if source is None:
            remedy = f"add `{name}=` with a list or a folder of images"
            subject.found.append(Finding(ERROR, f"a .data without a line `{name}=`", 1, data, remedy))
            continue
        try:
            subject.splits.append(survey(name, source, subject.data.classes or ANY_CLASS, workers, decode))
        except UserError as error:
            subject.found.append(finding_of(error, f"mend `{name}=` in {data}"))
    subject.twins = same_content(subject.splits)
    return subject


def _read_data(path: str, found: list[Finding]) -> DataConfig:
    """The .data file as far as it can be used: without a usable number of classes, that of the names."""
    if is_yaml(path):
        return read_data(path)
    options = data_options(path)
    base = Path(path).parent
    listed = options.pop("names", "")
    names = _read_names(find_file(listed, base), found) if listed else []
    classes = class_count(options.pop("classes", ""))
    if not classes:
        remedy = f"add a line `classes={len(names) or 'N'}`"
        found.append(Finding(ERROR, "a .data without a usable line `classes=`", 1, path, remedy))
        classes = len(names)
    elif names and len(names) != classes:
        what = f"classes={classes}, but {len(names)} names"
        found.append(Finding(ERROR, what, abs(len(names) - classes), path, "make classes= and the names file agree"))
    names = [*names, *(str(i) for i in range(len(names), classes))][:classes]
    train, valid = (find_file(name, base) if name else None for name in (options.pop(k, "") for k in SPLITS))
    return DataConfig(Path(path), classes, names, train, valid, options)


def _read_names(path: Path, found: list[Finding]) -> list[str]:
    try:
        names = read_names(path)
        lines = split_lines(read_text(path, ".names file").rstrip())
    except UserError as error:
        found.append(finding_of(error, "mend `names=`"))
        return []
    blank = next((n for n, line in enumerate(lines, 1) if not line.strip()), None)
    if blank:
        remedy = "remove them: ids count names, but other programs count lines"
        found.append(Finding(WARNING, "empty lines between names", len(lines) - len(names), f"{path}:{blank}", remedy))
    repeated = [(n, name) for n, name in enumerate(names) if name in names[:n]]
    if repeated:
        number, name = repeated[0]
        found.append(Finding(WARNING, "names given twice", len(repeated), f"{path}: {name} ({number})", "rename or join them"))
    return names


def _read_network(subject: Subject, img_size: int | None) -> None:
    if not (subject.cfg or subject.weights):
        return
    settings = {}
    try:
        checkpoint = read_checkpoint(subject.weights) if subject.weights and is_checkpoint(subject.weights) else None
        settings = checkpoint.settings if checkpoint else {}
        subject.defs = choose_cfg(subject.cfg, subject.weights, checkpoint)
        if Preparation.of(settings).gray:
            subject.defs.net.channels = 1
    except UserError as error:
        subject.found.append(finding_of(error, "no network can be built from this"))
    subject.stretch = subject.stretch or Preparation.of(settings).stretch
    subject.img_size = img_size or settings.get("img_size") or (subject.defs.net.width if subject.defs else 0)


def same_content(splits: list[Split]) -> list[list[tuple[str, str]]]:
    """Groups of images, as (name of the split, path), whose files have the same content, in the lists' order.

    Only those of one print are read whole, and none twice that is one file under several names.
    """
    pictures = [(split.name, path) for split in splits for path in split.paths]
    prints = np.concatenate([np.zeros(0, np.uint64), *(split.prints for split in splits)])
    _, group, counts = np.unique(prints, return_inverse=True, return_counts=True)
    alike = _grouped(np.flatnonzero(counts[group] > 1).tolist(), lambda i: int(group[i]))
    found = []
    for indices in alike:
        members = [pictures[i] for i in indices]
        one_file = len({_file(path) for _, path in members}) == 1
        found += [members] if one_file else _grouped(members, lambda picture: content_hash(picture[1]))
    return found


def same_path(splits: list[Split]) -> list[list[tuple[str, str]]]:
    """The same of images that are listed more than once, without a look into files."""
    return _grouped([(split.name, path) for split in splits for path in split.paths], lambda picture: picture[1])


def _file(path: str) -> tuple[int, int]:
    """What all hard links of a file have in common."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _grouped(items: list[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Those that share their key with another, in groups."""
    groups: dict[Hashable, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return [group for group in groups.values() if len(group) > 1]
