"""Fitting a convolution to wanted outputs: windows of its input as rows, and ridge-regularised normal equations."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RIDGE = 0.001  # of the mean variance of what is fitted from


def output_size(conv: nn.Conv2d, x: Tensor) -> tuple[int, int]:
    """(height, width) of what `conv` makes of x (batch, channels, height, width)."""
    sides = zip(x.shape[2:], conv.padding, conv.dilation, conv.kernel_size, conv.stride, strict=True)
    height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in sides)
    return height, width


def windows(conv: nn.Conv2d, x: Tensor, places: Tensor) -> Tensor:
    """What `conv`, of one group, reads for the outputs at `places`, positions in the flattened output map: x (batch, channels,
    height, width) -> (batch * places, channels * kernel positions), in the order of a flattened kernel."""
    _, width = output_size(conv, x)
    vertical, horizontal = conv.padding
    x = F.pad(x, (horizontal, horizontal, vertical, vertical))
    taps = [torch.arange(k, device=x.device) * d for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    rows = (places // width * conv.stride[0])[:, None, None] + taps[0][:, None]
    columns = (places % width * conv.stride[1])[:, None, None] + taps[1]
    cut = x[:, :, rows, columns]  # (batch, channels, places, kernel height, kernel width)
    return cut.transpose(1, 2).flatten(0, 1).flatten(1)


class NormalEquations:
    """The least-squares fit y ~ x W + b from samples that come piece by piece: only sums are kept, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Tensor] = []  # of x x', x y', x and y

    def add(self, x: Tensor, y: Tensor) -> None:
        """x (samples, features), y (samples, outputs)."""
        products = [p.double() for p in (x.T @ x, x.T @ y, x.sum(0), y.sum(0))]
        self.sums = [a + p for a, p in zip(self.sums, products, strict=True)] if self.sums else products
        self.count += len(x)

    def solve(self, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
        """(W (features, outputs), b (outputs,)), float64: the minimum of the mean of |y - x W - b|^2 plus ridge * (mean
        variance of x) * |W|^2; b isn't held back. Whatever the ridge, the fit is no worse than W = 0, b = 0."""
        xx, xy, x, y = (s / self.count for s in self.sums)
        covariance = xx - torch.outer(x, x)
        covariance.diagonal().add_(max(ridge * float(covariance.diagonal().mean()), 1e-12))
        fitted = torch.linalg.solve(covariance, xy - torch.outer(x, y))
        return fitted, y - x @ fitted
