"""utils.pruning.residual_blocks: which blocks are found, which are left alone, and the network without them."""

import numpy as np
import pytest
import torch

from tests.tiny import CSP, DEPTHWISE, DIALECT, NET, RESIDUAL, conv, head, network
from utils.network.cfg import parse_cfg
from utils.pruning.compact import compact_model, mask_model
from utils.pruning.graph import ChannelGraph
from utils.pruning.residual_blocks import Block, block_scores, residual_blocks, weakest_blocks, without_blocks

SHORTCUT = "[shortcut]\nfrom=-3\nactivation=linear\n"
BRANCH = conv(4, 1) + conv(8)  # two layers, the second as wide as conv(8)
INVERTED = DIALECT.replace("from=-4", "from=-5")  # expansion, depthwise, squeeze-and-excitation, projection
NESTED = (
    NET + conv(8) + conv(4, 1) + conv(8) + BRANCH + SHORTCUT + conv(8) + "[shortcut]\nfrom=-7\nactivation=linear\n" + head()
)


def blocks_of(cfg: str) -> list[Block]:
    return residual_blocks(ChannelGraph(parse_cfg(cfg)))


@pytest.mark.parametrize(
    ("cfg", "expected"),
    [
        (RESIDUAL, [Block(4, 1, (3,), (3,)), Block(7, 4, (6,), (6,))]),
        (DEPTHWISE, [Block(8, 0, (7,), (7,))]),
        (INVERTED, [Block(5, 0, (4,), (4,))]),
        (DIALECT, []),
        (NET + conv(8) + BRANCH + "[dropout]\n[shortcut]\nfrom=-4\nactivation=linear\n" + head(), [Block(4, 0, (2, 3), (2,))]),
        (NET + conv(8) + conv(4) + conv(4) + "[route]\nlayers=-1,-2\n[shortcut]\nfrom=-4\nactivation=linear\n" + head(),
         [Block(4, 0, (1, 2, 3), (1, 2))]),
        (NESTED, [Block(5, 2, (4,), (4,)), Block(7, 0, (6,), (6,))]),
        (CSP, []),
    ],
)  # fmt: skip
def test_blocks_that_are_found(cfg, expected):
    assert blocks_of(cfg) == expected


@pytest.mark.parametrize(
    "rest",
    [
        SHORTCUT.replace("linear", "leaky"),  # without the block its activation would go, too
        SHORTCUT + "[route]\nlayers=-1,-2\n",  # somebody else reads the branch
        "[shortcut]\nfrom=-3\nactivation=linear\nweights_type=per_feature\n",
        "[shortcut]\nfrom=-3,-2\nactivation=linear\n",
    ],
)
def test_what_is_no_block(rest):
    assert blocks_of(NET + conv(8) + BRANCH + SHORTCUT + conv(8) + head()) == [Block(3, 0, (2,), (2,))]
    assert blocks_of(NET + conv(8) + BRANCH + rest + conv(8) + head()) == []


def test_a_branch_without_batch_normalisation_or_of_another_width_is_no_block():
    assert blocks_of(NET + conv(8) + conv(4) + conv(8, bn=0) + SHORTCUT + head()) == []
    assert blocks_of(NET + conv(8) + conv(4) + conv(10) + SHORTCUT + head()) == []


def test_a_sum_that_a_head_reads_directly_is_no_block():
    yolo = "[yolo]\nmask=0,1\nanchors=8,10, 20,16\nclasses=2\nnum=2\n"
    assert blocks_of(NET + conv(14) + conv(8) + conv(14) + SHORTCUT + yolo) == []


def test_scores_are_the_mean_gammas_of_what_is_kept():
    model = network(RESIDUAL)
    graph = ChannelGraph(model.defs)
    blocks = residual_blocks(graph)
    keep = np.ones(graph.count, dtype=bool)
    keep[graph.out[3][:6]] = False
    expected = [model.module_list[i].BatchNorm2d.weight[6:].mean().item() for i in (3, 6)]
    np.testing.assert_allclose(block_scores(model, graph, blocks, keep), expected, rtol=1e-6)
    assert weakest_blocks(blocks, np.array([0.5, 0.2]), 1) == [blocks[1]]
    assert weakest_blocks(blocks, np.array([0.2, 0.2]), 1) == [blocks[0]]
    assert weakest_blocks(blocks, np.array([0.5, 0.2]), 2) == blocks


def test_references_lead_where_they_led_before():
    text = NET + conv(8) + conv(8) + BRANCH + SHORTCUT + BRANCH + SHORTCUT + "[route]\nlayers=-1, 4\n[route]\nlayers=-2, 1\n"
    defs = parse_cfg(text)
    first, second = residual_blocks(ChannelGraph(defs))
    without_first = without_blocks(defs, [first])
    assert [d.kind for d in without_first] == ["convolutional"] * 4 + ["shortcut", "route", "route"]
    assert without_first[4].from_ == (-3,)
    assert [without_first[5].layers, without_first[6].layers] == [(-1, 1), (-2, 1)]  # absolute 4 now stands for layer 1
    assert [d.layers for d in list(without_blocks(defs, [second]))[-2:]] == [(-1, 4), (-2, 1)]
    neither = without_blocks(defs, [second, first])
    assert [neither.sources(i) for i in range(len(neither))] == [[-1], [0], [1, 1], [1, 1]]
    assert defs == parse_cfg(text)  # the original is left alone


@pytest.mark.parametrize("cfg", [RESIDUAL, NESTED, INVERTED, DEPTHWISE])
def test_without_blocks_of_silent_ends_the_function_is_the_same(cfg):
    model = network(cfg)
    graph = ChannelGraph(model.defs)
    keep = np.ones(graph.count, dtype=bool)
    image = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    for block in residual_blocks(graph):
        for end in block.ends:
            model.module_list[end].BatchNorm2d.bias.data.zero_()
    for count in range(1, len(residual_blocks(graph)) + 1):
        dropped = residual_blocks(graph)[:count]
        small = compact_model(model, graph, keep, dropped).double()
        assert len(small.module_list) < len(model.module_list)
        expected = mask_model(model, graph, keep, dropped).double()(image)[1][0]
        torch.testing.assert_close(small(image)[1][0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cfg", [RESIDUAL, NESTED])
@pytest.mark.parametrize("channels", [False, True])
def test_a_dropped_blocks_constant_is_carried_on_by_the_kept_path(cfg, channels):
    """Without zero padding there is no border to differ at, so that beta != 0 is absorbed exactly."""
    model = network(cfg.replace("pad=1\n", "pad=0\n").replace("size=3\n", "size=1\n"), beta=1.0)
    graph = ChannelGraph(model.defs)
    keep = np.ones(graph.count, dtype=bool)
    if channels:
        keep[graph.out[1][::2]] = False
        keep[graph.out[0][1::2]] = False
    dropped = residual_blocks(graph)
    image = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    expected = mask_model(model, graph, keep, dropped).double()(image)[1][0]
    small = compact_model(model, graph, keep, dropped).double()
    torch.testing.assert_close(small(image)[1][0], expected, rtol=1e-5, atol=1e-5)
    for block in dropped:
        for end in block.ends:
            model.module_list[end].BatchNorm2d.bias.data.zero_()
    assert (compact_model(model, graph, keep, dropped).double()(image)[1][0] - expected).abs().max() > 1e-2
