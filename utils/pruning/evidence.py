"""What images tell of a network's channels: gradients of the detection loss, with statistics frozen and no step taken."""

import copy
import math
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils.core.devices import training_dtype
from utils.data.batch import Batch, normalise
from utils.network.darknet import Darknet
from utils.pruning.graph import ChannelGraph
from utils.pruning.importance import Evidence, RawChannels, TaylorTerms
from utils.pruning.least_squares import windows
from utils.pruning.surgeon import Factors, readers

PLACES = 256  # of each image that the factors of a convolution are sampled at
BATCH = 4  # images whose terms are summed up before their size counts: of 1, 4 and 16 what measured best (EXPERIMENTS.md)


class Loss(Protocol):
    """What a network's raw maps (see Darknet) cost, given targets (n, 6) and the images' (height, width): (sum, terms)."""

    def __call__(self, raws: list[Tensor], targets: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Any]: ...


def gather(
    model: Darknet, graph: ChannelGraph, batches: Iterable[Batch], loss_of: Callable[[Darknet], Loss], device: torch.device,
    maxabs: bool = False, needs: Collection[str] = (),
) -> Evidence:  # fmt: skip
    """The Evidence that labelled images give; `model` itself stays as it is. loss_of: a network -> its detection loss.

    Batch normalisation uses its running statistics, as in inference. needs: which fields there have to be besides terms:
    "curvature", squares of all kernels' gradients, which takes half as long again; "factors", of all convolutions.
    """
    curvature = "curvature" in needs
    network = copy.deepcopy(model).to(device, memory_format=torch.channels_last).eval().requires_grad_(curvature)
    terms, loss = TaylorTerms(network, RawChannels(graph)), loss_of(network)
    for parameter in terms.parameters:
        parameter.requires_grad_(True)
    squares = {p: torch.zeros_like(p) for p in network.parameters()} if curvature else {}
    factors = FactorSums(network, graph) if "factors" in needs else None
    rows, pictures = [], 0
    for batch in tqdm(batches, desc="importance", unit="batch", leave=False):
        network.zero_grad()
        images = normalise(batch.images, device, maxabs=maxabs)
        with torch.autocast(device.type, training_dtype(device), enabled=training_dtype(device) is not None):
            raws = network(images)[1]
        loss(raws, batch.targets, tuple(images.shape[-2:]))[0].backward()
        rows.append(terms().cpu().double().numpy())
        pictures += len(images)
        for parameter, square in squares.items():
            if parameter.grad is not None:
                square += parameter.grad.square()
    found = _curvature(network, graph, squares) / max(len(rows), 1) if curvature else np.zeros(0)
    products = factors.means(pictures) if factors else {}
    return Evidence(terms=np.array(rows), curvature=found, factors=products, pictures=pictures)


class FactorSums:
    """Sums up the Factors of a network's convolutions in its forward and backward passes."""

    def __init__(self, network: Darknet, graph: ChannelGraph) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.inputs: dict[int, tuple[int, list[Tensor]]] = {}  # layer -> samples, sums over them
        self.outputs: dict[int, Tensor] = {}
        for index in readers(network, graph):
            network.module_list[index].conv.register_forward_hook(partial(self._see, index))

    def _see(self, index: int, conv: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        places = torch.randperm(math.prod(output.shape[2:]), generator=self.generator)[:PLACES].to(output.device)
        seen = windows(conv, inputs[0].detach().float(), places).unflatten(1, (conv.in_channels, -1))
        channels, taps = seen.transpose(1, 2).flatten(0, 1), seen.flatten(0, 1)
        products = [p.double() for p in (channels.T @ channels, taps.T @ taps, seen.sum(0))]
        count, sums = self.inputs.get(index, (0, [0.0] * len(products)))
        self.inputs[index] = count + len(seen), [a + b for a, b in zip(sums, products, strict=True)]
        self.outputs.setdefault(index, torch.zeros(conv.out_channels, dtype=torch.float64, device=output.device))
        output.register_hook(partial(self._mind, index))

    def _mind(self, index: int, gradient: Tensor) -> None:
        """Called only where the loss depends on the output."""
        self.outputs[index] += gradient.float().square().sum((0, 2, 3))

    def means(self, pictures: int) -> dict[int, Factors]:
        """The Factors, on the CPU."""
        found = {}
        for index, (count, sums) in self.inputs.items():
            channels, taps, means = (s / count for s in sums)
            channels = (channels - means @ means.T) / len(taps)
            taps = (taps - means.T @ means) / len(channels)
            taps /= taps.diagonal().mean().clamp(min=1e-12)
            outputs = self.outputs[index] / pictures
            found[index] = Factors(channels.cpu(), taps.cpu(), outputs.cpu())
        return found


def _curvature(model: Darknet, graph: ChannelGraph, squares: dict[Tensor, Tensor]) -> np.ndarray:
    """(raw channels,) sum over a filter's kernel, gamma and beta of w^2 times its entry of `squares`."""
    total = np.zeros(len(graph.label))
    for index in sorted({*graph.convolutions(), *graph.gammas()}):
        for parameter in model.module_list[index].parameters():
            products = (parameter.detach().square() * squares[parameter]).flatten(1 if parameter.dim() > 1 else 0)
            sums = products.sum(1) if products.dim() > 1 else products
            np.add.at(total, graph.raw_out[index], sums.double().cpu().numpy())
    return total
