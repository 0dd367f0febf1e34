"""Directed sparsity: what is to go is chosen by importance, and only this is pushed to zero, while the rest learns to do
without it.

    gradients -> running importance -> the least important, more and more of them -> each fades to exactly 0

The share that is chosen grows fast first, when much is superfluous, and slowly later (Zhu & Gupta 2017, "To prune, or not to
prune"); what was chosen fades harder the longer it takes (Wang et al. 2021, "Neural Pruning via Growing Regularization").
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from utils.core.errors import UserError
from utils.core.fields import Fields
from utils.network.darknet import Darknet
from utils.pruning.graph import ChannelGraph
from utils.pruning.importance import TaylorTerms
from utils.pruning.masks import POLICIES, Limits, candidates, complete
from utils.pruning.promise import Promise
from utils.pruning.residual_blocks import residual_blocks
from utils.pruning.sparsity import gamma_values, penalised_channels
from utils.pruning.spend import COSTS, NOTHING, Cost, removal_order

# Shares of the way, which is the sum of the learning rates over the steps (utils.training.optimizer.Schedule.way).
PLANNED, LATEST, CLOSED = 0.75, 0.95, 0.99  # the choosing ends as planned, or at the latest if it was held; all have faded
FADE = 0.1  # from being chosen to zero
EVERY = 0.01  # between two choices
POWER = 2  # how the share that isn't chosen yet falls: (1 - way / PLANNED) ** POWER
HASTE = 1.5  # how much faster than an undisturbed training with the same share to go it may become, after pauses
STAYS = 0.5  # hysteresis: what fades counts as half as important, so that it is only let go for something clearly weaker
LAYER_KEEP = 0.01  # of every layer, as slim pruning does


@dataclass(frozen=True)
class Units:
    """What goes as one: a channel id or, for layer pruning, a residual block.

    out: {layer: (channels,) the unit of each of its channels}; pool: (count,) bool, what may go; graph: whose layers must
    not be emptied, None where units don't share layers; cost: what their importance is weighed against (see
    utils.pruning.spend), None where it alone decides. To TaylorTerms it is what a graph is.
    """

    count: int
    out: Mapping[int, np.ndarray]
    pool: np.ndarray
    graph: ChannelGraph | None = None
    cost: Cost | None = None

    @property
    def name(self) -> str:
        return "channels" if self.graph else "blocks"

    @classmethod
    def of(cls, graph: ChannelGraph, strategy: int, cost: Cost | None = None) -> "Units":
        """The units of --prune 0, 1 or 2. cost: of channels; blocks have none."""
        if strategy == 2:
            blocks = residual_blocks(graph)
            out = {i: np.full(len(graph.out[i]), number) for number, block in enumerate(blocks) for i in block.ends}
            return cls(len(blocks), out, np.ones(len(blocks), dtype=bool))
        pool = candidates(graph, POLICIES["slim" if strategy == 1 else "normal"])
        return cls(graph.count, {i: graph.out[i] for i in graph.gammas()}, pool, graph, cost)

    def gammas(self) -> list[int]:
        return list(self.out)

    def weakest(self, scores: np.ndarray, count: int) -> np.ndarray:
        """(count,) bool: the `count` least important that may go together without emptying a layer, or as many as there are."""
        if self.cost is None:
            order = np.flatnonzero(self.pool)[np.argsort(scores[self.pool], kind="stable")]
        else:
            order = removal_order(lambda keep: scores, self.pool, self.cost)
            scores = np.full(self.count, len(order))
            scores[order] = np.arange(len(order))
        chosen, first, missing = np.zeros(self.count, dtype=bool), 0, count
        while missing and first < len(order):  # for each that has to stay, the next in order
            first = min(first + missing, len(order))
            chosen[order[:first]] = True
            chosen = self._allowed(scores, chosen)
            missing = max(count - int(chosen.sum()), 0)
        return chosen

    def _allowed(self, scores: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        if self.graph is None:
            return chosen
        keep = ~chosen
        complete(self.graph, scores, keep, Limits(layer_keep=LAYER_KEEP))
        return ~keep


class DirectedSparsity:
    """Brings the share `target` of the units to zero: gammas and betas, so that what goes passes on nothing at all.

    left: (units,) what each has left of its way to zero: inf for the free ones, 0 for those that are gone. aim: the share
    that is to be chosen by now. In every step a fading unit loses the share of its gammas and betas that the step has of what
    is left: a push that grows and ends at exactly 0, whatever the optimizer makes of gradients. Free units are never touched.
    Averaged weights get the values of the pushed ones, since their path is drawn and not learned.

    The promise holds it: `start_epoch` pauses while accuracy is too low, and lets go what fades when that lasts.
    """

    def __init__(self, model: Darknet, strategy: int, target: float, steps: int, promise: Promise,
                 spend: str = NOTHING, img_size: int = 0) -> None:  # fmt: skip
        """spend: a key of COSTS, at images of img_size x img_size, or NOTHING."""
        graph = ChannelGraph(model.defs)
        cost = COSTS[spend](model, graph, img_size) if spend != NOTHING else None
        self.channels = penalised_channels(graph, strategy)
        self.units, self.target, self.promise = Units.of(graph, strategy, cost), target, promise
        if not self.units.pool.any():
            raise UserError(f"--prune {strategy}: {model.defs.name} has no channel that may go")
        self.terms = TaylorTerms(model, self.units)
        self.norms = {i: model.module_list[i].BatchNorm2d for i in self.channels}
        self.importance = np.zeros(self.units.count)
        self.left = np.full(self.units.count, np.inf)
        self.window = float(np.clip(steps / 20, 5, 500))  # steps that importance is averaged over
        self.seen = 0  # steps
        self.done = self.chosen_at = self.aim = 0.0
        self.held = False

    @property
    def gone(self) -> np.ndarray:
        return self.left == 0

    @property
    def fading(self) -> np.ndarray:
        return (self.left > 0) & np.isfinite(self.left)

    @property
    def share(self) -> float:
        """The share of what may go that is gone."""
        return float(self.gone.sum()) / max(int(self.units.pool.sum()), 1)

    def start_epoch(self, epoch: int, done: float, total: float) -> None:
        """Pause, give up or go on, as the last evaluation says."""
        self.held = self.promise.broken
        if self.promise.lost:
            self.left[self.fading] = np.inf
            self.aim = self.share

    def apply(self) -> None:
        """Measure importance by the gradients of a step: accumulated, unscaled and clipped."""
        terms = self.terms().double().cpu().numpy() ** 2
        if np.isfinite(terms).all():  # a step with float16 may overflow, and is left out
            self.seen += 1
            self.importance += (terms - self.importance) / min(self.seen, self.window)

    def settle(self, done: float, total: float, averaged: Darknet | None = None) -> None:
        """Choose and push after a step of the optimizer. done, total: the way so far and of the whole training; averaged:
        the network that averages the weights, which has taken its share of the step already."""
        way, self.done = done - self.done, done
        if self.held:
            self.chosen_at = done
            way = 0.0
        elif self.seen >= self.window and done - self.chosen_at >= EVERY * total and done <= LATEST * total:
            self._choose(done, total)
        if not self.held:  # what pauses have cost is made up for before it ends
            self.left[self.fading] = np.minimum(self.left[self.fading], max(CLOSED * total - done, way))
        self._push(way, averaged)

    def _choose(self, done: float, total: float) -> None:
        """Choose anew what fades: so many more that the target is reached as planned in what is left of the way, or as many as
        haste allows."""
        pool, gone, end, passed = self.units.pool, self.gone, PLANNED * total, done - self.chosen_at
        missing = self.target - self.aim
        as_planned = missing * (1 - ((end - done) / (end - self.chosen_at)) ** POWER) if done < end else missing
        usual = POWER * self.target / end * (missing / self.target) ** (1 - 1 / POWER) * passed
        self.aim += min(as_planned, max(HASTE * usual, 1e-3 * self.target))
        scores = self.importance * np.where(self.fading, STAYS, 1.0)
        scores[gone] = -1.0
        chosen = self.units.weakest(scores, max(round(self.aim * pool.sum()), gone.sum()))
        self.left[~chosen] = np.inf
        self.left[chosen & np.isinf(self.left)] = min(FADE, CLOSED - done / total) * total
        self.chosen_at = done

    @torch.no_grad()
    def _push(self, way: float, averaged: Darknet | None) -> None:
        after = np.maximum(self.left - way, 0.0)
        pushed = np.isfinite(self.left)
        factors = np.divide(after, self.left, out=np.zeros_like(after), where=self.fading)
        self.left = after
        for index, norm in self.norms.items():
            units = self.units.out[index]
            if not pushed[units].any():
                continue
            where = torch.from_numpy(np.flatnonzero(pushed[units])).to(norm.weight.device)
            factor = torch.from_numpy(factors[units[pushed[units]]]).to(norm.weight)
            for parameter in (norm.weight, norm.bias):
                parameter[where] *= factor
            if averaged is not None:
                other = averaged.module_list[index].BatchNorm2d
                other.weight[where], other.bias[where] = norm.weight[where], norm.bias[where]

    def note(self, model: Darknet) -> str:
        free = np.isinf(self.left) & self.units.pool
        shares = [mask.sum() / self.units.pool.sum() for mask in (self.gone, self.fading, free)]
        gammas = gamma_values(model, {i: free[self.units.out[i]] for i in self.channels})
        spread = f" ({_quantiles(gammas)})" if len(gammas) else ""
        line = "{:.1%} gone, {:.1%} fading, {:.1%} free".format(*shares) + spread
        if not self.promise.broken:
            return line
        given_up = "let go what fades" if self.promise.lost else "paused"
        return f"{line}; {given_up}: mAP@.5 is {self.promise.drop:.4f} below where it began"

    def outcome(self) -> str:
        kept, promise = self.promise.kept, self.promise
        share = kept["share"] if kept else self.share
        count, pool = round(share * self.units.pool.sum()), int(self.units.pool.sum())
        line = f"{count:,} of {pool:,} {self.units.name} are gone ({share:.1%}; {self.target:.1%} asked for)"
        if promise.start is None or not kept:
            return line
        change = f"mAP@.5 {promise.start:.4f} -> {kept['map50']:.4f}, as it was after epoch {kept['epoch']}"
        line = f"{line}: {change}; --max-drop {promise.max_drop:g} is kept"
        if share >= self.target - 1e-3:
            return line
        return f"{line}, with more it wasn't. More --epochs, smaller batches or a larger --max-drop let more go"

    def amount(self) -> str:
        share = self.promise.kept["share"] if self.promise.kept else self.share
        if not share:
            return ""
        if self.units.graph is None:
            return f"--shortcut {round(share * self.units.pool.sum())}"
        return f"--percent {math.floor(1e4 * share + 1e-6) / 1e4:g}"

    def state(self) -> dict[str, Any]:
        arrays = {"left": torch.from_numpy(self.left), "importance": torch.from_numpy(self.importance)}
        numbers = {"seen": self.seen, "done": self.done, "chosen_at": self.chosen_at, "aim": self.aim}
        return arrays | numbers | {"promise": self.promise.state()}

    def restore(self, state: Fields) -> None:
        left, importance = (state.tensor(name).double().numpy().copy() for name in ("left", "importance"))
        if left.shape != self.left.shape or importance.shape != left.shape or not (left >= 0).all():
            raise state.wrong("left", f"what is left of the ways of {len(self.left)} channels")
        self.left, self.importance = left, importance
        self.seen = state.whole("seen")
        self.done, self.chosen_at, self.aim = (state.number(name, least=0) for name in ("done", "chosen_at", "aim"))
        self.promise.restore(state.fields("promise"))


def _quantiles(values: np.ndarray) -> str:
    return "  ".join(f"{q:.0%} {value:.3g}" for q, value in zip((0.05, 0.5), np.quantile(values, (0.05, 0.5)), strict=True))
