"""FakeQuantize: values rounded to the grid that an integer of a few bits and a scale span, in float arithmetic."""

import torch
from torch import Tensor, nn

from utils.core.errors import UserError
from utils.quantized.config import OFF, QuantizerConfig, Range
from utils.quantized.observers import OBSERVERS, rows_of
from utils.quantized.rounding import onto_grid


class FakeQuantize(nn.Module):
    """Rounds what passes through to its grid; while training, also observes its range.

    In training mode ranges are updated, in eval mode nothing changes: `.eval()` on a quantizer freezes it. enabled=False
    lets values pass as they are, and still observes. `where` names it in messages.
    Buffers unless config.dynamic: low, high (1,) the observed range; observed: number of tensors seen.
    """

    def __init__(self, config: QuantizerConfig, where: str = "quantizer") -> None:
        super().__init__()
        self.config, self.where, self.enabled = config, where, True
        self._constants: tuple[float, int] | None = None
        self._held: Range | None = None  # a kernel's range, for `_left` more training steps
        self._left = 0
        if not config.dynamic:
            self.register_buffer("low", torch.full((1,), torch.nan))
            self.register_buffer("high", torch.full((1,), torch.nan))
            self.register_buffer("observed", torch.zeros((), dtype=torch.int64))

    @property
    def off(self) -> bool:
        """Whether values pass as they are."""
        return not self.enabled or self.config.bits == OFF

    @property
    def quant_min(self) -> int:
        return self.config.quant_min

    @property
    def quant_max(self) -> int:
        return self.config.quant_max

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.config.bits != OFF and not self.config.dynamic:
            self.observe(x.detach())
        return x if self.off else self.round(x)

    def round(self, x: Tensor) -> Tensor:
        """x (any shape) on the grid of the observed range, or of its own if config.dynamic."""
        if torch.compiler.is_exporting() and self._constants:
            return torch.fake_quantize_per_tensor_affine(x, *self._constants, self.quant_min, self.quant_max)
        return self.place(x, *(_against(p, x) for p in self.qparams(x.detach())))

    def traced(self, kernel: Tensor, unit: Tensor) -> Tensor:
        """A kernel that lies on its grid, with an operator around it that tells an exporter the scale. unit: of `integers`."""
        most = 2**self.config.bits - 1 if self.config.odd else self.quant_max
        scale = unit.expand(len(kernel)).contiguous()
        zero_point = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(kernel, scale, zero_point, 0, -most, most)

    def place(self, x: Tensor, scale: Tensor, zero_point: Tensor | int = 0) -> Tensor:
        """x on the grid of a given scale, which broadcasts against x."""
        if self.config.odd:
            half, levels = scale / 2, 2**self.config.bits
            return onto_grid(x + half, scale, 1 - levels // 2, levels // 2) - half
        if self.config.covers:
            return onto_grid(x, scale)
        if self.config.symmetric:
            return onto_grid(x, scale, self.quant_min, self.quant_max)
        return onto_grid(x, scale, self.quant_min - zero_point, self.quant_max - zero_point)

    def integers(self, x: Tensor, least: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """(whole numbers, scale): x on its grid is their product, the scale (rows,) or (1,) along x's first dimension and
        not below `least`."""
        scale, zero_point = self.qparams(x)
        scale = scale.clamp(min=least)
        unit = scale / 2 if self.config.odd else scale
        placed = self.place(x, _against(scale, x), _against(zero_point, x))
        return (placed / _against(unit, x)).round(), unit

    def qparams(self, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(scale, zero point), each (1,) float32, or (filters,) per channel; x: the tensor at hand, if config.dynamic."""
        if self._constants:
            return self.scale, self.zero_point
        low, high = self._kernel_range(x) if self.config.dynamic else (self.low, self.high)
        return self.config.qparams(low, high)

    def _kernel_range(self, x: Tensor) -> Range:
        if not self.training:
            return self.measure(x)
        if not self._left:
            self._held, self._left = self.measure(x), OBSERVERS[self.config.observer].hold
        self._left -= 1
        return self._held

    def train(self, mode: bool = True) -> "FakeQuantize":
        """Every call begins anew, so that a run that is resumed with an epoch holds ranges as the whole run did."""
        self._left = 0
        return super().train(mode)

    def measure(self, x: Tensor) -> Range:
        """The range of one tensor."""
        return OBSERVERS[self.config.observer].measure(rows_of(x, self.config.per_channel), self.config)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Merge the range of x with those seen before."""
        new = self.measure(x)
        merged = OBSERVERS[self.config.observer].merge((self.low, self.high), new, self.observed)
        first = self.observed == 0
        self.low.copy_(torch.where(first, new[0], merged[0]))
        self.high.copy_(torch.where(first, new[1], merged[1]))
        self.observed += 1

    def fix(self) -> None:
        """Make scale and zero point constants: for inference, when ranges don't change any more.

        Raises UserError for one that is to round but has never seen a value.
        """
        if self.off or self.config.dynamic:
            return
        if not self.observed:
            raise UserError.at(self.where, "its range was never observed; train the network or calibrate it with PTQ.py")
        scale, zero_point = self.qparams()
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("zero_point", zero_point, persistent=False)
        self._constants = (float(scale), int(zero_point))

    @property
    def exponent(self) -> int:
        """e of a power-of-two scale 2**-e."""
        return -round(torch.log2(self.qparams()[0]).item())

    def extra_repr(self) -> str:
        return f"{self.config}, enabled={self.enabled}"


class MatrixQuantize(FakeQuantize):
    """The quantizer of one matrix (rows, columns), which `fix` leaves rounded: what eval mode computes anyway, once instead
    of every time."""

    def __init__(self, config: QuantizerConfig, where: str, linear: nn.Linear) -> None:
        super().__init__(config, where)
        self.linear = (linear,)  # in a tuple: it is a part of another module
        self.unit: Tensor | None = None  # of the integers, once they are fixed

    def round(self, x: Tensor) -> Tensor:
        if self.unit is None:
            return super().round(x)
        return self.traced(x, self.unit) if torch.compiler.is_exporting() else x

    def integers(self, x: Tensor, least: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        return super().integers(x, least) if self.unit is None else ((x / _against(self.unit, x)).round(), self.unit)

    @torch.no_grad()
    def fix(self) -> None:
        if self.off or self.unit is not None:
            return
        (linear,) = self.linear
        rounded, unit = self.round(linear.weight), self.integers(linear.weight)[1]
        del self.unit
        linear.weight = nn.Parameter(rounded, requires_grad=False)
        self.register_buffer("unit", unit, persistent=False)


def _against(row: Tensor, x: Tensor) -> Tensor:
    """(rows,) or (1,) in a shape that broadcasts along x's first dimension."""
    return row.view(-1, *[1] * (x.dim() - 1)) if row.numel() > 1 else row
