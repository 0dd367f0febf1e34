"""utils.pruning.graph: ids worked by hand for each topology."""

import numpy as np

from tests.tiny import CSP, DEPTHWISE, NET, REORG, RESIDUAL, SPP, TOPOLOGIES, conv
from utils.network.cfg import parse_cfg
from utils.network.shapes import output_shapes
from utils.pruning.graph import ChannelGraph


def graph_of(cfg: str) -> ChannelGraph:
    return ChannelGraph(parse_cfg(cfg))


def test_every_channel_of_every_layer_has_an_id(shared):
    paths = [*(shared / "darknet/cfg").glob("*.cfg"), *TOPOLOGIES.values()]
    for cfg in paths:
        defs = parse_cfg(cfg)
        graph = ChannelGraph(defs)
        assert [len(ids) for ids in graph.out] == [channels for channels, _, _ in output_shapes(defs)]


def test_a_chain_of_shortcuts_is_one_channel():
    graph = graph_of(RESIDUAL)
    first, narrow, last = graph.out[1], graph.out[2], graph.out[3]
    for index in (3, 4, 6, 7):
        assert np.array_equal(graph.out[index], first)
    assert graph.united[last].all()
    assert not graph.united[narrow].any()
    assert not graph.frozen[last].any()


def test_a_head_is_frozen_and_so_is_the_image():
    graph = graph_of(RESIDUAL)
    assert graph.frozen[graph.out[8]].all()
    assert graph.frozen[graph.inputs(0)].all()
    assert graph.frozen.sum() == 3 + 14


def test_grouped_route_takes_a_slice_whose_parts_are_tied_in_count():
    graph = graph_of(CSP)
    assert np.array_equal(graph.out[2], graph.out[1][8:])
    (parts,) = graph.equal_parts
    assert [p.tolist() for p in parts] == [graph.out[1][:8].tolist(), graph.out[1][8:].tolist()]
    assert np.array_equal(graph.out[5], np.concatenate([graph.out[4], graph.out[3]]))


def test_spp_repeats_the_same_channels():
    graph = graph_of(SPP)
    assert np.array_equal(graph.out[5], np.tile(graph.out[1], 3))


def test_depthwise_and_its_squeeze_and_excitation_carry_the_expansions_channels():
    graph = graph_of(DEPTHWISE)
    expansion = graph.out[1]
    for index in (2, 3, 5, 6):  # depthwise, avgpool, the convolution that makes the factors, the product
        assert np.array_equal(graph.out[index], expansion)
    assert not graph.frozen[expansion].any()
    assert graph.frozen[graph.out[4]].all()  # the squeezed map has no batch normalisation
    assert graph.is_depthwise(2)
    assert not graph.is_depthwise(1)


def test_reorg3d_repeats_ids_in_darknets_order():
    graph = graph_of(REORG)
    assert np.array_equal(graph.out[1], np.tile(graph.out[0], 4))


def test_reorg_ties_the_channels_it_mixes():
    graph = graph_of(NET + conv(8) + "[reorg]\nstride=2\n")
    first, second = graph.out[0][0], graph.out[0][4]
    assert graph.out[0].tolist() == [first] * 4 + [second] * 4
    assert graph.out[1].tolist() == ([first] * 4 + [second] * 4) * 4


def test_unequal_shortcut_unites_what_is_common():
    graph = graph_of(NET + conv(4) + conv(6) + "[shortcut]\nfrom=-2\nactivation=linear\n")
    assert np.array_equal(graph.out[1][:4], graph.out[0])
    assert not set(graph.out[1][4:]) & set(graph.out[0])
    assert graph.united[graph.out[2]].tolist() == [True] * 4 + [False] * 2


def test_ordinary_grouped_convolutions_are_left_whole():
    graph = graph_of(NET + conv(8) + conv(8, groups=2) + conv(4))
    assert graph.grouped == [1]
    assert graph.frozen[graph.out[0]].all()
    assert graph.frozen[graph.out[1]].all()
    assert not graph.frozen[graph.out[2]].any()


def test_channels_without_a_gamma_are_frozen():
    graph = graph_of(NET + conv(4, bn=0) + conv(4) + "[shortcut]\nfrom=-2\nactivation=linear\n")
    assert graph.frozen.all()
