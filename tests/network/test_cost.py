"""utils.network.cost: multiply-accumulates of every layer against torch's own counter."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.references import reference
from tests.tiny import TOPOLOGIES
from utils.network.cfg import parse_cfg
from utils.network.cost import layer_macs, network_size
from utils.network.darknet import Darknet
from utils.network.definitions import Defs
from utils.network.shapes import max_stride

ROOT = Path(__file__).resolve().parents[2]
BLURRED = """[net]
channels=3
[convolutional]
filters=8
size=3
pad=1
stride=2
antialiasing=1
batch_normalize=1
[maxpool]
size=2
stride=2
antialiasing=2
[convolutional]
filters=4
size=3
dilation=2
groups=2
stride_x=2
stride_y=1
padding=2
[local_avgpool]
size=3
stride=1
"""
NETWORKS = {"blurred": BLURRED} | TOPOLOGIES
NETWORKS |= {f"cfg/{f.stem}": f for f in sorted((ROOT / "cfg").rglob("*.cfg"))}


def counted(defs: Defs, height: int, width: int) -> list[int]:
    """Each layer's, by torch."""
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad(), counter:
        Darknet(defs, (height, width))(torch.zeros(1, defs.net.channels, height, width))
    flops = counter.get_flop_counts()
    return [sum(flops.get(f"Darknet.module_list.{i}", {}).values()) // 2 for i in range(len(defs))]


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_of_every_layer_are_those_that_torch_counts(name):
    check_macs(parse_cfg(NETWORKS[name]))


def test_macs_of_darknets_networks():
    cfgs = sorted(reference("darknet/cfg").glob("*.cfg"))
    assert cfgs
    for cfg in cfgs:
        check_macs(parse_cfg(cfg))


def check_macs(defs: Defs) -> None:
    height, width = max_stride(defs), 2 * max_stride(defs)
    with torch.device("meta"):
        macs = layer_macs(Darknet(defs, (height, width)), height, width)
    assert macs == counted(defs, height, width)
    assert sum(macs) > 0


def test_size_of_one_convolution():
    """3 x 3, 3 -> 5 channels, on 32 x 32: 135 weights and 2 x 5 of the normalisation; 135 * 1024 products."""
    defs = parse_cfg("[net]\nwidth=32\nheight=32\n[convolutional]\nfilters=5\nsize=3\npad=1\nstride=1\nbatch_normalize=1\n")
    assert network_size(Darknet, defs, 32) == {"params": 145, "macs": 135 * 1024}
