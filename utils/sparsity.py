"""Sparse training: an L1 penalty on the gammas that a strategy can prune (Liu et al. 2017, Network Slimming)."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from utils.errors import UserError
from utils.graph import ChannelGraph
from utils.masks import POLICIES, candidates

if TYPE_CHECKING:
    from models import Darknet

NEAR_ZERO = 1e-2
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def penalised_channels(graph: ChannelGraph, strategy: int) -> dict[int, np.ndarray]:
    """{layer: (channels,) bool} for --prune 0 (normal, regular), 1 (shortcut, slim) and 2 (layer).

    0 and 1: the channels that the strategy may remove. 2: those of the convolutions whose map a shortcut adds: when
    they fade, the whole residual block can go. Raises UserError for 2 on a network without shortcuts.
    """
    if strategy == 2:
        layers = graph.residual_ends()
        if not layers:
            raise UserError(f"--prune 2: {graph.defs.name} has no residual blocks; use --prune 0")
        return {i: np.ones(len(graph.out[i]), dtype=bool) for i in layers}
    policy = POLICIES["slim" if strategy == 1 else "normal"]
    allowed = candidates(graph, policy)
    return {i: allowed[graph.out[i]] for i in graph.gammas() if allowed[graph.out[i]].any()}


class GammaPenalty:
    """Adds s * sign(gamma) to the gradients of the penalised gammas.

    `apply` is to be called once per optimizer step, when the accumulated gradient is complete, unscaled and clipped: the
    penalty then counts once, whatever the number of accumulated batches and the loss scale.
    """

    def __init__(self, model: "Darknet", strategy: int, s: float) -> None:
        self.s = s
        self.channels = penalised_channels(ChannelGraph(model.defs), strategy)
        self.gammas = [(model.module_list[i].BatchNorm2d.weight, torch.from_numpy(m)) for i, m in self.channels.items()]

    @torch.no_grad()
    def apply(self) -> None:
        for gamma, mask in self.gammas:
            if gamma.grad is not None:
                gamma.grad.add_(gamma.sign() * mask.to(gamma.device), alpha=self.s)


def gamma_values(model: "Darknet", channels: dict[int, np.ndarray]) -> np.ndarray:
    """All penalised |gamma| of a model, as one array."""
    parts = [model.module_list[i].BatchNorm2d.weight.detach().abs().cpu().numpy()[m] for i, m in channels.items()]
    return np.concatenate(parts) if parts else np.zeros(0)


def gamma_statistics(model: "Darknet", channels: dict[int, np.ndarray]) -> dict[str, Any]:
    """{"near_zero": share under 1e-2, "quantiles": {0.05: ..., 0.95: ...}} of the penalised gammas."""
    values = gamma_values(model, channels)
    if not len(values):
        return {"near_zero": 0.0, "quantiles": {}}
    quantiles = {q: float(v) for q, v in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)}
    return {"near_zero": float((values < NEAR_ZERO).mean()), "quantiles": quantiles}
