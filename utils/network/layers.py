"""One module for each kind of cfg block, and the table LAYERS that finds them by kind.

A module is called with the maps that its layer reads, in the order of `LayerDef.sources`, each (batch, channels,
height, width). `darknet_tensors()` lists what a .weights file holds for it, in the file's order.
Names of sub-modules (Conv2d, DepthWise2d, BatchNorm2d, se.fc) are those of the state dicts that users have.
"""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from utils.core.errors import UserError
from utils.network import definitions
from utils.network.activations import activation
from utils.network.block import Block, Blur
from utils.network.heads import DflHead, YoloHead
from utils.network.shapes import Shape

BN_EPSILON = 1e-5
BN_MOMENTUM = 0.03


class Convolution(Block):
    """[convolutional] and [depthwise]: convolution, batch normalisation, activation."""

    def __init__(self, d: definitions.Convolutional, channels: int) -> None:
        super().__init__()
        self.is_depthwise = isinstance(d, definitions.Depthwise)
        groups = channels if self.is_depthwise else d.groups
        strides = (1, 1) if d.antialiasing else d.strides
        conv = nn.Conv2d(channels, d.filters, d.size, strides, d.zero_padding, d.dilation, groups, bias=not d.batch_normalize)
        draw_kernel(conv)
        self.add_module("DepthWise2d" if self.is_depthwise else "Conv2d", conv)
        self.BatchNorm2d = nn.BatchNorm2d(d.filters, BN_EPSILON, BN_MOMENTUM) if d.batch_normalize else None
        self.activation = activation(d.activation)
        self.blur = Blur(d) if d.antialiasing else nn.Identity()
        self.float_input = False  # see Darknet.inference_copy

    @property
    def conv(self) -> nn.Conv2d:
        return self.DepthWise2d if self.is_depthwise else self.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(convolve(self.conv, x.float() if self.float_input else x))

    def finish(self, x: Tensor) -> Tensor:
        """Batch normalisation, activation and blur of what the kernel computed."""
        if self.BatchNorm2d is not None:
            x = self.BatchNorm2d(x)
        return self.blur(self.activation(x))

    def darknet_tensors(self) -> Iterator[Tensor]:
        if self.BatchNorm2d is None:
            yield self.conv.bias
        else:
            yield from _bn_tensors(self.BatchNorm2d)
        yield self.conv.weight

    def macs(self, source: Shape, output: Shape) -> int:
        conv = self.conv
        sides = zip(source[1:], conv.padding, conv.dilation, conv.kernel_size, conv.stride, strict=True)
        positions = math.prod((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in sides)
        return positions * conv.weight.numel() + super().macs(source, output)

    @torch.no_grad()
    def fuse(self) -> None:
        """Fold the batch normalisation into kernel and bias."""
        conv, bn = self.conv, self.BatchNorm2d
        if bn is None:
            return
        statistics = (bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
        self.BatchNorm2d = None


def draw_kernel(conv: nn.Conv2d) -> None:
    """Draw the kernel that training from scratch begins with (He et al. 2015, for leaky activations)."""
    if not conv.weight.is_meta:  # where there is nothing to draw, torch would take a second for 100 layers
        nn.init.kaiming_normal_(conv.weight, a=0.1)


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Depthwise kernels learn in float32: oneDNN has no fast gradient for theirs in bfloat16, which takes up to 20 times
    as long (EXPERIMENTS.md). What they compute is rounded to the autocast's type all the same."""
    is_depthwise = conv.groups == conv.in_channels > 1
    if not (is_depthwise and conv.training and x.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
        return conv(x)
    with torch.autocast("cpu", enabled=False):
        return conv(x.float()).to(torch.get_autocast_dtype("cpu"))


def _bn_tensors(bn: nn.BatchNorm2d) -> Iterator[Tensor]:
    yield from (bn.bias, bn.weight, bn.running_mean, bn.running_var)


class SqueezeExcite(Block):
    """[se]: x * hard_sigmoid(W2 relu(W1 mean(x))), the mean over positions (MobileNetV3, Howard et al. 2019)."""

    def __init__(self, d: definitions.SqueezeExcite, channels: int) -> None:
        super().__init__()
        hidden = d.inner_width(channels)
        self.se = nn.Module()
        self.se.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels, bias=False), nn.Hardsigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.se.fc(x.mean((2, 3)))[:, :, None, None]

    def darknet_tensors(self) -> Iterator[Tensor]:
        yield from (self.se.fc[0].weight, self.se.fc[2].weight)

    def macs(self, source: Shape, output: Shape) -> int:
        return sum(matrix.numel() for matrix in self.darknet_tensors())


class BatchNorm(Block):
    """[batchnorm]: batch normalisation alone."""

    def __init__(self, d: definitions.BatchNorm, channels: int) -> None:
        super().__init__()
        self.BatchNorm2d = nn.BatchNorm2d(channels, BN_EPSILON, BN_MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:
        return self.BatchNorm2d(x)

    def darknet_tensors(self) -> Iterator[Tensor]:
        yield from _bn_tensors(self.BatchNorm2d)


class Pool(Block):
    """Windows as Darknet places them: the smaller half of the padding left and above, and only as much as is used."""

    def __init__(self, d: definitions.MaxPool) -> None:
        super().__init__()
        self.size, self.before, self.total = d.window, d.total_padding // 2, d.total_padding
        self.strides = (1, 1) if d.antialiasing else d.strides
        self.blur = Blur(d) if d.antialiasing else nn.Identity()

    def padding(self, x: Tensor) -> tuple[int, int, int, int]:
        """(left, right, top, bottom); right and bottom may be less than the cfg's when the last window ends earlier."""
        sides: list[int] = []
        for length, stride in ((x.shape[-1], self.strides[1]), (x.shape[-2], self.strides[0])):
            count = (length + self.total - self.size) // stride + 1
            sides += [self.before, max(0, (count - 1) * stride + self.size - length - self.before)]
        return sides[0], sides[1], sides[2], sides[3]


class MaxPool(Pool):
    """[maxpool]: the largest value of each window."""

    def forward(self, x: Tensor) -> Tensor:
        left, right, top, bottom = self.padding(x)
        if left == right == top == bottom and left <= self.size // 2:
            return self.blur(F.max_pool2d(x, self.size, self.strides, left))
        x = F.pad(x, (left, right, top, bottom), value=float("-inf"))
        return self.blur(F.max_pool2d(x, self.size, self.strides))


class LocalAvgPool(Pool):
    """[local_avgpool]: the mean of the part of each window that lies in the map."""

    def forward(self, x: Tensor) -> Tensor:
        sides = self.padding(x)
        inside = F.avg_pool2d(F.pad(torch.ones_like(x[:1, :1]), sides), self.size, self.strides)
        return self.blur(F.avg_pool2d(F.pad(x, sides), self.size, self.strides) / inside)


class MaxPoolDepth(Block):
    """[maxpool] with maxpool_depth=1: output channel k is the maximum of the channels k, k + n, k + 2n, ..."""

    def __init__(self, d: definitions.MaxPool) -> None:
        super().__init__()
        self.out_channels = d.out_channels

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, k :: self.out_channels].amax(1) for k in range(self.out_channels)], 1)


class AvgPool(Block):
    """[avgpool]: the mean over all positions, as a 1x1 map."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


class Upsample(Block):
    """[upsample]: nearest neighbour, times `scale`."""

    def __init__(self, d: definitions.Upsample) -> None:
        super().__init__()
        self.factor, self.scale = d.stride, d.scale

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=float(self.factor), mode="nearest")
        return x if self.scale == 1 else x * self.scale


class Route(Block):
    """[route]: concatenation; with groups, of group number group_id of each map."""

    def __init__(self, d: definitions.Route) -> None:
        super().__init__()
        self.groups, self.group_id = d.groups, d.group_id

    def forward(self, *maps: Tensor) -> Tensor:
        if self.groups > 1:
            maps = tuple(m.chunk(self.groups, 1)[self.group_id] for m in maps)
        return maps[0] if len(maps) == 1 else torch.cat(maps, 1)


class Shortcut(Block):
    """[shortcut]: sum of maps, of their common channels where the counts differ, optionally weighted, then an activation.

    Weights (weights_type per_feature/per_layer: one a map; per_channel: one a map and channel) are normalised as
    Darknet does: relu: max(w, 1e-3) / sum; softmax over the maps; both with 1e-4 added to the sum.
    """

    def __init__(self, d: definitions.Shortcut, channels: int) -> None:
        super().__init__()
        columns = {"none": 0, "per_feature": 1, "per_layer": 1, "per_channel": channels}
        if d.weights_type not in columns or d.weights_normalization not in ("none", "relu", "avg_relu", "softmax"):
            raise ValueError(f"weights_type={d.weights_type}, weights_normalization={d.weights_normalization}: not known")
        count = columns[d.weights_type]
        self.weights = nn.Parameter(torch.ones(len(d.from_) + 1, count)) if count else None
        self.normalization = d.weights_normalization
        self.activation = activation(d.activation)

    def factors(self) -> Tensor:
        """(maps, 1 or channels) normalised weights."""
        w = self.weights
        if self.normalization == "none":
            return w
        w = w.clamp(min=1e-3) if self.normalization != "softmax" else (w - w.amax(0)).exp()
        return w / (w.sum(0) + 1e-4)

    def forward(self, *maps: Tensor) -> Tensor:
        if self.weights is not None:
            channels = maps[0].shape[1]
            factors = self.factors().to(maps[0].dtype)
            maps = tuple(m[:, :channels] * f[: m.shape[1], None, None] for m, f in zip(maps, factors, strict=True))
        total = maps[0]
        for other in maps[1:]:
            total = _add_common(total, other)
        return self.activation(total)

    def darknet_tensors(self) -> Iterator[Tensor]:
        if self.weights is not None:
            yield self.weights


def _add_common(a: Tensor, b: Tensor) -> Tensor:
    wide, narrow = a.shape[1], b.shape[1]
    if wide == narrow:
        return a + b
    return a + b[:, :wide] if narrow > wide else a + F.pad(b, (0, 0, 0, 0, 0, wide - narrow))


class Product(Block):
    """[scale_channels] and [sam]: the `from` map times the map before this layer (1x1 or of the same size)."""

    def __init__(self, d: definitions.ScaleChannels) -> None:
        super().__init__()
        self.activation = activation(d.activation)

    def forward(self, factor: Tensor, scaled: Tensor) -> Tensor:
        return self.activation(scaled * factor)


class Reorg(Block):
    """[reorg]: YOLOv2's reorganisation, which reads the map as (c/s^2, h*s, w*s) before it cuts s x s blocks."""

    def __init__(self, d: definitions.Reorg) -> None:
        super().__init__()
        self.stride = d.stride

    def forward(self, x: Tensor) -> Tensor:
        b, channels, h, w = x.shape
        s = self.stride
        return space_to_depth(x.reshape(b, channels // s**2, h * s, w * s), s).reshape(b, channels * s**2, h // s, w // s)


class Reorg3d(Reorg):
    """[reorg3d]: space to depth; output channel (dy * s + dx) * c + k is channel k at row offset dy, column offset dx."""

    def forward(self, x: Tensor) -> Tensor:
        return space_to_depth(x, self.stride)


def space_to_depth(x: Tensor, s: int) -> Tensor:
    """(b, c, h, w) -> (b, s*s*c, h/s, w/s), block offsets outermost."""
    b, channels, h, w = x.shape
    blocks = x.reshape(b, channels, h // s, s, w // s, s)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(b, s * s * channels, h // s, w // s)


def _max_pool(d: definitions.MaxPool, channels: int) -> Block:
    return MaxPoolDepth(d) if d.maxpool_depth else MaxPool(d)


# kind -> builder(definition, channels of the first input)
LAYERS: dict[str, Callable[..., nn.Module]] = {
    "convolutional": Convolution,
    "depthwise": Convolution,
    "se": SqueezeExcite,
    "batchnorm": BatchNorm,
    "maxpool": _max_pool,
    "local_avgpool": lambda d, channels: LocalAvgPool(d),
    "avgpool": lambda d, channels: AvgPool(),
    "upsample": lambda d, channels: Upsample(d),
    "route": lambda d, channels: Route(d),
    "shortcut": Shortcut,
    "scale_channels": lambda d, channels: Product(d),
    "sam": lambda d, channels: Product(d),
    "reorg": lambda d, channels: Reorg(d),
    "reorg3d": lambda d, channels: Reorg3d(d),
    "dropout": lambda d, channels: Dropout(d),
    "yolo": lambda d, channels: YoloHead(d),
    "dfl": lambda d, channels: DflHead(d),
}


class Dropout(Block, nn.Dropout):
    """[dropout]: drops values while training, passes them through otherwise."""

    def __init__(self, d: definitions.Dropout) -> None:
        nn.Dropout.__init__(self, d.probability)


def build_layer(defs: definitions.Defs, index: int, channels: int) -> nn.Module:
    """The module of layer `index`, reading `channels` channels; UserError naming the layer for what isn't supported."""
    d = defs[index]
    try:
        return LAYERS[d.kind](d, channels)
    except ValueError as error:
        raise UserError.at(defs.where(index), f"{error}") from None
