"""By gamma, without a refit, the prune scripts write byte for byte what they wrote when gamma was all they knew."""

import hashlib

import pytest
import torch

from tests.tiny import TOPOLOGIES
from utils.network.cfg import write_cfg
from utils.network.darknet import Darknet
from utils.network.weights import save_weights
from utils.pruning.graph import ChannelGraph
from utils.pruning.masks import POLICIES, Limits
from utils.pruning.pruner import STRATEGIES, Amount, Pruner
from utils.pruning.residual_blocks import residual_blocks

KNOWN_THEN = ("residual", "csp", "spp", "depthwise", "dialect", "reorg")
# SHA-256 of the cfg texts and .weights files of these, as the program before the other criteria wrote them.
WRITTEN = {
    "normal": "631f2b789f69e10b741e7de771aab6fa6d1703989730097e656c79178d75c316",
    "regular": "1a26ec41092db5fbc367e50e3f995abf77744e5d29daf8f580db2bfba99bffb1",
    "shortcut": "8694408437eea21bbdeeefc4c3d3529b553220e4105aea0ace4f0e6365c35486",
    "slim": "caf4347b038f254cdb86934ed367ea13cdc0ef98058456980baab77f7be1f192",
    "layer": "dbc248b9cdefdeaf983d9ecdbf8cd385c2855ff4ba79325e5fbbb925f186356f",
    "layer_channel": "0b090cf4a7850dc2b965a09bf0d7283342729cab06cff5d625a5757c48583c1f",
}


def exact_network(cfg: str) -> Darknet:
    """A network whose weights are multiples of 1/32, the same on every machine; many gammas are equal."""
    model = Darknet(cfg, 64).eval()
    for number, (name, tensor) in enumerate(sorted(model.state_dict().items())):
        values = (torch.arange(tensor.numel()) * 37 + 11 * number) % 61
        positive = name.endswith(("running_var", "BatchNorm2d.weight"))
        tensor.copy_(((values + 1 if positive else values - 30) / 32).reshape(tensor.shape))
    return model


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_files_are_byte_for_byte_what_they_were(strategy, tmp_path):
    usual, written = STRATEGIES[strategy], hashlib.sha256()
    limits = Limits(layer_keep=usual.layer_keep, round_to=min(2, POLICIES[usual.policy].round_to))
    blocks = 1 if usual.shortcuts else 0
    for model in (exact_network(TOPOLOGIES[name]) for name in KNOWN_THEN):
        if blocks and not residual_blocks(ChannelGraph(model.defs)):
            continue
        pruner = Pruner(model, strategy, limits)
        for percent in (0.3, 0.6) if usual.percent else (0.0,):
            small = pruner.compact(pruner.choose(Amount(percent, blocks)))
            save_weights(small, tmp_path / "small.weights")
            written.update(write_cfg(small.defs).encode() + (tmp_path / "small.weights").read_bytes())
    assert written.hexdigest() == WRITTEN[strategy]
