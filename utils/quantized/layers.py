"""Quantized layers: the float layers of utils.network.layers with FakeQuantize where an integer network rounds.

`transform.quantize` puts them in the place of float layers, whose parameters they take over, so that names in state dicts and
references to gammas stay. An output map lies on the grid of the layer's `grid`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.network import layers
from utils.quantized.config import QuantizerConfig
from utils.quantized.fake_quantize import FakeQuantize, MatrixQuantize
from utils.quantized.rounding import onto_grid, power_of_two

# What happens to a kernel before it is rounded. tanh: the normalised kernels of DoReFa (formula (9), Zhou et al. 2016),
# tanh(w) / max|tanh(w)|, times that maximum: the largest kernel value doesn't change much, so that trained weights are a
# beginning, and convolutions without a batch normalisation, which would make up for it, keep their size.
TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda w: w, "tanh": torch.tanh}
BIAS_LIMIT = 2.0**30  # steps of the 32-bit sums that a bias is added to
LEAST_FACTOR = 1e-12  # of a batch normalisation whose gamma is 0: a scale is divided by it


class RoundedActivation(nn.Module):
    """An activation that reads a map of a few bits instead of a convolution's exact sum."""

    def __init__(self, pre_quant: FakeQuantize, function: nn.Module) -> None:
        super().__init__()
        self.pre_quant, self.function = pre_quant, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.pre_quant(x))


class QuantLayer(layers.Block):
    """What quantized layers have in common: the quantizer behind the activation, out_quant (None: absent).

    reads: the quantizers on whose grids the maps lie that this layer reads, in the order of its sources.
    """

    out_quant: FakeQuantize | None
    reads: list[FakeQuantize]

    @classmethod
    def from_float(cls, layer: layers.Block, reads: list[FakeQuantize]) -> Self:
        """The layer quantized, which takes over its parameters, buffers and parts themselves: optimizers and penalties that
        hold them go on, and state dicts keep their names. The float layer isn't to be used any more."""
        quantized = cls.__new__(cls)
        quantized.__dict__.update(layer.__dict__)
        quantized.reads = reads
        return quantized

    @property
    def pre_quant(self) -> FakeQuantize | None:
        """The quantizer before the activation, if there is one."""
        return getattr(getattr(self, "activation", None), "pre_quant", None)

    @property
    def grid(self) -> FakeQuantize:
        """The quantizer on whose grid the output lies; before a head, what its float activation reads."""
        return self.out_quant or self.pre_quant

    def forward(self, *maps: Tensor) -> Tensor:
        x = super().forward(*maps)
        return x if self.out_quant is None else self.out_quant(x)


@dataclass(frozen=True)
class Deployed:
    """A convolution as integers. kernel: int32 (filters, channels a group, height, width); scale: (filters,) or (1,);
    bias: float32 (filters,). kernel * scale is exactly what the fake-quantized network convolves with in eval mode."""

    kernel: Tensor
    scale: Tensor
    bias: Tensor


class QuantConv2d(QuantLayer, layers.Convolution):
    """[convolutional] and [depthwise], quantized.

    Training: the kernel is rounded as if the batch normalisation's factor gamma / sigma, sigma from the running variance,
    were folded into it (`fold`), convolved without that factor, and then normalised by the batch's statistics, from a freeze
    on (BatchNorm2d.eval()) by the running ones. That is the folded training of Jacob et al. 2018, section 3.2, with one
    convolution instead of two. Eval: one convolution with the rounded folded kernel and the folded bias. Without `fold` the
    kernel is rounded first, and the factor goes into the scales.

    weight_quant: the kernel's quantizer, without state; transform: see TRANSFORMS; exact_bias: the kernel's scale is large
    enough for every bias to fit 32 bits of the sums' steps (FPGA); else filters too faint for theirs keep a float one.
    """

    weight_quant: FakeQuantize
    transform: str
    fold: bool
    exact_bias: bool
    fused: bool

    def prepare(self, kernel: QuantizerConfig, where: str, transform: str, fold: bool, exact_bias: bool) -> None:
        """Make what was a Convolution a QuantConv2d."""
        self.weight_quant = FakeQuantize(kernel, f"{where}: weight_quant")
        self.transform, self.fold, self.exact_bias, self.fused = transform, fold, exact_bias, False

    def convolve(self, x: Tensor) -> Tensor:
        if self.fused:
            return self.conv._conv_forward(x, self._fused_kernel(), self.conv.bias)
        if self.weight_quant.off:
            x = self.conv(x)
        elif self.training:
            x = self.conv._conv_forward(x, self._training_kernel(), self.conv.bias)
        else:
            folded = self.deployed()
            return self.conv._conv_forward(x, _values(folded), folded.bias)
        return x if self.BatchNorm2d is None else self.BatchNorm2d(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blur(self.activation(self.convolve(x)))
        return x if self.out_quant is None else self.out_quant(x)

    def _training_kernel(self) -> Tensor:
        """The kernel on the grid that it will have once it is folded, without the factor of the folding."""
        kernel = TRANSFORMS[self.transform](self.conv.weight)
        plain = kernel.detach()
        factor = self._factor() if self.fold and not self.weight_quant.config.per_channel else None
        if factor is None:  # a scale for each filter follows its factor: the integers are the same without it
            scale = self.weight_quant.qparams(plain)[0]
        else:
            scale = self.weight_quant.qparams(plain * _column(factor))[0] / factor.abs()
        return self.weight_quant.place(kernel, _column(scale))

    @torch.no_grad()
    def deployed(self) -> Deployed:
        """The folded kernel as integers, and the folded bias."""
        if self.fused:
            return Deployed((self.conv.weight / _column(self.kernel_scale)).round().int(), self.kernel_scale, self.conv.bias)
        kernel, factor = TRANSFORMS[self.transform](self.conv.weight.detach()), self._factor()
        if self.fold and factor is not None:
            kernel = kernel * _column(factor)
        bias, least, sums = self._folded_bias(), 0.0, not self.reads[0].off  # whether integers are summed up
        if self.exact_bias and sums:  # 32 bits have to hold the bias
            step = self.reads[0].qparams()[0]
            least = power_of_two(torch.log2(bias.abs().amax() / (step * BIAS_LIMIT)).clamp(-126, 126).ceil())
        integers, unit = self.weight_quant.integers(kernel, least)
        if not self.fold and factor is not None:
            integers, unit = integers * _column(factor.sign()), unit * factor.abs()
        if sums:
            step = unit * self.reads[0].qparams()[0]
            bias = torch.where(bias.abs() < step * BIAS_LIMIT, onto_grid(bias, step), bias)
        return Deployed(integers.int(), unit, bias)

    @torch.no_grad()
    def kernel_error(self) -> Tensor:
        """The folded float kernel less the rounded one."""
        factor = self._factor()
        kernel = self.conv.weight if factor is None else self.conv.weight * _column(factor)
        return kernel - _values(self.deployed())

    def _factor(self) -> Tensor | None:
        """(filters,) gamma / sigma of the running variance, kept away from 0; None without batch normalisation."""
        bn = self.BatchNorm2d
        if bn is None:
            return None
        factor = bn.weight.detach() * torch.rsqrt(bn.running_var + bn.eps)
        return torch.where(factor.abs() < LEAST_FACTOR, torch.full_like(factor, LEAST_FACTOR), factor)

    def _folded_bias(self) -> Tensor:
        """(filters,) the bias of the folded convolution."""
        bn = self.BatchNorm2d
        if bn is None:
            return self.conv.bias.detach()
        return (bn.bias - bn.running_mean * bn.weight * torch.rsqrt(bn.running_var + bn.eps)).detach()

    @torch.no_grad()
    def fuse(self) -> None:
        """Store the rounded folded kernel and bias: what eval mode computes anyway, once instead of every time."""
        if self.weight_quant.off:
            super().fuse()
            return
        folded = self.deployed()
        self.conv.weight = nn.Parameter(_values(folded), requires_grad=False)
        self.conv.bias = nn.Parameter(folded.bias, requires_grad=False)
        self.register_buffer("kernel_scale", folded.scale, persistent=False)
        self.BatchNorm2d, self.fused = None, True

    def _fused_kernel(self) -> Tensor:
        """The stored kernel; for an exporter, with the rounding that made it, so that it can store integers."""
        exporting = torch.compiler.is_exporting()
        return self.weight_quant.traced(self.conv.weight, self.kernel_scale) if exporting else self.conv.weight


def _column(row: Tensor) -> Tensor:
    """(filters,) or (1,) -> against a kernel (filters, channels, height, width)."""
    return row.view(-1, 1, 1, 1)


def _values(folded: Deployed) -> Tensor:
    kernel = folded.kernel.to(folded.scale.dtype) * _column(folded.scale)
    return kernel.contiguous(memory_format=torch.channels_last)


class QuantShortcut(QuantLayer, layers.Shortcut):
    """[shortcut], quantized. way: see Settings.shortcut_way; bringing maps to a common scale rounds but cuts nothing off."""

    way: int

    def forward(self, *maps: Tensor) -> Tensor:
        if self.way and not any(q.off for q in self.reads):
            scales = torch.cat([q.qparams()[0] for q in self.reads])
            shared = scales.min() if self.way == 1 else scales.max()
            maps = tuple(onto_grid(m, shared) for m in maps)
        return super().forward(*maps)


class QuantSqueezeExcite(QuantLayer, layers.SqueezeExcite):
    """[se], quantized: the mean, both matrices, what is between them, the factor and the product."""

    def prepare(self, kernel: QuantizerConfig, activation: QuantizerConfig, pre: QuantizerConfig, where: str) -> None:
        """Make what was a SqueezeExcite a QuantSqueezeExcite. pre: before the hard sigmoid."""
        matrices = (self.se.fc[0], self.se.fc[2])
        self.weight_quants = nn.ModuleList(
            MatrixQuantize(kernel, f"{where}: weight_quants.{k}", matrix) for k, matrix in enumerate(matrices)
        )
        self.mean_quant = FakeQuantize(activation, f"{where}: mean_quant")
        self.hidden_quant = FakeQuantize(activation, f"{where}: hidden_quant")
        self.se_pre_quant = FakeQuantize(pre, f"{where}: se_pre_quant")
        self.gate_quant = FakeQuantize(activation, f"{where}: gate_quant")

    def forward(self, x: Tensor) -> Tensor:
        narrow, relu, widen, sigmoid = self.se.fc
        mean = self.mean_quant(spatial_mean(x))
        hidden = self.hidden_quant(relu(F.linear(mean, self.weight_quants[0](narrow.weight))))
        gate = self.gate_quant(sigmoid(self.se_pre_quant(F.linear(hidden, self.weight_quants[1](widen.weight)))))
        x = x * gate[:, :, None, None]
        return x if self.out_quant is None else self.out_quant(x)


def spatial_mean(x: Tensor) -> Tensor:
    """(b, c, h, w) -> (b, c). Summed and divided: an integer sum over a whole number, on every device."""
    return x.sum((2, 3)) / (x.shape[2] * x.shape[3])


class QuantAvgPool(QuantLayer, layers.AvgPool):
    """[avgpool], quantized."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out_quant(spatial_mean(x)[:, :, None, None])


class QuantLocalAvgPool(QuantLayer, layers.LocalAvgPool):
    """[local_avgpool], quantized."""


class QuantMaxPool(QuantLayer, layers.MaxPool):
    """[maxpool] with antialiasing, quantized."""


class QuantBatchNorm(QuantLayer, layers.BatchNorm):
    """[batchnorm], quantized: its output; it stays a float layer."""


class QuantUpsample(QuantLayer, layers.Upsample):
    """[upsample] with a scale, quantized."""


class QuantRoute(QuantLayer, layers.Route):
    """[route] of several maps, quantized: they get one scale."""


class QuantProduct(QuantLayer, layers.Product):
    """[scale_channels] and [sam], quantized."""


# float layer -> quantized layer; what isn't listed gives its values on as they are.
QUANTIZED: dict[type[layers.Block], type[QuantLayer]] = {
    layers.Convolution: QuantConv2d,
    layers.Shortcut: QuantShortcut,
    layers.SqueezeExcite: QuantSqueezeExcite,
    layers.AvgPool: QuantAvgPool,
    layers.LocalAvgPool: QuantLocalAvgPool,
    layers.MaxPool: QuantMaxPool,
    layers.BatchNorm: QuantBatchNorm,
    layers.Upsample: QuantUpsample,
    layers.Route: QuantRoute,
    layers.Product: QuantProduct,
}
# Of those, what only gives values on unless this holds.
ROUNDS: dict[type[layers.Block], Callable[[nn.Module, int], bool]] = {
    layers.MaxPool: lambda module, sources: not isinstance(module.blur, nn.Identity),
    layers.Upsample: lambda module, sources: module.scale != 1,
    layers.Route: lambda module, sources: sources > 1,
}


def rounds(module: layers.Block, sources: int) -> bool:
    """Whether a float layer's output needs a grid of its own."""
    return type(module) in QUANTIZED and ROUNDS.get(type(module), lambda m, s: True)(module, sources)
