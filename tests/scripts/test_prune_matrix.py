"""Every network x strategy x percent: masked and compact are one function, the files fit, a step trains.

Small networks of each kind run always; all others are marked slow (`make test-all`, which prints the whole matrix, or
`python -m tests.matrix` alone). No cell is left out: what a strategy refuses is asserted on, too.
"""

import cv2
import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from tests.matrix import CELLS, build, cells, format_cells, networks
from tests.network.test_darknet import opencv_outputs
from tests.references import FOLDER
from utils.network.cfg import parse_cfg, write_cfg
from utils.network.definitions import Convolutional, Depthwise, Dfl, Reorg3d, ScaleChannels, SqueezeExcite
from utils.network.weights import save_weights
from utils.pruning.graph import ChannelGraph
from utils.pruning.importance import CRITERIA
from utils.pruning.masks import Limits
from utils.pruning.pruner import STRATEGIES, Amount, Pruner
from utils.pruning.residual_blocks import residual_blocks

NETWORKS = networks(FOLDER)
QUICK = {"cfg/yolov3-tiny", "cfg/yolov4-tiny", "cfg/yolov3tiny-mobilenet-small-coco", "cfg/yolov5n", "cfg/yolov8n"}
# What OpenCV's importer doesn't read: layers of the MobileNet dialect, reorg3d, and the anchor-free head.
DIALECT = (SqueezeExcite, Depthwise, Reorg3d, Dfl)
# What constants behind a multiplication by data cost (see utils.pruning.absorb): up to 0.08 of the largest output in the two
# MobileNets, 1.0 in EfficientNet with its 16 such layers; random weights, gammas and betas.
MEASURED = {SqueezeExcite: 0.1, ScaleChannels: 1.5}


def marked(names: list[str], quick: set[str]) -> list:
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", marked(list(NETWORKS), QUICK))
def test_masked_is_compact_and_the_files_fit_and_train(name, tmp_path, capsys):
    model = build(NETWORKS[name])
    rows = list(cells(model, CELLS, tmp_path))
    with capsys.disabled():
        print("\n" + format_cells(name, rows), flush=True)
    assert len(rows) == len(CELLS)
    has_blocks = bool(residual_blocks(ChannelGraph(model.defs)))
    bound = max(MEASURED.get(type(d), 1e-4) for d in model.defs)
    for cell in rows:
        assert bool(cell.refused) == (not has_blocks and STRATEGIES[cell.strategy].shortcuts > 0), cell
        if cell.refused:
            continue
        assert cell.error < 1e-4, cell
        assert cell.constant_error < bound, cell
        assert cell.share < 1, cell
        assert bool(cell.blocks) == (STRATEGIES[cell.strategy].shortcuts > 0), cell


@pytest.mark.parametrize("strategy", marked(list(STRATEGIES), {"slim", "layer_channel"}))
def test_yolov4_by_all_six_at_half(strategy, tmp_path, yolov4):
    (cell,) = cells(yolov4, [(strategy, 0.5)], tmp_path)
    assert not cell.refused
    assert cell.error < 1e-4
    assert cell.constant_error < 1e-4
    assert cell.share < 0.9


@pytest.mark.parametrize("importance", CRITERIA)
@pytest.mark.parametrize("spend", ["", "macs"])
@pytest.mark.parametrize("name", ["cfg/yolov4-tiny", "cfg/yolov3tiny-mobilenet-small-coco"])
def test_whatever_ranks_the_channels_the_cut_is_exact(name, spend, importance, tmp_path, built):
    bound = max(MEASURED.get(type(d), 1e-4) for d in built(name).defs)
    for cell in cells(built(name), [("slim", 0.5)], tmp_path, importance, spend):
        assert not cell.refused
        assert cell.error < 1e-4
        assert cell.constant_error < bound
        assert cell.share < 1


@pytest.fixture(scope="module")
def yolov4():
    return build(ROOT / "cfg/yolov4/yolov4.cfg")


def test_yolov3_spp_by_regular_pruning_keeps_multiples_of_8():
    pruner = Pruner(build(NETWORKS["cfg/yolov3-spp"]), "regular", Limits(round_to=8))
    counts = [row for row in pruner.layer_counts(pruner.choose(Amount(0.5))) if row["before"] != 255]
    assert all(row["after"] % 8 == 0 for row in counts)
    assert sum(row["after"] < row["before"] for row in counts) > 30


@pytest.mark.parametrize("percent", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("name", ["cfg/yolov3tiny-mobilenet-small-coco", "cfg/yolov3-tiny"])
def test_no_layer_is_empty_and_depthwise_stays_depthwise(name, percent, built):
    model = built(name)
    pruner = Pruner(model, "slim", Limits())
    defs = pruner.defs(pruner.choose(Amount(percent)))
    graph = ChannelGraph(defs)
    for index, d in enumerate(defs):
        if isinstance(d, Convolutional):
            assert d.filters >= 1
            groups = len(graph.inputs(index)) if isinstance(d, Depthwise) else d.groups
            assert groups == 1 or groups == d.filters == len(graph.inputs(index))


@pytest.fixture(scope="module")
def built():
    models = {}

    def get(name: str):
        if name not in models:
            models[name] = build(NETWORKS[name])
        return models[name]

    return get


def test_tied_gammas_at_the_threshold(built):
    model = built("cfg/yolov3-tiny")
    gammas = [m.BatchNorm2d.weight for m in model.module_list if getattr(m, "BatchNorm2d", None) is not None]
    saved = [g.detach().clone() for g in gammas]
    for gamma in gammas:
        gamma.data.fill_(1.0)
    pruner = Pruner(model, "normal", Limits())
    choice = pruner.choose(Amount(0.5))
    removed = [row["before"] - row["after"] for row in pruner.layer_counts(choice)]
    assert choice.mask.achieved == pytest.approx(0.5, abs=0.02)
    assert sum(removed) == (~choice.mask.keep).sum() > 0
    assert pruner.choose(Amount(0.5)).mask.keep.tolist() == choice.mask.keep.tolist()
    for gamma, value in zip(gammas, saved, strict=True):
        gamma.data.copy_(value)


def readable(name: str) -> bool:
    """Whether OpenCV's importer knows all that the network has."""
    return not any(isinstance(d, DIALECT) for d in parse_cfg(NETWORKS[name]))


@pytest.mark.parametrize("name", marked([n for n in NETWORKS if readable(n)], {"cfg/yolov3-tiny", "cfg/yolov4-tiny"}))
def test_opencv_sees_one_function_when_planted_dead_channels_are_pruned(name, tmp_path):
    """gamma = beta = 0 at random channels, pruned at exactly their share: OpenCV's outputs of both files are equal."""
    model = build(NETWORKS[name])
    pruner = Pruner(model, "slim", Limits())
    rng = np.random.default_rng(0)
    pruner.scores = rng.random(len(pruner.scores))  # which ones die is left to chance, within what can be removed
    choice = pruner.choose(Amount(0.4))
    for index in pruner.graph.gammas():
        norm, dead = model.module_list[index].BatchNorm2d, torch.from_numpy(~choice.mask.keep[pruner.graph.out[index]])
        norm.weight.data[dead] = 0
        norm.bias.data[dead] = 0
    found = Pruner(model, "slim", Limits())
    again = found.choose(Amount(choice.mask.achieved))
    assert np.array_equal(again.mask.keep, choice.mask.keep)  # the gammas alone tell which
    image = rng.random((1, 3, 64, 64), dtype=np.float32)
    seen = []
    for label, net in (("original", model), ("compact", found.compact(again))):
        (tmp_path / f"{label}.cfg").write_text(write_cfg(net.defs))
        save_weights(net, tmp_path / f"{label}.weights")
        seen.append(opencv_outputs(tmp_path / f"{label}.cfg", tmp_path / f"{label}.weights", image))
    np.testing.assert_allclose(seen[1], seen[0], rtol=1e-3, atol=1e-4)
    assert cv2.norm(seen[0]) > 0
