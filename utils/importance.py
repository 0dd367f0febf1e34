"""How much a channel matters: a score for every id of the channel graph."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from utils.graph import ChannelGraph

if TYPE_CHECKING:
    from models import Darknet


def gamma_scores(model: "Darknet", graph: ChannelGraph, combine: str = "first") -> np.ndarray:
    """(graph.count,) scores: |gamma| of the batch normalisation that scales a channel (Liu et al. 2017, Network Slimming).

    A channel that also passes depthwise convolutions is worth the smallest gamma on its way: either one can silence it.
    combine: an id that several convolutions make is scored by its "first" one or by the "largest" score.
    Ids without a gamma score 0; they are frozen.
    """
    raw = np.full(len(graph.label), np.inf)
    for index in graph.gammas():
        gamma = model.module_list[index].BatchNorm2d.weight.detach().abs().double().cpu().numpy()
        np.minimum.at(raw, graph.raw_out[index], gamma)
    scores = np.zeros(graph.count)
    known = np.flatnonzero(np.isfinite(raw))
    if combine == "largest":
        np.maximum.at(scores, graph.label[known], raw[known])
    else:
        scores[graph.label[known[::-1]]] = raw[known[::-1]]  # the lowest raw id, the first convolution, is written last
    return scores


class TaylorTerms:
    """What the loss changes by, to first order, when a channel is silenced: the sum over the members of an id, every batch
    normalisation that scales it, of gamma * dL/dgamma + beta * dL/dbeta (Molchanov et al. 2019, "Importance Estimation for
    Neural Network Pruning", whose gate is this gamma), with the opposite sign.

    `self()` reads the gradients that gammas and betas have at that moment; where everything lies is found out once, so that
    it may be called in every step of a training.
    """

    def __init__(self, model: "Darknet", graph: ChannelGraph) -> None:
        self.count = graph.count
        norms = [(model.module_list[i].BatchNorm2d, graph.out[i]) for i in graph.gammas()]
        self.parameters = [p for norm, _ in norms for p in (norm.weight, norm.bias)]
        self.ids = torch.from_numpy(np.concatenate([ids for _, ids in norms for _ in range(2)] or [np.zeros(0, np.int64)]))

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """(graph.count,) signed, on the model's device and in its precision; 0 without a gamma or a gradient."""
        terms = [p * p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        if not terms:
            return torch.zeros(self.count)
        self.ids = self.ids.to(terms[0].device)
        return terms[0].new_zeros(self.count).index_add_(0, self.ids, torch.cat(terms))


def taylor_terms(model: "Darknet", graph: ChannelGraph) -> np.ndarray:
    """(graph.count,) TaylorTerms of the gradients that `model` has now."""
    return TaylorTerms(model, graph)().cpu().double().numpy()
