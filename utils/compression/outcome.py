"""What a compression came to: what the report says besides accuracies and milliseconds."""

import os
import platform
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision

from utils.core.devices import processor, select_device
from utils.data.labels import Problems, image_paths
from utils.network.darknet import Darknet
from utils.network.definitions import Convolutional

PICTURES = 6


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
