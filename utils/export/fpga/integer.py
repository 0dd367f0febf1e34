"""Inference in integers: what an accelerator has to compute with an FPGA dump, in NumPy, bit for bit.

A network is a list of steps. Each reads maps of integers, (batch, channels, height, width) int64, and makes one; an integer v
stands for v * 2**-exponent of its step's grid. There is no floating point here but for `values`, which turns the maps
that heads read into numbers. A step of a kind in SUMS makes exact sums, which go through `finish`:

    sums -> activation -> round_shift by `shift` -> limited to the integers of the output -> map
    sums -> round_shift by `shift` -> limited to low..high -> looked up in a table -> map             (activation: table)

The sums' exponent is the sum of what is multiplied (map and kernel; map and factor), and the step's `shift` is what lies
between it and the exponent of the output. `align` has a shift for each map that a shortcut or a route reads, which brings
them to one exponent. A positive shift goes to the right, rounding half to even; a negative one to the left.

    >>> round_shift(np.array([5, 6, 7, 10, -6, -10]), 2).tolist()      # 1.25  1.5  1.75  2.5  -1.5  -2.5
    [1, 2, 2, 2, -2, -2]
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Ints = np.ndarray  # of int64 but for a step's arrays, which have the dtype that they are stored with
FAR = 62  # bits; whatever is shifted further is 0, or limited by all the bits that there are
LOWEST = np.iinfo(np.int64).min  # beside a map, for a maximum


@dataclass(frozen=True)
class Grid:
    """The integers low..high, each standing for itself times 2**-exponent."""

    exponent: int
    low: int
    high: int

    @property
    def most(self) -> int:
        """The largest magnitude."""
        return max(-self.low, self.high)

    def limit(self, v: Ints) -> Ints:
        return np.clip(v, self.low, self.high)


@dataclass
class Step:
    """One operation. kind: a key of SUMS or MOVES; layer: number of the cfg's layer that it is (a part of); sources: numbers
    of the steps that it reads, -1 is the image; shape: (channels, height, width) of its map, for the dump's input size.

    activation: a key of ACTIVATIONS, or `table`; index: the integers a table is for; options: what the kind or the
    activation needs besides; exponents: where the shifts come from: of inputs, weights and sums; bound: no sum is larger.
    arrays: weights (filters, channels a group, height, width), biases (filters,), table (entries,).
    """

    kind: str
    layer: int
    sources: list[int]
    output: Grid
    shape: list[int]
    shift: int = 0
    align: list[int] = field(default_factory=list)
    activation: str = "linear"
    index: Grid | None = None
    options: dict[str, Any] = field(default_factory=dict)
    exponents: dict[str, Any] = field(default_factory=dict)
    bound: int = 0
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Network:
    """An FPGA dump in memory. input: the image's grid; pixels: (256,) the image's integer for each value of an image's
    bytes; outputs: numbers of the steps whose maps heads read; info: everything that computing doesn't need."""

    input: Grid
    pixels: np.ndarray
    steps: list[Step]
    outputs: list[int]
    info: dict[str, Any] = field(default_factory=dict)


@dataclass
class Result:
    """maps: for each head (batch, channels, ny, nx) integers; peaks: {step: the greatest magnitude of
    its sums}, biases included, before the activation; every: {step: its map}, -1 for the image, if they were to be kept."""

    maps: list[Ints]
    peaks: dict[int, int]
    every: dict[int, Ints]


def run(network: Network, pictures: np.ndarray, keep: bool = False) -> Result:
    """Compute a batch of pictures: uint8 (batch, channels, height, width), RGB or gray, as big as the network reads them.
    keep: all maps, not only those that heads read."""
    maps: dict[int, Ints] = {-1: network.pixels.astype(np.int64)[pictures]}
    peaks: dict[int, int] = {}
    for number, step in enumerate(network.steps):
        inputs = [maps[s] for s in step.sources]
        if step.kind in SUMS:
            sums = SUMS[step.kind](step, *inputs)
            peaks[number] = int(np.abs(sums).max())
            maps[number] = finish(step, sums)
        else:
            maps[number] = MOVES[step.kind](step, *inputs)
    return Result([maps[number] for number in network.outputs], peaks, maps if keep else {})


def values(network: Network, result: Result) -> list[np.ndarray]:
    """The heads' raw maps, float32 (batch, anchors or 1, ny, nx, values), as PyTorch's network gives them
    before the head's float activation, if it has one."""
    found = []
    for number, ints, head in zip(network.outputs, result.maps, network.info["heads"], strict=True):
        raw = np.ldexp(ints.astype(np.float32), -network.steps[number].output.exponent)
        batch, _, height, width = raw.shape
        found.append(raw.reshape(batch, len(head.get("anchors", "1")), -1, height, width).transpose(0, 1, 3, 4, 2))
    return found


def round_shift(v: Ints, shift: int) -> Ints:
    """v / 2**shift, half to even; exact for a shift to the left, which the caller keeps small enough."""
    if shift <= 0:
        return v << -shift
    shift = min(shift, FAR)
    whole, rest, half = v >> shift, v & ((1 << shift) - 1), 1 << (shift - 1)
    return whole + ((rest > half) | ((rest == half) & (whole & 1 == 1)))


def requantise(v: Ints, shift: int, grid: Grid) -> Ints:
    """v, shifted, within the grid's limits. Limited before a shift to the left, too: v may be large, the limits aren't."""
    if shift < 0:
        v, shift = grid.limit(v), max(shift, -FAR // 2)
    return grid.limit(round_shift(v, shift))


def finish(step: Step, sums: Ints) -> Ints:
    """From exact sums to the step's map."""
    if step.index is not None:
        return step.arrays["table"].astype(np.int64)[requantise(sums, step.shift, step.index) - step.index.low]
    return requantise(ACTIVATIONS[step.activation](step, sums), step.shift, step.output)


def _leaky(step: Step, v: Ints) -> Ints:
    """Slope factor / 2**widen; options: both. The step's shift takes the `widen` back."""
    return np.where(v < 0, v * step.options["factor"], v << step.options["widen"])


def _relu6(step: Step, v: Ints) -> Ints:
    """options: widen, a shift to the left that is needed when 6 is no whole number of the sums' steps; limit: 6 in them."""
    return np.clip(v << step.options["widen"], 0, step.options["limit"])


ACTIVATIONS: dict[str, Callable[[Step, Ints], Ints]] = {
    "linear": lambda step, v: v,
    "relu": lambda step, v: np.maximum(v, 0),
    "relu6": _relu6,
    "leaky": _leaky,
}


def _convolution(step: Step, x: Ints) -> Ints:
    """options: strides (vertical, horizontal), padding with zeros on each side, dilation, groups. No kernel is flipped."""
    o, kernel = step.options, step.arrays["weights"].astype(np.int64)
    filters, depth, height, width = kernel.shape
    x = np.pad(x, ((0, 0), (0, 0), (o["padding"],) * 2, (o["padding"],) * 2))
    spread, groups = o["dilation"], o["groups"]
    extent = (spread * (height - 1) + 1, spread * (width - 1) + 1)
    windows = sliding_window_view(x, extent, (2, 3))[:, :, :: o["strides"][0], :: o["strides"][1], ::spread, ::spread]
    batch, _, rows, columns = windows.shape[:4]
    windows = windows.reshape(batch, groups, depth, rows, columns, height, width).transpose(1, 0, 3, 4, 2, 5, 6)
    patches = windows.reshape(groups, batch * rows * columns, depth * height * width)
    sums = patches @ kernel.reshape(groups, filters // groups, -1).transpose(0, 2, 1)
    sums = sums.reshape(groups, batch, rows, columns, filters // groups).transpose(1, 0, 4, 2, 3)
    return sums.reshape(batch, filters, rows, columns) + step.arrays["biases"].astype(np.int64)[:, None, None]


def _shortcut(step: Step, *maps: Ints) -> Ints:
    """The sum of the channels that the maps have in common with the first; it has as many as the first."""
    first, *others = (round_shift(m, shift) for m, shift in zip(maps, step.align, strict=True))
    total = first.copy()
    for other in others:
        common = min(total.shape[1], other.shape[1])
        total[:, :common] += other[:, :common]
    return total


# Kinds that make sums.
SUMS: dict[str, Callable[..., Ints]] = {
    "convolutional": _convolution,
    "depthwise": _convolution,
    "shortcut": _shortcut,
    "product": lambda step, factor, scaled: scaled * factor,  # the factor may be one a channel, or one a position
}


def _maximum(step: Step, x: Ints) -> Ints:
    """options: size of the windows, strides, padding: what is added in all, the smaller half left and above."""
    size, strides, total = step.options["size"], step.options["strides"], step.options["padding"]
    before = total // 2
    sides = []
    for length, stride in zip(x.shape[2:], strides, strict=True):
        count = (length + total - size) // stride + 1
        sides.append((before, max(0, (count - 1) * stride + size - length - before)))
    x = np.pad(x, ((0, 0), (0, 0), *sides), constant_values=LOWEST)
    return sliding_window_view(x, (size, size), (2, 3))[:, :, :: strides[0], :: strides[1]].max((4, 5))


def _maximum_of_channels(step: Step, x: Ints) -> Ints:
    """options: channels n; output channel k is the maximum of the channels k, k + n, k + 2n, ..."""
    count = step.options["channels"]
    return np.stack([x[:, k::count].max(1) for k in range(count)], 1)


def _average(step: Step, x: Ints) -> Ints:
    """The mean over all positions: a sum, shifted, divided by their number, half to even. The only division."""
    total, count = x.sum((2, 3), keepdims=True), x.shape[2] * x.shape[3]
    total, count = total << max(-step.shift, 0), count << max(step.shift, 0)
    whole, rest = np.divmod(total, count)
    return step.output.limit(whole + ((2 * rest > count) | ((2 * rest == count) & (whole & 1 == 1))))


def _route(step: Step, *maps: Ints) -> Ints:
    """options: groups, group: which of so many equal parts of each map's channels is taken."""
    groups, group = step.options["groups"], step.options["group"]
    parts = [np.split(m, groups, 1)[group] for m in maps]
    return np.concatenate([requantise(p, shift, step.output) for p, shift in zip(parts, step.align, strict=True)], 1)


def _reorg3d(step: Step, x: Ints) -> Ints:
    """options: stride s; output channel (dy * s + dx) * c + k is channel k at row offset dy, column offset dx."""
    s = step.options["stride"]
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // s, s, width // s, s).transpose(0, 3, 5, 1, 2, 4)
    return blocks.reshape(batch, s * s * channels, height // s, width // s)


def _reorg(step: Step, x: Ints) -> Ints:
    """reorg3d of the map read as (channels / s^2, height * s, width * s), as YOLOv2's reorg does it."""
    s = step.options["stride"]
    batch, channels, height, width = x.shape
    wide = _reorg3d(step, x.reshape(batch, channels // s**2, height * s, width * s))
    return wide.reshape(batch, channels * s * s, height // s, width // s)


# Kinds that choose, repeat and reorder integers.
MOVES: dict[str, Callable[..., Ints]] = {
    "maxpool": _maximum,
    "maxpool_depth": _maximum_of_channels,
    "avgpool": _average,
    "upsample": lambda step, x: x.repeat(step.options["stride"], 2).repeat(step.options["stride"], 3),
    "route": _route,
    "reorg": _reorg,
    "reorg3d": _reorg3d,
}
