"""What a compression came to: the figures of the report, for both networks measured alike."""

import os
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchvision

from utils.core.devices import processor, select_device
from utils.data.labels import Problems, image_paths
from utils.loading import Loaded, load_model
from utils.network.cost import latency_ms, weights_bytes
from utils.network.darknet import Darknet
from utils.network.definitions import Convolutional
from utils.runtimes.deployment import Deployment
from utils.runtimes.whole import read_together, written

TURNS = 7  # of each network
PICTURES = 6


def measure(names: dict[str, str], device: str, deployment: Deployment | None) -> dict[str, Any]:
    """{name: {bytes, ms{median, least, most}}} of checkpoints, which take turns, so that a busy machine slows all alike.
    deployment: where they are computed, None for PyTorch on `device`."""
    loaded = {name: load_model("", weights) for name, weights in names.items()}
    times = _in_pytorch(loaded, device) if deployment is None else _deployed(loaded, deployment)
    return {
        name: {
            "bytes": weights_bytes(each.model),
            "ms": {"median": statistics.median(times[name]), "least": min(times[name]), "most": max(times[name])},
        }
        for name, each in loaded.items()
    }


def _in_pytorch(loaded: dict[str, Loaded[Darknet]], device: str) -> dict[str, list[float]]:
    """Milliseconds of each turn."""
    where = select_device(device)
    times: dict[str, list[float]] = {name: [] for name in loaded}
    for _ in range(TURNS):
        for name, each in loaded.items():
            times[name].append(latency_ms(each.model, each.img_size, where, runs=5))
    return times


def _deployed(loaded: dict[str, Loaded[Darknet]], deployment: Deployment) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        requests = [written(deployment, each, Path(folder) / name) for name, each in loaded.items()]
        return dict(zip(loaded, read_together(deployment, requests, TURNS), strict=True))


def filters(before: Darknet, after: Darknet) -> list[dict[str, int]]:
    """[{index, before, after}] of the convolutions, which keep their places: no strategy here drops layers."""
    pairs = zip(before.defs, after.defs, strict=True)
    return [
        {"index": i, "before": old.filters, "after": new.filters}
        for i, (old, new) in enumerate(pairs)
        if isinstance(old, Convolutional)
    ]


def some_pictures(source: Path) -> list[str]:
    """Up to PICTURES of a list or folder, evenly spaced."""
    paths = image_paths(source, Problems())
    places = np.linspace(0, len(paths) - 1, min(PICTURES, len(paths))).astype(int)
    return [paths[i] for i in places]


def versions() -> dict[str, str]:
    found = {"Python": platform.python_version(), "PyTorch": torch.__version__, "torchvision": torchvision.__version__}
    return found | {"OpenCV": cv2.__version__, "NumPy": np.__version__}


def machine(device: str) -> str:
    """The computer in words."""
    where = select_device(device)
    card = f", {torch.cuda.get_device_name(where)}" if where.type == "cuda" else ""
    return f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used, {platform.system()}{card}"
