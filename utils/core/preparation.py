"""How images become a network's input: decided once, and the same in training, evaluation, detection and export."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from utils.core.options import flag


@dataclass(frozen=True)
class Preparation:
    """gray: one channel instead of RGB; maxabs: values in -1..1 instead of 0..1; stretch: resized as Darknet does, instead of
    letterboxed. Of a network as it was trained, or as a command line asks for it.

    >>> Preparation.of({"img_size": 416, "stretch": True})
    Preparation(gray=False, maxabs=False, stretch=True)
    """

    gray: bool = field(default=False, metadata=flag("gray_scale"))
    maxabs: bool = field(default=False, metadata=flag("maxabsscaler"))
    stretch: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """As the settings of a checkpoint or an ONNX file tell it; what they don't tell is taken for False."""
        return cls(**{name: bool(settings.get(name)) for name in PREPARATION})

    def to_settings(self) -> dict[str, bool]:
        """What `of` reads."""
        return asdict(self)


PREPARATION = tuple(f.name for f in fields(Preparation))
