"""Geometry and colour of training images, with OpenCV and NumPy.

An image is (image, labels): image (h, w, 3) BGR or (h, w) gray, uint8; labels (n, 5) float32 rows class, cx, cy, w, h,
normalised to the image. Everything random comes from the Generator that is passed in, so that a sample is a function
of its seed alone.
"""

import math

import cv2
import numpy as np

from utils.core.hyp import Hyp

Picture = tuple[np.ndarray, np.ndarray]
FILL = 114  # the gray around letterboxed images
MIN_SIDE = 2.0  # pixels; what is smaller after augmentation can't be learnt
MIN_VISIBLE = 0.1  # share of a box that must be left in the image
MAX_ASPECT = 20.0  # a box cut to a thinner sliver doesn't show its object


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Area averaging to shrink (linear interpolation would skip pixels), linear to enlarge."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height < image.shape[0] or width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def fitted_size(shape: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the largest image of `shape`'s aspect ratio inside `size`."""
    scale = min(size[0] / shape[0], size[1] / shape[1])
    return max(round(shape[0] * scale), 1), max(round(shape[1] * scale), 1)


def letterbox(
    image: np.ndarray, size: tuple[int, int], stretch: bool = False
) -> tuple[np.ndarray, tuple[float, float], tuple[int, int]]:
    """Fit an image into (height, width), its aspect ratio kept and gray (114) around it; `stretch` fills all of it.

    Returns (image, ratio, pad) with ratio (x, y) and pad (left, top) in pixels: x_network = x_image * ratio_x + left.
    """
    height, width = size if stretch else fitted_size(image.shape[:2], size)
    ratio = (width / image.shape[1], height / image.shape[0])
    left, top = (size[1] - width) // 2, (size[0] - height) // 2
    image = resize(image, height, width)
    if (height, width) != tuple(size):
        borders = (top, size[0] - height - top, left, size[1] - width - left)
        image = cv2.copyMakeBorder(image, *borders, cv2.BORDER_CONSTANT, value=(FILL, FILL, FILL))
    return image, ratio, (left, top)


def random_affine(size: tuple[int, int], hyp: Hyp, rng: np.random.Generator) -> np.ndarray:
    """A (3, 3) matrix that rotates, zooms, shears and shifts: coordinates around a centre -> pixels of `size` (h, w)."""
    angle = math.radians(rng.uniform(-hyp.degrees, hyp.degrees))
    zoom = rng.uniform(1 - hyp.scale, 1 + hyp.scale)
    shear_x, shear_y = np.tan(np.radians(rng.uniform(-hyp.shear, hyp.shear, 2)))
    shift_x, shift_y = rng.uniform(0.5 - hyp.translate, 0.5 + hyp.translate, 2)
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    rotation = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    shear = np.array([[1, shear_x, 0], [shear_y, 1, 0], [0, 0, 1]])
    return translation(shift_x * size[1], shift_y * size[0]) @ shear @ rotation


def translation(x: float, y: float) -> np.ndarray:
    return np.array([[1.0, 0, x], [0, 1.0, y], [0, 0, 1.0]])


def mosaic(pictures: list[Picture], size: tuple[int, int], hyp: Hyp, rng: np.random.Generator) -> Picture:
    """Four images that meet in one point near the centre (Bochkovskiy et al., YOLOv4), under one random affine map.

    Each is warped straight into the result: no canvas of twice the size, one interpolation instead of two.
    """
    y, x = rng.uniform(-0.5, 0.5, 2) * size
    affine = random_affine(size, hyp, rng)
    placed = []
    for number, (image, labels) in enumerate(pictures):
        height, width = image.shape[:2]
        corner = translation(x - width * (number % 2 == 0), y - height * (number < 2))
        placed.append((image, labels, affine @ corner))
    return draw(placed, size)


def affine(picture: Picture, size: tuple[int, int], hyp: Hyp, rng: np.random.Generator) -> Picture:
    """One image, centred and under a random affine map, as an image of `size` (height, width)."""
    image, labels = picture
    matrix = random_affine(size, hyp, rng) @ translation(-image.shape[1] / 2, -image.shape[0] / 2)
    return draw([(image, labels, matrix)], size)


def draw(placed: list[tuple[np.ndarray, np.ndarray, np.ndarray]], size: tuple[int, int]) -> Picture:
    """Warp (image, labels, (3, 3) matrix to pixels of the result)s onto one gray image of `size` (height, width)."""
    canvas = np.full((*size, *placed[0][0].shape[2:]), FILL, np.uint8)
    rows = []
    for image, labels, matrix in placed:
        _warp_onto(canvas, image, matrix)
        rows.append(warp_labels(labels, image.shape[:2], matrix, size))
    return canvas, np.concatenate(rows)


def _warp_onto(canvas: np.ndarray, image: np.ndarray, matrix: np.ndarray) -> None:
    """Only the part of the canvas that the image reaches is computed; what it doesn't cover stays."""
    height, width = image.shape[:2]
    corners = matrix[:2] @ np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
    left, top = np.floor(corners.min(1)).astype(int).clip(0)
    right, bottom = np.minimum(np.ceil(corners.max(1)).astype(int), (canvas.shape[1], canvas.shape[0]))
    if left >= right or top >= bottom:
        return
    # OpenCV's coordinates are those of pixel centres, ours begin at a pixel's corner
    pixels = translation(-0.5 - left, -0.5 - top) @ matrix @ translation(0.5, 0.5)
    part = canvas[top:bottom, left:right]
    cv2.warpAffine(image, pixels[:2], (right - left, bottom - top), dst=part, borderMode=cv2.BORDER_TRANSPARENT)


def warp_labels(labels: np.ndarray, shape: tuple[int, int], matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels of an image of `shape` (h, w) as labels of the result of `size`: boxes around the warped corners, clipped.

    Boxes of which too little is left (MIN_SIDE, MIN_VISIBLE, MAX_ASPECT) are dropped.
    """
    if not len(labels):
        return labels
    (height, width), result = shape, np.array([size[1], size[0]], np.float64)
    low, high = labels[:, 1:3] - labels[:, 3:5] / 2, labels[:, 1:3] + labels[:, 3:5] / 2
    xs = np.stack([low[:, 0], high[:, 0], low[:, 0], high[:, 0]], 1) * width
    ys = np.stack([low[:, 1], low[:, 1], high[:, 1], high[:, 1]], 1) * height
    corners = np.stack([matrix[i, 0] * xs + matrix[i, 1] * ys + matrix[i, 2] for i in (0, 1)], 2)
    low, high = corners.min(1), corners.max(1)
    whole = (high - low).prod(1)
    low, high = low.clip(0, result), high.clip(0, result)
    sides = high - low
    visible = sides.prod(1) / np.maximum(whole, 1e-9)
    aspect = sides.max(1) / np.maximum(sides.min(1), 1e-9)
    keep = (sides.min(1) >= MIN_SIDE) & (visible >= MIN_VISIBLE) & ((aspect <= MAX_ASPECT) | (visible > 0.99))
    boxes = np.concatenate([labels[:, :1], (low + high) / 2 / result, sides / result], 1)
    return boxes[keep].astype(np.float32)


def flip(picture: Picture, horizontal: bool, vertical: bool) -> Picture:
    """Mirror an image left to right and/or upside down."""
    image, labels = picture
    if not (horizontal or vertical):
        return picture
    labels = labels.copy()
    if horizontal:
        labels[:, 1] = 1 - labels[:, 1]
    if vertical:
        labels[:, 2] = 1 - labels[:, 2]
    return cv2.flip(image, -1 if horizontal and vertical else 1 if horizontal else 0), labels


def colour_to_rgb(image: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Multiply hue, saturation and value by three gains; BGR -> RGB. A gray image (h, w) has only a value.

    Through lookup tables: hue is 0..179 and wraps around, the others are 0..255 and saturate.
    """
    levels = np.arange(256)
    value = (levels * gains[2]).clip(0, 255).astype(np.uint8)
    if image.ndim == 2:
        return cv2.LUT(image, value)
    hue = ((levels * gains[0]) % 180).astype(np.uint8)
    saturation = (levels * gains[1]).clip(0, 255).astype(np.uint8)
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    return cv2.cvtColor(cv2.LUT(hsv, np.stack([hue, saturation, value], 1)[None]), cv2.COLOR_HSV2RGB)


def hsv_gains(hyp: Hyp, rng: np.random.Generator) -> np.ndarray:
    """Random gains of hue, saturation and value, around 1."""
    return 1 + rng.uniform(-1, 1, 3) * (hyp.hsv_h, hyp.hsv_s, hyp.hsv_v)
