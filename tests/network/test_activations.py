"""Activations that don't come from torch.nn as they are."""

import pytest
import torch
import torch.nn.functional as F

from utils.network import activations
from utils.network.activations import Mish


@pytest.fixture
def values() -> torch.Tensor:
    """Every magnitude that matters, the ones where exponentials overflow included."""
    return torch.cat([torch.linspace(-30, 30, 2001), torch.tensor([-1e4, -100.0, 88.0, 100.0, 1e4])]).bfloat16()


def test_mish_in_bfloat16_is_the_exact_value_rounded(values: torch.Tensor) -> None:
    found, exact = Mish()(values).double(), F.mish(values.double())
    assert found.isfinite().all()
    assert ((found - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()


def test_gradient_of_mish_in_bfloat16(values: torch.Tensor) -> None:
    narrow, wide = values.clone().requires_grad_(), values.double().requires_grad_()
    Mish()(narrow).backward(torch.full_like(values, 3.0))
    F.mish(wide).backward(torch.full_like(wide, 3.0))
    assert ((narrow.grad.double() - wide.grad).abs() <= wide.grad.abs() * 2**-8 + 1e-6).all()


def test_mish_in_float32_is_torchs() -> None:
    x = torch.linspace(-5, 5, 101)
    assert torch.equal(Mish()(x), F.mish(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_mish_in_bfloat16_goes_by_chunks_in_any_order_of_memory(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x, gradient = torch.randn(2, 5, 7, 3).bfloat16(), torch.randn(2, 5, 7, 3).bfloat16()
    whole, parts = x.clone().requires_grad_(), x.to(memory_format=layout).requires_grad_()
    wanted = Mish()(whole)
    wanted.backward(gradient)
    monkeypatch.setattr(activations, "CHUNK", 64)
    found = Mish()(parts)
    found.backward(gradient)
    assert torch.equal(found, wanted)
    assert torch.equal(parts.grad, whole.grad)
    assert found.is_contiguous(memory_format=layout)


def test_relu6_in_place_learns_as_torchs() -> None:
    x = torch.tensor([-1.0, 0.0, 1.0, 6.0, 7.0], requires_grad=True)
    activations.activation("relu6")(x * 1).sum().backward()
    assert x.grad.tolist() == [0, 0, 1, 0, 0]
