"""Output shape of every layer of a cfg, from the cfg alone: the one place that knows how sizes and channels follow."""

import contextlib
from collections.abc import Callable

from utils.core.errors import UserError
from utils.network.definitions import (
    AvgPool,
    Convolutional,
    Defs,
    Depthwise,
    Head,
    LayerDef,
    MaxPool,
    Reorg,
    Route,
    ScaleChannels,
    Shortcut,
    Upsample,
)

Shape = tuple[int, int, int]  # channels, height, width
BLURS = {0: 0, 1: 2 - 3, 2: 0 - 2}  # antialiasing -> padding less window: 3x3 padded by one, 2x2 not padded


def output_shapes(defs: Defs, height: int | None = None, width: int | None = None) -> list[Shape]:
    """(channels, height, width) of every layer's output, for an input of the given size or the cfg's own.

    Raises UserError naming the layer where maps don't fit together or a head doesn't get as many channels as it needs.
    """
    image = (defs.net.channels, height or defs.net.height, width or defs.net.width)
    shapes: list[Shape] = []
    for index, d in enumerate(defs):
        inputs = [image if s < 0 else shapes[s] for s in defs.sources(index)]
        rule = next((r for kind, r in _RULES if isinstance(d, kind)), lambda d, inputs: inputs[0])
        try:
            shape = rule(d, inputs)
        except ValueError as error:
            raise UserError.at(defs.where(index), f"{error}") from None
        if min(shape) < 1:
            raise UserError.at(defs.where(index), f"nothing is left of a {image[2]}x{image[1]} image here; use a larger size")
        shapes.append(shape)
    return shapes


def input_channels(defs: Defs, shapes: list[Shape], index: int) -> list[int]:
    """Channels of each map that layer `index` reads."""
    return [defs.net.channels if s < 0 else shapes[s][0] for s in defs.sources(index)]


def max_stride(defs: Defs) -> int:
    """The number that --img-size must be a multiple of: the smallest power of two whose odd multiples fit the network, too.

    At least that of the coarsest head's grid; more where a network goes on to coarser maps and comes back from them.
    """
    size, heads = 1024, defs.head_indices()
    shapes = output_shapes(defs, size, size)
    stride = max(size // min((shapes[i][1] for i in heads), default=size // 32), 1)
    for multiple in (stride, 2 * stride, 4 * stride):
        with contextlib.suppress(UserError):
            output_shapes(defs, size + multiple, size + multiple)
            return multiple
    return stride


def _convolution(d: Convolutional, inputs: list[Shape]) -> Shape:
    channels, height, width = inputs[0]
    groups = channels if isinstance(d, Depthwise) else d.groups
    if channels % groups or d.filters % groups:
        raise ValueError(f"{channels} channels to {d.filters} filters can't be split into {groups} groups")
    extent = d.dilation * (d.size - 1) + 1
    return _windows(d, (d.filters, height, width), 2 * d.zero_padding - extent)


def _pool(d: MaxPool, inputs: list[Shape]) -> Shape:
    if d.maxpool_depth:
        if d.out_channels > inputs[0][0]:
            raise ValueError(f"can't make {d.out_channels} channels of {inputs[0][0]}; maxpool_depth only has fewer or as many")
        return d.out_channels, *inputs[0][1:]
    return _windows(d, inputs[0], d.total_padding - d.window)


def _windows(d: Convolutional | MaxPool, shape: Shape, excess: int) -> Shape:
    """Positions of a window on a map, `excess` being the padding less the window; with antialiasing, of the blur."""
    if d.antialiasing not in BLURS:
        raise ValueError(f"antialiasing={d.antialiasing} is not known; it can be {', '.join(map(str, BLURS))}")
    channels, *sides = shape
    if d.antialiasing:  # the layer itself goes on by single steps, and its stride becomes the blur's
        sides, excess = [side + excess + 1 for side in sides], BLURS[d.antialiasing]
    vertical, horizontal = d.strides
    return channels, (sides[0] + excess) // vertical + 1, (sides[1] + excess) // horizontal + 1


def _route(d: Route, inputs: list[Shape]) -> Shape:
    sizes = {s[1:] for s in inputs}
    if len(sizes) > 1:
        raise ValueError(f"joins maps of different sizes: {', '.join(f'{w}x{h}' for _, h, w in inputs)}")
    if any(s[0] % d.groups for s in inputs) or not 0 <= d.group_id < d.groups:
        raise ValueError(f"can't take group {d.group_id} of {d.groups} from {[s[0] for s in inputs]} channels")
    return sum(s[0] // d.groups for s in inputs), *inputs[0][1:]


def _shortcut(d: Shortcut, inputs: list[Shape]) -> Shape:
    if len({s[1:] for s in inputs}) > 1:
        raise ValueError(f"adds maps of different sizes: {', '.join(f'{w}x{h}' for _, h, w in inputs)}")
    return inputs[0]


def _product(d: ScaleChannels, inputs: list[Shape]) -> Shape:
    factor, scaled = inputs
    channels = 1 if d.scale_wh else scaled[0]
    if factor[0] != channels or (factor[1:] not in ((1, 1), scaled[1:])):
        raise ValueError(f"can't multiply a map of {scaled} (channels, height, width) by one of {factor}")
    return scaled


def _reorg(d: Reorg, inputs: list[Shape]) -> Shape:
    channels, height, width = inputs[0]
    s = d.stride
    if d.reverse:
        raise ValueError("reverse=1 is not supported")
    if height % s or width % s:
        raise ValueError(f"a {width}x{height} map can't be cut into {s}x{s} blocks; choose another image size")
    if d.kind == "reorg" and channels % (s * s):
        raise ValueError(f"needs a multiple of {s * s} channels, not {channels}")
    return channels * s * s, height // s, width // s


def _upsample(d: Upsample, inputs: list[Shape]) -> Shape:
    channels, height, width = inputs[0]
    return channels, height * d.stride, width * d.stride


def _head(d: Head, inputs: list[Shape]) -> Shape:
    if inputs[0][0] != d.channels:
        raise ValueError(f"{d.demand()}, not {inputs[0][0]}")
    return inputs[0]


# Everything that isn't listed keeps its (first) input's shape.
_RULES: tuple[tuple[type[LayerDef], Callable[..., Shape]], ...] = (
    (Convolutional, _convolution),
    (MaxPool, _pool),
    (AvgPool, lambda d, inputs: (inputs[0][0], 1, 1)),
    (Upsample, _upsample),
    (Route, _route),
    (Shortcut, _shortcut),
    (ScaleChannels, _product),
    (Reorg, _reorg),
    (Head, _head),
)


def check_img_size(size: int, stride: int, flag: str = "--img-size") -> None:
    """Raise UserError unless `size` pixels, which `flag` gave, is a positive multiple of the network's stride."""
    if size < stride or size % stride:
        near = max(stride, round(size / stride) * stride)
        raise UserError.at(f"{flag} {size}", f"this network needs a multiple of {stride}; the nearest is {near}")
