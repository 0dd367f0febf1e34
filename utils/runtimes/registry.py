"""Runtimes by the name that --runtime takes."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch

from utils.core.errors import UserError
from utils.loading import Loaded
from utils.network.detection_model import DetectionModel
from utils.network.file_kind import is_onnx
from utils.runtimes.base import Request, Runtime, check_installed
from utils.runtimes.ncnn_files import Ncnn, is_folder
from utils.runtimes.onnx_files import OnnxRuntime, OpenVino
from utils.runtimes.opencv import OpenCV
from utils.runtimes.pytorch import PyTorch

RUNTIMES: dict[str, Runtime] = {
    "torch": PyTorch(), "onnxruntime": OnnxRuntime(), "openvino": OpenVino(), "opencv": OpenCV(),
    "ncnn": Ncnn(),
}  # fmt: skip


def installed() -> list[str]:
    """Names of the runtimes whose packages are there."""
    return [n for n, r in RUNTIMES.items() if all(importlib.util.find_spec(p) is not None for p in r.packages)]


def choose(name: str, weights: str) -> str:
    """The runtime that was named, else the one that suits the file: ONNX Runtime for a .onnx, ncnn for a folder that was made
    for it, torch for others."""
    if name or not weights:
        return name or "torch"
    return "ncnn" if is_folder(weights) else "onnxruntime" if is_onnx(weights) else "torch"


def opener(name: str) -> Callable[[Path], DetectionModel] | None:
    """What opens an exported file in a runtime, None where that isn't installed or doesn't run here."""
    return (lambda path: load(name, None, Request(weights=str(path))).model) if name in installed() else None


def load(name: str, threads: int | None, request: Request) -> Loaded[DetectionModel]:
    """The network that was asked for, to be computed by the runtime `name`, by `threads` threads if they are given.

    Raises UserError for a runtime that isn't installed, and for a file that it can't read.
    """
    runtime = RUNTIMES[name]
    check_installed(name, runtime.packages)
    if name != "ncnn" and is_folder(request.weights):
        raise UserError(f"--runtime {name}: {request.weights} is a folder for ncnn; name the weights that it comes from, or "
                        "--runtime ncnn")  # fmt: skip
    if threads is not None:
        torch.set_num_threads(threads)  # the other runtimes take PyTorch's number
    return runtime.load(request)
