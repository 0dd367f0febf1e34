"""How much memory there is, and how much of it a network needs at least: known before anything is built."""

import math

from utils.core.errors import UserError
from utils.network.definitions import BatchNorm, Convolutional, Defs, Depthwise, LayerDef, SqueezeExcite
from utils.network.shapes import Shape, input_channels

BYTES = 4  # of a float32
ADDRESSABLE = 2**62  # bytes: more than this can't even be counted by PyTorch


def weight_count(d: LayerDef, channels: int) -> int:
    """Values that a .weights file holds for a layer that reads `channels` channels, but for a [shortcut]'s few."""
    if isinstance(d, Convolutional):
        groups = channels if isinstance(d, Depthwise) else d.groups
        return d.filters * (channels // groups * d.size**2 + (4 if d.batch_normalize else 1))
    if isinstance(d, SqueezeExcite):
        return 2 * channels * d.inner_width(channels)
    return 4 * channels if isinstance(d, BatchNorm) else 0


def check_memory(defs: Defs, shapes: list[Shape], image: Shape, limit: int | None) -> None:
    """Raise UserError, naming the largest layer, for a network that needs more than `limit` bytes (None: nobody knows) for
    its weights and the maps that one layer reads and writes of one image of the size `image`: less is never enough.
    """
    if limit is None:
        return
    weights = [weight_count(d, input_channels(defs, shapes, i)[0]) for i, d in enumerate(defs)]
    outputs = [math.prod(shape) for shape in shapes]
    read = [sum(math.prod(image) if s < 0 else outputs[s] for s in set(defs.sources(i))) for i in range(len(defs))]
    needed = BYTES * (sum(weights) + max(map(sum, zip(read, outputs, strict=True)), default=0))
    if needed > limit:
        largest = max(range(len(defs)), key=lambda i: weights[i] + outputs[i])
        channels, height, width = shapes[largest]
        raise UserError.at(
            defs.where(largest),
            f"this network needs {needed / 2**30:,.1f} GiB of memory at {image[2]}x{image[1]}, no more "
            f"than {limit / 2**30:,.1f} can be used; this layer, the largest, has {weights[largest]:,} weights and an output "
            f"of {width}x{height}x{channels}: make it, or the image, smaller",
        )
