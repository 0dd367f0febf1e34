"""How much a channel matters: a family of criteria that give every id of the channel graph a score.

A criterion is a function (model, graph, evidence) -> Parts. It speaks of *raw* channels, one a filter, as they are before
shortcuts unite any; an id is worth the sum of its members' parts, and so is any other set of channels that goes as a whole,
such as the end of a residual block. `gamma` alone has rules of its own for ids with several members (see gamma_scores).

    >>> sorted(CRITERIA)
    ['fisher', 'fpgm', 'gamma', 'group-norm', 'lamp', 'obd', 'obs', 'taylor', 'uniform']
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from utils.network.darknet import Darknet
from utils.pruning.graph import ChannelGraph
from utils.pruning.spend import Worth
from utils.pruning.surgeon import Factors, Surgeon


@dataclass(frozen=True)
class Evidence:
    """What a criterion is told besides the weights.

    combine: the strategy's rule for gamma (see gamma_scores). terms: (batches of images, raw channels) TaylorTerms of each
    batch. curvature: (raw channels,) the sum over a filter's kernel, gamma and beta of w^2 * mean of (dL/dw)^2. factors: of
    the convolutions that read channels (see utils.pruning.surgeon). pictures: how many images all come from; with 0 they are
    empty.
    """

    combine: str = "first"
    terms: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    curvature: np.ndarray = field(default_factory=lambda: np.zeros(0))
    factors: Mapping[int, Factors] = field(default_factory=dict)
    pictures: int = 0


@dataclass(frozen=True)
class Parts:
    """values: (rows, raw channels); a set of channels scores the sum over the rows of |sum of its values|^power."""

    values: np.ndarray
    power: int = 1

    def scores(self, labels: np.ndarray, count: int) -> np.ndarray:
        """(count,) scores of the sets of raw channels that `labels`, (raw channels,), numbers; channels of -1 are in none."""
        member = labels >= 0
        sums = [np.bincount(labels[member], row[member], count) for row in self.values]
        return (np.abs(np.array(sums)) ** self.power).sum(0)


@dataclass(frozen=True)
class Criterion:
    """parts: None for gamma, which scores ids by itself. needs: the Evidence that it reads, "", or the name of its field.
    following: for a criterion that looks again at what is left as channels go, what makes the Worth (see utils.pruning.spend)
    of single ids; `parts` then scores only what it can't, residual blocks."""

    parts: Callable[[Darknet, ChannelGraph, Evidence], Parts] | None
    needs: str = ""
    following: Callable[[Darknet, ChannelGraph, Evidence], Worth] | None = None


def channel_scores(name: str, model: Darknet, graph: ChannelGraph, evidence: Evidence) -> np.ndarray:
    """(graph.count,) scores of all ids by the criterion `name`; the larger, the more it costs to lose the channel."""
    criterion = CRITERIA[name]
    if criterion.following is not None:
        return criterion.following(model, graph, evidence)(np.ones(graph.count, dtype=bool))
    if criterion.parts is None:
        return gamma_scores(model, graph, evidence.combine)
    return criterion.parts(model, graph, evidence).scores(graph.label, graph.count)


def gamma_scores(model: Darknet, graph: ChannelGraph, combine: str = "first") -> np.ndarray:
    """(graph.count,) scores: |gamma| of the batch normalisation that scales a channel (Liu et al. 2017, Network Slimming).

    A channel that also passes depthwise convolutions is worth the smallest gamma on its way: either one can silence it.
    combine: an id that several convolutions make is scored by its "first" one or by the "largest" score.
    Ids without a gamma score 0; they are frozen.
    """
    raw = raw_gammas(model, graph)
    scores = np.zeros(graph.count)
    known = np.flatnonzero(np.isfinite(raw))
    if combine == "largest":
        np.maximum.at(scores, graph.label[known], raw[known])
    else:
        scores[graph.label[known[::-1]]] = raw[known[::-1]]  # the lowest raw id, the first convolution, is written last
    return scores


def raw_gammas(model: Darknet, graph: ChannelGraph) -> np.ndarray:
    """(raw channels,) the smallest |gamma| on the way of each, infinite without one."""
    raw = np.full(len(graph.label), np.inf)
    for index in graph.gammas():
        gamma = model.module_list[index].BatchNorm2d.weight.detach().abs().double().cpu().numpy()
        np.minimum.at(raw, graph.raw_out[index], gamma)
    return raw


class Groups(Protocol):
    """Sets of channels that go together: a ChannelGraph's ids, or coarser or finer ones.

    count: how many there are; out[layer]: (channels,) the set that each of a layer's channels is in; gammas(): the layers with
    a batch normalisation whose channels are in sets.
    """

    count: int
    out: Any

    def gammas(self) -> list[int]: ...


@dataclass(frozen=True)
class RawChannels:
    """The Groups of a graph's raw channels, each a set of its own."""

    graph: ChannelGraph

    @property
    def count(self) -> int:
        return len(self.graph.label)

    @property
    def out(self) -> list[np.ndarray]:
        return self.graph.raw_out

    def gammas(self) -> list[int]:
        return self.graph.gammas()


class TaylorTerms:
    """What the loss changes by, to first order, when a set of channels is silenced: the sum over all batch normalisations that
    scale one of them of gamma * dL/dgamma + beta * dL/dbeta, with the opposite sign (Molchanov et al. 2019, "Importance
    Estimation for Neural Network Pruning", whose gate is this gamma).

    `self()` reads the gradients that gammas and betas have at that moment; where everything lies is found out once, so that
    it may be called in every step of a training.
    """

    def __init__(self, model: Darknet, groups: Groups) -> None:
        self.count = groups.count
        norms = [(model.module_list[i].BatchNorm2d, groups.out[i]) for i in groups.gammas()]
        self.parameters = [p for norm, _ in norms for p in (norm.weight, norm.bias)]
        self.ids = torch.from_numpy(np.concatenate([ids for _, ids in norms for _ in range(2)] or [np.zeros(0, np.int64)]))

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """(groups.count,) signed, on the model's device and in its precision; 0 without a gamma or a gradient."""
        terms = [p * p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        if not terms:
            return torch.zeros(self.count)
        self.ids = self.ids.to(terms[0].device)
        return terms[0].new_zeros(self.count).index_add_(0, self.ids, torch.cat(terms))


def taylor(model: Darknet, graph: ChannelGraph, evidence: Evidence) -> Parts:
    """The sum over batches of |first-order term|: Molchanov et al. 2019."""
    return Parts(evidence.terms)


def fisher(model: Darknet, graph: ChannelGraph, evidence: Evidence) -> Parts:
    """The sum over batches of the first-order term's square, for which the loss's curvature along a channel's gate is taken
    (Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning")."""
    return Parts(evidence.terms, power=2)


def obd(model: Darknet, graph: ChannelGraph, evidence: Evidence) -> Parts:
    """Half of the sum of w^2 * h over a filter's weights, h being the Hessian's diagonal (LeCun et al. 1990, "Optimal Brain
    Damage"), for which the mean of squared gradients stands."""
    return Parts(evidence.curvature[None] / 2)


def obs(model: Darknet, graph: ChannelGraph, evidence: Evidence) -> Worth:
    """What the loss rises by when all that reads a channel makes up for its loss as well as it can (Hassibi & Stork 1993,
    "Optimal Brain Surgeon"; see utils.pruning.surgeon)."""
    return Surgeon(model, graph, evidence.factors)


def group_norm(model: Darknet, graph: ChannelGraph, evidence: Evidence) -> Parts:
    """The squared norm of everything that goes with a channel, kernels that make and that read it and gammas, over its mean
    in the layer that makes it (Fang et al. 2023, "DepGraph")."""
    total = np.zeros(len(graph.label))
    for index in graph.convolutions():
        kernel = _kernel(model, index).square()
        np.add.at(total, graph.raw_out[index], kernel.flatten(1).sum(1).numpy())
        if kernel.shape[1] == len(graph.inputs(index)):
            np.add.at(total, graph.raw_inputs(index), kernel.transpose(0, 1).flatten(1).sum(1).numpy())
    for index in graph.gammas():
        gamma = model.module_list[index].BatchNorm2d.weight.detach().double().cpu()
        np.add.at(total, graph.raw_out[index], gamma.square().numpy())
    return Parts(_over_layer_means(graph, total)[None])


def fpgm(model: Darknet, graph: ChannelGraph, evidence: Evidence) -> Parts:
    """The sum of a filter's distances to all filters of its layer, over its mean in the layer: what is near the geometric
    median can be replaced by the others (He et al. 2019, "Filter Pruning via Geometric Median")."""
    total = np.zeros(len(graph.label))
    for index in graph.convolutions():
        filters = _kernel(model, index).flatten(1)
        np.add.at(total, graph.raw_out[index], torch.cdist(filters, filters).sum(1).numpy())
    return Parts(_over_layer_means(graph, total)[None])


def lamp(model: Darknet, graph: ChannelGraph, evidence: Evidence) -> Parts:
    """A filter's squared norm over the sum of those of its layer that aren't smaller (Lee et al. 2021, "Layer-adaptive
    sparsity for the Magnitude-based Pruning", of filters instead of weights)."""
    total = np.zeros(len(graph.label))
    for index in graph.convolutions():
        norms = _kernel(model, index).square().flatten(1).sum(1).numpy()
        order = np.argsort(norms, kind="stable")
        left = np.cumsum(norms[order][::-1])[::-1]
        np.add.at(total, graph.raw_out[index][order], norms[order] / np.maximum(left, np.finfo(float).tiny))
    return Parts(total[None])


def uniform(model: Darknet, graph: ChannelGraph, evidence: Evidence) -> Parts:
    """The place of a filter's |gamma| among those of its layer, 0..1, so that every layer loses the same share: the thinner
    network of the same design (the width multiplier of Howard et al. 2017, "MobileNets"), with which a choice of layers can be
    compared. A shared channel has the mean place of its members."""
    gammas, places = raw_gammas(model, graph), np.zeros(len(graph.label))
    members = np.bincount(graph.label, minlength=graph.count)
    for index in graph.convolutions():
        raw = graph.raw_out[index]
        order = np.argsort(gammas[raw], kind="stable")
        places[raw[order]] = (np.arange(len(raw)) + 1) / len(raw)
    return Parts((places / members[graph.label])[None])


def _kernel(model: Darknet, index: int) -> Tensor:
    """(filters, channels a group, height, width) float64 kernel of convolution `index`."""
    return model.module_list[index].conv.weight.detach().double().cpu()


def _over_layer_means(graph: ChannelGraph, total: np.ndarray) -> np.ndarray:
    """`total`, (raw channels,), divided by its mean over the layer that makes the channel."""
    result = np.zeros_like(total)
    for index in graph.convolutions():
        raw = graph.raw_out[index]
        result[raw] = total[raw] / max(total[raw].mean(), np.finfo(float).tiny)
    return result


CRITERIA = {
    "gamma": Criterion(None),
    "taylor": Criterion(taylor, "terms"),
    "fisher": Criterion(fisher, "terms"),
    "obd": Criterion(obd, "curvature"),
    "obs": Criterion(taylor, "factors", obs),
    "group-norm": Criterion(group_norm),
    "fpgm": Criterion(fpgm),
    "lamp": Criterion(lamp),
    "uniform": Criterion(uniform),
}
