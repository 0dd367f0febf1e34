"""Boxes around segmentations, against pycocotools' masks."""

import numpy as np
import pytest
from pycocotools import mask

from utils.data.segmentation import box_around


@pytest.mark.parametrize("seed", range(20))
def test_runs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 40, 2)
    pixels = np.asfortranarray(rng.random((height, width)) < rng.choice([0.01, 0.1, 0.6, 1.0]), np.uint8)
    packed = mask.encode(pixels)
    expected = tuple(mask.toBbox(packed).tolist()) if pixels.any() else None
    flat = pixels.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *([0] if flat[0] else []), *changes, len(flat)]).tolist()
    size = [int(height), int(width)]
    assert box_around({"size": size, "counts": packed["counts"].decode()}) == expected
    assert box_around({"size": size, "counts": counts}) == expected


def test_polygons() -> None:
    assert box_around([[1, 2, 5, 2.5, 3, 9], [0.5, 4, 2, 4, 2, 6]]) == (0.5, 2, 4.5, 7)
    assert box_around([1, 2, 5, 2, 3, 9]) == (1, 2, 4, 7)
    assert box_around([]) is box_around([[]]) is box_around(None) is None


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1, 2, 3]], [["a", "b"]], [[[1, 2]], [3]], {"size": [0, 5], "counts": [1]}, {"size": [2, 2], "counts": [1, 9]},
        {"size": [2, 2], "counts": [3, -1]}, {"size": [2, 2], "counts": "o"}, {"size": [2, 2], "counts": "é"},
        {"size": [2, 2], "counts": "o" * 99}, {"size": [2], "counts": []}, {"size": [2, 2], "counts": [1e400]},
    ],
)  # fmt: skip
def test_what_is_none(segmentation) -> None:
    with pytest.raises((ValueError, OverflowError)):
        box_around(segmentation)
