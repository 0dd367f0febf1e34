"""Sizes of images as annotations state them: in whose pixels are the boxes?"""

Size = tuple[int, int]  # width, height

TURNED = "images annotated with width and height swapped, taken as they are"
SCALED = "images of another size than annotated, boxes scaled"
DOUBTED = "images annotated with a size that their boxes don't fit into, taken as they are"
_SLACK = 1 + 1e-5  # decimal fractions may end this far outside


def sizes_differ(one: Size, other: Size) -> bool:
    """Whether two statements of an image's size contradict each other; without a size (0) nothing is stated."""
    return one != other and min(*one, *other) > 0


def size_of_pixels(stated: Size, real: Size, reach: tuple[float, float]) -> tuple[Size, str | None]:
    """The size in whose pixels the boxes are that reach as far as `reach` (x, y), and what there is to say about it.

    It is that which is stated, as images get resized; but not where that is nothing or the image's turned over, nor
    where the boxes fit into the image and not into it, as those who don't know it write any number.

    >>> size_of_pixels((400, 200), (200, 100), (390, 150))[0], size_of_pixels((9, 9), (200, 100), (190, 50))[0]
    ((400, 200), (200, 100))
    """
    if not sizes_differ(stated, real):
        return real, None
    if stated == real[::-1]:
        return real, TURNED
    if _fits(reach, real) and not _fits(reach, stated):
        return real, DOUBTED
    return stated, SCALED


def _fits(reach: tuple[float, float], size: Size) -> bool:
    return all(end <= side * _SLACK for end, side in zip(reach, size, strict=True))
