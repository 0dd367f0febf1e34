"""A dataset at a glance: samples with their boxes, how many boxes a class has, how large they are."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from utils.converters.write import Item, Report
from utils.core.files import replacing
from utils.data.draw import class_colour
from utils.data.fonts import families, font_of, legible
from utils.data.images import read_picture

SAMPLES = 8
_NAMED = 12  # boxes of a sample that have their class's name beside them: the largest
_LONGEST = 640  # pixels of a sample's longer side
_COCO_SIZES = (32, 96)  # between what COCO's evaluation calls small, medium and large


def draw_report(report: Report, path: Path) -> None:
    """Write the image as PNG, in fonts that have the letters of the names; where none has, with numbers instead."""
    names, samples = legible(report.names), choose_samples(report.items)
    titles = [item.target if font_of(item.target) else f"image {n}" for n, item in enumerate(samples, 1)]
    with matplotlib.rc_context({"font.family": families([*names, *titles, report.data.stem])}):
        figure = _figure(report, names, samples, titles)
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=80, format="png")


def _figure(report: Report, names: Sequence[str], samples: Sequence[Item], titles: Sequence[str]) -> Figure:
    figure = Figure(figsize=(14, 12), layout="constrained")
    grid = figure.add_gridspec(3, 4, height_ratios=(1, 1, 1.1))
    for place, item, title in zip(np.ndindex(2, 4), samples, titles, strict=False):
        _sample(figure.add_subplot(grid[place]), item, names, title)
    _classes(figure.add_subplot(grid[2, :2]), names, [report.class_boxes[name] for name in report.names])
    _sizes(figure.add_subplot(grid[2, 2:]), box_sides(report.items))
    stem = report.data.stem if font_of(report.data.stem) else "dataset"
    figure.suptitle(_plain(f"{stem}: {report.total_images:,} images, {report.class_boxes.total():,} boxes"))
    return figure


def choose_samples(items: Sequence[Item], count: int = SAMPLES) -> list[Item]:
    """Images that show as many classes as possible: each is the first with the most classes that haven't been seen yet,
    or, when all have been, one more from further on."""
    rest = {i: set(item.classes.tolist()) for i, item in enumerate(items) if len(item.classes)}
    places, unseen = list(rest), set().union(*rest.values())
    spread = iter(places[len(places) // count :: max(len(places) // count, 1)] + places)
    chosen: list[int] = []
    while rest and len(chosen) < count:
        best = max(rest, key=lambda i: len(rest[i] & unseen)) if unseen else next(i for i in spread if i in rest)
        unseen -= rest.pop(best)
        chosen.append(best)
    return [items[i] for i in chosen]


def box_sides(items: Sequence[Item]) -> np.ndarray:
    """The square root of each box's area, in pixels of its image."""
    return np.concatenate([np.sqrt(item.boxes[:, 2:].prod(1) * np.prod(item.shape)) for item in items])


def _sample(axes: Axes, item: Item, names: Sequence[str], title: str) -> None:
    axes.set_axis_off()
    image = _small_picture(item.image)
    if image is None:
        return
    height, width = image.shape[:2]
    axes.imshow(image)
    largest = set(np.argsort(-item.boxes[:, 2:].prod(1), kind="stable")[:_NAMED].tolist())
    for i, (number, box) in enumerate(zip(item.classes.tolist(), item.boxes, strict=True)):
        cx, cy, w, h = box * (width, height, width, height)
        colour, corner = _colour(number), (cx - w / 2, cy - h / 2)
        axes.add_patch(Rectangle(corner, w, h, fill=False, edgecolor=colour, linewidth=1.2))
        if i in largest:
            axes.text(*corner, _plain(names[number]), fontsize=6, color="white", va="bottom", clip_on=True,
                      bbox={"facecolor": colour, "pad": 0.5, "linewidth": 0})  # fmt: skip
    axes.set_title(_plain(title if len(title) < 30 else f"{title[:13]}...{title[-13:]}"), fontsize=7)


def _small_picture(path: str) -> np.ndarray | None:
    """RGB, at most _LONGEST pixels long; None where OpenCV cannot decode it."""
    image = read_picture(path)
    if image is None:
        return None
    scale = min(_LONGEST / max(image.shape[:2]), 1)
    return cv2.cvtColor(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)


def _classes(axes: Axes, names: Sequence[str], counts: Sequence[int]) -> None:
    places = np.arange(len(names))
    axes.bar(places, counts, color=[_colour(number) for number in places.tolist()])
    axes.set_xticks(places, [_plain(name) for name in names], fontsize=9 if len(places) < 25 else 5, rotation=90)
    axes.set(title="boxes of each class", yscale="symlog", ylim=(0, max(counts) * 2))
    axes.grid(alpha=0.3, axis="y")


def _sizes(axes: Axes, sides: np.ndarray) -> None:
    low, high = np.log2(max(sides.min(), 0.5)), np.log2(max(sides.max(), 1.0))
    axes.hist(sides, bins=np.logspace(low - 0.1, high + 0.1, 41, base=2), color="tab:blue")
    for side in _COCO_SIZES:
        axes.axvline(side, color="black", linestyle="--", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(
        title="box sizes", xlabel="square root of the area, pixels of the image (dashed: COCO's 32 and 96)", ylabel="boxes"
    )


def _colour(number: int) -> tuple[float, float, float]:
    blue, green, red = class_colour(number)
    return red / 255, green / 255, blue / 255


def _plain(text: str) -> str:
    """Without what matplotlib would take for mathematics."""
    return text.replace("$", r"\$")
