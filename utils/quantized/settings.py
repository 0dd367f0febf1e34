"""Settings: what a quantized network is asked to be, and the strategies that turn it into quantizers' configs."""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from utils.core.errors import UserError
from utils.core.fields import Fields
from utils.quantized.config import OFF, QuantizerConfig
from utils.quantized.observers import OBSERVERS

BITS = (2, 3, 4, 5, 6, 7, 8, 16, OFF)
WHOLE = 8  # bits that the image, and with --keep-first-last the first and the last layers, have at least
RAW_BITS = 16  # of the maps that heads read: nothing computes with them before they are decoded
# Activations that integer convolutions can apply to their sums; before others the sum is rounded to the bits of a map.
FUSED = frozenset({"linear", "relu", "relu6"})
# Ranges that hold everything waste the few values that fewer than 8 bits have.
FEW_BITS = {"minmax": "mse", "moving": "mse", "percentile": "mse"}


@dataclass(frozen=True)
class Scheme:
    """kernel, activation: what goes into the FakeQuantize of kernels and of maps. transform: of kernels before they are
    rounded, a name in utils.quantized.layers.TRANSFORMS. fold: whether kernels are rounded with their batch
    normalisation's factor in them. fused: activations that are applied to a convolution's sums as they are."""

    title: str
    kernel: QuantizerConfig
    activation: QuantizerConfig
    transform: str = "none"
    fold: bool = True
    fused: frozenset[str] = FUSED


KERNEL = QuantizerConfig(symmetric=True, narrow=True, dynamic=True)
SCHEMES = {
    1: Scheme(
        "Google (Jacob et al. 2018)", replace(KERNEL, per_channel=True), QuantizerConfig(symmetric=False, observer="moving")
    ),
    2: Scheme("DoReFa (Zhou et al. 2016)", KERNEL, QuantizerConfig(symmetric=False, observer="percentile"), "tanh", fold=False),
}


def on_fpga(strategy: Scheme) -> Scheme:
    """The strategy in integers and shifts: one power-of-two scale a tensor, folded kernels, an integer leaky."""
    grid = {"symmetric": True, "power_of_two": True, "observer": "mse"}
    return replace(
        strategy, title=f"{strategy.title}, powers of two", fold=True, fused=strategy.fused | {"leaky"},
        kernel=replace(strategy.kernel, per_channel=False, **grid), activation=replace(strategy.activation, **grid),
    )  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """A quantized network's settings, which its checkpoint carries.

    strategy: a key of SCHEMES; a_bit, w_bit: bits of maps and kernels; keep_first_last: the first convolution, those
    that feed heads and the maps that these read have 8 bits at least; shortcut_way: maps that a shortcut adds
    share the smaller (1) or the larger (2) of their scales, 0: each keeps its own; observer: of maps, "" for the
    strategy's own; symmetric: 0 is the integer 0 in maps, too, as always with fpga. Settings that differ in the observer alone
    are equal: they describe the same network.
    Raises UserError for values that can't be.
    """

    strategy: int = 1
    fpga: bool = False
    a_bit: int = 8
    w_bit: int = 8
    keep_first_last: bool = False
    shortcut_way: int = 0
    observer: str = field(default="", compare=False)
    symmetric: bool = False

    def __post_init__(self) -> None:
        for flag, bits in (("--a-bit", self.a_bit), ("--w-bit", self.w_bit)):
            if bits not in BITS:
                raise UserError(f"{flag} {bits}: can be {', '.join(map(str, BITS[:-1]))}, or {OFF} for none")
            if self.fpga and bits == OFF:
                raise UserError(f"{flag} {bits}: with --FPGA everything is an integer; give 2 to 8, or 16")
        if self.strategy not in SCHEMES:
            raise UserError(f"--quantized {self.strategy}: can be {', '.join(map(str, SCHEMES))}")
        if self.observer and self.observer not in OBSERVERS:
            raise UserError(f"--observer {self.observer}: can be {', '.join(OBSERVERS)}")
        if self.shortcut_way not in (0, 1, 2):
            raise UserError(f"--shortcut_way {self.shortcut_way}: can be 1 (the smaller scale) or 2 (the larger)")
        if self.fpga and not self.shortcut_way:
            object.__setattr__(self, "shortcut_way", 1)  # sums of integers need one exponent; the smaller scale is exact
        object.__setattr__(self, "symmetric", self.symmetric or self.fpga)

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint stores."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], origin: str = "this checkpoint") -> "Settings":
        """From a checkpoint, which `origin` names; UserError for one of a newer version, and for values that can't be."""
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise UserError(f"{origin} is quantized in a way that is not known here ({', '.join(sorted(unknown))})")
        found, usual = Fields.of(values, origin, "quantization."), cls()
        readers = {bool: found.flag, int: found.whole, str: found.line}
        return cls(**{name: readers[type(getattr(usual, name))](name, getattr(usual, name)) for name in values})

    def __str__(self) -> str:
        extras = [f"{self.w_bit}-bit kernels, {self.a_bit}-bit maps"]
        extras += ["first and last at 8 bits"] if self.keep_first_last else []
        extras += [f"shortcut way {self.shortcut_way}"] if self.shortcut_way else []
        extras += ["symmetric"] if self.symmetric and not self.fpga else []
        return ", ".join([self.plan.title, *extras])

    @property
    def plan(self) -> Scheme:
        """The strategy with these settings in its configs, but for the bits."""
        strategy = SCHEMES[self.strategy]
        strategy = on_fpga(strategy) if self.fpga else strategy
        strategy = replace(strategy, activation=replace(strategy.activation, symmetric=self.symmetric))
        if not self.observer:
            return strategy
        kernel = strategy.kernel if self.observer != "mse" else replace(strategy.kernel, observer="mse")
        return replace(strategy, kernel=kernel, activation=replace(strategy.activation, observer=self.observer))

    def kernel(self, whole: bool) -> QuantizerConfig:
        """Of a convolution's kernel. whole: 8 bits at least."""
        config, bits = self.plan.kernel, max(self.w_bit, WHOLE if whole else 0)
        if self.plan.transform == "tanh" and not self.fpga:
            return replace(config, bits=bits, observer="minmax", odd=bits < WHOLE)  # 8 bits of odd integers don't fit int8
        return self._of(config, bits)

    def activation(self, least: int = 0) -> QuantizerConfig:
        """Of a map; least: bits that it has at least."""
        return self._of(self.plan.activation, max(self.a_bit, least))

    def image(self) -> QuantizerConfig:
        """Of the input, whose range is that of all images."""
        return replace(self.activation(WHOLE), observer="minmax")

    def _of(self, config: QuantizerConfig, bits: int) -> QuantizerConfig:
        few = bits < WHOLE and not self.observer
        return replace(config, bits=bits, observer=FEW_BITS.get(config.observer, config.observer) if few else config.observer)


@dataclass(frozen=True)
class QuantizationOptions:
    """How a network is quantized: the flags that train.py and PTQ.py share. None where one isn't given."""

    a_bit: int | None = None
    w_bit: int | None = None
    FPGA: bool = False
    keep_first_last: bool = False
    shortcut_way: int | None = None
    symmetric: bool = False


def settings_of(options: QuantizationOptions, strategy: int, observer: str = "") -> Settings:
    """The settings that the flags ask for."""
    bits = options.a_bit or 8, options.w_bit or 8
    way = options.shortcut_way or 0
    return Settings(strategy, options.FPGA, *bits, options.keep_first_last, way, observer, options.symmetric)


def requested(options: QuantizationOptions, strategy: int, observer: str) -> Settings | None:
    """train.py's settings, None without --quantized (strategy 0); UserError for flags that only count with it."""
    if strategy:
        return settings_of(options, strategy, observer)
    given = {"--FPGA": options.FPGA, "--a-bit": options.a_bit, "--w-bit": options.w_bit,
             "--keep-first-last": options.keep_first_last, "--shortcut_way": options.shortcut_way,
             "--symmetric": options.symmetric, "--observer": observer}  # fmt: skip
    flags = [flag for flag, value in given.items() if value]
    if flags:
        raise UserError(f"{' '.join(flags)} needs --quantized: {', '.join(f'{n} {s.title}' for n, s in SCHEMES.items())}")
    return None
