"""How much a channel matters: a score for every id of the channel graph."""

from typing import TYPE_CHECKING

import numpy as np

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
