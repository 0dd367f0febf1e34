"""What a runtime is to the rest: something that loads a file of a network and puts it in a Darknet's place."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from utils.core.errors import UserError
from utils.data.data_file import DataConfig
from utils.loading import Loaded
from utils.network.darknet import Darknet
from utils.network.detection_model import DetectionModel
from utils.pruning.latency import Geometry, Widths

LANES = {"AVX512": 16}  # channels that a vector instruction computes at once, by what PyTorch calls the CPU


@dataclass(frozen=True)
class Request:
    """The network that a user named: cfg ("" for a file that carries its own), file of weights, and how it is to be used, as
    utils.loading.load_model takes them."""

    cfg: str = ""
    weights: str = ""
    img_size: int | None = None
    data: DataConfig | None = None
    gray: bool = False

    def arguments(self) -> dict[str, Any]:
        return {**vars(self)}


class Runtime(Protocol):
    """One program that computes networks. An adapter reads a file and gives the network; all that has to do with images,
    boxes and their judgement stays outside of it.

    packages: that it needs, by the name that is imported -> that is installed; the first has its version; writing: those that
    `write` and `layers` need besides. bits: of networks that it computes as fast as it can, () where these two are missing.
    """

    packages: ClassVar[dict[str, str]]
    writing: ClassVar[dict[str, str]]
    bits: ClassVar[tuple[int, ...]]

    def load(self, request: Request) -> Loaded[DetectionModel]:
        """The network of a file; UserError for a file that this runtime can't read."""

    def place(self, network: DetectionModel, device: torch.device, precision: str) -> str:
        """What computes, in words: "OpenVINO on the CPU, fp32"."""

    def threads(self, network: DetectionModel) -> int:
        """That it computes with, as the runtime itself says."""

    def write(self, loaded: Loaded[Darknet], bits: int, folder: Path) -> Path:
        """Write a float network's file for this runtime into a folder, so that it can be timed: for one image of its size. In 8
        bits its ranges are those of noise, of which time doesn't depend."""

    def layers(self, bits: int, device: torch.device, precision: str) -> Callable[[Geometry, Widths], Callable[[], object]]:
        """What makes single convolutions ready to be computed, once a call."""


def check_installed(name: str, packages: Mapping[str, str]) -> None:
    """UserError with the command that installs what --runtime `name` lacks."""
    missing = [package for module, package in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        wanted = " ".join(missing)
        raise UserError(f"--runtime {name} needs {wanted}, which isn't installed: pip install {wanted}")


def lanes() -> int:
    """The multiple of channels that kernels compute in here: a layer of 17 filters takes as long as one of 32 where this is
    16, as measured with ONNX Runtime (EXPERIMENTS.md)."""
    return LANES.get(torch.backends.cpu.get_cpu_capability(), 8)


def version(packages: dict[str, str]) -> str:
    """That of a runtime that is installed."""
    return str(importlib.import_module(next(iter(packages))).__version__)
