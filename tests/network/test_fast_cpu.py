"""The layers that inference on a CPU swaps in, against PyTorch's public operators."""

import pytest
import torch
import torch.nn.functional as F

from tests.tiny import TOPOLOGIES, network
from utils.network import definitions
from utils.network import fast_cpu as cpu_inference
from utils.network.activations import ACTIVATIONS
from utils.network.fast_cpu import FUSED, PackedConvolution, PairwiseMaxPool, packs
from utils.network.layers import Convolution, MaxPool

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", sorted(TOPOLOGIES))
@torch.inference_mode()
def test_a_copy_computes_what_the_network_computes(name: str) -> None:
    model = network(TOPOLOGIES[name]).eval()
    copied = model.inference_copy(CPU, "fp32")
    for batch, rows, columns in ((1, 64, 64), (3, 96, 64)):
        image = torch.rand(batch, model.defs.net.channels, rows, columns)
        wanted, found = model(image)[0], copied(image.to(memory_format=torch.channels_last))[0]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


def layer(activation: str, **options: int) -> Convolution:
    torch.manual_seed(0)
    d = definitions.Convolutional(filters=6, size=3, stride=1, pad=1, batch_normalize=0, activation=activation, **options)
    module = Convolution(d, 4).eval().requires_grad_(False)
    module.conv.bias.normal_()
    return module


@pytest.mark.skipif(not packs(torch.float32), reason="this PyTorch has no fused operator")
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_packed_convolutions_apply_every_activation(activation: str) -> None:
    module, x = layer(activation), 3 * torch.randn(2, 4, 11, 7)
    packed = PackedConvolution(module, [1, 4, 32, 32])
    assert (packed.fused[0] != "none") == (type(module.activation) in FUSED and activation != "linear")
    torch.testing.assert_close(packed(x.clone()), module(x.clone()), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not packs(torch.float32), reason="this PyTorch has no fused operator")
@pytest.mark.parametrize("options", [{"groups": 2}, {"stride": 2}, {"dilation": 2}])
def test_packed_convolutions_keep_their_geometry(options: dict[str, int]) -> None:
    torch.manual_seed(1)
    d = definitions.Convolutional(**{"filters": 6, "size": 3, "stride": 1, "pad": 1, "activation": "leaky"} | options)
    module, x = Convolution(d, 4).eval().requires_grad_(False), torch.randn(2, 4, 12, 10)
    torch.testing.assert_close(PackedConvolution(module, [2, 4, 12, 10])(x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "stride", "rows", "columns"), [(2, 2, 12, 8), (2, 2, 11, 7), (2, 1, 8, 8), (3, 2, 9, 9), (5, 1, 8, 8)]
)
def test_pairwise_pooling_equals_max_pooling(size: int, stride: int, rows: int, columns: int) -> None:
    module = MaxPool(definitions.MaxPool(size=size, stride=stride))
    x = torch.randn(2, 5, rows, columns).to(memory_format=torch.channels_last)
    found = PairwiseMaxPool(module)(x)
    assert torch.equal(found, module(x))
    if (size, stride, rows % 2) == (2, 2, 0):
        assert torch.equal(found, F.max_pool2d(x, 2))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_without_the_operator_layers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(TOPOLOGIES["residual"]).eval()
    image = torch.rand(1, 3, 64, 64)
    kinds = {type(m) for m in model.inference_copy(CPU, "fp32").module_list}
    assert PackedConvolution in kinds or not packs(torch.float32)
    monkeypatch.setattr(cpu_inference, "packs", lambda dtype: False)
    copied = model.inference_copy(CPU, "fp32")
    assert PackedConvolution not in {type(m) for m in copied.module_list}
    torch.testing.assert_close(copied(image)[0], model(image)[0], rtol=1e-4, atol=1e-3)


def test_an_operator_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_inference.packs.cache_clear()
    monkeypatch.setattr(F, "leaky_relu", lambda x, slope: x)  # as if the fused one computed another function
    assert not packs(torch.float32)
    cpu_inference.packs.cache_clear()
