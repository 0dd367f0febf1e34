"""Boxes on images, and images side by side."""

import colorsys
import functools
from collections.abc import Sequence

import cv2
import numpy as np

from utils.data.fonts import font_of, legible

FONT = cv2.FONT_HERSHEY_SIMPLEX
TEXT_HEIGHT = 22  # pixels of the font's tallest letters at scale 1
CAPITALS = 0.73  # height of capitals in other fonts, in units of their size
SMALLEST_TEXT = 9  # pixels; below, letters run into each other

Colour = tuple[int, int, int]


def class_colour(number: int) -> Colour:
    """The BGR colour of a class: hues a golden section apart, so that the first few classes differ most."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.85, 0.95 if number % 2 == 0 else 0.75)
    return round(blue * 255), round(green * 255), round(red * 255)


def draw_boxes(image: np.ndarray, boxes: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """A copy of `image` (height, width, 3) BGR with boxes (n, 6): x1 y1 x2 y2 in pixels, confidence, class.

    Lines and letters grow with the image and stay readable on a small one; labels stay inside it. The most confident
    boxes are drawn last, on top. Names that no font of this machine has the letters of become `class 3`.
    """
    names = legible(names)
    image = np.ascontiguousarray(image).copy()
    side = sum(image.shape[:2]) / 2
    thickness = max(round(side * 0.003), 1)
    scale = max(side * 0.02, SMALLEST_TEXT) / TEXT_HEIGHT
    for x1, y1, x2, y2, confidence, label in sorted(np.asarray(boxes, float).tolist(), key=lambda b: b[4]):
        colour = class_colour(int(label))
        corner = (round(x1), round(y1))
        cv2.rectangle(image, corner, (round(x2), round(y2)), colour, thickness)
        _label(image, corner, f"{names[int(label)]} {confidence:.2f}", colour, scale)
    return image


def _label(image: np.ndarray, corner: tuple[int, int], text: str, colour: Colour, scale: float) -> None:
    """Text on a filled ground, above the corner if there is room, else below it; moved left where it would be cut off."""
    weight = max(round(scale * 1.5), 1)
    stamp = None if text.isascii() else _stamp(text, scale)
    if stamp is None:
        (width, height), baseline = cv2.getTextSize(text, FONT, scale, weight)
        total = height + baseline + weight
    else:
        total, width = stamp.shape
    left = max(min(corner[0], image.shape[1] - width), 0)
    top = corner[1] - total if corner[1] >= total else max(min(corner[1], image.shape[0] - total), 0)
    cv2.rectangle(image, (left, top), (left + width, top + total), colour, cv2.FILLED)
    brightness = 0.114 * colour[0] + 0.587 * colour[1] + 0.299 * colour[2]  # ITU-R BT.601
    ink = (0, 0, 0) if brightness > 127 else (255, 255, 255)
    if stamp is None:
        cv2.putText(image, text, (left, top + height + weight), FONT, scale, ink, weight, cv2.LINE_AA)
    else:
        _press(image[top:, left:], stamp, ink)


@functools.lru_cache(maxsize=512)
def _stamp(text: str, scale: float) -> np.ndarray:
    """(height, width) float32, how much ink is where: text in a font that has its letters, as large as OpenCV's."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(str(font_of(text)), TEXT_HEIGHT * scale / CAPITALS)
    left, top, right, bottom = font.getbbox(text)
    edge = max(round(TEXT_HEIGHT * scale / 6), 1)
    stamp = Image.new("L", (right - left + 2 * edge, bottom - top + 2 * edge))
    ImageDraw.Draw(stamp).text((edge - left, edge - top), text, fill=255, font=font)
    return np.asarray(stamp, np.float32) / 255


def _press(ground: np.ndarray, stamp: np.ndarray, ink: Colour) -> None:
    """Put the ink onto a part of an image, in place; what reaches over its edges is left out."""
    height, width = (min(sides) for sides in zip(stamp.shape, ground.shape, strict=False))
    share = stamp[:height, :width, None]
    ground[:height, :width] = (ground[:height, :width] * (1 - share) + np.array(ink) * share).round()


def image_grid(images: Sequence[np.ndarray], columns: int = 4, cell: int = 320, gap: int = 4) -> np.ndarray:
    """BGR images of any size in rows of `columns`, the longer side of each `cell` pixels, on white.

    A row is as high as its highest image. Needs at least one image.
    """
    small = [_fitted(image, cell) for image in images]
    rows = [small[i : i + columns] for i in range(0, len(small), columns)]
    heights = [max(image.shape[0] for image in row) for row in rows]
    width = min(columns, len(small)) * (cell + gap) + gap
    grid = np.full((sum(heights) + gap * (len(rows) + 1), width, 3), 255, np.uint8)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for column, image in enumerate(row):
            y = top + (height - image.shape[0]) // 2
            x = gap + column * (cell + gap) + (cell - image.shape[1]) // 2
            grid[y : y + image.shape[0], x : x + image.shape[1]] = image
        top += height + gap
    return grid


def _fitted(image: np.ndarray, side: int) -> np.ndarray:
    """The image with its longer side `side` pixels long."""
    scale = side / max(image.shape[:2])
    height, width = (max(round(s * scale), 1) for s in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
