"""What every layer's module has in common, and the blur that convolutions and poolings share."""

import math
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.network import definitions
from utils.network.shapes import Shape


@runtime_checkable
class Fixable(Protocol):
    """A part of a network that can be made constant for inference."""

    def fix(self) -> None:
        """Make constant, in place, what only training changes."""


class Block(nn.Module):
    """A cfg block; most have no tensors in a .weights file, and multiply nothing by kernels."""

    def darknet_tensors(self) -> Iterator[Tensor]:
        yield from ()

    def macs(self, source: Shape, output: Shape) -> int:
        """Multiply-accumulates of one picture: products with kernels and weight matrices, as torch's FlopCounterMode counts.

        source, output: (channels, height, width) of the (first) map that is read, and of the result.
        """
        return sum(child.macs(output) for child in self.children() if isinstance(child, Blur))


class Blur(nn.Module):
    """antialiasing: what the layer computed by single steps, blurred before it is thinned out (Zhang 2019).

    1: the 3x3 binomial kernel, zero-padded by one; 2: the mean of 2x2, not padded.
    """

    def __init__(self, d: definitions.Convolutional | definitions.MaxPool) -> None:
        super().__init__()
        self.strides, self.taps = d.strides, {1: (0.25, 0.5, 0.25), 2: (0.5, 0.5)}[d.antialiasing]

    def forward(self, x: Tensor) -> Tensor:
        taps = x.new_tensor(self.taps)
        kernel = torch.outer(taps, taps).expand(x.shape[1], 1, -1, -1)
        return F.conv2d(x, kernel, stride=self.strides, padding=len(taps) - 2, groups=x.shape[1])

    def macs(self, output: Shape) -> int:
        return len(self.taps) ** 2 * math.prod(output)
