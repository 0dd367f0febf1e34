"""Milliseconds of a network as the sum of what its convolutions take, each looked up by the numbers of its channels.

What a convolution takes depends on its Geometry, which pruning leaves as it is, and on how many channels it reads and makes.
That is measured on the user's runtime for a few pairs (utils.runtimes.layer_times); between them a Table interpolates. The sum
lacks what lies between the convolutions, and what a runtime saves by computing several layers at once, so it orders networks
and channels (as in Shen et al. 2021, "HALP"); how fast a network really is, a measurement of the whole says.

    >>> table = Table.of({(16, 16): 1.0, (16, 32): 2.0, (32, 16): 2.0, (32, 32): 4.0}, step=16)
    >>> table.at(32, 32), table.at(17, 30), table.at(3, 16), table.at(32, 0)
    (4.0, 4.0, 1.0, 0.0)
"""

import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from utils.network.darknet import Darknet
from utils.network.definitions import Convolutional, Defs, Depthwise
from utils.network.shapes import output_shapes
from utils.pruning.graph import ChannelGraph, Ids
from utils.pruning.spend import Cost, sum_of

Widths = tuple[int, int]  # channels that a convolution reads, channels that it makes
Points = Mapping[Widths, float]  # milliseconds
DEPTHWISE = 0  # groups of a Geometry that has as many as channels


@dataclass(frozen=True)
class Geometry:
    """All that a convolution's milliseconds depend on besides its Widths. groups: DEPTHWISE for as many as channels;
    height, width: of the map that it reads, in pixels."""

    size: int
    strides: tuple[int, int]
    padding: int
    dilation: int
    groups: int
    antialiasing: int
    activation: str
    height: int
    width: int

    @classmethod
    def of(cls, d: Convolutional, channels: int, height: int, width: int) -> "Geometry":
        """That of a layer that reads a map of (channels, height, width)."""
        depthwise = isinstance(d, Depthwise) or d.groups == d.filters == channels > 1
        groups = DEPTHWISE if depthwise else d.groups
        return cls(d.size, d.strides, d.zero_padding // d.dilation, d.dilation, groups, d.antialiasing, d.activation, height,
                   width)  # fmt: skip

    def __str__(self) -> str:
        down, across = self.strides
        kernel = f"{self.size}x{self.size} stride {down},{across} pad {self.padding} dilation {self.dilation}"
        return f"{kernel} groups {self.groups} blur {self.antialiasing} {self.activation} {self.height}x{self.width}"

    def definition(self, widths: Widths) -> Convolutional:
        """A layer like this one."""
        (down, across), (channels, filters) = self.strides, widths
        return Convolutional(filters=filters, size=self.size, stride_x=across, stride_y=down, padding=self.padding,
                             dilation=self.dilation, groups=self.groups or channels, antialiasing=self.antialiasing,
                             activation=self.activation)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Milliseconds of one geometry: ms[i, j] for ins[i] channels to outs[j] filters, rising with both. Numbers of channels that
    weren't measured are rounded up to multiples of `step`, as kernels that compute so many at once do."""

    ins: tuple[int, ...]
    outs: tuple[int, ...]
    ms: np.ndarray
    step: int

    @classmethod
    def of(cls, points: Points, step: int) -> "Table":
        """From a full grid of measured points. Noise that lets more channels take less time is evened out."""
        ins, outs = (tuple(sorted({widths[k] for widths in points})) for k in (0, 1))
        ms = np.array([[points[i, o] for o in outs] for i in ins])
        return cls(ins, outs, _rising(_rising(ms, 0), 1), step)

    def at(self, channels: int, filters: int) -> float:
        """Between measured points linear in both widths, beyond them as at the nearest; 0 if nothing is left."""
        if not channels or not filters:
            return 0.0
        i, a = _place(self.ins, channels, self.step)
        j, b = _place(self.outs, filters, self.step)
        ms = self.ms
        low, high = (float((1 - b) * row[j] + b * row[min(j + 1, len(self.outs) - 1)])
                     for row in (ms[i], ms[min(i + 1, len(self.ins) - 1)]))  # fmt: skip
        return (1 - a) * low + a * high

    def slopes(self, channels: int, filters: int) -> tuple[float, float]:
        """What one channel less to read, and one filter less, save: the mean over the next `step`, as single ones save
        nothing. Nothing where there is but one step left."""
        whole = self.at(channels, filters)
        reading = whole - self.at(channels - self.step, filters) if channels > self.step else 0.0
        making = whole - self.at(channels, filters - self.step) if filters > self.step else 0.0
        return reading / self.step, making / self.step


def _rising(ms: np.ndarray, along: int) -> np.ndarray:
    """The middle between the least and the greatest rising curve: the maximum so far, and the minimum from here on."""
    so_far = np.maximum.accumulate(ms, along)
    from_here = np.flip(np.minimum.accumulate(np.flip(ms, along), along), along)
    return (so_far + from_here) / 2


def _place(grid: tuple[int, ...], count: int, step: int) -> tuple[int, float]:
    """(index of the grid point below, share of the way to the next one)."""
    value = count if count in grid else -(-count // step) * step
    value = min(max(value, grid[0]), grid[-1])
    index = bisect.bisect_right(grid, value) - 1
    if index == len(grid) - 1:
        return index, 0.0
    return index, (value - grid[index]) / (grid[index + 1] - grid[index])


def ladder(count: int, step: int) -> list[int]:
    """Widths to measure for a layer of `count` channels: step, twice that, and so on, and `count` itself. Milliseconds are
    nearly a sum of products of both widths, which linear interpolation between such points follows.

    >>> ladder(100, 16), ladder(3, 16)
    ([16, 32, 64, 100], [3])
    """
    found, width = [], step
    while width < count:
        found.append(width)
        width *= 2
    return [*found, count]


@dataclass(frozen=True)
class Layer:
    index: int
    geometry: Geometry
    widths: Widths


def convolutions(defs: Defs, img_size: int) -> Iterator[Layer]:
    """The convolutions of a network for an image of img_size x img_size."""
    shapes = output_shapes(defs, img_size, img_size)
    for index, d in enumerate(defs):
        if isinstance(d, Convolutional):
            source = defs.sources(index)[0]
            read = shapes[source] if source >= 0 else (defs.net.channels, img_size, img_size)
            yield Layer(index, Geometry.of(d, *read), (read[0], d.filters))


def wanted_points(defs: Defs, img_size: int, step: int) -> dict[Geometry, list[Widths]]:
    """What has to be measured for the tables of a network and of all that pruning makes of it: for each geometry every ladder
    of its layers' inputs with every one of their filters."""
    widths: dict[Geometry, set[Widths]] = {}
    for layer in convolutions(defs, img_size):
        widths.setdefault(layer.geometry, set()).add(layer.widths)
    return {geometry: _grid(geometry, most, step) for geometry, most in widths.items()}


def _grid(geometry: Geometry, widths: set[Widths], step: int) -> list[Widths]:
    if geometry.groups > 1:  # grouped convolutions stay whole
        return sorted(widths)
    ins, outs = (sorted({n for w in widths for n in ladder(w[k], step)}) for k in (0, 1))
    return [(n, n) for n in outs] if geometry.groups == DEPTHWISE else [(i, o) for i in ins for o in outs]


@dataclass(frozen=True)
class Matrix:
    """The milliseconds of one convolution, as its channels save them."""

    outputs: Ids
    inputs: Ids
    table: Table

    def add_savings(self, keep: np.ndarray, savings: np.ndarray) -> None:
        rows, columns = (np.bincount(ids, keep[ids], len(keep)) for ids in (self.outputs, self.inputs))
        reading, making = self.table.slopes(int(columns.sum()), int(rows.sum()))
        savings += making * rows + reading * columns


class LayerTimes:
    """What the convolutions of a network, and of what pruning makes of it, take on a runtime.

    points: those of `wanted_points`, measured. step: the multiple in which the runtime computes channels.
    """

    def __init__(self, points: Mapping[Geometry, Points], step: int) -> None:
        self.points, self.step = points, step
        self.tables = {geometry: self._table(geometry) for geometry in points if geometry.groups <= 1}

    def _table(self, geometry: Geometry) -> Table:
        points = self.points[geometry]
        if geometry.groups == DEPTHWISE:  # nothing is saved by reading fewer channels alone
            points = {(1, filters): ms for (_, filters), ms in points.items()}
        return Table.of(points, self.step)

    def scaled(self, factor: float) -> "LayerTimes":
        """With every layer taking `factor` times as long."""
        points = {geometry: {widths: factor * ms for widths, ms in found.items()} for geometry, found in self.points.items()}
        return LayerTimes(points, self.step)

    def total(self, defs: Defs, img_size: int) -> float:
        """Milliseconds of all convolutions for an image of img_size x img_size."""
        return sum(self._layer(layer) for layer in convolutions(defs, img_size))

    def _layer(self, layer: Layer) -> float:
        table = self.tables.get(layer.geometry)
        return self.points[layer.geometry][layer.widths] if table is None else table.at(*layer.widths)

    def cost(self, model: Darknet, graph: ChannelGraph, img_size: int) -> Cost:
        """Milliseconds that go with a channel; the third of utils.pruning.spend's costs."""
        tables = [(layer.index, self.tables.get(layer.geometry)) for layer in convolutions(model.defs, img_size)]
        return sum_of([Matrix(graph.out[i], graph.inputs(i), table) for i, table in tables if table is not None])
