"""utils.pruning.surgeon: what a channel costs once its readers have made up for it, against numbers by hand and least
squares."""

import numpy as np
import pytest
import torch

from tests.pruning.test_importance import boxes
from tests.tiny import NET, REORG, RESIDUAL, conv, head, network
from utils.core.hyp import Hyp
from utils.detection.loss import DetectionLoss
from utils.pruning.evidence import gather
from utils.pruning.graph import ChannelGraph
from utils.pruning.importance import CRITERIA, Evidence
from utils.pruning.masks import Limits
from utils.pruning.pruner import Pruner
from utils.pruning.spend import removal_order
from utils.pruning.surgeon import Factors, Reader, Surgeon, readers


@pytest.fixture
def no_ridge(monkeypatch):
    monkeypatch.setattr("utils.pruning.surgeon.RIDGE", 0.0)


def gather_factors(model, graph, batches) -> Evidence:
    return gather(model, graph, batches, lambda m: DetectionLoss(m, Hyp()), torch.device("cpu"), needs={"factors"})


def reader(covariance, kernel, minded, taps=((1.0,),), ids=None) -> Reader:
    """kernel: (filters, channels, taps)."""
    factors = Factors(*(torch.tensor(np.array(value, dtype=float)) for value in (covariance, taps, minded)))
    ids = np.arange(len(covariance)) if ids is None else np.array(ids)
    return Reader(ids, torch.tensor(np.array(kernel, dtype=float)), factors)


def worth(found: Reader, count: int) -> list[float]:
    total = np.zeros(count)
    found.add_worth(total)
    return total.tolist()


def test_two_channels_by_hand(no_ridge):
    """A filter 3 a + b, minded by 4; both vary by 2, together by 1. What b doesn't tell of a varies by 2 - 1/2, so a costs
    1/2 * 4 * 3^2 * 1.5 and b 1/2 * 4 * 1^2 * 1.5. Without b a carries 3 + 1/2, and costs 1/2 * 4 * 3.5^2 * 2."""
    found = reader([[2, 1], [1, 2]], [[[3], [1]]], [4])
    assert worth(found, 2) == pytest.approx([27, 3])
    found.keep_only(np.array([True, False]))
    assert worth(found, 2) == pytest.approx([49, 0])


def test_of_twins_one_costs_nothing():
    found = reader([[1, 1], [1, 1]], [[[1], [1]]], [1])
    assert max(worth(found, 2)) < 2e-3  # what the ridge leaves
    found.keep_only(np.array([False, True]))
    assert worth(found, 2)[1] == pytest.approx(2, rel=1e-2)  # 1/2 * (1 + 1)^2 * 1


def test_a_channel_at_two_positions_goes_from_both(no_ridge):
    """Both positions vary by 1 and by nothing together: 1/2 * (3^2 + 1^2); varying together by 1/2: 3 * 1 / 2 more."""
    assert worth(reader([[1, 0], [0, 1]], [[[3], [1]]], [1], ids=[5, 5]), 6)[5] == pytest.approx(5)
    assert worth(reader([[1, 0.5], [0.5, 1]], [[[3], [1]]], [1], ids=[5, 5]), 6)[5] == pytest.approx(6.5)


def test_what_goes_one_by_one_costs_what_least_squares_loses_at_once(no_ridge):
    rng = np.random.default_rng(0)
    channels, taps, filters = 6, 3, 4
    mixed, spread = rng.normal(size=(channels, channels)), rng.normal(size=(taps, taps))
    samples = np.einsum("sct,cd,tu->sdu", rng.normal(size=(200_000, channels, taps)), mixed, spread)
    kernel, minded = rng.normal(size=(filters, channels, taps)), rng.random(filters)
    along = spread.T @ spread
    found = reader(mixed.T @ mixed * np.trace(along) / taps, kernel, minded, along / (np.trace(along) / taps))
    keep, total = np.ones(channels, dtype=bool), 0.0
    for channel in (4, 0, 3):
        total += worth(found, channels)[channel]
        keep[channel] = False
        found.keep_only(keep)
    inputs, wanted = samples[:, keep].reshape(len(samples), -1), np.einsum("sct,fct->sf", samples, kernel)
    fitted = np.linalg.lstsq(inputs, wanted, rcond=None)[0]
    lost = np.square(wanted - inputs @ fitted).mean(0)
    assert total == pytest.approx(lost @ minded / 2, rel=0.02)


def test_factors_are_covariances_and_squared_gradients(monkeypatch):
    monkeypatch.setattr("utils.pruning.evidence.training_dtype", lambda device: None)
    monkeypatch.setattr("utils.pruning.evidence.PLACES", 10**6)
    model, batches = network(RESIDUAL), boxes(2)
    graph = ChannelGraph(model.defs)
    factors = gather_factors(model, graph, batches).factors
    assert sorted(factors) == readers(model, graph) == [1, 2, 3, 5, 6, 8]
    seen, minded = [], 0
    module = model.module_list[3]  # reads layer 2 by kernels of 3 x 3
    kept = []
    module.conv.register_forward_hook(lambda m, x, y: (seen.append(x[0].detach()), y.retain_grad(), kept.append(y))[0])
    for batch in batches:
        raws = model(batch.images / 255)[1]
        DetectionLoss(model, Hyp())(raws, batch.targets, (64, 64))[0].backward()
        minded = minded + kept[-1].grad.double().square().sum((0, 2, 3))
    cut = torch.nn.functional.unfold(torch.cat(seen).double(), 3, padding=1).unflatten(1, (6, 9))  # (images, channels, taps, n)
    cut = cut.permute(1, 2, 0, 3).flatten(2)
    cut = cut - cut.mean(2, keepdim=True)
    torch.testing.assert_close(factors[3].inputs, torch.einsum("ctn,dtn->cd", cut, cut) / cut[0].numel(), rtol=1e-4, atol=1e-6)
    taps = torch.einsum("ctn,cun->tu", cut, cut)
    torch.testing.assert_close(factors[3].taps, taps / taps.diagonal().mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(factors[3].outputs, minded / 4, rtol=1e-3, atol=0.0)


def test_every_reader_counts_and_repeated_channels_do_too():
    model = network(REORG)
    graph = ChannelGraph(model.defs)
    factors = gather_factors(model, graph, boxes(1)).factors
    keep = np.ones(graph.count, dtype=bool)
    found = Surgeon(model, graph, factors)(keep)
    alone = sum(Surgeon(model, graph, {index: f})(keep) for index, f in factors.items())
    np.testing.assert_allclose(found, alone)
    assert (found[~graph.frozen] > 0).all()


def test_of_channels_that_are_the_same_one_goes_before_any_other():
    """All filters of the first convolution are there twice."""
    model = network(NET + conv(8, stride=2) + conv(8) + head())
    first = model.module_list[0]
    for parameter in (first.conv.weight, *first.BatchNorm2d.parameters(), *first.BatchNorm2d.buffers()):
        if parameter.dim():
            parameter.data[4:] = parameter.data[:4]
    graph = ChannelGraph(model.defs)
    evidence = gather_factors(model, graph, boxes(2))
    pruner = Pruner(model, "slim", Limits(), "obs", evidence)
    twins = [set(pair) for pair in zip(graph.out[0][:4].tolist(), graph.out[0][4:].tolist(), strict=True)]
    gone = set(pruner.order[:4].tolist())
    assert all(len(gone & pair) == 1 for pair in twins)
    order = removal_order(lambda keep: pruner.scores, pruner.pool, None)  # scores alone don't see it
    assert sum(pair <= set(order[:8].tolist()) for pair in twins) == 4


def test_what_no_head_reads_costs_nothing():
    model = network(NET + conv(8, stride=2) + conv(6) + "[route]\nlayers=-2\n" + conv(8) + head())
    graph = ChannelGraph(model.defs)
    factors = gather_factors(model, graph, boxes(1)).factors
    assert (factors[1].outputs == 0).all()
    found = Surgeon(model, graph, factors)(np.ones(graph.count, dtype=bool))
    assert (found[graph.out[1]] == 0).all()
    assert (found[graph.out[0]] > 0).all()


def test_blocks_are_worth_what_taylor_says():
    assert CRITERIA["obs"].parts is CRITERIA["taylor"].parts
    assert Evidence().factors == {}
