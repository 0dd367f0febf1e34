"""Runtimes by the name that --runtime takes."""

import importlib.util

import torch

from utils.loading import Loaded
from utils.network.detection_model import DetectionModel
from utils.network.file_kind import is_onnx
from utils.runtimes.base import Request, Runtime, check_installed
from utils.runtimes.onnx_files import OnnxRuntime, OpenVino
from utils.runtimes.opencv import OpenCV
from utils.runtimes.pytorch import PyTorch

RUNTIMES: dict[str, Runtime] = {
    "torch": PyTorch(), "onnxruntime": OnnxRuntime(), "openvino": OpenVino(), "opencv": OpenCV()
}  # fmt: skip


def installed() -> list[str]:
    """Names of the runtimes whose packages are there."""
    return [n for n, r in RUNTIMES.items() if all(importlib.util.find_spec(p) is not None for p in r.packages)]


def choose(name: str, weights: str) -> str:
    """The runtime that was named, else the one that suits the file: ONNX Runtime for a .onnx, torch for others."""
    return name or ("onnxruntime" if weights and is_onnx(weights) else "torch")


def load(name: str, threads: int | None, request: Request) -> Loaded[DetectionModel]:
    """The network that was asked for, to be computed by the runtime `name`, by `threads` threads if they are given.

    Raises UserError for a runtime that isn't installed, and for a file that it can't read.
    """
    runtime = RUNTIMES[name]
    check_installed(name, runtime.packages)
    if threads is not None:
        torch.set_num_threads(threads)  # the other runtimes take PyTorch's number
    return runtime.load(request)
