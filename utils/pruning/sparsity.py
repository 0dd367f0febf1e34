"""Sparse training: an L1 penalty on the gammas that a strategy can prune (Liu et al. 2017, Network Slimming), and the
schedules of its strength."""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from utils.core.errors import UserError
from utils.core.fields import Fields
from utils.network.darknet import Darknet
from utils.pruning.graph import ChannelGraph
from utils.pruning.masks import POLICIES, candidates
from utils.pruning.promise import Promise
from utils.pruning.residual_blocks import residual_blocks

NEAR_ZERO = 1e-2
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SCHEDULES = ("directed", "constant", "global-decay", "local-decay", "dynamic")
DECAYED = 0.01  # what the decays leave of s
REACH = 0.7  # dynamic: the share of the way that gammas can go in a training after which the wanted ones are to be zero


def penalised_channels(graph: ChannelGraph, strategy: int) -> dict[int, np.ndarray]:
    """{layer: (channels,) bool} for --prune 0 (normal, regular), 1 (shortcut, slim) and 2 (layer).

    0 and 1: the channels that the strategy may remove. 2: those at the ends of the residual blocks, by which layer_prune
    ranks them: when they fade, the whole block can go. Raises UserError for 2 on a network without such blocks.
    """
    if strategy == 2:
        layers = sorted({i for block in residual_blocks(graph) for i in block.ends})
        if not layers:
            raise UserError(f"--prune 2: {graph.defs.name} has no residual blocks that could be dropped; use --prune 0")
        return {i: np.ones(len(graph.out[i]), dtype=bool) for i in layers}
    policy = POLICIES["slim" if strategy == 1 else "normal"]
    allowed = candidates(graph, policy)
    return {i: allowed[graph.out[i]] for i in graph.gammas() if allowed[graph.out[i]].any()}


class Sparsity(Protocol):
    """What a training calls to make gammas sparse.

    channels: {layer: (channels,) bool}, the gammas that may go to zero. promise: what accuracy it has to keep, if any.
    """

    channels: dict[int, np.ndarray]
    promise: Promise | None

    def start_epoch(self, epoch: int, done: float, total: float) -> None:
        """Before epoch number `epoch`, counted from 0. done, total: how far a gradient of 1 would have moved a weight so
        far, and in the whole training, in the sum of learning rate / (1 - momentum) over the steps."""

    def apply(self) -> None:
        """Once per optimizer step, when the accumulated gradient is complete, unscaled and clipped."""

    def settle(self, done: float, total: float, averaged: Darknet | None) -> None:
        """After the step and its share in the `averaged` network, if there is one."""

    def note(self, model: Darknet) -> str:
        """What the line `gammas` of an epoch says of it."""

    def outcome(self) -> str:
        """What the training ends with, "" for nothing to say."""

    def amount(self) -> str:
        """How much the prune script is to be asked for, "" for nothing."""

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides the weights."""

    def restore(self, state: Fields) -> None:
        """Go on from what `state` gave; UserError where it isn't that."""


class GammaPenalty:
    """Adds strength * sign(gamma) to the gradients of the penalised gammas.

    `apply` is to be called once per optimizer step, when the accumulated gradient is complete, unscaled and clipped: the
    penalty then counts once, whatever the number of accumulated batches and the loss scale. `start_epoch` is to be called
    before each epoch; it sets the strength by the schedule:

    constant: s. global-decay: s, from half of the epochs on s/100. local-decay: from half on the `keep` smallest gammas
    go on with s, the others with s/100. dynamic: the strength that brings the share `target` of the gammas under 1e-2,
    found out on the way: s, if not 0, is only its beginning.
    """

    promise: Promise | None = None

    def __init__(self, model: Darknet, strategy: int, s: float, schedule: str = "constant", keep: float = 0.85,
                 target: float = 0.7, epochs: int = 1, momentum: float = 0.937) -> None:  # fmt: skip
        self.strategy, self.momentum = strategy, momentum
        self.s, self.schedule, self.keep, self.target, self.epochs = s, schedule, keep, target, epochs
        self.strength = s
        self.channels = penalised_channels(ChannelGraph(model.defs), strategy)
        self.gammas = [model.module_list[i].BatchNorm2d.weight for i in self.channels]
        self.masks = [torch.from_numpy(mask) for mask in self.channels.values()]
        self.factors: list[Tensor] = [mask.float() for mask in self.masks]
        self._last: dict[str, float] = {}  # dynamic: {quantile, done} when the epoch before began
        self._push, self._pushes = 0.0, [0.0, 0.0]  # the strength as momentum passes it on; its sum over an epoch, and steps

    @torch.no_grad()
    def apply(self) -> None:
        self._push += (1 - self.momentum) * (self.strength - self._push)
        self._pushes = [self._pushes[0] + self._push, self._pushes[1] + 1]
        for gamma, factor in zip(self.gammas, self.factors, strict=True):
            if gamma.grad is not None:
                gamma.grad.add_(gamma.sign() * factor.to(gamma.device), alpha=self.strength)

    def settle(self, done: float, total: float, averaged: Darknet | None) -> None:
        """The gradient was all."""

    def note(self, model: Darknet) -> str:
        return f"s {self.strength:.3g}"

    def outcome(self) -> str:
        return ""

    def amount(self) -> str:
        return "--shortcut 8" if self.strategy == 2 else "--percent 0.5"

    def start_epoch(self, epoch: int, done: float, total: float) -> None:
        """Set the strength for epoch number `epoch`, counted from 0.

        done, total: how far a gradient of 1 would have moved a weight so far, and in the whole training, in the sum of
        learning rate / (1 - momentum) over the steps. Only `dynamic` needs them.
        """
        late = 2 * epoch >= self.epochs
        if self.schedule == "global-decay":
            self.strength = self.s * (DECAYED if late else 1.0)
        elif self.schedule == "local-decay" and late:
            threshold = float(np.quantile(self._values(), self.keep))
            self.factors = [
                mask * torch.where(gamma.detach().abs().cpu() <= threshold, 1.0, DECAYED)
                for gamma, mask in zip(self.gammas, self.masks, strict=True)
            ]
        elif self.schedule == "dynamic":
            self._adapt(done, total)

    def _adapt(self, done: float, total: float) -> None:
        """Model the `target` quantile q of the gammas as falling by (push - resistance) a unit of way, where what the last
        epoch showed of the resistance stands for the next: strength = speed needed + resistance. The push is the strength
        as the optimizer's momentum passes it on, late.

        Changes at most by a factor of 2 an epoch; where the target is reached, the strength eases off.
        """
        values = self._values()
        q = float(np.quantile(values, self.target))
        left = max(REACH * total - done, 0.1 * total) if done < 0.9 * total else total - done
        needed = q / max(left, 1e-12)
        if not self._last:
            self.strength = self.s or needed
        elif (values < NEAR_ZERO).mean() >= self.target:
            self.strength *= 0.8
        else:
            way = done - self._last["done"]
            speed = (self._last["quantile"] - q) / max(way, 1e-12)
            wanted = needed + self._pushes[0] / max(self._pushes[1], 1) - speed
            self.strength = float(np.clip(wanted, self.strength / 2, self.strength * 2))
        self._last, self._pushes = {"quantile": q, "done": done}, [0.0, 0.0]

    def _values(self) -> np.ndarray:
        pairs = zip(self.gammas, self.masks, strict=True)
        return np.concatenate([gamma.detach().abs().cpu().numpy()[mask.numpy()] for gamma, mask in pairs])

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides the weights."""
        return {"strength": self.strength, "last": self._last, "push": self._push, "pushes": self._pushes}

    def restore(self, state: Fields) -> None:
        """Go on from what `state` gave; UserError where it isn't that."""
        self.strength, self._push = state.number("strength", least=0), state.number("push", least=0)
        last, self._pushes = state.fields("last"), state.floats("pushes", least=0)
        self._last = {name: last.number(name) for name in ("quantile", "done")} if last.values else {}
        if len(self._pushes) != 2:
            raise state.wrong("pushes", "two numbers")


def gamma_values(model: Darknet, channels: dict[int, np.ndarray]) -> np.ndarray:
    """All penalised |gamma| of a model, as one array."""
    parts = [model.module_list[i].BatchNorm2d.weight.detach().abs().cpu().numpy()[m] for i, m in channels.items()]
    return np.concatenate(parts) if parts else np.zeros(0)


def gamma_statistics(model: Darknet, channels: dict[int, np.ndarray]) -> dict[str, Any]:
    """{"near_zero": share under 1e-2, "quantiles": {0.05: ..., 0.95: ...}} of the penalised gammas."""
    values = gamma_values(model, channels)
    if not len(values):
        return {"near_zero": 0.0, "quantiles": {}}
    quantiles = {q: float(v) for q, v in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)}
    return {"near_zero": float((values < NEAR_ZERO).mean()), "quantiles": quantiles}


def sparsity_warnings(history: dict[str, np.ndarray], epochs: int, s: float) -> list[str]:
    """What is wrong with s, as of the last epoch in `history`, the columns of results.txt; each is said when it turns up.

    s too small, looked at after a quarter, a half and three quarters of the epochs: the share under 1e-2 has moved by less
    than 0.05 and the median gamma, going on as it did, stays above 0.1. s 0: it adapts, and is never too small.
    s too large: mAP@0.5 was in two evaluations on end lower than its best by 0.1 and by 30 %.
    """
    lines = [_too_small(history, epochs, s)] if s else []
    lines += [_too_large(history["mAP50"])]
    return [line for line in lines if line]


def _too_small(history: dict[str, np.ndarray], epochs: int, s: float) -> str:
    n = len(history["epoch"])
    if n < 3 or n not in {int(np.ceil(epochs * part)) for part in (0.25, 0.5, 0.75)}:
        return ""
    moved, median = history["near_zero"][-1] - history["near_zero"][0], history["g50"]
    way = _cosine_way(n / epochs) - _cosine_way(1 / epochs)
    pace = (median[0] - median[-1]) / way
    end = median[-1] - pace * (1 - _cosine_way(n / epochs))
    if moved >= 0.05 or end <= 0.1:
        return ""
    better = f"--s {s * min(1.2 * median[0] / pace, 100):.2g}" if pace > 0 else f"--s {10 * s:.2g}"
    return (f"s too small: the share under {NEAR_ZERO:g} moved by {moved:.3f} in {n} epochs, the median gamma from "
            f"{median[0]:.3f} to {median[-1]:.3f}, which would end at {end:.2f}; begin again with {better}, more epochs, or "
            "--sparse-schedule dynamic")  # fmt: skip


def _cosine_way(x: float) -> float:
    """The share of its way that a cosine learning rate has gone after the share x of the steps."""
    return x + float(np.sin(np.pi * x)) / np.pi


def _too_large(map50: np.ndarray) -> str:
    found = map50[np.isfinite(map50)]
    fallen = [_has_fallen(found[:end]) for end in (len(found) - 2, len(found) - 1, len(found))]
    if len(found) < 3 or fallen != [False, True, True] or not np.isfinite(map50[-1]):
        return ""
    return (f"s too large: mAP@0.5 fell by {found.max() - found[-1]:.3f}, to {found[-1]:.3f}; take a smaller --s, or let "
            "--sparse-schedule local-decay spare the gammas that stay")  # fmt: skip


def _has_fallen(map50: np.ndarray) -> bool:
    return len(map50) > 1 and bool(map50[-1] < min(0.7 * map50.max(), map50.max() - 0.1))
