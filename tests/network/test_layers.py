"""Every kind of layer by itself: against Darknet's index arithmetic written out, OpenCV, or numbers worked by hand."""

import itertools
import math
import struct

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.network.test_darknet import assert_equals_opencv
from tests.tiny import NET, conv, head, network
from utils.core.errors import UserError
from utils.network import definitions, layers
from utils.network.activations import ACTIVATIONS, activation
from utils.network.cfg import parse_cfg, write_cfg
from utils.network.darknet import Darknet
from utils.network.shapes import output_shapes
from utils.network.weights import darknet_tensors, load_weights, save_weights
from utils.pruning.graph import ChannelGraph


def last_map(text: str, *maps: torch.Tensor) -> torch.Tensor:
    """What the last layer of a cfg makes of the maps that it reads; its size must be the one that utils.network.shapes
    foretells."""
    defs = parse_cfg(text)
    out = layers.build_layer(defs, len(defs) - 1, maps[0].shape[1])(*maps)
    shapes = output_shapes(defs, *maps[0].shape[-2:]) if len(defs) == 1 else None
    assert shapes is None or tuple(out.shape[1:]) == shapes[-1]
    return out


def net(channels: int) -> str:
    return NET.replace("channels=3", f"channels={channels}")


def windows(x: torch.Tensor, size: int, strides: tuple[int, int], padding: int) -> list[list[torch.Tensor]]:
    """The part of each window that lies in the map (channels, h, w), as Darknet places windows: half of the padding before."""
    _, h, w = x.shape
    rows, columns = ((n + padding - size) // s + 1 for n, s in ((h, strides[0]), (w, strides[1])))
    cut = []
    for i, j in itertools.product(range(rows), range(columns)):
        top, left = i * strides[0] - padding // 2, j * strides[1] - padding // 2
        cut.append(x[:, max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)])
    return [cut[r * columns : (r + 1) * columns] for r in range(rows)]


POOLS = [
    (size, stride, padding)
    for size, stride, padding in itertools.product((1, 2, 3, 5), (1, 2, 3), (None, 0, 1, 2))
    if (padding or 0) < size
]


@pytest.mark.parametrize("kind", ["maxpool", "local_avgpool"])
@pytest.mark.parametrize(("size", "stride", "padding"), POOLS)
def test_pools_of_every_padding(kind, size, stride, padding):
    x = torch.randn(1, 2, 7, 10)
    text = net(2) + f"[{kind}]\nsize={size}\nstride={stride}\n" + ("" if padding is None else f"padding={padding}\n")
    cut = windows(x[0], size, (stride, stride), size - 1 if padding is None else padding)
    reduce = (lambda v: v.amax((1, 2))) if kind == "maxpool" else (lambda v: v.mean((1, 2)))
    expected = torch.stack([torch.stack([reduce(v) for v in row], 1) for row in cut], 1)
    torch.testing.assert_close(last_map(text, x)[0], expected)


@pytest.mark.parametrize("kind", ["maxpool", "local_avgpool"])
def test_pools_of_unequal_strides_and_default_size(kind):
    x = torch.rand(1, 1, 8, 9)
    out = last_map(net(1) + f"[{kind}]\nsize=3\nstride=3\nstride_x=2\nstride_y=1\n", x)
    assert out.shape == (1, 1, 8, 5)
    cut = windows(x[0], 3, (1, 2), 2)[4][2]
    assert out[0, 0, 4, 2] == (cut.max() if kind == "maxpool" else cut.mean())
    assert last_map(net(1) + f"[{kind}]\nstride=2\n", x).shape == (1, 1, 4, 5)  # size is the stride


def convolved(x: torch.Tensor, **options: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(output, kernel) of a linear convolution with these cfg options, without its bias."""
    text = (
        net(x.shape[1]) + "[convolutional]\nactivation=linear\nfilters=2\n" + "".join(f"{k}={v}\n" for k, v in options.items())
    )
    defs = parse_cfg(text)
    layer = layers.build_layer(defs, 0, x.shape[1])
    layer.conv.bias.data.zero_()
    out = layer(x).detach()
    assert tuple(out.shape[1:]) == output_shapes(defs, *x.shape[-2:])[0]
    return out, layer.conv.weight.detach()


@pytest.mark.parametrize(("padding", "dilation"), [({"pad": 1}, 1), ({"pad": 1}, 2), ({"pad": 1}, 4), ({"padding": 1}, 2),
                                                   ({"padding": 1, "pad": 1}, 3)])  # fmt: skip
def test_dilation_spreads_kernel_and_padding(padding, dilation):
    """Darknet's im2col: tap (r, c) reads row i - pad * dilation + r * dilation; the map keeps its size."""
    x = torch.randn(1, 1, 9, 8)
    out, kernel = convolved(x, size=3, dilation=dilation, **padding)
    expected = torch.zeros(2, 9, 8)
    for i, j, r, c in itertools.product(range(9), range(8), range(3), range(3)):
        row, column = i + (r - 1) * dilation, j + (c - 1) * dilation
        if 0 <= row < 9 and 0 <= column < 8:
            expected[:, i, j] += kernel[:, 0, r, c] * x[0, 0, row, column]
    torch.testing.assert_close(out[0], expected, rtol=1e-5, atol=1e-5)


def test_strides_of_a_convolution():
    x = torch.randn(1, 3, 8, 8)
    out, kernel = convolved(x, size=3, pad=1, stride=4, stride_x=1, stride_y=2)
    torch.testing.assert_close(out, F.conv2d(x, kernel, stride=(2, 1), padding=1))
    out, kernel = convolved(x, size=3, padding=0, stride=2, stride_x=1)
    torch.testing.assert_close(out, F.conv2d(x, kernel, stride=(2, 1)))


@pytest.mark.parametrize(("blur", "taps"), [(1, [0.25, 0.5, 0.25]), (2, [0.5, 0.5])])
def test_antialiasing_blurs_single_steps(blur, taps):
    x = torch.randn(1, 2, 8, 9)
    sharp = last_map(net(2) + "[maxpool]\nsize=3\nstride=1\n", x)
    out = last_map(net(2) + f"[maxpool]\nsize=3\nstride=2\nantialiasing={blur}\n", x)
    start = 2 - (blur == 1)  # the window of output row 1 begins there
    corner = sharp[0, :, start : start + len(taps), start : start + len(taps)]
    weights = torch.outer(torch.tensor(taps), torch.tensor(taps))
    torch.testing.assert_close(out[0, :, 1, 1], (corner * weights).sum((1, 2)))
    assert out.shape[-2:] == ((4, 5) if blur == 1 else (4, 4))
    steps, kernel = convolved(x, size=3, pad=1, stride=2, antialiasing=blur)
    sharp = F.conv2d(x, kernel, padding=1)[0, :, start : start + len(taps), start : start + len(taps)]
    torch.testing.assert_close(steps[0, :, 1, 1], (sharp * weights).sum((1, 2)))


def test_batchnorm_alone_and_its_place_in_the_file(tmp_path):
    """Biases, scales, means, variances, as Darknet writes them."""
    model = Darknet(net(2) + "[batchnorm]\n" + conv(1, 1, bn=0), 64).eval()
    biases, scales, means, variances = [1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]
    values = [*biases, *scales, *means, *variances, 0.5, 1.0, 1.0]
    (tmp_path / "a.weights").write_bytes(struct.pack("<3iq", 0, 2, 5, 0) + np.array(values, "<f4").tobytes())
    load_weights(model, tmp_path / "a.weights", prefix=False)
    x = torch.rand(1, 2, 3, 3)
    normal = [s * (x[0, k] - m) / math.sqrt(v + 1e-5) + b
              for k, (b, s, m, v) in enumerate(zip(biases, scales, means, variances, strict=True))]  # fmt: skip
    torch.testing.assert_close(model.module_list[0](x)[0], torch.stack(normal))
    save_weights(model, tmp_path / "b.weights")
    assert (tmp_path / "b.weights").read_bytes() == (tmp_path / "a.weights").read_bytes()


def shortcut_net(options: str) -> str:
    return NET + conv(2) + conv(3) + conv(4) + f"[shortcut]\nfrom=-2,-3\n{options}"


def test_shortcut_of_several_sources_and_its_activation():
    maps = [torch.randn(1, c, 4, 4) for c in (4, 3, 2)]  # the layer before, then those of `from`
    expected = maps[0].clone()
    expected[:, :3] += maps[1]
    expected[:, :2] += maps[2]
    torch.testing.assert_close(last_map(shortcut_net("activation=leaky\n"), *maps), F.leaky_relu(expected, 0.1))
    assert parse_cfg(shortcut_net("")).sources(3) == [2, 1, 0]


@pytest.mark.parametrize("normalization", ["none", "relu", "avg_relu", "softmax"])
@pytest.mark.parametrize("weights_type", ["per_feature", "per_layer", "per_channel"])
def test_weighted_shortcut_value_by_value(weights_type, normalization, tmp_path):
    """One weight a map, or a map and channel, the layer before first; in the file, too."""
    model = Darknet(
        shortcut_net(f"weights_type={weights_type}\nweights_normalization={normalization}\nactivation=linear\n"), 64
    )
    columns = 4 if weights_type == "per_channel" else 1
    values = torch.randn(3 * columns)
    assert [t.numel() for i, t in darknet_tensors(model) if i == 3] == [3 * columns]
    model.module_list[3].weights.data.copy_(values.view(3, columns))
    save_weights(model, tmp_path / "a.weights")
    assert np.fromfile(tmp_path / "a.weights", "<f4")[-3 * columns :].tolist() == values.tolist()
    maps = [torch.randn(1, c, 2, 2) for c in (4, 3, 2)]
    out = model.module_list[3](*maps)
    for channel in range(4):
        own = [float(values[k * columns + channel % columns]) for k in range(3)]
        if normalization == "softmax":
            own = [math.exp(v - max(own)) for v in own]
        elif normalization != "none":
            own = [max(v, 0.001) for v in own]
        total = 1.0 if normalization == "none" else sum(own) + 1e-4
        expected = sum(w / total * m[0, channel] for w, m in zip(own, maps, strict=True) if channel < m.shape[1])
        torch.testing.assert_close(out[0, channel], expected, rtol=1e-4, atol=1e-5)


def test_products():
    scaled, channels, pixels = torch.rand(1, 3, 4, 5), torch.rand(1, 3, 1, 1), torch.rand(1, 1, 4, 5)
    text = NET + conv(3) + conv(3)
    assert torch.equal(last_map(text + "[scale_channels]\nfrom=-2\n", channels, scaled), scaled * channels)
    assert torch.equal(last_map(text + "[scale_channels]\nfrom=-2\nscale_wh=1\n", pixels, scaled), scaled * pixels)
    assert torch.equal(
        last_map(text + "[sam]\nfrom=-2\nactivation=relu\n", scaled - 0.5, scaled), F.relu(scaled * (scaled - 0.5))
    )
    pooled = NET + conv(4, stride=2) + "[avgpool]\n" + conv(4, 1, bn=0) + "[scale_channels]\nfrom=-3\n"
    assert output_shapes(parse_cfg(pooled))[-1] == (4, 32, 32)
    weighted = NET + conv(4, stride=2) + conv(1, 1) + "[scale_channels]\nfrom=-2\nscale_wh=1\n"
    assert output_shapes(parse_cfg(weighted))[-1] == (4, 32, 32)
    with pytest.raises(UserError, match=r"layer 2 \[scale_channels\]: can't multiply"):
        output_shapes(parse_cfg(weighted.replace("scale_wh=1\n", "")))


SAM = NET + conv(8, stride=2) + conv(8) + conv(8, activation="logistic") + "[sam]\nfrom=-2\n" + conv(8) + head()
FIVE = "[yolo]\nmask={}\nanchors=4,5, 6,9, 9,7, 20,16, 30,40\nclasses=2\nnum=5\n"


def heads(*masks: str) -> str:
    """Heads of these masks at growing strides, in this order."""
    parts = [conv(7 * (m.count(",") + 1), 1, bn=0, activation="linear") + FIVE.format(m) for m in masks]
    return NET + conv(8, stride=2) + parts[0] + "".join("[route]\nlayers=-3\n" + conv(8, stride=2) + p for p in parts[1:])


@pytest.mark.parametrize(
    "text",
    [SAM, heads("2"), heads("4,0"), heads("0,1,2"), heads("3,1,0,2"), heads("0,1,2,3,4"), heads("3,4", "0", "2,1,0"),
     heads("0,1").replace("num=5", "num=5\nscale_x_y=1.2"),
     heads("1,3").replace("activation=linear", "activation=logistic").replace("num=5", "num=5\nnew_coords=1\nscale_x_y=2.0")],
    ids=["sam", "1", "2", "3", "4", "5", "order", "scale_x_y", "new_coords"],
)  # fmt: skip
@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_heads_of_any_number_and_order_equal_opencv(text, size, tmp_path):
    (tmp_path / "net.cfg").write_text(text.replace("width=64\nheight=64", f"width={size[1]}\nheight={size[0]}"))
    assert_equals_opencv(network(text), tmp_path / "net.cfg", tmp_path, *size)


@pytest.mark.parametrize(("x", "y"), [(0.25, 0.0), (1.25, 0.25), (2.25, 1.0), (3.5, 1.5), (-0.5, -0.5), (-1.75, -1.0)])
def test_stair(x, y):
    assert activation("stair")(torch.tensor([x])).item() == y


def test_activations_across_channels():
    x = torch.tensor([2.0, -1.0, 6.0]).view(1, 3, 1, 1)
    powers = [math.exp(v) for v in (2, -1, 6)]
    scaled = [math.exp(v - 6) for v in (2, -1, 6)]
    expected = {
        "normalize_channels": [2 / 8.0001, 0, 6 / 8.0001],
        "normalize_channels_softmax": [p / (sum(powers) + 1e-4) for p in powers],
        "normalize_channels_softmax_maxval": [p / (sum(scaled) + 1e-4) for p in scaled],
    }
    for name, values in expected.items():
        assert activation(name)(x).flatten().tolist() == pytest.approx(values, rel=1e-5)
        assert ChannelGraph(parse_cfg(NET + conv(4, activation=name) + conv(4))).frozen[3:].tolist() == [True] * 4 + [False] * 4


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_every_activation_builds_and_has_a_gradient(name):
    x = torch.linspace(-7, 7, 42).view(1, 2, 3, 7).requires_grad_()
    y = activation(name)(x * 1.0)  # some work in place
    y.square().sum().backward()
    assert y.shape == x.shape
    assert x.grad.isfinite().all()
    assert x.grad.any()


@pytest.mark.parametrize(
    "kind",
    ["region", "Gaussian_yolo", "connected", "crnn", "rnn", "conv_lstm", "deconvolutional", "contrastive", "implicit_add"],
)
def test_unsupported_kinds_are_one_line_with_index_and_kind(kind, tmp_path):
    (tmp_path / "x.cfg").write_text(NET + conv(4) + f"[{kind}]\nclasses=2\n")
    with pytest.raises(UserError, match=rf"x.cfg:\d+: layer 1 \[{kind}\]: this kind of layer is not supported") as error:
        parse_cfg(tmp_path / "x.cfg")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("section", "said"),
    [(conv(4, xnor=1), "xnor=1 is not supported"), (conv(4, share_index=3), "share_index=3 is not supported"),
     (conv(4, antialiasing=3), "antialiasing=3 is not known"), (conv(4, dilation=0), "dilation=0: must be at least 1"),
     ("[maxpool]\nstride=0\n", "stride=0: must be at least 1"), ("[maxpool]\npadding=-1\n", "padding=-1: must be at least 0"),
     ("[upsample]\nstride=-2\n", "stride=-2: must be at least 1"), ("[route]\nlayers=0\ngroups=0\n", "groups=0: must be"),
     ("[se]\nreduction=0\n", "reduction=0: must be at least 1"), ("[yolo]\nnum=0\nclasses=2\n", "num=0: must be at least 1"),
     ("[yolo]\nmask=0\nanchors=1,2\nclasses=0\n", "classes=0: must be at least 1"),
     ("[reorg]\nstride=2\nreverse=1\n", "reverse=1 is not supported"),
     ("[shortcut]\nfrom=0\nweights_type=per_pixel\n", "weights_type=per_pixel")],
)  # fmt: skip
def test_unsupported_values_name_their_layer(section, said):
    with pytest.raises(UserError, match=rf"cfg:\d+: layer 1 \[\w+\]: {said}"):
        Darknet(NET + conv(4) + section, 64)


def test_keys_that_change_nothing_are_kept():
    text = NET + conv(4, xnor=0, assisted_excitation=4000) + "[maxpool]\nsize=2\nstride=2\nforgotten=1\n"
    assert parse_cfg(write_cfg(parse_cfg(text))) == parse_cfg(text)
    assert "assisted_excitation=4000\n" in write_cfg(parse_cfg(text))


@pytest.mark.parametrize("line", ["width=0", "height=-32", "channels=0"])
def test_net_needs_a_size(line):
    key = line.split("=")[0]
    text = "\n".join(line if row.startswith(key) else row for row in NET.splitlines()) + "\n" + conv(4)
    with pytest.raises(UserError, match=rf"\[net\]: {line}: must be at least 1"):
        parse_cfg(text)


def test_depthwise_kernels_learn_in_float32_under_the_cpu_s_autocast():
    torch.manual_seed(0)
    layer = layers.Convolution(
        definitions.Depthwise(size=3, stride=2, pad=1, filters=6, activation="linear", batch_normalize=0), 6
    ).train()
    x = torch.randn(2, 6, 9, 9, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x)
    exact = layer.conv(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())
    gradient = torch.randn_like(found)
    wanted = torch.autograd.grad(exact, (x, layer.conv.weight), gradient.float())
    for a, b in zip(torch.autograd.grad(found, (x, layer.conv.weight), gradient), wanted, strict=True):
        torch.testing.assert_close(a, b)
