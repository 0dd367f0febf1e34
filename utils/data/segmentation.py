"""The upright box around a COCO segmentation: polygons, or runs of pixels (format: cocodataset.org/#format-data)."""

from typing import Any

import numpy as np

Box = tuple[float, float, float, float]  # x, y, width, height in pixels


def box_around(segmentation: Any) -> Box | None:
    """None where it covers nothing. Raises ValueError for what is no segmentation."""
    if isinstance(segmentation, dict):
        return _around_runs(segmentation)
    if not isinstance(segmentation, list):
        return None
    polygons = [p for p in segmentation if p] if segmentation and isinstance(segmentation[0], list) else [segmentation]
    points = np.array([value for polygon in polygons for value in polygon], np.float64).reshape(-1, 2)
    if not len(points):
        return None
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    return left, top, right - left, bottom - top


def _around_runs(segmentation: dict[str, Any]) -> Box | None:
    """{size: [height, width], counts}: the lengths of runs that are outside and inside by turns, column after column."""
    height, width = (int(side) for side in segmentation["size"])
    counts = segmentation["counts"]
    counts = _unpacked(counts) if isinstance(counts, str) else [int(count) for count in counts]
    if not 0 <= sum(counts) <= height * width or min(counts, default=0) < 0 or not 0 < height * width < 2**40:
        raise ValueError("its segmentation's counts don't fit its size")
    ends = np.cumsum(np.array(counts, np.int64))
    starts, stops = ends[0::2][: len(ends) // 2], ends[1::2] - 1
    starts, stops = starts[stops >= starts], stops[stops >= starts]
    if not len(starts):
        return None
    whole = starts // height < stops // height  # goes on in the next column: it reaches the bottom, and starts at the top
    top = np.where(whole, 0, starts % height).min()
    bottom = np.where(whole, height - 1, stops % height).max()
    left, right = starts[0] // height, stops[-1] // height
    return float(left), float(top), float(right - left + 1), float(bottom - top + 1)


def _unpacked(text: str) -> list[int]:
    """The counts of a compressed text: numbers in digits of base 32, the lowest first, each a character from `0` on, with
    32 added where another follows and 16 in the last digit of a negative one; from the fourth on each is the difference to
    the count two before."""
    counts: list[int] = []
    value = place = 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64 or place > 50:
            raise ValueError("its segmentation's counts are no compressed runs")
        value |= (digit & 31) << place
        place += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << place
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = place = 0
    if place:
        raise ValueError("its segmentation's counts are cut short")
    return counts
