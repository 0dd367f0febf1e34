from argparse import Namespace
from pathlib import Path

import cv2
import numpy as np
import pytest

from data import make_shapes
from utils.data.data_file import read_data
from utils.data.datasets import scan


def make(out: Path, **options) -> Path:
    return make_shapes.main(Namespace(out=out, **{"images": 10, "size": 96, "seed": 0, "force": False} | options))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_dataset_is_whole_and_readable(tmp_path):
    data = read_data(make(tmp_path / "shapes", images=20))
    assert data.names == ["circle", "square", "triangle", "star"]
    train, valid = scan(data.train, data.classes), scan(data.valid, data.classes)
    assert (len(train.paths), len(valid.paths)) == (16, 4)
    assert not set(train.paths) & set(valid.paths)
    assert train.problems.counts == valid.problems.counts == {}
    assert train.shapes.tolist() == [[96, 96]] * 16
    assert set(np.concatenate(train.labels)[:, 0]) == {0, 1, 2, 3}


def test_same_seed_same_bytes(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b")
    make(tmp_path / "c", seed=1)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert len(a) == 24
    assert all(a[name] != c[name] for name in a if name.endswith(".jpg"))


def test_drawn_only_when_needed(tmp_path):
    data = make(tmp_path)
    whole, image = contents(tmp_path), tmp_path / "images" / "shapes_00003.jpg"
    image.write_bytes(b"changed")
    make(tmp_path)
    assert image.read_bytes() == b"changed"  # all files are there, so nothing is drawn
    make(tmp_path, force=True)
    assert contents(tmp_path) == whole
    image.unlink()
    make(tmp_path)
    assert contents(tmp_path) == whole
    make(tmp_path, seed=2)
    assert "--seed 2" in data.read_text()
    assert contents(tmp_path) != whole


def test_label_encloses_what_is_seen():
    visible = np.zeros((100, 100), bool)
    visible[20:50, 10:50] = True  # 1200 pixels
    assert make_shapes._label(visible, 2, area=1200) == (2, 0.30, 0.35, 0.4, 0.3)
    assert make_shapes._label(visible, 2, area=3900) == (2, 0.30, 0.35, 0.4, 0.3)  # 31 % seen
    assert make_shapes._label(visible, 2, area=4100) is None  # 29 %
    assert make_shapes._label(visible & False, 2, area=10) is None
    visible[25:] = False
    assert make_shapes._label(visible, 2, area=200) is None  # 5 rows are too few


def test_outlines_have_their_shape():
    """A square in a circle of radius 1 has area 2; a star has ten corners, every other of them inside."""
    square = make_shapes.outline("square", np.random.default_rng(0))
    assert cv2.contourArea(square.astype(np.float32)) == pytest.approx(2, abs=1e-6)
    assert len(make_shapes.outline("triangle", np.random.default_rng(0))) == 3
    star = make_shapes.outline("star", np.random.default_rng(0))
    assert len(star) == 10
    assert not cv2.isContourConvex(star.astype(np.float32))


def test_objects_stand_out_from_their_background():
    rng = np.random.default_rng(0)
    for _ in range(10):
        image = make_shapes.background(64, rng)
        mask = np.zeros((64, 64), np.uint8)
        mask[20:40, 20:40] = 255
        painted = make_shapes._paint(image, mask, rng)
        assert np.array_equal(painted[mask == 0], image[mask == 0])
        assert np.linalg.norm(painted[mask > 0].mean(0) - image[mask > 0].mean(0)) > 40
