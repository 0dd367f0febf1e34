"""Branches and what they fold into, against the network with branches itself, OpenCV and formulas."""

import copy

import pytest
import torch
from torch import nn

from tests.network.test_darknet import assert_equals_opencv
from tests.tiny import CSP, NET, RESIDUAL, TOPOLOGIES, conv, head, randomise
from utils.core.errors import UserError
from utils.network import branches
from utils.network.branches import FORMS, BranchedConvolution, branch, folded
from utils.network.darknet import Darknet

KEYS = "batch_normalize=1\nsize=3\nactivation=leaky\n"
DEPTHWISE = f"[depthwise]\n{KEYS}filters=8\npad=1\n"
# What reads 8 channels, and which branches `repvgg` gives it: a 1x1 convolution (p), the identity (i).
LAYERS = {
    "dense": (conv(8), "pi"),
    "wider": (conv(12), "p"),
    "stride 2": (conv(8, stride=2), "p"),
    "one stride": (conv(8, stride_x=2), "p"),
    "dilated": (conv(8, dilation=2), "pi"),
    "cropped": (f"[convolutional]\n{KEYS}filters=8\n", "pi"),
    "wide border": (f"[convolutional]\n{KEYS}filters=8\npadding=3\n", "pi"),
    "blurred": (conv(8, stride=2, antialiasing=1), "pi"),
    "grouped": (conv(8, groups=4), "pi"),
    "grouped, wider": (conv(16, groups=4), "p"),
    "grouped, stride 2": (conv(8, stride=2, groups=2), "p"),
    "depthwise": (conv(8, groups=8), "i"),
    "depthwise, stride 2": (conv(8, stride=2, groups=8), "i"),
    "depthwise, two a channel": (conv(16, groups=8), "p"),
    "[depthwise]": (DEPTHWISE, "i"),
    "[depthwise], stride 2": (DEPTHWISE + "stride=2\n", "i"),
}
both = pytest.mark.parametrize("form", FORMS)


def branched(cfg: str, form: str) -> Darknet:
    """A network with branches, and random weights and statistics in all of them."""
    torch.manual_seed(0)
    model = Darknet(cfg, 64)
    branch(model, form, trained=False)
    randomise(model)
    for module in model.modules():
        if isinstance(module, branches.Spread):
            module.variance.uniform_(0.1, 2)
    return model


def assert_same(found: Darknet, wanted: Darknet, tolerance: float) -> None:
    """Of the raw maps, in eval mode and float32."""
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(found.eval()(x)[1], wanted.eval()(x)[1], strict=True):
            assert b.std() > 0.1
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@both
@pytest.mark.parametrize("name", LAYERS)
def test_a_folded_layer_is_the_sum_of_its_branches(name, form):
    text, kinds = LAYERS[name]
    model = branched(NET + conv(8, 1) + text + head(), form)
    layer = model.module_list[1]
    if form == "repvgg":
        assert (layer.point is not None, layer.identity_norm is not None) == ("p" in kinds, "i" in kinds)
    whole = folded(model)
    plain = Darknet(model.defs, 64)
    assert [(n, t.shape) for n, t in whole.state_dict().items()] == [(n, t.shape) for n, t in plain.state_dict().items()]
    assert_same(whole, model, 1e-5)
    assert isinstance(model.module_list[1], BranchedConvolution)  # folding leaves the network that trains alone


@both
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_folded_networks_are_the_same_function(name, form):
    model = branched(TOPOLOGIES[name], form)
    assert_same(folded(model), model, 1e-5)


@both
@pytest.mark.parametrize("cfg", [RESIDUAL, CSP], ids=["residual", "csp"])
def test_opencv_reads_the_folded_weights(cfg, form, tmp_path):
    (tmp_path / "net.cfg").write_text(cfg)
    assert_equals_opencv(folded(branched(cfg, form)), tmp_path / "net.cfg", tmp_path, 64, 64)


@both
def test_the_folded_statistics_are_those_of_what_the_new_kernel_computes(form, monkeypatch):
    """So that training goes on from the folded network as it was, and gamma says how far a channel spreads."""
    monkeypatch.setattr(branches, "BN_MOMENTUM", 1.0)
    model = branched(NET + conv(8) + conv(8) + head(), form)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    x = torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        wanted = model.train()(x)
        whole = folded(model).train()
        layer = whole.module_list[0]
        y = layer.conv(x)
        norm = copy.deepcopy(layer.BatchNorm2d)
        found = whole(x)
    torch.testing.assert_close(norm.running_mean, y.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, y.var((0, 2, 3)), rtol=1e-4, atol=1e-6)
    if form == "repvgg":
        torch.testing.assert_close(norm.weight, (y.var((0, 2, 3)) + 1e-5).sqrt(), rtol=1e-4, atol=1e-6)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@both
@pytest.mark.parametrize("name", LAYERS)
def test_a_trained_network_stays_the_function_that_it_is_and_its_branches_learn(name, form):
    torch.manual_seed(0)
    plain = randomise(Darknet(NET + conv(8, 1) + LAYERS[name][0] + head(), 64))
    model = copy.deepcopy(plain)
    assert branch(model, form, trained=True) == [1]
    assert_same(model, plain, 1e-5)
    assert_same(folded(model), plain, 1e-5)
    x = torch.rand(2, 3, 64, 64)
    found, wanted = model.train()(x), plain.train()(x)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-4)
    found[0].square().sum().backward()
    layer = model.module_list[1]
    learners = [layer.point_norm.weight if form == "repvgg" else layer.point.weight] if layer.point is not None else []
    learners += [layer.identity_norm.weight] if form == "repvgg" and layer.identity_norm is not None else []
    assert learners
    assert all(p.grad.abs().max() > 1e-3 for p in learners)


def test_gammas_of_a_trained_network_keep_their_size():
    torch.manual_seed(0)
    plain = randomise(Darknet(RESIDUAL, 64))
    model = copy.deepcopy(plain)
    for i in branch(model, "repvgg", trained=True):
        gamma = plain.module_list[i].BatchNorm2d.weight.abs()
        torch.testing.assert_close(folded(model).module_list[i].BatchNorm2d.weight, gamma, rtol=1e-3, atol=1e-5)


def test_what_has_branches():
    """3x3 convolutions with batch normalisation, but for those that feed heads."""
    predicts = head().replace("filters=14\nsize=1", "batch_normalize=1\nfilters=14\nsize=3")
    model = Darknet(NET + conv(8) + conv(8, 1) + conv(8, 5) + conv(8, bn=0) + conv(8) + predicts, 64)
    assert branch(model, "repvgg", trained=False) == [0, 4]


def test_a_network_without_3x3_convolutions_is_refused():
    with pytest.raises(UserError, match="has no 3x3 convolution with batch normalisation"):
        branch(Darknet(NET + conv(8, 1) + conv(8, bn=0) + head(), 64), "repvgg", trained=False)


def test_a_plain_network_is_folded_already():
    model = Darknet(RESIDUAL, 64)
    assert folded(model) is model
