"""Pruning networks with anchor-free heads: every strategy, masked against compact, and what the files are good for."""

import numpy as np
import pytest

from tests.matrix import CELLS, cells
from tests.tiny import DFL, network
from utils.pruning.graph import ChannelGraph
from utils.pruning.importance import CRITERIA
from utils.pruning.masks import Limits
from utils.pruning.pruner import STRATEGIES, Amount, Pruner
from utils.pruning.residual_blocks import residual_blocks


def test_every_strategy_is_exact(tmp_path):
    model = network(DFL)
    found, blocks = list(cells(model, CELLS, tmp_path)), len(residual_blocks(ChannelGraph(model.defs)))
    assert (len(found), blocks) == (len(CELLS), 1)
    for cell in found:
        drops = STRATEGIES[cell.strategy].shortcuts > 0
        assert bool(cell.refused) == (drops and round(cell.percent * blocks) == 0), cell
        if not cell.refused:
            assert cell.error < 1e-12, cell
            assert cell.constant_error < 1e-5, cell
            assert cell.share < 1, cell
            assert cell.blocks == (round(cell.percent * blocks) if drops else 0), cell


@pytest.mark.parametrize("importance", CRITERIA)
def test_whatever_ranks_the_channels_the_cut_is_exact(importance, tmp_path):
    for spend in ("", "macs"):
        (cell,) = cells(network(DFL), [("slim", 0.5)], tmp_path, importance, spend)
        assert (cell.refused, cell.error < 1e-12, cell.constant_error < 1e-5, cell.share < 1) == ("", True, True, True)


def test_halves_stay_equal_and_heads_keep_their_channels():
    model = network(DFL)
    pruner = Pruner(model, "slim", Limits())
    small = pruner.compact(pruner.choose(Amount(0.5)))
    graph = ChannelGraph(small.defs)
    (parts,) = graph.equal_parts
    assert len(parts[0]) == len(parts[1]) < 8
    assert [small.defs[i].filters for i in (16, 19, 26, 29)] == [24, 2, 24, 2]
    before, after = (np.array([d.filters for d in defs if d.kind == "convolutional"]) for defs in (model.defs, small.defs))
    assert (after < before).sum() == 12
