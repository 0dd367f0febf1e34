"""Worth per cost: the order in which channels go when each is weighed against what it saves.

A cost tells, for the channels that a keep-mask leaves, what the network saves by the removal of each alone. It falls as
neighbours go: a filter is the cheaper the fewer channels it reads. `removal_order` therefore asks again and again, which is
the greedy algorithm for the knapsack. A cost is made by a function (model, graph, img_size) -> Cost in COSTS; milliseconds,
which have to be measured first, by utils.pruning.latency.LayerTimes.cost.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from utils.network import layers
from utils.network.darknet import Darknet
from utils.network.shapes import output_shapes
from utils.pruning.graph import ChannelGraph, Ids

Cost = Callable[[np.ndarray], np.ndarray]  # keep (ids,) bool -> (ids,) what the removal of each kept id saves
Worth = Callable[[np.ndarray], np.ndarray]  # the same -> (ids,) what it costs in accuracy
NOTHING = "none"  # --spend of those who don't weigh
ROUNDS = 200  # how often costs are looked at again while everything goes; more change the order by next to nothing


class Priced(Protocol):
    """A part of a network's cost."""

    def add_savings(self, keep: np.ndarray, savings: np.ndarray) -> None:
        """Add to `savings`, (ids,), what each id's removal takes from this part, as long as `keep`, (ids,) bool, are left."""


@dataclass(frozen=True)
class Product:
    """A matrix between channels: every pair of an output and an input that are kept costs `pair`, every output `single`."""

    outputs: Ids
    inputs: Ids
    pair: float
    single: float

    def add_savings(self, keep: np.ndarray, savings: np.ndarray) -> None:
        rows, columns = (np.bincount(ids, keep[ids], len(keep)) for ids in (self.outputs, self.inputs))
        savings += rows * (self.pair * columns.sum() + self.single) + self.pair * columns * (rows.sum() - rows)


def parameter_cost(model: Darknet, graph: ChannelGraph, img_size: int) -> Cost:
    """Parameters that go with a channel: filters, kernels' slices that read it, gammas, betas and biases."""
    return sum_of(_products(model, graph, lambda index: (1.0, 1.0)))


def mac_cost(model: Darknet, graph: ChannelGraph, img_size: int) -> Cost:
    """Multiply-accumulates of one image of img_size x img_size that go with a channel."""
    shapes = output_shapes(model.defs, img_size, img_size)
    maps = {-1: (model.defs.net.channels, img_size, img_size)} | dict(enumerate(shapes))

    def positions(index: int) -> tuple[float, float]:
        module = model.module_list[index]
        if not isinstance(module, layers.Convolution):
            return 1.0, 0.0
        return module.macs(maps[model.sources[index][0]], maps[index]) / module.conv.weight.numel(), 0.0

    return sum_of(_products(model, graph, positions))


def _products(model: Darknet, graph: ChannelGraph, price: Callable[[int], tuple[float, float]]) -> list[Product]:
    """All matrices of the network; price(layer): of a weight of its kernel, and of each of its other parameters."""
    found = []
    nothing = np.zeros(0, dtype=int)
    for index, module in enumerate(model.module_list):
        weight, other = price(index)
        outputs, inputs = graph.out[index], graph.inputs(index)
        if isinstance(module, layers.Convolution):
            taps = module.conv.weight[0, 0].numel()
            more = other * sum(len(p) == len(outputs) and p.dim() == 1 for p in module.parameters())
            if module.conv.groups == 1:
                found.append(Product(outputs, inputs, weight * taps, more))
            else:  # each filter reads a fixed number of channels
                found.append(Product(outputs, nothing, 0.0, weight * module.conv.weight[0].numel() + more))
        elif isinstance(module, layers.SqueezeExcite):
            found.append(Product(outputs, nothing, 0.0, 2 * weight * module.se.fc[0].out_features))
        else:
            more = other * sum(p.shape[-1] == len(outputs) > 1 and p[..., 0].numel() for p in module.parameters())
            found.append(Product(outputs, nothing, 0.0, more))
    return found


def sum_of(products: Sequence[Priced]) -> Cost:
    """What a channel's removal takes from all of them."""

    def cost(keep: np.ndarray) -> np.ndarray:
        savings = np.zeros(len(keep))
        for product in products:
            product.add_savings(keep, savings)
        return savings

    return cost


MILLISECONDS = "ms"  # the cost that isn't in COSTS, as it has to be measured
COSTS: dict[str, Callable[[Darknet, ChannelGraph, int], Cost]] = {"params": parameter_cost, "macs": mac_cost}


class Removal(NamedTuple):
    """order: (candidates,) their ids as they are to go. prices: (ids,) what each was worth when it went, at least 0; 0 for
    those that stay."""

    order: np.ndarray
    prices: np.ndarray


def removal_order(worth: Worth, pool: np.ndarray, cost: Cost | None, rounds: int = ROUNDS) -> np.ndarray:
    """The order of `removal`."""
    return removal(worth, pool, cost, rounds).order


def removal(worth: Worth, pool: np.ndarray, cost: Cost | None, rounds: int = ROUNDS) -> Removal:
    """The ids that `pool`, (ids,) bool, allows, in the order in which they go: always those that are worth the least at that
    time, for what they save if there is a cost, a share of the pool a round."""
    keep, order, prices = np.ones(len(pool), dtype=bool), np.zeros(0, dtype=int), np.zeros(len(pool))
    share = max(1, -(-int(pool.sum()) // rounds))
    while (pool & keep).any():
        left = np.flatnonzero(pool & keep)
        worths = worth(keep)
        rates = worths[left]
        if cost is not None:
            saved = cost(keep)[left]
            rates = np.divide(rates, saved, out=np.full(len(left), np.inf), where=saved > 0)
        ranked = left[np.argsort(rates, kind="stable")][:share]
        keep[ranked] = False
        prices[ranked] = np.maximum(worths[ranked], 0)  # below is rounding
        order = np.concatenate([order, ranked])
    return Removal(order, prices)
