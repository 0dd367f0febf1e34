"""Averaged weights."""

import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class ModelEma(AveragedModel):
    """Exponential moving average of a model's weights and buffers: avg += (1 - decay) * (weights - avg).

    decay rises as d * (1 - exp(-updates / tau)), so that early weights are forgotten. d and tau suit the length of the
    training: the average reaches over about the `share` of its steps, by default a twentieth, at most 10000 (d = 0.9999,
    tau = 2000), which leaves something to average in trainings of a few hundred steps without lagging behind them.
    """

    def __init__(self, model: nn.Module, total_steps: int, share: float = 0.05) -> None:
        super().__init__(model, multi_avg_fn=self._average, use_buffers=True)
        self.tau = min(2000.0, max(total_steps / 10, 1.0))
        self.reach(total_steps, share)

    def reach(self, total_steps: int, share: float) -> None:
        """Average over the `share` of the steps from now on."""
        self.limit = 1 - 1 / min(10000.0, max(total_steps * share, 1.0))

    def decay(self, updates: int) -> float:
        """The share that the average keeps at update number `updates`, counted from 0."""
        return self.limit * (1 - math.exp(-updates / self.tau))

    def _average(self, averages: tuple[Tensor, ...], values: tuple[Tensor, ...], updates: Tensor | int) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(list(averages), list(values), 1 - self.decay(int(updates)))
        else:  # counters
            torch._foreach_copy_(list(averages), list(values))
