"""What a network consists of, layer by layer: the table of `python models.py --cfg X`."""

from dataclasses import dataclass

import torch

from utils.network.cost import layer_macs
from utils.network.darknet import Darknet
from utils.network.definitions import Defs
from utils.network.shapes import Shape, output_shapes


@dataclass(frozen=True)
class LayerSummary:
    """One layer: where its maps come from (-1 is the image), the shape of its output, and what it costs an image."""

    index: int
    kind: str
    sources: list[int]
    shape: Shape  # channels, height, width
    parameters: int
    macs: int


def summarise(defs: Defs, height: int | None = None, width: int | None = None) -> list[LayerSummary]:
    """Every layer of a network for an input of the given size, or the cfg's own.

    Parameters are the trainable ones; MACs: see utils.network.cost. The network has no memory ("meta"), so that the largest
    takes no longer than the smallest.
    Raises UserError for what can't be built, and for a size that isn't a multiple of the network's stride.
    """
    height, width = height or defs.net.height, width or defs.net.width
    with torch.device("meta"):
        model = Darknet(defs, (height, width))
    macs = layer_macs(model, height, width)
    return [
        LayerSummary(
            index=i, kind=defs[i].kind, sources=defs.sources(i), shape=shape,
            parameters=sum(p.numel() for p in model.module_list[i].parameters()),
            macs=macs[i],
        )
        for i, shape in enumerate(output_shapes(defs, height, width))
    ]  # fmt: skip


def totals(layers: list[LayerSummary]) -> dict[str, float]:
    """{params, macs, bflops}. Darknet's BFLOPs count each multiply-accumulate as two operations, and also one for each value
    in a pooling window and each addition of a shortcut (0.01 to 0.25 % of a detector's, left out here)."""
    macs = sum(row.macs for row in layers)
    return {"params": sum(row.parameters for row in layers), "macs": macs, "bflops": 2 * macs / 1e9}
