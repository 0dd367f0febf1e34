"""Observers: which range of values a quantizer should cover.

An observer measures the range of one tensor and merges it with what earlier tensors showed. Ranges are (rows,) tensors:
one row for a whole tensor, or one a filter. Percentiles and the search look at a sample, evenly spread over memory.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.quantized.config import QuantizerConfig, Range

SAMPLE = 2**16  # values of a tensor that percentiles look at
SEARCHED = 2**14  # values that mse looks at; of a kernel whose filters have ranges of their own 16 times as many
HOLD = 16  # training steps for which a kernel's mse range stays: kernels move slowly
TAIL = 1e-4  # percentile: the share of the values that is cut off at each end
FRACTIONS = torch.linspace(1.0, 0.2, 17).tolist()  # mse: of the full range, the ranges that are tried
HALVINGS = 6  # mse with scales that are powers of two: how many are tried
MOMENTUM = 0.02  # moving averages: weight of the newest tensor, once 50 have been seen; all count the same before


def rows_of(x: Tensor, per_channel: bool) -> Tensor:
    """(rows, values) of a tensor without copying it where that is possible; the order of the values doesn't matter."""
    if per_channel:
        return (x.movedim(1, -1) if x.dim() == 4 else x).flatten(1)  # a view of kernels in channels_last
    dense = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    return x.as_strided((1, x.numel()), (x.numel(), 1)) if dense else x.reshape(1, -1)


def sample(rows: Tensor, count: int) -> Tensor:
    """At most `count` values of each row, in steps that share no factor with its length: no channel is left out."""
    length = rows.shape[1]
    step = max(1, -(-length // count))
    while math.gcd(step, length) > 1:
        step += 1
    return rows[:, ::step].float()


def extremes(rows: Tensor, config: QuantizerConfig) -> Range:
    return rows.amin(1).float(), rows.amax(1).float()


def percentiles(rows: Tensor, config: QuantizerConfig) -> Range:
    """Without the TAIL at each end."""
    values = sample(rows, SAMPLE)
    count = max(1, math.ceil(TAIL * values.shape[1]))
    return values.topk(count, 1, largest=False)[0][:, -1], values.topk(count, 1)[0][:, -1]


def least_error(rows: Tensor, config: QuantizerConfig) -> Range:
    """Of the ranges that FRACTIONS or HALVINGS offer, the one with the least mean squared rounding and clipping error."""
    values = sample(rows, SEARCHED if len(rows) == 1 else max(16 * SEARCHED // len(rows), 1))
    low, high = extremes(rows, config)
    if config.power_of_two:
        scale = config.qparams(low, high)[0] * 2  # the nearest may clip a little: begin above it
        ends = [(-scale * config.quant_max / 2**k, scale * config.quant_max / 2**k) for k in range(HALVINGS)]
    else:
        ends = [(low * f, high * f) for f in FRACTIONS]
    errors = torch.stack([_error(values, config, *end) for end in ends])
    best = errors.argmin(0, keepdim=True)
    lows, highs = (torch.stack(side).gather(0, best)[0] for side in zip(*ends, strict=True))
    return lows, highs


def _error(values: Tensor, config: QuantizerConfig, low: Tensor, high: Tensor) -> Tensor:
    """(rows,) mean squared difference between values and their places on the grid of a range."""
    scale, zero_point = (v[:, None] for v in config.qparams(low, high))
    steps = (values / scale).round_().clamp_(config.quant_min - zero_point, config.quant_max - zero_point)
    return (steps.mul_(scale).sub_(values)).square_().mean(1)


def _widest(old: Range, new: Range, seen: Tensor) -> Range:
    return torch.minimum(old[0], new[0]), torch.maximum(old[1], new[1])


def _average(old: Range, new: Range, seen: Tensor) -> Range:
    rate = (1 / (seen + 1)).clamp(min=MOMENTUM)
    return torch.lerp(old[0], new[0], rate), torch.lerp(old[1], new[1], rate)


@dataclass(frozen=True)
class Observer:
    """measure(rows (rows, values), config) -> range; merge(old range, new range, tensors seen before) -> range; hold: training
    steps for which the range of a kernel is good."""

    measure: Callable[[Tensor, QuantizerConfig], Range]
    merge: Callable[[Range, Range, Tensor], Range]
    hold: int = 1


OBSERVERS = {
    "minmax": Observer(extremes, _widest),
    "moving": Observer(extremes, _average),
    "percentile": Observer(percentiles, _average),
    "mse": Observer(least_error, _average, HOLD),
}
