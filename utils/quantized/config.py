"""QuantizerConfig: what a quantizer does, and what it makes of a range."""

from dataclasses import dataclass

import torch
from torch import Tensor

from utils.quantized.rounding import power_of_two

Range = tuple[Tensor, Tensor]  # (low, high), each (rows,)
OFF = 32  # bits that stand for no quantization at all
SMALLEST = 2.0**-40  # scale, also of a tensor of zeros
SMALLEST_POWER = 2.0**-24  # where it is a power of two: shifts stay short, and biases fit 32 bits


@dataclass(frozen=True)
class QuantizerConfig:
    """What a FakeQuantize does; strategies differ in nothing else.

    bits: 2..8 or 16, 32 for off. symmetric: integers around 0 with zero point 0; else unsigned ones with a zero point.
    narrow: without the lowest integer, so that -x is on the grid with x. per_channel: a scale for each filter of a kernel.
    power_of_two: the scale nearest to the range's in logarithm that is one. observer: see utils.quantized.observers.
    dynamic: the range is that of the tensor at hand, always (kernels); else it is what was observed in training.
    odd: the 2**bits values of formula (9) of DoReFa (Zhou et al. 2016), odd multiples of half a step, without 0.
    """

    bits: int = 8
    symmetric: bool = True
    narrow: bool = False
    per_channel: bool = False
    power_of_two: bool = False
    observer: str = "minmax"
    dynamic: bool = False
    odd: bool = False

    @property
    def quant_min(self) -> int:
        return -(2 ** (self.bits - 1)) + self.narrow if self.symmetric else 0

    @property
    def quant_max(self) -> int:
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    @property
    def covers(self) -> bool:
        """Whether no value can lie outside the grid, so that nothing has to be cut off."""
        return self.dynamic and self.observer == "minmax" and self.symmetric and not self.power_of_two

    def qparams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """(scale, zero point) of a range, which is widened to hold 0: padding must be on the grid. Shapes as given."""
        low, high = low.clamp(max=0), high.clamp(min=0)
        if self.odd:
            scale = torch.maximum(-low, high) * (2 / (2**self.bits - 1))
        elif self.symmetric:
            scale = torch.maximum(-low, high) / self.quant_max
        else:
            scale = (high - low) / self.quant_max
        scale = scale.clamp(min=SMALLEST_POWER if self.power_of_two else SMALLEST)
        if self.power_of_two:
            scale = power_of_two(torch.log2(scale).round())
        zero_point = torch.zeros_like(scale) if self.symmetric else (-low / scale).round()
        return scale, zero_point
