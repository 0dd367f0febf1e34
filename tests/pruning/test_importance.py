"""utils.pruning.importance: scores of channels against formulas and finite differences."""

import numpy as np
import pytest
import torch

from tests.tiny import RESIDUAL, TOPOLOGIES, network
from utils.core.hyp import Hyp
from utils.data.batch import Batch
from utils.detection.loss import DetectionLoss
from utils.pruning.evidence import gather
from utils.pruning.graph import ChannelGraph
from utils.pruning.importance import CRITERIA, Evidence, Parts, RawChannels, TaylorTerms, channel_scores, gamma_scores
from utils.pruning.masks import POLICIES, Limits, candidates, global_mask


def loss_of(model) -> torch.Tensor:
    image = torch.rand(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return sum(raw.square().mean() for raw in model(image)[1])


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_taylor_terms_are_the_slope_of_the_loss_along_a_channels_gammas_and_betas(name):
    """d/dt of the loss when all of an id's gammas and betas are multiplied by t, at t = 1, by finite differences."""
    model = network(TOPOLOGIES[name]).double()
    graph = ChannelGraph(model.defs)
    loss_of(model).backward()
    found = TaylorTerms(model, graph)().numpy()
    scaled = [i for i in range(graph.count) if any(i in graph.out[k] for k in graph.gammas())]
    assert not found[np.setdiff1d(np.arange(graph.count), scaled)].any()
    for channel in scaled[::5]:
        losses = []
        for factor in (1 - 1e-5, 1 + 1e-5):
            changed = network(TOPOLOGIES[name]).double()
            for index in graph.gammas():
                norm, here = changed.module_list[index].BatchNorm2d, torch.from_numpy(graph.out[index] == channel)
                norm.weight.data[here] *= factor
                norm.bias.data[here] *= factor
            losses.append(float(loss_of(changed).detach()))
        assert found[channel] == pytest.approx((losses[1] - losses[0]) / 2e-5, rel=1e-3, abs=1e-8)


def test_taylor_terms_follow_the_gradients_and_are_0_without():
    model = network(RESIDUAL)
    graph = ChannelGraph(model.defs)
    terms = TaylorTerms(model, graph)
    assert not terms().any()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    norms = {i: model.module_list[i].BatchNorm2d for i in graph.gammas()}
    expected = sum((norms[i].weight + norms[i].bias).detach() for i in (1, 3, 6))  # what the two shortcuts add
    torch.testing.assert_close(terms()[graph.out[1]], expected)
    norms[1].weight.grad = None
    torch.testing.assert_close(terms()[graph.out[1]], expected - norms[1].weight.detach())


@pytest.mark.parametrize("name", [n for n, criterion in CRITERIA.items() if criterion.parts and not criterion.needs])
def test_an_id_is_worth_the_sum_of_its_members(name):
    model = network(RESIDUAL)
    graph = ChannelGraph(model.defs)
    values = CRITERIA[name].parts(model, graph, Evidence()).values[0]
    expected = sum(values[graph.raw_out[i]] for i in (1, 3, 6))
    np.testing.assert_allclose(channel_scores(name, model, graph, Evidence())[graph.out[1]], expected)


def test_uniform_takes_the_same_share_of_every_layer_its_weakest():
    model = network(RESIDUAL)
    graph = ChannelGraph(model.defs)
    keep = global_mask(graph, channel_scores("uniform", model, graph, Evidence()), POLICIES["normal"], 0.5, Limits()).keep
    scores, pool = gamma_scores(model, graph), candidates(graph, POLICIES["normal"])
    free = [graph.out[i] for i in graph.convolutions() if pool[graph.out[i]].all()]
    assert [len(ids) for ids in free] == [8, 6, 6]
    for ids in free:
        assert keep[ids].sum() == len(ids) // 2
        assert scores[ids][keep[ids]].min() > scores[ids][~keep[ids]].max()


def kernel(model, index: int) -> np.ndarray:
    return model.module_list[index].conv.weight.detach().double().numpy()


def test_fpgm_is_the_sum_of_distances_over_its_mean():
    model = network(RESIDUAL)
    graph = ChannelGraph(model.defs)
    filters = kernel(model, 2).reshape(6, -1)
    distances = np.array([sum(np.linalg.norm(a - b) for b in filters) for a in filters])
    np.testing.assert_allclose(channel_scores("fpgm", model, graph, Evidence())[graph.out[2]], distances / distances.mean())


def test_lamp_divides_by_all_that_are_not_smaller():
    model = network(RESIDUAL)
    graph = ChannelGraph(model.defs)
    norms = np.square(kernel(model, 2)).sum((1, 2, 3))
    expected = [n / norms[norms >= n].sum() for n in norms]
    found = channel_scores("lamp", model, graph, Evidence())[graph.out[2]]
    np.testing.assert_allclose(found, expected)
    assert found.max() == 1


def test_group_norm_counts_what_makes_and_what_reads_a_channel():
    model = network(RESIDUAL)
    graph = ChannelGraph(model.defs)
    made = np.square(kernel(model, 2)).sum((1, 2, 3))
    read = np.square(kernel(model, 3)).sum((0, 2, 3))
    gamma = model.module_list[2].BatchNorm2d.weight.detach().double().numpy()
    total = made + read + gamma**2
    np.testing.assert_allclose(channel_scores("group-norm", model, graph, Evidence())[graph.out[2]], total / total.mean())


def test_parts_of_several_batches():
    parts = np.array([[1.0, -3.0, 2.0, 5.0], [4.0, 1.0, 0.0, 5.0]])
    labels = np.array([0, 0, 1, -1])
    assert Parts(parts).scores(labels, 2).tolist() == [abs(1 - 3) + 4 + 1, 2]
    assert Parts(parts, power=2).scores(labels, 2).tolist() == [4 + 25, 4]


def boxes(count: int, size: int = 2) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.randint(0, 256, (size, 3, 64, 64), generator=generator, dtype=torch.uint8) for _ in range(count)]
    targets = torch.tensor([[k, k % 2, 0.5, 0.4, 0.2, 0.3] for k in range(size)])
    return [Batch(image, targets, []) for image in images]


def test_evidence_is_the_losses_gradients_and_leaves_the_network_as_it_is(monkeypatch):
    monkeypatch.setattr("utils.pruning.evidence.training_dtype", lambda device: None)
    model = network(RESIDUAL)
    graph, batches = ChannelGraph(model.defs), boxes(3)
    saved = {k: v.clone() for k, v in model.state_dict().items()}
    evidence = gather(model, graph, batches, lambda m: DetectionLoss(m, Hyp()), torch.device("cpu"), needs={"curvature"})
    assert evidence.pictures == 6
    assert all(torch.equal(v, saved[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    curvature, loss = np.zeros(len(graph.label)), DetectionLoss(model, Hyp())
    for row, batch in zip(evidence.terms, batches, strict=True):
        model.zero_grad()
        loss(model(batch.images / 255)[1], batch.targets, (64, 64))[0].backward()
        np.testing.assert_allclose(row, TaylorTerms(model, RawChannels(graph))().double().numpy(), rtol=1e-3, atol=1e-6)
        first = model.module_list[0]
        norm = first.BatchNorm2d
        squares = (first.conv.weight * first.conv.weight.grad).square().sum((1, 2, 3))
        squares += (norm.weight * norm.weight.grad).square() + (norm.bias * norm.bias.grad).square()
        curvature[graph.raw_out[0]] += squares.detach().numpy() / 3
    np.testing.assert_allclose(evidence.curvature[graph.raw_out[0]], curvature[graph.raw_out[0]], rtol=1e-3)
    halves = channel_scores("obd", model, graph, evidence)[graph.out[0]]
    np.testing.assert_allclose(halves, evidence.curvature[graph.raw_out[0]] / 2)
