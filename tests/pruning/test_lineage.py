"""utils.pruning.lineage: what a pruned cfg says of the network that it was pruned from, also after several prunings."""

import numpy as np
import pytest

from tests.tiny import CSP, DEPTHWISE, RESIDUAL, network
from utils.core.errors import UserError
from utils.network.cfg import parse_cfg, write_cfg
from utils.pruning.compact import compact_defs
from utils.pruning.graph import ChannelGraph
from utils.pruning.lineage import format_ranges, origin_of, parse_ranges, surviving_ids
from utils.pruning.masks import Limits
from utils.pruning.pruner import Amount, Pruner


@pytest.mark.parametrize(
    ("numbers", "text"), [([0, 1, 2, 3, 7], "0-3,7"), ([5], "5"), ([0, 2, 4], "0,2,4"), ([3, 4], "3-4"), (range(10), "0-9")]
)
def test_ranges(numbers, text):
    assert format_ranges(numbers) == text
    assert parse_ranges(text) == list(numbers)


def test_text_that_is_no_range():
    with pytest.raises(UserError, match="kept=0-3;7: expected ascending ranges"):
        parse_ranges("0-3;7")


def test_what_is_whole_says_nothing():
    graph = ChannelGraph(parse_cfg(RESIDUAL))
    defs = compact_defs(graph, np.ones(graph.count, dtype=bool))
    assert defs == graph.defs
    keep = np.ones(graph.count, dtype=bool)
    keep[graph.out[2][[0, 4]]] = False
    assert [d.extra for d in compact_defs(graph, keep)] == [{}, {}, {"kept": "1-3,5"}, *[{}] * 7]


@pytest.mark.parametrize("cfg", [RESIDUAL, CSP, DEPTHWISE])
def test_pruning_twice_still_counts_in_the_first_network(cfg):
    model = network(cfg)
    teacher = ChannelGraph(model.defs)
    gammas = {i: model.module_list[i].BatchNorm2d.weight.detach().numpy() for i in teacher.gammas()}
    for _ in range(2):
        pruner = Pruner(model, "slim", Limits())
        model = pruner.compact(pruner.choose(Amount(0.3, min(1, len(pruner.blocks)))))
        student = parse_cfg(write_cfg(model.defs))
        keep = surviving_ids(teacher, student)
        for index in ChannelGraph(student).gammas():
            origin = origin_of(student, index)
            channels = np.flatnonzero(keep[teacher.out[origin]])
            np.testing.assert_array_equal(model.module_list[index].BatchNorm2d.weight.detach(), gammas[origin][channels])
    assert len(student) < len(teacher.defs) or cfg == CSP


def test_another_networks_pruned_cfg_is_refused():
    model = network(RESIDUAL)
    pruner = Pruner(model, "slim", Limits())
    student = pruner.defs(pruner.choose(Amount(0.3)))
    with pytest.raises(UserError, match=r"layer \d+ \[convolutional\]: was not pruned from layer \d+ of"):
        surviving_ids(ChannelGraph(parse_cfg(CSP)), student)


@pytest.mark.parametrize("kept", ["3-1", "1-2-3", "2,1", "1,1", "x", ""])
def test_a_record_that_is_no_record_is_refused(kept):
    with pytest.raises(UserError, match="expected ascending ranges"):
        parse_ranges(kept)


def test_a_record_of_another_number_of_filters_is_refused():
    graph = ChannelGraph(parse_cfg(RESIDUAL))
    keep = np.ones(graph.count, dtype=bool)
    keep[graph.out[2][0]] = False
    for kept, said in {"0-1": "kept=0-1 names 2 filters, but there are 6", "0-99999999999": "of at most 6 numbers"}.items():
        graph.defs[2].extra["kept"] = kept
        with pytest.raises(UserError, match=rf"layer 2 \[convolutional\]: .*{said}"):
            compact_defs(graph, keep)
        with pytest.raises(UserError, match=said):
            surviving_ids(graph, graph.defs)


def test_an_origin_that_is_no_number_is_refused():
    student = parse_cfg(RESIDUAL)
    for origin in ("one", "-1", "²", "1" * 5000):
        student[1].extra["origin"] = origin
        with pytest.raises(UserError, match=f"origin={origin[:40]}: expected the number of a layer"):
            origin_of(student, 1)
