"""Calibration: a quantized network without training. Ranges, biases, and which layers lose most."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils.network.darknet import Darknet
from utils.quantized.fake_quantize import FakeQuantize
from utils.quantized.layers import QuantConv2d
from utils.quantized.transform import layer_quantizers, quantizers, switched

Raws = list[Tensor]


@torch.no_grad()
def calibrate(model: Darknet, batches: Iterable[Tensor], total: int) -> int:
    """Observe the ranges of all maps, in place, on batches of images as the network reads them; returns their number.

    The network computes in float meanwhile, with the statistics that it has. total: images, for the bar.
    """
    watched = [q for q in quantizers(model) if not q.config.dynamic]
    model.eval()
    count = 0
    with (
        switched(quantizers(model), False),
        _observing(watched),
        tqdm(total=total, desc="calibration", unit="picture", leave=False) as bar,
    ):
        for images in batches:
            model(images)
            count += len(images)
            bar.update(len(images))
    return count


@contextlib.contextmanager
def _observing(some: list[FakeQuantize]) -> Iterator[None]:
    for q in some:
        q.train()
    try:
        yield
    finally:
        for q in some:
            q.eval()


@torch.no_grad()
def raw_maps(model: Darknet, batches: list[Tensor], rounding: bool) -> list[Raws]:
    """The raw maps of each batch, with or without the rounding of quantizers."""
    with contextlib.nullcontext() if rounding else switched(quantizers(model), False):
        return [model(images)[1] for images in batches]


def signal_to_noise(found: list[Raws], wanted: list[Raws]) -> float:
    """How much larger the wanted raw maps are than the difference of the found ones from them, in dB of their squares."""
    noise = sum(
        float((f - w).double().square().sum()) for a, b in zip(found, wanted, strict=True) for f, w in zip(a, b, strict=True)
    )
    signal = sum(float(w.double().square().sum()) for raws in wanted for w in raws)
    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else math.inf if signal > 0 else -math.inf


@torch.no_grad()
def correct_biases(model: Darknet, batches: Iterable[Tensor], total: int) -> dict[int, float]:
    """Add to each convolution's bias what the rounding of its kernel takes away on average, in place: E[(W - Wq) x] for each
    filter, measured on calibrated images (bias correction, Nagel et al. 2019, section 4.2, empirically).

    Returns {layer: largest change of a bias}.
    """
    layers = {i: m for i, m in enumerate(model.module_list) if isinstance(m, QuantConv2d) and not m.weight_quant.off}
    errors = {i: m.kernel_error() for i, m in layers.items()}
    sums = {i: torch.zeros(len(e), dtype=torch.float64, device=e.device) for i, e in errors.items()}
    counts = dict.fromkeys(layers, 0)

    def measure(module: QuantConv2d, inputs: tuple[Tensor], index: int) -> None:
        missing = module.conv._conv_forward(inputs[0], errors[index], None)
        sums[index] += missing.double().sum((0, 2, 3))
        counts[index] += missing[:, 0].numel()

    handles = [m.register_forward_pre_hook(lambda m, x, i=i: measure(m, x, i)) for i, m in layers.items()]
    try:
        with tqdm(total=total, desc="bias correction", unit="picture", leave=False) as bar:
            for images in batches:
                model.eval()(images)
                bar.update(len(images))
    finally:
        for handle in handles:
            handle.remove()
    changes = {i: (sums[i] / max(counts[i], 1)).float() for i in layers}
    for i, module in layers.items():
        bias_of(module).add_(changes[i])
    return {i: float(c.abs().max()) for i, c in changes.items()}


def bias_of(module: QuantConv2d) -> Tensor:
    """The parameter that is added to each filter's normalised sum."""
    return (module.conv if module.BatchNorm2d is None else module.BatchNorm2d).bias


def biases(model: nn.Module) -> list[Tensor]:
    """Copies of what `correct_biases` changes, for `restore_biases`."""
    return [bias_of(m).detach().clone() for m in model.module_list if isinstance(m, QuantConv2d)]


@torch.no_grad()
def restore_biases(model: nn.Module, before: list[Tensor]) -> None:
    for module, bias in zip((m for m in model.module_list if isinstance(m, QuantConv2d)), before, strict=True):
        bias_of(module).copy_(bias)


@dataclass(frozen=True)
class LayerNoise:
    """What rounding in one layer alone does to the raw maps. index: -1 for the image; db: see signal_to_noise."""

    index: int
    kind: str
    db: float

    def __str__(self) -> str:
        return "the image" if self.index < 0 else f"layer {self.index} [{self.kind}]"


@torch.no_grad()
def sensitivity(model: Darknet, batches: list[Tensor], wanted: list[Raws]) -> list[LayerNoise]:
    """For each layer that rounds the noise that it alone makes, the worst first. wanted: raw maps without any rounding."""
    found = []
    layers = layer_quantizers(model)
    for index, some in tqdm(layers.items(), desc="sensitivity", unit="layer", leave=False):
        with switched(quantizers(model), False), switched(some, True):
            noise = signal_to_noise(raw_maps(model, batches, rounding=True), wanted)
        found.append(LayerNoise(index, "image" if index < 0 else model.defs[index].kind, noise))
    return sorted(found, key=lambda layer: layer.db)
