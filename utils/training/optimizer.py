"""The optimizer, and its rates from step to step."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from utils.core.hyp import Hyp


def build_optimizer(model: nn.Module, hyp: Hyp, adam: bool, step_images: int) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW; groups: kernels (with weight decay), the rest, biases (both without).

    step_images: images an optimizer step learns from. Weight decay falls with it, as more steps make up an epoch.
    """
    kernels = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    biases = [m.bias for m in model.modules() if getattr(m, "bias", None) is not None]
    taken = {id(p) for p in (*kernels, *biases)}
    others = [p for p in model.parameters() if id(p) not in taken]
    decay = hyp.weight_decay * min(1.0, step_images / hyp.nominal_batch)
    groups = [
        {"params": kernels, "weight_decay": decay, "name": "kernels"},
        {"params": others, "weight_decay": 0.0, "name": "others"},
        {"params": biases, "weight_decay": 0.0, "name": "biases"},
    ]
    groups = [g for g in groups if g["params"]]
    if adam:
        # fused: one pass over the memory; the default's several take a fifth of a small network's step on a CPU
        return torch.optim.AdamW(groups, lr=hyp.lr0_adam, betas=(hyp.momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, lr=hyp.lr0, momentum=hyp.momentum, nesterov=hyp.momentum > 0)


@dataclass(frozen=True)
class Schedule:
    """Learning rate and momentum as functions of the optimizer step: linear warm-up, cosine from `peak` to peak * lrf.

    During the warm-up the rates rise from 0, but biases' fall from `bias_start`, and momentum rises.
    """

    total: int  # optimizer steps of the whole training
    warmup: int
    peak: float
    lrf: float
    momentum: float
    bias_start: float
    momentum_start: float

    @classmethod
    def plan(cls, hyp: Hyp, adam: bool, epochs: int, epoch_steps: int, accumulate: int) -> "Schedule":
        """The schedule of `epochs` epochs of `epoch_steps` optimizer steps; its warm-up takes at most a third of them."""
        total = epochs * epoch_steps
        wanted = max(round(hyp.warmup_epochs * epoch_steps), math.ceil(hyp.warmup_batches / accumulate))
        warmup = min(wanted, total // 3) if hyp.warmup_epochs > 0 else 0
        peak, bias_start = (hyp.lr0_adam, 0.0) if adam else (hyp.lr0, hyp.warmup_bias_lr)
        return cls(total, warmup, peak, hyp.lrf, hyp.momentum, bias_start, hyp.warmup_momentum)

    def rate(self, step: int, start: float = 0.0) -> float:
        """Learning rate at optimizer step `step`, counted from 0, warming up from `start`."""
        cosine = (1 + math.cos(math.pi * step / self.total)) / 2
        rate = self.peak * (self.lrf + (1 - self.lrf) * cosine)
        return start + (rate - start) * self._warmth(step)

    def inertia(self, step: int) -> float:
        """Momentum at optimizer step `step`."""
        start = min(self.momentum_start, self.momentum)
        return start + (self.momentum - start) * self._warmth(step)

    def way(self) -> np.ndarray:
        """(total + 1,) how far a gradient of 1 has moved a weight before each step: the sum of rate / (1 - momentum)."""
        return np.cumsum([0.0, *(self.rate(k) / (1 - self.inertia(k)) for k in range(self.total))])

    def _warmth(self, step: int) -> float:
        return min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the optimizer's learning rates and momentum for step `step`."""
        momentum = self.inertia(step)
        for group in optimizer.param_groups:
            group["lr"] = self.rate(step, self.bias_start if group["name"] == "biases" else 0.0)
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            else:
                group["momentum"] = momentum
