"""What a network costs: parameters, multiply-accumulates, bytes of its .weights file, milliseconds."""

import statistics
import time
from typing import TYPE_CHECKING, Any

import torch

from utils.metrics import count_macs
from utils.weights import HEADER_BYTES, darknet_tensors

if TYPE_CHECKING:
    from models import Darknet


def count_parameters(model: "Darknet") -> int:
    """Trainable parameters; running statistics are none."""
    return sum(p.numel() for p in model.parameters())


def weights_bytes(model: "Darknet") -> int:
    """Size of the .weights file that save_weights writes."""
    return HEADER_BYTES + 4 * sum(t.numel() for _, t in darknet_tensors(model))


@torch.inference_mode()
def latency_ms(model: "Darknet", img_size: int, device: torch.device, precision: str = "auto", runs: int = 20) -> float:
    """Median milliseconds of one picture through the fused network, decoding included, after warming up."""
    network = model.inference_copy(device, precision)
    image = torch.rand(1, model.defs.net.channels, img_size, img_size, device=device, dtype=network.dtype)
    image = image.to(memory_format=torch.channels_last)
    times = []
    for _ in range(runs + 3):
        start = time.perf_counter()
        network(image)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[3:])


def costs(model: "Darknet", img_size: int, device: torch.device, precision: str = "auto") -> dict[str, Any]:
    """{params, macs, bytes, latency_ms} at one picture of img_size x img_size."""
    return {
        "params": count_parameters(model),
        "macs": count_macs(model, model.defs.net.channels, img_size, img_size),
        "bytes": weights_bytes(model),
        "latency_ms": latency_ms(model, img_size, device, precision),
    }
