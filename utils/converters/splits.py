"""Which image trains and which validates, where the source says little."""

import dataclasses
import zlib
from collections.abc import Sequence

from utils.converters.base import SPLITS, TEST, TRAIN, VALID, Annotations, Entry
from utils.converters.tree import stem_of
from utils.core.errors import UserError


def completed(entries: Sequence[Entry], valid_share: float, result: Annotations) -> list[Entry]:
    """Entries all of which have a split, so that train and valid both have images.

    A test set validates where there is no other; images without a split train; with neither set, `valid_share` of the
    images (chosen by their names, so that more images don't move the others) validate, or all of them do both.
    What was decided is added to result.remarks. Raises UserError for a share where the source has a validation set.
    """
    there = {split: sum(split in entry.splits for entry in entries) for split in SPLITS}
    if there[VALID] and valid_share:
        raise UserError(f"--valid-share: this dataset has its own {there[VALID]} images to validate on; leave it away")
    if valid_share:
        result.remarks.append(f"{valid_share:g} of the images that no other split has were held out to validate on")
        return [_held_out(entry, valid_share) if entry.splits in ((), (TRAIN,)) else entry for entry in entries]
    if there[TEST] and not there[VALID]:
        result.remarks.append("there is no validation set, so the test set is used to validate on")
        entries = [_with(entry, VALID) if entry.splits == (TEST,) else entry for entry in entries]
        there = {**there, VALID: there[TEST]}
    if there[TRAIN] and there[VALID]:
        loose = sum(not entry.splits for entry in entries)
        if loose:
            result.remarks.append(f"{loose} images that belong to no split are used to train on")
        return [entry if entry.splits else _with(entry, TRAIN) for entry in entries]
    result.remarks.append("there is only one set, so its images are in train and valid alike; --valid-share 0.2 parts them")
    return [entry if entry.splits == (TEST,) else _with(entry, TRAIN, VALID) for entry in entries]


def _with(entry: Entry, *splits: str) -> Entry:
    return dataclasses.replace(entry, splits=splits)


def _held_out(entry: Entry, share: float) -> Entry:
    chosen = zlib.crc32(stem_of(entry.image).encode("utf-8", "surrogateescape")) < share * 2**32
    return _with(entry, VALID if chosen else TRAIN)
