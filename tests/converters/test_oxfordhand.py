"""The Oxford hand dataset, from a miniature one with MATLAB files."""

import sys

import numpy as np
import pytest

from tests.raw import convert, labels, stems, write_image
from utils.core.errors import UserError

scipy_io = pytest.importorskip("scipy.io")


def write_mat(path, *hands: dict[str, tuple[float, float]]) -> None:
    """`boxes` as MATLAB has it: a cell array of structs with corners (y, x)."""
    cells = np.empty((1, len(hands)), object)
    for i, hand in enumerate(hands):
        cells[0, i] = {corner: np.array([point], float) for corner, point in hand.items()} | {"type": "L"}
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy_io.savemat(path, {"boxes": cells})


def hand(*corners: tuple[float, float]) -> dict[str, tuple[float, float]]:
    return dict(zip("abcd", corners, strict=True))


# a square on its tip: y 11..51, x 21..61, counted from 1: x 20..60 and y 10..50 of 200 x 100
TURNED = hand((31, 21), (11, 41), (31, 61), (51, 41))
UPRIGHT = hand((1, 1), (1, 101), (51, 101), (51, 1))  # x 0..100, y 0..50
OVER = hand((51, 151), (51, 221), (111, 221), (111, 151))  # x 150..220, y 50..110: half outside
FOLDERS = {"train": "training", "valid": "validation", "test": "test"}


def test_the_three_sets(tmp_path):
    for split, (name, hands) in {
        "train": ("VOC2007_1", (TURNED, OVER)),
        "valid": ("Buffy_2", (UPRIGHT,)),
        "test": ("a", ()),
    }.items():
        folder = tmp_path / "src" / "hand_dataset" / f"{FOLDERS[split]}_dataset" / f"{FOLDERS[split]}_data"
        write_image(folder / "images" / f"{name}.jpg")
        write_mat(folder / "annotations" / f"{name}.mat", *hands)
    report = convert("oxfordhand", tmp_path / "src", tmp_path / "out")
    assert labels(tmp_path / "out", "VOC2007_1") == [
        "0 0.200000 0.300000 0.200000 0.400000", "0 0.875000 0.750000 0.250000 0.500000",
    ]  # fmt: skip
    assert labels(tmp_path / "out", "Buffy_2") == ["0 0.250000 0.250000 0.500000 0.500000"]
    assert labels(tmp_path / "out", "a") == []
    assert [stems(tmp_path / "out", split) for split in FOLDERS] == ["VOC2007_1", "Buffy_2", "a"]
    assert (report.names, report.class_boxes) == (["hand"], {"hand": 3})
    assert report.problems.counts == {"boxes clipped to the image": 1}


@pytest.mark.parametrize("broken", ["text", "other", "corner", "version"])
def test_what_cannot_be_read(tmp_path, broken):
    write_image(tmp_path / "images" / "a.jpg")
    path = tmp_path / "annotations" / "a.MAT"
    write_mat(path, TURNED, hand((1, 1), (1, 9), (9, 9), (9, 1)) if broken != "corner" else {"a": (1, 1), "b": (1, 2)})
    if broken == "text":
        path.write_text("boxes")
    elif broken == "version":
        path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400))
    elif broken == "other":
        scipy_io.savemat(path, {"box": 1})
    message = {
        "text": "a.MAT: not a MATLAB file that SciPy can read", "version": "a.MAT: not a MATLAB file that SciPy can read",
        "other": "a.MAT: has no `boxes`", "corner": "a.MAT: hand 2: has no corners a, b, c, d",
    }[broken]  # fmt: skip
    with pytest.raises(UserError, match=message):
        convert("oxfordhand", tmp_path, tmp_path / "out")


def test_without_scipy_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(
        UserError, match=r"^oxfordhand's .mat files are read by SciPy, which isn't installed: pip install scipy$"
    ):
        convert("oxfordhand", tmp_path, tmp_path / "out")
