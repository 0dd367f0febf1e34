import numpy as np
import pytest

from utils.core.hyp import Hyp
from utils.data import augment
from utils.data.augment import (
    affine,
    colour_to_rgb,
    draw,
    fitted_size,
    flip,
    letterbox,
    mosaic,
    random_affine,
    translation,
    warp_labels,
)

STILL = Hyp(degrees=0, translate=0, scale=0, shear=0, hsv_h=0, hsv_s=0, hsv_v=0, fliplr=0, flipud=0)
WHOLE = np.array([[0, 0.5, 0.5, 1, 1]], np.float32)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def extent(mask: np.ndarray) -> list[int]:
    """left, top, right, bottom of what is true."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1]


def corners(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    _, x, y, w, h = label.astype(float)
    return np.array([(x - w / 2) * size[1], (y - h / 2) * size[0], (x + w / 2) * size[1], (y + h / 2) * size[0]])


@pytest.mark.parametrize(
    ("shape", "size", "inner", "pad"),
    [
        ((100, 200), (64, 64), (32, 64), (0, 16)),  # wide: bars above and below
        ((200, 100), (64, 96), (64, 32), (32, 0)),  # tall
        ((30, 61), (64, 64), (31, 64), (0, 16)),  # enlarged; 33 rows of gray: 16 above, 17 below
    ],
)
def test_letterbox(shape, size, inner, pad):
    image, ratio, at = letterbox(np.full((*shape, 3), 255, np.uint8), size)
    assert image.shape == (*size, 3)
    assert at == pad
    assert ratio == (inner[1] / shape[1], inner[0] / shape[0])
    white = (image == 255).all(2)
    assert extent(white) == [pad[0], pad[1], pad[0] + inner[1], pad[1] + inner[0]]
    assert (image[~white] == 114).all()


def test_letterbox_stretch_fills_everything():
    image, ratio, pad = letterbox(np.full((100, 200), 7, np.uint8), (64, 96), stretch=True)
    assert (image == 7).all()
    assert image.shape == (64, 96)
    assert (ratio, pad) == ((0.48, 0.64), (0, 0))


def test_shrinking_averages_areas():
    stripes = np.tile(np.array([0, 100, 200, 100], np.uint8), (64, 16))
    assert (letterbox(stripes, (16, 16))[0] == 100).all()  # every 4th pixel would be 0 or 200


def test_fitted_size_keeps_at_least_one_pixel():
    assert fitted_size((1, 1000), (64, 64)) == (1, 64)


def test_affine_at_rest_is_the_centred_picture():
    image = rng().integers(0, 256, (40, 64, 3), np.uint8)
    result, labels = affine((image, WHOLE), (64, 64), STILL, rng())
    assert np.array_equal(result[12:52], image)
    assert (result[:12] == 114).all()
    assert (result[52:] == 114).all()
    assert np.allclose(labels, [[0, 0.5, 0.5, 1, 40 / 64]])


@pytest.mark.parametrize("seed", range(5))
def test_boxes_follow_the_pixels(seed):
    """The label must enclose what warping made of a white rectangle: exact up to interpolation at its border."""
    size = (160, 200)
    image = np.zeros((100, 120), np.uint8)
    image[40:70, 30:90] = 255
    hyp = Hyp(degrees=30, translate=0.05, scale=0.3, shear=10)
    matrix = random_affine(size, hyp, rng(seed)) @ translation(-60, -50)
    label = np.array([[2, 60 / 120, 55 / 100, 60 / 120, 30 / 100]], np.float32)
    result, labels = draw([(image, label, matrix)], size)
    assert labels[0, 0] == 2
    found = extent(result > 127 + 10)  # above the gray around
    assert np.abs(corners(labels[0], size) - found).max() <= 1.5


def test_zoom_and_shift_by_hand():
    """Twice as large around the centre of a 100 x 100 image, then 10 px right: x' = 2 (x - 50) + 60."""
    matrix = translation(60, 50) @ np.diag([2, 2, 1]) @ translation(-50, -50)
    label = np.array([[1, 0.4, 0.5, 0.2, 0.1]], np.float32)  # x 30..50, y 45..55
    assert np.allclose(warp_labels(label, (100, 100), matrix, (100, 100)), [[1, 0.4, 0.5, 0.4, 0.2]])  # x 20..60, y 40..60


def test_rotation_turns_counterclockwise_by_degrees():
    hyp = Hyp(degrees=90, translate=0, scale=0, shear=0)
    at_most = [np.degrees(np.arctan2(-m[1, 0], m[0, 0])) for m in (random_affine((8, 8), hyp, rng(s)) for s in range(50))]
    assert min(at_most) < -60
    assert max(at_most) > 60
    assert np.allclose([np.linalg.det(random_affine((8, 8), hyp, rng(s))) for s in range(5)], 1)


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ((-0.8, 0.0, 0.2, 0.5), True),  # 20 % left
        ((-0.95, 0.0, 0.05, 0.5), False),  # 5 % left
        ((0.5, 0.5, 0.515, 0.9), False),  # 1.5 px wide
        ((0.5, 0.1, 0.53, 0.9), True),  # a slim object, whole: 3 x 80 px
        ((0.97, 0.1, 1.07, 0.9), False),  # cut to such a sliver
    ],
)
def test_which_boxes_stay(box, kept):
    x1, y1, x2, y2 = box
    label = np.array([[0, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]], np.float32)
    assert len(warp_labels(label, (100, 100), np.eye(3), (100, 100))) == kept


def test_clipped_box_ends_at_the_border():
    label = np.array([[0, 0.0, 0.5, 0.4, 0.2]], np.float32)
    assert np.allclose(warp_labels(label, (100, 100), np.eye(3), (100, 100)), [[0, 0.1, 0.5, 0.2, 0.2]])


def test_mosaic_against_a_canvas():
    """At rest the result is the four images pasted around a point, cut at the borders."""
    pictures = [(rng(i).integers(0, 256, shape, np.uint8), np.array([[i, 0.5, 0.5, 0.5, 0.5]], np.float32))
                for i, shape in enumerate([(48, 64, 3), (64, 40, 3), (64, 64, 3), (30, 64, 3)])]  # fmt: skip

    class Whole:  # draws the point (8, -4) from the centre and no other change
        def uniform(self, low, high, size=None):
            return np.array([-4 / 64, 8 / 64]) if (low, size) == (-0.5, 2) else np.full(size or (), (low + high) / 2)[()]

    result, labels = mosaic(pictures, (64, 64), STILL, Whole())
    x, y = 64 + 40, 64 + 28
    canvas = np.full((192, 192, 3), 114, np.uint8)
    expected = {}
    for i, (image, _) in enumerate(pictures):
        h, w = image.shape[:2]
        left, top = x - w * (i in (0, 2)), y - h * (i in (0, 1))
        canvas[top : top + h, left : left + w] = image
        box = np.array([left + w / 4, top + h / 4, left + 3 * w / 4, top + 3 * h / 4]) - 64
        expected[i] = box.clip(0, 64)
    assert np.array_equal(result, canvas[64:128, 64:128])
    assert len(labels) == 4
    for label in labels:
        assert np.allclose(corners(label, (64, 64)), expected[int(label[0])], atol=1e-4)


def test_mosaic_is_a_function_of_its_generator():
    pictures = [(np.full((64, 64, 3), 50 * i, np.uint8), WHOLE) for i in range(4)]
    first, again, other = (mosaic(pictures, (64, 64), Hyp(), rng(s)) for s in (1, 1, 2))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_flips():
    image = np.arange(6, dtype=np.uint8).reshape(2, 3)
    label = np.array([[1, 0.2, 0.3, 0.1, 0.4]], np.float32)
    assert flip((image, label), False, False)[0] is image
    mirrored, labels = flip((image, label), True, False)
    assert mirrored.tolist() == [[2, 1, 0], [5, 4, 3]]
    assert np.allclose(labels, [[1, 0.8, 0.3, 0.1, 0.4]])
    both, labels = flip((image, label), True, True)
    assert both.tolist() == [[5, 4, 3], [2, 1, 0]]
    assert np.allclose(labels, [[1, 0.8, 0.7, 0.1, 0.4]])
    assert flip((image, label), False, True)[0].tolist() == [[3, 4, 5], [0, 1, 2]]
    assert np.allclose(label, [[1, 0.2, 0.3, 0.1, 0.4]])  # the original's labels are shared with the cache


def test_colour_gains():
    red = np.full((2, 2, 3), (0, 0, 200), np.uint8)  # BGR
    assert colour_to_rgb(red, np.array([1, 1, 0.5]))[0, 0].tolist() == [100, 0, 0]
    assert colour_to_rgb(red, np.array([1, 1, 2.0]))[0, 0].tolist() == [255, 0, 0]
    assert colour_to_rgb(red, np.array([1, 0.0, 1]))[0, 0].tolist() == [200, 200, 200]
    green = np.full((2, 2, 3), (0, 200, 0), np.uint8)  # hue 60 of 180
    assert colour_to_rgb(green, np.array([2.0, 1, 1]))[0, 0].tolist() == [0, 0, 200]  # 120: blue
    assert colour_to_rgb(green, np.array([3.0, 1, 1]))[0, 0].tolist() == [200, 0, 0]  # 180 wraps to 0: red
    assert colour_to_rgb(np.full((2, 2), 100, np.uint8), np.array([3, 3, 1.5])).tolist() == [[150, 150], [150, 150]]


def test_hsv_gains_stay_in_their_range():
    gains = np.array([augment.hsv_gains(Hyp(hsv_h=0.1, hsv_s=0.7, hsv_v=0.4), rng(s)) for s in range(200)])
    assert (np.abs(gains - 1) <= (0.1, 0.7, 0.4)).all()
    assert (np.abs(gains - 1).max(0) > (0.09, 0.63, 0.36)).all()


def test_what_is_far_outside_is_not_drawn():
    canvas, labels = draw([(np.full((8, 8), 255, np.uint8), WHOLE, translation(100, 0))], (16, 16))
    assert (canvas == 114).all()
    assert len(labels) == 0
