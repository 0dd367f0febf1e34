"""Whether a dump computes what PyTorch computes: every integer that a head reads, compared."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from utils.data.batch import normalise
from utils.export.fpga.integer import Network, run
from utils.network.darknet import Darknet
from utils.quantized.layers import RoundedActivation

CPU = torch.device("cpu")


@dataclass
class Agreement:
    """outputs: integers compared; equal, equal_float64: how many were PyTorch's in float32, and, if not all, in float64, too;
    peaks: {step: the greatest magnitude of its sums}."""

    outputs: int
    equal: int
    equal_float64: int | None
    peaks: dict[int, int]


def compare(model: Darknet, network: Network, pictures: list[Tensor], maxabs: bool = False) -> Agreement:
    """The integer network against the model that it was made of, on uint8 images (batch, channels, height, width)."""
    results = [run(network, batch.numpy()) for batch in pictures]
    peaks = {number: max(r.peaks[number] for r in results) for number in results[0].peaks}
    found = [m for r in results for m in r.maps]
    exponents = [network.steps[number].output.exponent for number in network.outputs]

    def same(computing: Darknet, dtype: torch.dtype) -> int:
        wanted = [m for b in pictures for m in head_integers(computing, normalise(b, CPU, maxabs=maxabs).to(dtype), exponents)]
        return sum(int((a == b).sum()) for a, b in zip(found, wanted, strict=True))

    outputs, equal = sum(m.size for m in found), same(model, torch.float32)
    return Agreement(outputs, equal, None if equal == outputs else same(in_float64(model), torch.float64), peaks)


@torch.inference_mode()
def head_integers(model: Darknet, images: Tensor, exponents: list[int]) -> list[np.ndarray]:
    """For each head what it reads, before a float activation, in units of 2**-exponent: (batch, channels, ny, nx)."""
    heads, sources = model.defs.head_indices(), {head: source for source, head in model.head_convolutions()}
    direct = {i: s for i, s in sources.items() if model.sources[i] == [s]}  # behind a [route] there is no activation
    modules = [model.module_list[direct[i]].activation.function if i in direct else model.module_list[i] for i in heads]
    read: dict[nn.Module, Tensor] = {}
    hooks = [m.register_forward_pre_hook(lambda module, maps: read.update({module: maps[0].clone()})) for m in modules]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [(read[m].double() * 2.0**e).numpy() for m, e in zip(modules, exponents, strict=True)]


class _InFloat32(nn.Module):
    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x.float()).to(x.dtype)


def in_float64(model: Darknet) -> Darknet:
    """A copy of a fused model whose sums are exact up to 2**53; activations that become tables stay in float32."""
    exact = copy.deepcopy(model).double()
    for module in exact.modules():
        if isinstance(module, RoundedActivation):
            module.function = _InFloat32(module.function)
    return exact
