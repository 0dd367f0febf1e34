"""utils.data.datasets and utils.data.labels: what is read, mended and refused, and the batches of an evaluation."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detect import label_lines
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.data.datasets import create_loader, rect_size, scan
from utils.data.labels import CLIPPED, CONFIDENCE, DUPLICATE, NO_AREA, POLYGON, Problems, image_paths, label_path, parse_labels

STILL = Hyp(degrees=0, translate=0, scale=0, shear=0, hsv_h=0, hsv_s=0, hsv_v=0, fliplr=0, flipud=0, mosaic=0)


def write_image(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def make_set(folder: Path, shapes: list[tuple[int, int]], suffix: str = "png") -> Path:
    """Noise images, each with one box, and the list of them."""
    rng = np.random.default_rng(0)
    for i, shape in enumerate(shapes):
        write_image(folder / "images" / f"{i}.{suffix}", rng.integers(0, 256, (*shape, 3), np.uint8))
        (folder / "labels").mkdir(exist_ok=True)
        (folder / "labels" / f"{i}.txt").write_text(f"{i % 3} 0.5 0.4 0.2 0.3\n")
    (folder / "list.txt").write_text("".join(f"images/{i}.{suffix}\n" for i in range(len(shapes))))
    return folder / "list.txt"


def loader(source: Path, **options):
    defaults = {"classes": 3, "img_size": 64, "batch_size": 4, "training": False, "workers": 0, "hyp": STILL}
    return create_loader(source, **defaults | options)


# --- labels ---


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("data/images/x.jpg", "data/labels/x.txt"),
        ("images/a/images/b/x.y.png", "images/a/labels/b/x.y.txt"),
        ("pictures/x.jpg", "pictures/x.txt"),
        ("data/images", "data/images.txt"),
    ],
)
def test_label_path(image, label):
    assert label_path(image) == Path(label)


def test_parse_labels_mends():
    text = "0 0.5 0.5 0.2 0.4\n\n1 0.95 0.5 0.2 0.4\n2 0.5 0.5 0 0.3\n0 0.50 0.5 0.2 0.4\n1 1.5 0.5 0.2 0.2\n"
    rows, findings = parse_labels(text, "x.txt", 3)
    assert np.allclose(rows, [[0, 0.5, 0.5, 0.2, 0.4], [1, 0.925, 0.5, 0.15, 0.4]])  # 0.85..1.05 -> 0.85..1
    assert rows.dtype == np.float32
    assert findings == [(CLIPPED, 3), (NO_AREA, 4), (NO_AREA, 6), (DUPLICATE, 5)]


def test_rounding_is_not_reaching_outside():
    text = "0 0.500001 0.5 1.000000 1.0\n"
    rows, findings = parse_labels(text, "x.txt", 1)
    assert findings == []
    assert rows.tolist() == [[0, np.float32(0.500001), 0.5, 1, 1]]


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_empty_label_file(text):
    rows, findings = parse_labels(text, "x.txt", 3)
    assert rows.shape == (0, 5)
    assert findings == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("7 .5 .5 .1 .1", r"^x.txt:3: class 7, but the .data has classes=3 \(0..2\)$"),
        ("-1 .5 .5 .1 .1", "x.txt:3: class -1, but"),
        ("0.5 .5 .5 .1 .1", "x.txt:3: class 0.5, but"),
        ("0 .5 .5 .1", "x.txt:3: expected 5 numbers .* found 4"),
        ("0 .5 .5 .1 .1 9", "x.txt:3: expected 5 numbers .* found 6"),
        ("0 .1 .1 .2 .1 .2 .2 .1", "x.txt:3: expected 5 numbers .* found 8"),
        ("0 320 .5 .1 .1", "x.txt:3: 320 is no share of the image, these are pixels; `check.py .* --fix` converts them"),
        ("0 10 10 90 10 90 70", "x.txt:3: 50.0 is no share of the image"),
        ("0 .5 nan .1 .1", "x.txt:3: nan is not a number"),
        ("0 .5 x .1 .1", "x.txt:3: x is not a number"),
    ],
)
def test_unusable_label_names_its_line(row, message):
    with pytest.raises(UserError, match=message):
        parse_labels(f"0 .5 .5 .1 .1\n\n{row}\n1 .5 .5 .1 .1\n", "x.txt", 3)


def test_confidences_and_polygons_are_read_as_the_boxes_that_they_stand_for():
    text = "1 .5 .5 .2 .4 .87\n2 .5 .5 .2 .4\n0 .1 .2 .5 .2 .3 .6\n0 .1 .1 .9 .1 .9 .8 .1 .8\n1 .95 .5 .2 .4 1\n"
    rows, findings = parse_labels(text, "x.txt", 3)
    boxes = [[1, 0.5, 0.5, 0.2, 0.4], [2, 0.5, 0.5, 0.2, 0.4], [0, 0.3, 0.4, 0.4, 0.4], [0, 0.5, 0.45, 0.8, 0.7]]
    assert np.allclose(rows, [*boxes, [1, 0.925, 0.5, 0.15, 0.4]])
    assert findings == [(CONFIDENCE, 1), (POLYGON, 3), (POLYGON, 4), (CONFIDENCE, 5), (CLIPPED, 5)]


def test_what_detect_writes_is_read_as_labels():
    boxes = np.array([[10, 20, 50, 60, 0.5, 1], [0, 0, 100, 80, 1.0, 2]])
    rows, findings = parse_labels(label_lines(boxes, (80, 100)), "x.txt", 3)
    assert np.allclose(rows, [[1, 0.3, 0.5, 0.4, 0.5], [2, 0.5, 0.5, 1, 1]])
    assert findings == [(CONFIDENCE, 1), (CONFIDENCE, 2)]


def test_every_row_of_four_numbers_is_an_error():
    with pytest.raises(UserError, match=r"x.txt:1: expected 5 numbers"):
        parse_labels("1 .5 .5 .1\n1 .5 .5 .1\n", "x.txt", 3)


# --- lists, folders, scanning ---


def test_list_and_folder_mean_the_same(tmp_path):
    source = make_set(tmp_path, [(8, 8)] * 3)
    expected = [str(tmp_path / "images" / f"{i}.png") for i in range(3)]
    assert image_paths(source, Problems()) == expected
    assert image_paths(tmp_path, Problems()) == expected


def test_list_is_looked_up_from_the_working_directory_first(tmp_path, monkeypatch):
    source = make_set(tmp_path, [(8, 8)])
    monkeypatch.chdir(make_set(tmp_path / "other", [(8, 8)]).parent)
    assert image_paths(source, Problems()) == ["images/0.png"]


def test_missing_images_are_counted(tmp_path):
    source = make_set(tmp_path, [(8, 8)])
    source.write_text("images/0.png\n\nimages/9.png\nimages/8.png\n")
    problems = Problems()
    assert len(image_paths(source, problems)) == 1
    assert problems.summary() == f"listed images that aren't there: 2 (first: {source}:3: images/9.png)"
    source.write_text("images/9.png\n")
    with pytest.raises(UserError, match=r"none of the 1 images listed is there; the first is images/9.png"):
        image_paths(source, Problems())


@pytest.mark.parametrize("content", [None, "", "\n\n"])
def test_useless_sources(tmp_path, content):
    if content is not None:
        (tmp_path / "list.txt").write_text(content)
    with pytest.raises(UserError, match=r"list.txt"):
        image_paths(tmp_path / "list.txt", Problems())
    with pytest.raises(UserError, match="no images in this folder"):
        image_paths(tmp_path, Problems())


def test_scan_skips_what_is_corrupt_and_says_so_once(tmp_path, capfd):
    source = make_set(tmp_path, [(10, 20), (30, 40), (50, 60)])
    (tmp_path / "images" / "1.png").write_bytes(b"not an image")
    (tmp_path / "labels" / "0.txt").unlink()
    (tmp_path / "labels" / "2.txt").write_text("1 0.5 0.5 0.1 0\n1 0 0.5 0.2 0.2\n")
    found = scan(source, 3)
    assert [Path(p).name for p in found.paths] == ["0.png", "2.png"]
    assert found.shapes.tolist() == [[10, 20], [50, 60]]
    assert [rows.shape for rows in found.labels] == [(0, 5), (1, 5)]
    loader(source)
    assert capfd.readouterr().err.strip() == (
        f"{source}: corrupt images, skipped: 1 (first: {tmp_path}/images/1.png: not an image that OpenCV can read); "
        f"{NO_AREA}: 1 (first: {tmp_path}/labels/2.txt:1); {CLIPPED}: 1 (first: {tmp_path}/labels/2.txt:2)"
    )
    loader(source, rank=1, world_size=2)
    assert capfd.readouterr().err == ""


def test_no_labels_at_all(tmp_path):
    source = make_set(tmp_path, [(8, 8)] * 2)
    for path in (tmp_path / "labels").iterdir():
        path.write_text("0 1.7 1.7 1 1\n")
    with pytest.raises(UserError, match=rf"no box in any of the 2 label files in {tmp_path}/labels \({NO_AREA}: 2"):
        scan(source, 3)
    for path in (tmp_path / "labels").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=rf"no labels for any of 2 images; looked in {tmp_path}/labels"):
        scan(source, 3)


def test_class_beyond_the_data_file(tmp_path):
    source = make_set(tmp_path, [(8, 8)] * 3)
    with pytest.raises(UserError, match=r"labels/2.txt:1: class 2, but the .data has classes=2 \(0..1\)"):
        scan(source, 2)


def test_all_images_corrupt(tmp_path):
    source = make_set(tmp_path, [(8, 8)])
    (tmp_path / "images" / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match="all 1 images are corrupt"):
        scan(source, 3)


# --- evaluation batches ---


def test_letterboxed_batch(tmp_path):
    """A white box on black must be found at its label, and at its original place through ratio and pad."""
    image = np.zeros((100, 200, 3), np.uint8)
    image[20:60, 50:150] = 255
    write_image(tmp_path / "images" / "a.png", image)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("1 0.5 0.4 0.5 0.4\n")
    batch = next(iter(loader(tmp_path / "images")))
    assert batch.images.shape == (1, 3, 64, 64)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    # 0.32 of the size: x 16..48, y 6.4..19.2, 16 rows of gray above
    assert torch.allclose(batch.targets, torch.tensor([[0, 1, 0.5, (12.8 + 16) / 64, 0.5, 12.8 / 64]]))
    info = batch.infos[0]
    assert (info.index, info.shape, info.pad, info.ratio) == (0, (100, 200), (0, 16), (0.32, 0.32))
    white = (batch.images[0, 0] > 200).nonzero()
    assert white.min(0).values.tolist() == [23, 16]  # row 22 is only 0.6 white
    assert white.max(0).values.tolist() == [34, 47]


def test_stretched_batch(tmp_path):
    source = make_set(tmp_path, [(100, 200)])
    batch = next(iter(loader(source, stretch=True)))
    assert torch.allclose(batch.targets, torch.tensor([[0, 0, 0.5, 0.4, 0.2, 0.3]]))
    assert batch.infos[0].ratio == (0.32, 0.64)
    assert batch.infos[0].pad == (0, 0)


def test_batch_is_rgb(tmp_path):
    source = make_set(tmp_path, [(64, 64)])
    image = cv2.imread(str(tmp_path / "images" / "0.png"))
    for training in (False, True):
        batch = next(iter(loader(source, training=training, batch_size=1)))
        difference = batch.images[0].permute(1, 2, 0).numpy().astype(int) - image[..., ::-1]
        assert np.abs(difference).max() <= (8 if training else 0)  # training goes through 8-bit HSV


def test_gray_batch(tmp_path):
    source = make_set(tmp_path, [(64, 64)])
    expected = cv2.imread(str(tmp_path / "images" / "0.png"), cv2.IMREAD_GRAYSCALE)
    for training in (False, True):
        batch = next(iter(loader(source, training=training, gray=True, batch_size=1)))
        assert batch.images.shape == (1, 1, 64, 64)
        assert np.array_equal(batch.images[0, 0].numpy(), expected)


def test_every_image_once_and_in_order(tmp_path):
    source = make_set(tmp_path, [(8, 8)] * 10)
    assert [i.index for b in loader(source) for i in b.infos] == list(range(10))
    halves = [[[i.index for i in b.infos] for b in loader(source, rank=r, world_size=2)] for r in (0, 1)]
    assert halves == [[[0, 1], [4, 5], [8, 9]], [[2, 3], [6, 7]]]
    assert len(loader(source, rank=1, world_size=2)) == 2
    targets = torch.cat([b.targets for b in loader(source, batch_size=10)])
    assert targets[:, :2].tolist() == [[i, i % 3] for i in range(10)]


def test_rect_size():
    assert rect_size(np.array([[480, 640]]), 416, 32) == (320, 416)  # 312 -> 320
    assert rect_size(np.array([[480, 640], [640, 480]]), 416, 32) == (416, 416)
    assert rect_size(np.array([[1280, 640], [640, 480]]), 416, 64) == (448, 320)


def test_rect_batches_go_by_aspect_ratio(tmp_path):
    source = make_set(tmp_path, [(100, 50), (50, 100), (100, 40), (40, 100)])
    batches = list(loader(source, rect=True, batch_size=2, img_size=128))
    assert [[i.index for i in b.infos] for b in batches] == [[3, 1], [0, 2]]
    assert [tuple(b.images.shape[2:]) for b in batches] == [(64, 128), (128, 64)]
    # (40, 100) at 128: 51 rows and 6 of gray above; y = (0.4 * 51 + 6) / 64 up to rounding 51.2 to 51
    assert torch.allclose(batches[0].targets[0], torch.tensor([0, 0, 0.5, 26.4 / 64, 0.2, 0.3 * 51 / 64]))


def test_images_of_one_shape(tmp_path):
    source = make_set(tmp_path, [(100, 50), (50, 100), (100, 40)])
    (batch,) = loader(source, shape=(64, 128), img_size=128)
    assert tuple(batch.images.shape) == (3, 3, 64, 128)
    # (100, 50) in (64, 128): 32 columns and 48 of gray at the left
    assert torch.allclose(batch.targets[0], torch.tensor([0, 0, 0.5, 0.4, 0.2 * 32 / 128, 0.3]))


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_cache_changes_nothing_but_the_reading(tmp_path, where):
    source = make_set(tmp_path, [(100, 50), (50, 100), (70, 70)])
    options = {"training": True, "hyp": Hyp(), "batch_size": 3}
    plain = next(iter(loader(source, **options)))
    cached = loader(source, cache_images=where, **options)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    batch = next(iter(cached))
    assert torch.equal(batch.images, plain.images)
    assert torch.equal(batch.targets, plain.targets)
    assert [image.shape for image in cached.dataset.cache] == [(64, 32, 3), (32, 64, 3), (64, 64, 3)]


def test_cache_that_does_not_fit(tmp_path, monkeypatch, capfd):
    source = make_set(tmp_path, [(8, 8)])
    monkeypatch.setattr("utils.data.image_cache.available_memory", lambda: 10_000)
    assert loader(source, cache_images="ram").dataset.cache is None
    assert "--cache-images ram: 0.0 MiB needed, 0.0 MiB free; reading the image files instead" in capfd.readouterr().err


@pytest.mark.parametrize(("asked", "limit"), [(None, 0.25), ("ram", 0.8)])
def test_how_much_memory_pictures_may_take(asked, limit, tmp_path, monkeypatch, capfd):
    """Two of 64 x 64 pixels, which all processes share."""
    source, needed = make_set(tmp_path, [(64, 64), (64, 64)]), 2 * 64 * 64 * 3
    for free, fits in (((needed + 2) / limit + 2, True), (needed / limit - 2, False)):
        monkeypatch.setattr("utils.data.image_cache.available_memory", lambda free=free: free)
        found = loader(source, cache_images=asked, rank=0, world_size=2).dataset.cache
        assert (found is not None) is fits
    assert ("reading the image files" in capfd.readouterr().err) is bool(asked)


def test_image_that_breaks_after_the_scan(tmp_path, capfd):
    source = make_set(tmp_path, [(64, 64), (64, 64)])
    batches = loader(source)
    (tmp_path / "images" / "1.png").write_bytes(b"broken")
    for _ in range(2):
        batch = next(iter(batches))
        assert (batch.images[1] == 114).all()
        assert batch.targets[:, 0].tolist() == [0]
    assert capfd.readouterr().err.count("1.png: cannot be decoded") == 1
