"""Quantized layers and networks: what they compute, against float networks and integer arithmetic by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F

from tests.tiny import NET, RESIDUAL, TOPOLOGIES, conv, head, network
from utils.core.errors import UserError
from utils.network.darknet import Darknet
from utils.network.definitions import Convolutional
from utils.quantized.fake_quantize import FakeQuantize
from utils.quantized.layers import QuantConv2d, QuantLayer
from utils.quantized.settings import Settings
from utils.quantized.transform import (
    SLOPE,
    freeze,
    freeze_epoch,
    grids,
    layer_quantizers,
    quantize,
    quantizers,
    requantize,
    switched,
)

CPU = torch.device("cpu")
KINDS = {"google": Settings(1), "dorefa": Settings(2), "fpga": Settings(1, fpga=True), "dorefa fpga": Settings(2, fpga=True)}
LEAKY = NET + conv(8, stride=2) + conv(12, groups=2) + conv(10, 1, bn=0) + head()


def images(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def quantized(cfg: str, settings: Settings) -> Darknet:
    """A network with random weights whose ranges were observed in float."""
    model = quantize(network(cfg), settings)
    with torch.no_grad(), switched(quantizers(model), False):
        for q in quantizers(model):
            q.train()
        model(images(8))
    return model.eval()


def convolutions(model: Darknet) -> list[QuantConv2d]:
    return [m for m in model.module_list if isinstance(m, QuantConv2d)]


@pytest.mark.parametrize("name", TOPOLOGIES)
@torch.no_grad()
def test_without_rounding_it_is_the_float_network(name):
    plain = network(TOPOLOGIES[name])
    wanted = plain(images())
    off = quantize(copy.deepcopy(plain), Settings(1, a_bit=32, w_bit=32))
    switched_off = quantize(copy.deepcopy(plain), Settings(2))
    with switched(quantizers(switched_off), False):
        for model in (off, switched_off):
            found = model(images())
            assert torch.equal(found[0], wanted[0])
            assert all(torch.equal(a, b) for a, b in zip(found[1], wanted[1], strict=True))
    torch.testing.assert_close(off.fuse()(images())[1], plain.fuse()(images())[1], rtol=0, atol=0)


@pytest.mark.parametrize("groups", [1, 2])
@torch.no_grad()
def test_the_folded_convolution_is_convolution_and_normalisation(groups):
    """16 bits: what is left of the rounding is below 1e-3 of a kernel's values."""
    cfg = NET + conv(8, stride=2) + conv(12, groups=groups) + head()
    plain = network(cfg)
    layer = quantize(copy.deepcopy(plain), Settings(1, a_bit=32, w_bit=16)).module_list[1]
    x = torch.randn(2, 8, 32, 32)
    torch.testing.assert_close(
        layer.eval().convolve(x), plain.module_list[1].BatchNorm2d(plain.module_list[1].conv(x)), atol=5e-3, rtol=0
    )
    layer.weight_quant.enabled = False
    wanted = layer.convolve(x)
    layer.fuse()
    torch.testing.assert_close(layer.conv(x), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", [*KINDS.values(), Settings(2, w_bit=4), Settings(1, w_bit=3)], ids=str)
@torch.no_grad()
def test_inference_copies_give_the_same_numbers(settings):
    model = quantized(LEAKY, settings)
    wanted = model(images())[0]
    state = copy.deepcopy(model.state_dict())
    copied = model.inference_copy(CPU)
    assert torch.equal(copied(images())[0], wanted)
    assert copied.dtype == torch.float32
    for layer, before in zip(convolutions(copied), convolutions(model), strict=True):
        stored, computed = layer.deployed(), before.deployed()
        assert torch.equal(stored.kernel, computed.kernel)
        assert stored.kernel.abs().max() <= 127
        assert torch.equal(stored.bias, computed.bias)
        assert torch.equal(stored.kernel * stored.scale.view(-1, 1, 1, 1), layer.conv.weight)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))  # eval: no change
    with pytest.raises(UserError, match="--precision bf16: a quantized network computes in fp32"):
        model.inference_copy(CPU, "bf16")


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_frozen_training_computes_what_eval_computes(settings):
    model = quantized(LEAKY, settings)
    freeze(model.train())
    with torch.no_grad():
        trained = model(images())
        ranges = [q.high.item() for q in quantizers(model) if not q.config.dynamic]
        evaluated = model.eval()(images())[1]
    assert ranges == [q.high.item() for q in quantizers(model) if not q.config.dynamic]
    for a, b in zip(trained, evaluated, strict=True):
        assert (a - b).norm() < 0.02 * b.norm()  # a value between two steps may fall to either side


def test_training_normalises_by_the_batch_until_the_freeze():
    model = quantized(LEAKY, Settings(1)).train()
    layer = convolutions(model)[1]
    x = torch.randn(4, 8, 16, 16)
    y = layer.BatchNorm2d(layer.conv._conv_forward(x, layer._training_kernel(), None))
    before = layer.BatchNorm2d.running_mean.clone()
    torch.testing.assert_close(layer.convolve(x), y)
    torch.testing.assert_close(y.mean((0, 2, 3)), layer.BatchNorm2d.bias, atol=1e-4, rtol=1e-4)
    assert not torch.equal(before, layer.BatchNorm2d.running_mean)
    freeze(model)
    before = layer.BatchNorm2d.running_mean.clone()
    assert (layer.convolve(x).mean((0, 2, 3)) - layer.BatchNorm2d.bias).abs().max() > 0.05
    assert torch.equal(before, layer.BatchNorm2d.running_mean)
    assert layer.training
    assert [freeze_epoch(n) for n in (4, 5, 10, 60)] == [5, 5, 9, 49]


@torch.no_grad()
def test_google_kernels_have_a_scale_a_filter():
    layer = convolutions(quantized(LEAKY, Settings(1)))[1]
    factor = layer.BatchNorm2d.weight / (layer.BatchNorm2d.running_var + 1e-5).sqrt()
    folded = layer.conv.weight * factor.view(-1, 1, 1, 1)
    found = layer.deployed()
    torch.testing.assert_close(found.scale, folded.abs().amax((1, 2, 3)) / 127)
    assert (found.kernel * found.scale.view(-1, 1, 1, 1) - folded).abs().max() <= 0.51 * found.scale.max()


@torch.no_grad()
def test_dorefa_kernels_are_uniform_integers_times_one_scale():
    """Formula (9) before the folding: with k = 8 in 255 steps around 0, with fewer bits the paper's odd multiples."""
    for bits in (8, 4):
        layer = convolutions(quantized(LEAKY, Settings(2, w_bit=bits)))[1]
        squashed = torch.tanh(layer.conv.weight)
        largest, levels = squashed.abs().max(), 2**bits - 1
        if bits == 8:
            wanted = (squashed / largest * 127).round() / 127
        else:
            wanted = 2 * ((squashed / (2 * largest) + 0.5) * levels).round() / levels - 1
        torch.testing.assert_close(layer.train()._training_kernel(), wanted * largest, atol=1e-6, rtol=1e-5)
        found = layer.eval().deployed()
        factor = layer.BatchNorm2d.weight / (layer.BatchNorm2d.running_var + 1e-5).sqrt()
        torch.testing.assert_close(found.kernel * found.scale.view(-1, 1, 1, 1), wanted * largest * factor.view(-1, 1, 1, 1))
        torch.testing.assert_close(found.scale / factor.abs(), (found.scale / factor.abs())[:1].expand(12))
        assert found.kernel.abs().max() == (127 if bits == 8 else 15)
        assert bits == 8 or set(found.kernel.abs().unique().tolist()) <= {1, 3, 5, 7, 9, 11, 13, 15}


@pytest.mark.parametrize(
    "settings", [Settings(1, fpga=True), Settings(2, True, 4, 4), Settings(1, True, 8, 8, False, 2)], ids=str
)
@torch.no_grad()
def test_fpga_is_integers_and_powers_of_two(settings):
    model = quantized(RESIDUAL, settings)
    for q in quantizers(model):
        if not q.config.dynamic:
            assert q.qparams()[0].item() == 2.0**-q.exponent
    maps: dict[int, torch.Tensor] = {}
    for i, module in enumerate(model.module_list):
        module.register_forward_hook(lambda m, x, out, i=i: maps.__setitem__(i, out))
    model(images())
    found = grids(model)
    for i, module in enumerate(model.module_list):
        if isinstance(module, QuantLayer):
            steps = maps[i] * 2.0 ** found[i].exponent
            assert torch.equal(steps, steps.round())
            assert found[i].quant_min <= steps.min()
            assert steps.max() <= found[i].quant_max
    for layer in convolutions(model):
        deployed = layer.deployed()
        assert torch.log2(deployed.scale).frac().item() == 0
        bias = deployed.bias.double() * 2.0 ** layer.reads[0].exponent / deployed.scale.double()
        assert torch.equal(bias, bias.round())


@torch.no_grad()
def test_fpga_convolution_by_integers():
    """One convolution with leaky in int64, as QUANT says: sums, * 128 or * 13, shift by rounding half to even, limits."""
    model = quantized(LEAKY, Settings(1, fpga=True))
    layer = convolutions(model)[1]
    given, out = layer.reads[0], layer.out_quant
    x = torch.randint(given.quant_min, given.quant_max + 1, (1, 8, 9, 9))
    deployed = layer.deployed()
    exponent = given.exponent - int(torch.log2(deployed.scale))
    sums = F.conv2d(x.double(), deployed.kernel.double(), (deployed.bias.double() * 2.0**exponent), padding=1, groups=2).long()
    values = torch.where(sums >= 0, sums * 128, sums * 13)
    shift = exponent + 7 - out.exponent
    assert shift > 0
    whole, rest, half = values >> shift, values & ((1 << shift) - 1), 1 << (shift - 1)
    wanted = whole + ((rest > half) | ((rest == half) & (whole % 2 == 1))).long()
    found = layer(x * 2.0**-given.exponent) * 2.0**out.exponent
    assert torch.equal(found.long(), wanted.clamp(out.quant_min, out.quant_max))
    assert pytest.approx(13 / 128) == SLOPE


@torch.no_grad()
def test_a_faint_kernel_leaves_room_for_its_bias():
    model = quantized(LEAKY, Settings(1, fpga=True))
    layer = convolutions(model)[1]
    layer.BatchNorm2d.weight.mul_(1e-9)
    deployed = layer.deployed()
    steps = deployed.bias.double() * 2.0 ** layer.reads[0].exponent / deployed.scale.double()
    assert steps.abs().max() < 2**31
    torch.testing.assert_close(deployed.bias, layer.BatchNorm2d.bias, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_gammas_of_zero_do_no_harm(settings):
    model = quantized(LEAKY, settings)
    with torch.no_grad():
        convolutions(model)[1].BatchNorm2d.weight[:4] = 0
    outputs = model.train()(images())
    sum(o.square().mean() for o in outputs).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        assert model.eval()(images())[0].isfinite().all()


@torch.no_grad()
def test_shortcut_ways_share_the_smaller_or_the_larger_scale():
    for way in (0, 1, 2):
        model = quantized(RESIDUAL, Settings(1, shortcut_way=way))
        index, layer = next((i, m) for i, m in enumerate(model.module_list) if type(m).__name__ == "QuantShortcut")
        layer.out_quant.enabled = False
        scales = [q.qparams()[0] for q in layer.reads]
        assert scales[0] != scales[1]
        maps = [torch.randint(-90, 90, (1, 12, 4, 4)) * s for s in scales]
        found = layer(*maps)
        if way:
            shared = (min if way == 1 else max)(scales)
            wanted = sum((m / shared).round() * shared for m in maps)
            torch.testing.assert_close(found, wanted)
        assert torch.equal(found, sum(maps)) == (way == 0)
        assert grids(model)[index] is layer.out_quant
    exact = quantized(RESIDUAL, Settings(1, fpga=True))
    layer = next(m for m in exact.module_list if type(m).__name__ == "QuantShortcut")
    layer.out_quant.enabled = False
    maps = [torch.randint(-90, 90, (1, 12, 4, 4)) * q.qparams()[0] for q in layer.reads]
    assert torch.equal(layer(*maps), sum(maps))  # powers of two: every multiple of the larger is one of the smaller


def test_quantizers_sit_where_an_integer_network_rounds():
    model = quantized(TOPOLOGIES["spp"], Settings(1))
    counts = {i: len(q) for i, q in layer_quantizers(model).items()}
    defs = model.defs
    for i, d in enumerate(defs):
        several = d.kind == "route" and len(defs.sources(i)) > 1
        expected = {"convolutional": 3, "route": 1 if several else 0}.get(d.kind, 0)
        feeds_yolo = i in {s for s, _ in model.head_convolutions()}
        assert counts.get(i, 0) == (2 if feeds_yolo else expected)  # kernel, before leaky, behind it; before [yolo] one only
        if feeds_yolo:
            assert model.module_list[i].out_quant is None
            assert model.module_list[i].pre_quant.config.bits == 16
    found = grids(model)
    assert found[2] is found[1]  # maxpool
    assert isinstance(model.input_quantizer, FakeQuantize)
    linear = quantized(NET + conv(8, stride=2, activation="relu") + conv(8, activation="mish") + head(), Settings(1))
    assert [m.pre_quant is None for m in convolutions(linear)] == [True, False, False]
    integer = quantized(
        NET + conv(8, stride=2, activation="leaky") + conv(8, activation="mish") + head(), Settings(1, fpga=True)
    )
    assert [m.pre_quant is None for m in convolutions(integer)] == [True, False, False]


def test_first_and_last_can_keep_8_bits():
    model = quantize(network(TOPOLOGIES["spp"]), Settings(1, a_bit=4, w_bit=4, keep_first_last=True))
    heads = {s for s, _ in model.head_convolutions()}
    read = {grids(model)[model.sources[i][0]] for i in heads}
    first = next(i for i, d in enumerate(model.defs) if isinstance(d, Convolutional))
    for i, layer in enumerate(model.module_list):
        if isinstance(layer, QuantConv2d):
            assert layer.weight_quant.config.bits == (8 if i in {first, *heads} else 4)
            if layer.out_quant:
                assert layer.out_quant.config.bits == (8 if layer.out_quant in read else 4)
    without = quantize(network(TOPOLOGIES["spp"]), Settings(1, a_bit=4, w_bit=4))
    assert {m.weight_quant.config.bits for m in convolutions(without)} == {4}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (conv(8, antialiasing=1, stride=2), r"layer 0 \[convolutional\]: --FPGA: antialiasing=1"),
        (conv(8, activation="normalize_channels"), r"layer 0 .*activation=normalize_channels"),
        (conv(8) + "[local_avgpool]\nsize=2\nstride=2\n", r"layer 1 \[local_avgpool\]"),
        (conv(8) + "[batchnorm]\n", r"layer 1 \[batchnorm\]"),
        (conv(8, stride=2) + "[upsample]\nstride=2\nscale=0.3\n", r"layer 1 \[upsample\].*scale=0.3"),
        (conv(8) + conv(8) + "[shortcut]\nfrom=-2\nweights_type=per_feature\n", r"layer 2 \[shortcut\].*weights_type"),
    ],
)
def test_fpga_refuses_by_name_what_integers_cannot_compute(layers, message):
    model = network(NET + layers + head())
    with pytest.raises(UserError, match=message):
        quantize(model, Settings(1, fpga=True))
    assert model.quantization is None
    assert not quantizers(model)
    outputs = quantize(model, Settings(1)).train()(images())  # without --FPGA it goes
    sum(o.square().mean() for o in outputs).backward()


def test_quantized_twice_is_one_clear_line():
    model = quantized(LEAKY, Settings(1))
    with pytest.raises(UserError, match=r"x.pt: is quantized already: Google .*8-bit maps; .* DoReFa"):
        requantize(model, Settings(2), "x.pt")
    again = requantize(model, Settings(1, observer="mse"))
    assert again.module_list[0].out_quant.config.observer == "mse"
    with torch.no_grad():
        assert torch.equal(again.eval()(images())[0], model(images())[0])


@torch.no_grad()
def test_exporters_see_fake_quantization():
    """Tracing gives torch's own nodes with constants, and the same numbers."""
    copied = quantized(LEAKY, Settings(1)).inference_copy(CPU)
    wanted = copied(images())[0]
    program = torch.export.export(copied, (images(),))
    names = [str(node.target) for node in program.graph.nodes if "fake_quantize" in str(node.target)]
    assert sum("per_channel" in n for n in names) == 4  # kernels
    assert sum("per_tensor" in n for n in names) == 8  # the image, and two for each convolution but one for the last
    torch.testing.assert_close(program.module()(images())[0], wanted, atol=1e-4, rtol=1e-4)
