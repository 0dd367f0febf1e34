"""VisDrone-DET's text files, one an image (Zhu et al., "Detection and Tracking Meet Drones Challenge", and its toolkit)."""

import functools
from pathlib import Path

from utils.converters.base import Annotations, Found, Options, published_names
from utils.converters.tree import read_paired
from utils.core.errors import UserError
from utils.core.files import read_text

NAME = "visdrone"
_IGNORED, _OTHERS = 0, 11
_LINE = "left,top,width,height,score,category,truncation,occlusion"
_NUMBERS = 6  # those that are used


def read_visdrone(source: Path, options: Options) -> Annotations:
    """VisDrone2019-DET-{train,val,test-dev}/ with images/ and annotations/*.txt, or one of these folders.

    Raises UserError when there is no annotation.
    """
    return read_paired(source, options, ".txt", published_names(NAME))


def parse_visdrone(note: str, options: Options) -> Found:
    """The objects of one file: categories 1..10 are the classes. Raises UserError naming the line that is something else."""
    found = Found(f"{note}:")
    for number, line in enumerate(read_text(note, "annotation").splitlines(), 1):
        text = line.strip().rstrip(",")
        if not text:
            continue
        try:
            left, top, width, height, score, category = map(float, text.split(",")[:_NUMBERS])
        except ValueError:
            raise UserError(f"{note}:{number}: expected `{_LINE}`, found: {text[:60]}; mend or remove this line") from None
        reason = _no_object(score, category)
        if reason:
            found.leave_out(reason, number)
        else:
            name = _class_of(category, found.where(number))
            found.add(name, number, (left, top, left + width, top + height))
    return found


def _no_object(score: float, category: float) -> str | None:
    if category == _IGNORED:
        return "ignored regions (category 0), left out"
    if category == _OTHERS:
        return "objects of category 11 (others), left out"
    return "objects of score 0, left out" if score == 0 else None


@functools.cache
def _classes() -> list[str]:
    return published_names(NAME)


def _class_of(category: float, where: str) -> str:
    names = _classes()
    if category not in range(1, len(names) + 1):
        raise UserError(f"{where}: category {category:g}, but VisDrone has 0..{_OTHERS}; mend or remove this line")
    return names[int(category) - 1]
