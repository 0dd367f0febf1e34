"""Optimal Brain Surgeon for channels: what the loss rises by when a channel goes and all that reads it makes up for it.

Near a trained network the loss is a quadratic form of what its convolutions compute, with the Fisher information for the
Hessian. That of one convolution is taken as a product of factors (Martens & Grosse 2015, "Optimizing Neural Networks with
Kronecker-factored Approximate Curvature"; Grosse & Martens 2016 for convolutions): how its input channels vary with each
other, A, how the positions that its kernel spans do, K, and how much the loss minds its outputs, g. When input j goes and the
kernels of the others are changed for it as well as can be, the loss rises by (Hassibi & Stork 1993, "Optimal Brain Surgeon";
for whole filters Wang et al. 2019, "EigenDamage")

    1/2 * moments[j, j] / inverse[j, j]      moments: the sum over all filters of g * W K W'; inverse: A^-1

Both matrices are brought up to date when it has gone. So of two channels that stand for each other the first is cheap, and
the second no longer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils.network.darknet import Darknet
from utils.pruning.graph import ChannelGraph
from utils.pruning.least_squares import RIDGE


@dataclass(frozen=True)
class Factors:
    """What images tell of one convolution, in float64.

    inputs: (channels, channels) covariance of the channels that it reads. taps: (kernel positions, kernel positions) how
    what lies under them varies together, on average 1 for one with itself. outputs: (filters,) the squares of the loss's
    gradients by a filter's map, summed over its positions, of an average image.
    """

    inputs: Tensor
    taps: Tensor
    outputs: Tensor


class Reader:
    """One convolution that reads channels: what each that is left costs to lose.

    ids: (positions,) the channel at each position that is left. inverse and moments: (positions, positions), see above.
    """

    def __init__(self, ids: np.ndarray, kernel: Tensor, factors: Factors) -> None:
        """kernel: (filters, channels, kernel positions), float64."""
        self.ids = ids
        covariance = factors.inputs.clone()
        covariance.diagonal().add_(max(RIDGE * float(covariance.diagonal().mean()), 1e-12))
        self.inverse = torch.linalg.inv(covariance)
        weighted = (kernel @ factors.taps) * factors.outputs[:, None, None]
        self.moments = weighted.transpose(0, 1).flatten(1) @ kernel.transpose(0, 1).flatten(1).T

    def keep_only(self, keep: np.ndarray) -> None:
        """Forget the positions of ids that `keep`, (ids,) bool, doesn't keep; the kernels of the others make up for them."""
        stays = torch.from_numpy(keep[self.ids])
        if stays.all():
            return
        left, gone = (torch.nonzero(mask)[:, 0] for mask in (stays, ~stays))
        share = torch.linalg.solve(self.inverse[gone][:, gone], self.inverse[gone][:, left]).T  # (left, gone)
        crossed = share @ self.moments[gone][:, left]
        self.moments = self.moments[left][:, left] - crossed - crossed.T + share @ self.moments[gone][:, gone] @ share.T
        self.inverse = self.inverse[left][:, left] - share @ self.inverse[gone][:, left]
        self.ids = self.ids[stays.numpy()]

    def add_worth(self, worth: np.ndarray) -> None:
        """Add to `worth`, (ids,), what the loss of each id costs here."""
        alone = (self.moments.diagonal() / self.inverse.diagonal()).numpy() / 2
        distinct, place, times = np.unique(self.ids, return_inverse=True, return_counts=True)
        once = times[place] == 1
        worth[self.ids[once]] += alone[once]
        for channel in distinct[times > 1]:  # one that a route repeats goes from all its positions at once
            here = torch.from_numpy(np.flatnonzero(self.ids == channel))
            solved = torch.linalg.solve(self.inverse[here][:, here], self.moments[here][:, here])
            worth[channel] += float(solved.trace()) / 2


class Surgeon:
    """Calls to it tell what each channel costs to lose when only those of `keep`, (ids,) bool, are left: (ids,). From call to
    call more and more are gone."""

    def __init__(self, model: Darknet, graph: ChannelGraph, factors: Mapping[int, Factors]) -> None:
        kernels = {index: model.module_list[index].conv.weight.detach().double().cpu().flatten(2) for index in factors}
        self.readers = [Reader(graph.inputs(index), kernels[index], found) for index, found in factors.items()]

    def __call__(self, keep: np.ndarray) -> np.ndarray:
        worth = np.zeros(len(keep))
        for reader in self.readers:
            reader.keep_only(keep)
            reader.add_worth(worth)
        return worth


def readers(model: Darknet, graph: ChannelGraph) -> list[int]:
    """The convolutions that read channels which may go, depthwise ones apart, as those have their inputs' ids."""
    convolutions = [i for i in graph.convolutions() if model.module_list[i].conv.groups == 1]
    return [i for i in convolutions if not graph.frozen[graph.inputs(i)].all()]
