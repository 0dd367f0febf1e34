"""What inference on a CPU can do faster than PyTorch's public operators; the numbers stay the same.

Convolutions: PyTorch rearranges the kernel at every call and writes a map that the activation then reads and writes once
more. oneDNN's fused operator, which torch.compile uses, too, does neither. It isn't part of PyTorch's public interface, so
it is tried before it is relied on, and where it is missing layers stay as they are.
Pooling: PyTorch's also notes where each maximum was, and is slow for channel counts that aren't multiples of its vectors.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.network.block import Block
from utils.network.definitions import Defs
from utils.network.layers import Convolution, MaxPool
from utils.network.shapes import output_shapes

# Activations that the fused operator applies: module -> (its name there, its constants).
FUSED: dict[type[nn.Module], Callable[[Any], tuple[str, list[float]]]] = {
    nn.Identity: lambda m: ("none", []),
    nn.LeakyReLU: lambda m: ("leaky_relu", [m.negative_slope]),
    nn.ReLU: lambda m: ("relu", []),
    nn.ReLU6: lambda m: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: lambda m: ("swish", []),
    nn.Sigmoid: lambda m: ("sigmoid", []),
    nn.Tanh: lambda m: ("tanh", []),
    nn.Hardswish: lambda m: ("hardswish", []),
    nn.Hardsigmoid: lambda m: ("hardsigmoid", []),
}
TOLERANCE = 0.02  # of the trial, relative: bfloat16 keeps 8 bits


def speed_up(module_list: nn.ModuleList, defs: Defs, height: int, width: int) -> None:
    """Replace layers of a fused network in eval mode on the CPU, in place. They can't be moved, saved or trained any more.

    height, width: of the images, in pixels.
    """
    shapes = output_shapes(defs, height, width)
    for index, module in enumerate(module_list):
        if type(module) is Convolution and packs(module.conv.weight.dtype):
            source = defs.sources(index)[0]
            rows, columns = (height, width) if source < 0 else shapes[source][1:]
            module_list[index] = PackedConvolution(module, [1, module.conv.in_channels, rows, columns])
        elif type(module) is MaxPool:
            module_list[index] = PairwiseMaxPool(module)


class PackedConvolution(Block):
    """A fused Convolution with its kernel as oneDNN wants it for inputs of about this shape (batch, channels, height,
    width); any other works, too."""

    def __init__(self, layer: Convolution, shape: list[int]) -> None:
        super().__init__()
        conv = layer.conv
        self.bias, self.float_input, self.blur = conv.bias, layer.float_input, layer.blur
        self.geometry = [list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups]
        self.kernel = torch.ops.mkldnn._reorder_convolution_weight(conv.weight, *self.geometry, shape)
        fused = FUSED.get(type(layer.activation))
        self.fused = fused(layer.activation) if fused else ("none", [])
        self.activation = nn.Identity() if fused else layer.activation

    def forward(self, x: Tensor) -> Tensor:
        x = x.float() if self.float_input else x
        x = torch.ops.mkldnn._convolution_pointwise(x, self.kernel, self.bias, *self.geometry, *self.fused, "")
        return self.blur(self.activation(x))


class PairwiseMaxPool(Block):
    """A MaxPool; windows of 2 x 2 that don't overlap as two elementwise maxima."""

    def __init__(self, layer: MaxPool) -> None:
        super().__init__()
        self.layer = layer
        self.pairs = layer.size == 2 and tuple(layer.strides) == (2, 2) and isinstance(layer.blur, nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        if not self.pairs or any(self.layer.padding(x)) or x.shape[2] % 2 or x.shape[3] % 2:
            return self.layer(x)
        rows = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
        return torch.maximum(rows[..., ::2], rows[..., 1::2])


@functools.cache
def packs(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has the fused operator and it computes what a convolution and its activation do."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, kernel, bias = (torch.randn(s, generator=generator).to(dtype) for s in ((2, 4, 9, 9), (6, 4, 3, 3), (6,)))
    geometry = [[1, 1], [2, 2], [1, 1], 1]
    try:
        packed = torch.ops.mkldnn._reorder_convolution_weight(kernel, *geometry, list(x.shape))
        found = torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *geometry, "leaky_relu", [0.1], "")
    except (AttributeError, RuntimeError, TypeError):
        return False
    wanted = F.leaky_relu(F.conv2d(x.float(), kernel.float(), bias.float(), 2, 1), 0.1)
    return bool((found.float() - wanted).abs().max() < TOLERANCE * wanted.abs().max())
