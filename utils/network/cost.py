"""What a network costs: parameters, multiply-accumulates, bytes of its .weights file, milliseconds."""

from typing import Any

import torch

from utils.core.timing import median_seconds
from utils.network.darknet import Darknet
from utils.network.definitions import Defs
from utils.network.shapes import output_shapes
from utils.network.weights import HEADER_BYTES, darknet_tensors

LATENCY_SECONDS = 0.75
LATENCY_WARMUP = 1


def count_parameters(model: Darknet) -> int:
    """Trainable parameters; running statistics are none."""
    return sum(p.numel() for p in model.parameters())


def weights_bytes(model: Darknet) -> int:
    """Size of the .weights file that save_weights writes."""
    return HEADER_BYTES + 4 * sum(t.numel() for _, t in darknet_tensors(model))


def layer_macs(model: Darknet, height: int, width: int) -> list[int]:
    """Multiply-accumulates of each layer for one image, from the shapes alone (a forward pass under torch's counter takes
    seconds); windows of pooling, shortcuts and activations count nothing."""
    shapes = output_shapes(model.defs, height, width)
    maps = {-1: (model.defs.net.channels, height, width)} | dict(enumerate(shapes))
    return [
        module.macs(maps[sources[0]], shape)
        for module, sources, shape in zip(model.module_list, model.sources, shapes, strict=True)
    ]


def network_size(network: type[Darknet], defs: Defs, img_size: int) -> dict[str, int]:
    """{params, macs} of the network that `defs` describes, for an image of img_size x img_size; computes no map."""
    with torch.device("meta"):
        model = network(defs, img_size)
    return {"params": count_parameters(model), "macs": sum(layer_macs(model, img_size, img_size))}


@torch.inference_mode()
def latency_ms(model: Darknet, img_size: int, device: torch.device, precision: str = "auto", runs: int = 20) -> float:
    """Median milliseconds of one image through the fused network, decoding included, after warming up.

    A network so slow that `runs` of it would take more than LATENCY_SECONDS runs less often, but at least 3 times.
    """
    network = model.inference_copy(device, precision)
    image = torch.rand(1, model.defs.net.channels, img_size, img_size, device=device, dtype=network.dtype)
    image = image.to(memory_format=torch.channels_last)
    (seconds,) = median_seconds([lambda: network(image)], device, runs=runs, warm_up=LATENCY_WARMUP, limit=LATENCY_SECONDS)
    return 1000 * seconds


def costs(model: Darknet, img_size: int, device: torch.device, precision: str = "auto") -> dict[str, Any]:
    """{params, macs, bytes, latency_ms} at one image of img_size x img_size."""
    return {
        **network_size(type(model), model.defs, img_size),
        "bytes": weights_bytes(model),
        "latency_ms": latency_ms(model, img_size, device, precision),
    }
