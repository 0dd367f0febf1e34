"""Rounding, observers, FakeQuantize and settings, against hand-worked numbers and torch's own fake quantization."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from utils.core.errors import UserError
from utils.quantized.config import QuantizerConfig
from utils.quantized.fake_quantize import FakeQuantize
from utils.quantized.observers import MOMENTUM, OBSERVERS, rows_of, sample
from utils.quantized.rounding import onto_grid, power_of_two
from utils.quantized.settings import Settings

HALF = torch.tensor([0.5])


def test_rounds_half_to_even_and_limits():
    x = torch.tensor([0.25, 0.75, 1.25, -0.25, -0.75, 0.6, 9.0, -9.0])
    assert onto_grid(x, HALF, -3, 2).tolist() == [0.0, 1.0, 1.0, 0.0, -1.0, 0.5, 1.0, -1.5]


def test_gradient_passes_inside_and_stops_outside():
    x = torch.tensor([-2.0, -1.6, -1.0, 0.3, 1.0, 1.2, 1.3, 4.0], requires_grad=True)
    upstream = torch.arange(1.0, 9.0)
    for low, high in ((-3, 2), (torch.tensor([-3.0]), torch.tensor([2.0])), (torch.full((8,), -3.0), torch.full((8,), 2.0))):
        (gradient,) = torch.autograd.grad(onto_grid(x, HALF, low, high), x, upstream)
        # -1.5 and 1.0 are the ends of the grid; what rounds onto them is inside
        assert gradient.tolist() == [0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0, 0.0]


@pytest.mark.parametrize(("zero_point", "low", "high"), [(0, -128, 127), (57, 0, 255), (3, 0, 15)])
def test_is_torchs_fake_quantization_bit_for_bit(zero_point, low, high):
    x = torch.cat((torch.randn(20000) * 3, torch.arange(-300, 300) * 0.0365))
    scale = torch.tensor([0.073])
    mine = onto_grid(x, scale, low - zero_point, high - zero_point)
    assert torch.equal(mine, torch.fake_quantize_per_tensor_affine(x, scale.item(), zero_point, low, high))


def test_per_channel_is_torchs_too():
    x, scale = torch.randn(5, 4, 3, 3), torch.rand(5) * 0.1 + 0.01
    mine = onto_grid(x, scale.view(-1, 1, 1, 1), -7, 7)
    assert torch.equal(mine, torch.fake_quantize_per_channel_affine(x, scale, torch.zeros(5, dtype=torch.int32), 0, -7, 7))


def test_half_precisions_are_computed_in_float32():
    x = torch.linspace(-1, 1, 1001).bfloat16()
    found = onto_grid(x, torch.tensor([0.01]), -128, 127)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, onto_grid(x.float(), torch.tensor([0.01]), -128, 127).bfloat16())
    assert onto_grid(x.double(), torch.tensor([0.01]), -128, 127).dtype == torch.float64


def test_powers_of_two_are_exact():
    exponents = torch.arange(-126, 128)
    assert power_of_two(exponents).tolist() == [2.0**e for e in range(-126, 128)]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 16])
def test_grids_have_as_many_values_as_their_bits_say(bits):
    x = torch.linspace(-1, 1, 4 * 2**bits + 1)
    for config, count in (
        (QuantizerConfig(bits, symmetric=False, dynamic=True), 2**bits),
        (QuantizerConfig(bits, symmetric=True, narrow=True, dynamic=True), 2**bits - 1),
        (QuantizerConfig(bits, odd=True, dynamic=True), 2**bits),
    ):
        quantizer = FakeQuantize(config)
        values = quantizer(x if config.symmetric else x + 1).unique()
        assert len(values) == count
        steps = values.diff()
        assert torch.allclose(steps, steps[0].expand_as(steps), rtol=1e-2 if bits == 16 else 1e-4)
        if config.odd:
            assert 0.0 not in values.tolist()
            assert values[-1].item() == pytest.approx(1.0)
        else:
            assert 0.0 in values.tolist()


def test_odd_grid_is_formula_9_of_dorefa():
    """w_k = 2 * round((2^k - 1) * (w / (2 * max|w|) + 1/2)) / (2^k - 1) - 1, times max|w|; ties apart."""
    values = np.array([-0.83, -0.4, -0.11, 0.02, 0.3, 0.57, 0.83])
    for bits in (2, 3, 4):
        levels = 2**bits - 1
        wanted = (2 * np.round(levels * (values / (2 * 0.83) + 0.5)) / levels - 1) * 0.83
        quantizer = FakeQuantize(QuantizerConfig(bits, odd=True, dynamic=True))
        x = torch.tensor(values, dtype=torch.float32)
        np.testing.assert_allclose(quantizer(x).numpy(), wanted, atol=1e-6)
        integers, unit = quantizer.integers(x)
        assert set(integers.int().abs().tolist()) <= set(range(1, levels + 1, 2))  # odd, and within int8
        np.testing.assert_allclose((integers * unit).numpy(), wanted, atol=1e-6)


def test_scales_by_hand():
    low, high = torch.tensor([-1.0]), torch.tensor([3.0])
    scale, zero_point = QuantizerConfig(8, symmetric=False).qparams(low, high)
    assert (scale.item(), zero_point.item()) == (pytest.approx(4 / 255), 64)
    assert QuantizerConfig(8).qparams(low, high)[0].item() == pytest.approx(3 / 127)
    # the range is widened to hold 0
    scale, zero_point = QuantizerConfig(8, symmetric=False).qparams(torch.tensor([1.0]), high)
    assert (scale.item(), zero_point.item()) == (pytest.approx(3 / 255), 0)
    ends = torch.tensor([0.1, 0.9, 1.0, 1.4, 1.5, 100.0, 0.0])
    scales = QuantizerConfig(8, power_of_two=True).qparams(-ends, ends)[0]
    logs = torch.log2(scales)
    assert torch.equal(logs, logs.round())
    assert logs.tolist()[:6] == [round(math.log2(e / 127)) for e in ends.tolist()[:6]]
    assert logs[-1] == -24  # a tensor of zeros: an exponent that shifts can handle


def test_off_is_the_identity():
    x = torch.randn(50)
    for quantizer in (FakeQuantize(QuantizerConfig(32)), FakeQuantize(QuantizerConfig(8))):
        quantizer.enabled = quantizer.config.bits == 32
        assert quantizer(x) is x
    assert quantizer.observed == 1  # one that is switched off observes still
    quantizer.eval()(100 * x)
    assert quantizer.observed == 1
    assert quantizer.high == x.max()


def test_uncalibrated_says_so():
    quantizer = FakeQuantize(QuantizerConfig(8), "yolo.cfg:3: layer 0 [convolutional]: out_quant")
    quantizer.eval()
    assert quantizer(torch.ones(3)).isnan().all()
    with pytest.raises(UserError, match=r"yolo.cfg:3: layer 0 .*never observed.*PTQ.py"):
        quantizer.fix()


def test_fixing_changes_nothing():
    quantizer = FakeQuantize(QuantizerConfig(8, symmetric=False, observer="moving"))
    x = torch.randn(1000)
    quantizer(x)
    wanted = quantizer.eval()(x)
    quantizer.fix()
    assert torch.equal(quantizer(x), wanted)


def test_minmax_widens_and_moving_averages():
    first, second = torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 1.0])
    ranges = {}
    for name in ("minmax", "moving"):
        quantizer = FakeQuantize(QuantizerConfig(8, symmetric=False, observer=name))
        quantizer(first)
        assert (quantizer.low.item(), quantizer.high.item()) == (-1, 2)
        quantizer(second)
        ranges[name] = quantizer.low.item(), quantizer.high.item()
    assert ranges == {"minmax": (-3, 2), "moving": (-2, 1.5)}  # all tensors count the same at first
    quantizer.observed.fill_(10**6)
    quantizer(torch.tensor([-2.0, 101.5]))
    assert quantizer.high.item() == pytest.approx(1.5 + 100 * MOMENTUM)


def test_percentile_cuts_the_outermost_off():
    x = torch.cat((torch.linspace(-1, 1, 2**16 - 2), torch.tensor([1000.0, -1000.0])))[torch.randperm(2**16)]
    low, high = OBSERVERS["percentile"].measure(x[None], QuantizerConfig(8))
    np.testing.assert_allclose((low.item(), high.item()), np.percentile(x.numpy(), (0.01, 99.99)), rtol=1e-3)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_mse_finds_what_an_exhaustive_search_finds(bits):
    values = torch.randn(2**14) * torch.rand(2**14)
    config = QuantizerConfig(bits, observer="mse")
    found = config.qparams(*OBSERVERS["mse"].measure(values[None], config))[0].item()

    def error(limit: float) -> float:
        scale = limit / (2 ** (bits - 1) - 1)
        codes = np.clip(np.rint(values.numpy() / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return float(((codes * scale - values.numpy()) ** 2).mean())

    best = min(error(limit) for limit in np.linspace(0.05, 1, 200) * values.abs().max().item())
    limit = found * (2 ** (bits - 1) - 1)
    assert error(limit) <= 1.05 * best


def test_mse_finds_the_best_power_of_two():
    values = torch.cat((torch.randn(2**13), torch.tensor([9.0] * 2)))
    config = QuantizerConfig(4, power_of_two=True, observer="mse")
    scale = config.qparams(*OBSERVERS["mse"].measure(values[None], config))[0].item()

    def error(candidate: float) -> float:
        return float(((values / candidate).round().clamp(-8, 7) * candidate - values).square().mean())

    assert error(scale) == min(error(2.0**e) for e in range(-8, 4))


def test_a_sample_leaves_no_channel_out():
    x = torch.zeros(2, 64, 40, 40).to(memory_format=torch.channels_last)
    x[:, 17] = 1.0
    rows = rows_of(x, per_channel=False)
    assert rows.data_ptr() == x.data_ptr()  # not copied
    found = sample(rows, 2**14)
    assert found.numel() <= 2**14
    assert found.mean().item() == pytest.approx(1 / 64, rel=0.05)


def test_kernels_have_the_range_of_their_values():
    quantizer = FakeQuantize(QuantizerConfig(8, narrow=True, per_channel=True, dynamic=True))
    kernel = torch.randn(3, 4, 2, 2) * torch.tensor([1.0, 10.0, 0.1]).view(-1, 1, 1, 1)
    assert not quantizer.state_dict()
    wanted = kernel.abs().amax((1, 2, 3)) / 127
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.testing.assert_close(quantizer.qparams(kernel.to(memory_format=layout))[0], wanted)
    integers, scale = quantizer.integers(kernel)
    assert integers.abs().amax((1, 2, 3)).tolist() == [127, 127, 127]
    assert torch.equal(quantizer(kernel), integers * scale.view(-1, 1, 1, 1))


def test_a_searched_kernel_range_is_held_for_some_steps():
    quantizer = FakeQuantize(QuantizerConfig(4, narrow=True, observer="mse", dynamic=True))
    kernel = torch.randn(8, 4, 3, 3)
    before = quantizer.qparams(kernel)[0]
    assert quantizer.qparams(2 * kernel)[0] == before
    quantizer.train()  # an epoch begins
    assert quantizer.qparams(2 * kernel)[0] == 2 * before
    assert quantizer.eval().qparams(kernel)[0] == before


def test_settings_survive_a_checkpoint():
    settings = Settings(2, True, 4, 5, True, 2, "percentile")
    assert Settings.from_dict(settings.to_dict()) == settings
    assert all(type(v) in (int, bool, str) for v in settings.to_dict().values())
    assert Settings(1) == Settings(1, observer="mse") != Settings(1, a_bit=4)
    assert Settings.from_dict({"fpga": True}) == Settings(1, fpga=True, symmetric=True)
    assert Settings(1) != Settings(1, symmetric=True) == Settings.from_dict(Settings(1, symmetric=True).to_dict())
    assert Settings(1, fpga=True).shortcut_way == 1
    with pytest.raises(UserError, match="not known here .colour"):
        Settings.from_dict({"colour": 3})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a_bit": 9}, "--a-bit 9: can be 2, 3"),
        ({"w_bit": 1}, "--w-bit 1"),
        ({"strategy": 3}, "--quantized 3: can be 1, 2"),
        ({"fpga": True, "w_bit": 32}, "--w-bit 32: with --FPGA"),
        ({"observer": "eyes"}, "--observer eyes: can be minmax"),
        ({"shortcut_way": 3}, "--shortcut_way 3"),
    ],
)
def test_settings_that_cannot_be(values, message):
    with pytest.raises(UserError, match=message):
        Settings(**values)


def test_strategies_differ_in_their_configs_only():
    google, dorefa, fpga = Settings(1), Settings(2), Settings(1, fpga=True)
    assert google.kernel(False) == QuantizerConfig(8, narrow=True, per_channel=True, observer="minmax", dynamic=True)
    assert google.activation() == QuantizerConfig(8, symmetric=False, observer="moving")
    assert (dorefa.plan.transform, dorefa.plan.fold) == ("tanh", False)
    assert dorefa.kernel(False) == QuantizerConfig(8, narrow=True, dynamic=True)
    assert Settings(2, w_bit=4).kernel(False) == QuantizerConfig(4, narrow=True, dynamic=True, odd=True)
    assert dorefa.activation().observer == "percentile"
    for config in (fpga.kernel(False), fpga.activation(), fpga.image(), Settings(2, True, 4, 4).kernel(False)):
        assert config.power_of_two
        assert config.symmetric
        assert not config.per_channel
        assert not config.odd
    symmetric = Settings(1, observer="mse", symmetric=True)
    assert symmetric.kernel(False) == replace(google.kernel(False), observer="mse")
    assert (symmetric.activation(), symmetric.image()) == (QuantizerConfig(8, observer="mse"), QuantizerConfig(8))
    assert fpga.symmetric
    few = Settings(1, a_bit=4, w_bit=4)
    assert (few.kernel(False).bits, few.kernel(True).bits, few.activation().bits, few.image().bits) == (4, 8, 4, 8)
    assert few.kernel(False).observer == few.activation().observer == "mse"
    assert Settings(1, a_bit=32).image().bits == 32
