"""Charts of the report, as SVG that stands in the page: no scripts, no files, sharp in print."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 66, 26, 16, 44  # around the axes, for numbers and titles
TICKS = 5
RIVAL = "rival"  # the kind of points that others are compared with


class Point(NamedTuple):
    x: float
    y: float
    label: str
    kind: str  # a class of the page's style sheet


def curve(points: Sequence[Point], titles: tuple[str, str], limit_x: float | None, limit_y: float | None) -> str:
    """Points over 0..1, joined in their order along x but for rivals; titles: of the axes; limit_x, limit_y: where the budget
    lies."""
    heights = [p.y for p in points] + ([limit_y] if limit_y is not None else [])
    low, high = min(heights), max(heights)
    margin = max(0.15 * (high - low), 0.02)
    low, high = max(low - margin, 0.0), min(high + margin, 1.0)

    def place(x: float, y: float) -> tuple[float, float]:
        return (LEFT + x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM))

    parts = [_axes(place, low, high, titles)]
    if limit_x is not None:
        (x, y0), (_, y1) = place(limit_x, low), place(limit_x, high)
        parts.append(f'<line class="budget" x1="{x:.1f}" y1="{y0:.1f}" x2="{x:.1f}" y2="{y1:.1f}"/>')
        parts.append(_text(x + 4, y1 + 12, "budget", "start"))
    if limit_y is not None:
        (x0, y), (x1, _) = place(0, limit_y), place(1, limit_y)
        parts.append(f'<line class="budget" x1="{x0:.1f}" y1="{y:.1f}" x2="{x1:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(x0 + 4, y + 14, "least that is allowed", "start"))
    ordered = [place(p.x, p.y) for p in sorted(points) if p.kind != RIVAL]
    parts.append(f'<polyline class="joined" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in ordered)}"/>')
    for point in points:
        x, y = place(point.x, point.y)
        parts.append(f'<circle class="{point.kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        parts.append(_text(x - 8 if point.x > 0.8 else x + 8, y - 8, point.label, "end" if point.x > 0.8 else "start"))
    return _svg(parts, f"{titles[1]} over {titles[0]}")


def _axes(place: object, low: float, high: float, titles: tuple[str, str]) -> str:
    parts = []
    for i in range(TICKS + 1):
        x, bottom = place(i / TICKS, low)
        left, y = place(0, low + (high - low) * i / TICKS)
        right, _ = place(1, low)
        parts.append(f'<line class="grid" x1="{left:.1f}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 6, y + 4, f"{low + (high - low) * i / TICKS:.3f}", "end"))
        parts.append(_text(x, bottom + 16, f"{100 * i / TICKS:.0f} %", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, titles[0], "middle"))
    parts.append(f'<text transform="translate(12 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(titles[1])}</text>')
    return "".join(parts)


def bars(layers: Sequence[dict[str, int]]) -> str:
    """Filters of each convolution, before behind after; layers: [{index, before, after}]."""
    step = (WIDTH - LEFT - RIGHT) / max(len(layers), 1)
    most, room = max((row["before"] for row in layers), default=1), HEIGHT - TOP - BOTTOM
    every = -(-len(layers) // 24)  # labels that fit beside each other
    parts = []
    for tick in range(TICKS):
        y = HEIGHT - BOTTOM - room * tick / (TICKS - 1)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{most * tick / (TICKS - 1):.0f}", "end"))
    for number, row in enumerate(layers):
        x = LEFT + number * step
        for kind in ("before", "after"):
            height = row[kind] / most * room
            title = f"<title>layer {row['index']}: {row['before']} before, {row['after']} after</title>"
            parts.append(f'<rect class="{kind}" x="{x + 0.1 * step:.1f}" y="{HEIGHT - BOTTOM - height:.1f}" '
                         f'width="{0.8 * step:.1f}" height="{height:.1f}">{title}</rect>')  # fmt: skip
        if number % every == 0:
            parts.append(_text(x + step / 2, HEIGHT - BOTTOM + 16, str(row["index"]), "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "layer", "middle"))
    return _svg(parts, "filters of each convolution before and after")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
