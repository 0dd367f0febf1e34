"""What evaluation and detection need of a network, whatever computes it."""

from typing import Protocol, Self

import torch
from torch import Tensor

from utils.network.definitions import Defs
from utils.network.heads import Head


class DetectionModel(Protocol):
    """A Darknet, or an exported graph in its place.

    max_stride: what the sides of its input are multiples of. Called with images (batch, channels, height, width) it gives
    (decoded predictions, raw maps of the heads), as Darknet does in eval mode; a graph that only decodes gives no raw maps.
    """

    defs: Defs
    max_stride: int

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def heads(self) -> list[Head]: ...

    def inference_copy(self, device: torch.device, precision: str = "auto") -> Self: ...

    def __call__(self, images: Tensor) -> tuple[Tensor, list[Tensor]]: ...
