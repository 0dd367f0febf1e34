"""What pictures tell of a network's channels: gradients of the detection loss, with statistics frozen and no step taken."""

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from utils.batch import Batch
from utils.detection.losses import build_loss
from utils.devices import training_dtype
from utils.engine import normalise
from utils.graph import ChannelGraph
from utils.hyp import Hyp
from utils.importance import Evidence, RawChannels, TaylorTerms

if TYPE_CHECKING:
    from models import Darknet

BATCH = 4  # pictures whose terms are summed up before their size counts: of 1, 4 and 16 what measured best (EXPERIMENTS.md)


def gather(
    model: "Darknet", graph: ChannelGraph, batches: Iterable[Batch], device: torch.device, maxabs: bool = False,
    curvature: bool = False,
) -> Evidence:  # fmt: skip
    """The Evidence that labelled pictures give; `model` itself stays as it is.

    Batch normalisation uses its running statistics, as in inference. curvature: also squares of all kernels' gradients, which
    takes half as long again.
    """
    network = copy.deepcopy(model).to(device, memory_format=torch.channels_last).eval().requires_grad_(curvature)
    terms, loss = TaylorTerms(network, RawChannels(graph)), build_loss(network, Hyp())
    for parameter in terms.parameters:
        parameter.requires_grad_(True)
    squares = {p: torch.zeros_like(p) for p in network.parameters()} if curvature else {}
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
    return Evidence(terms=np.array(rows), curvature=found, pictures=pictures)


def _curvature(model: "Darknet", graph: ChannelGraph, squares: dict[Tensor, Tensor]) -> np.ndarray:
    """(raw channels,) sum over a filter's kernel, gamma and beta of w^2 times its entry of `squares`."""
    total = np.zeros(len(graph.label))
    for index in sorted({*graph.convolutions(), *graph.gammas()}):
        for parameter in model.module_list[index].parameters():
            products = (parameter.detach().square() * squares[parameter]).flatten(1 if parameter.dim() > 1 else 0)
            sums = products.sum(1) if products.dim() > 1 else products
            np.add.at(total, graph.raw_out[index], sums.double().cpu().numpy())
    return total
