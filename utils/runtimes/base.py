"""What a runtime is to the rest: something that loads a file of a network and puts it in a Darknet's place."""

import importlib.util
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from utils.core.errors import UserError
from utils.data.data_file import DataConfig
from utils.loading import Loaded
from utils.network.detection_model import DetectionModel


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

    packages: that it needs, by the name that is imported -> that is installed.
    """

    packages: ClassVar[dict[str, str]]

    def load(self, request: Request) -> Loaded[DetectionModel]:
        """The network of a file; UserError for a file that this runtime can't read."""

    def place(self, network: DetectionModel, device: torch.device, precision: str) -> str:
        """What computes, in words: "OpenVINO on the CPU, fp32"."""

    def threads(self, network: DetectionModel) -> int:
        """That it computes with, as the runtime itself says."""


def check_installed(name: str, packages: dict[str, str]) -> None:
    """UserError with the command that installs what --runtime `name` lacks."""
    missing = [package for module, package in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        wanted = " ".join(missing)
        raise UserError(f"--runtime {name} needs {wanted}, which isn't installed: pip install {wanted}")
