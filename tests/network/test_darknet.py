"""utils.network.darknet.Darknet and utils.network.layers against OpenCV's Darknet importer, torch and formulas worked by
hand."""

import copy

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.references import read_darknet
from tests.tiny import NET, SPP, TOPOLOGIES, conv, head, network, randomise
from utils.core.errors import UserError
from utils.network import definitions, layers
from utils.network.darknet import Darknet
from utils.network.weights import save_weights


def opencv_rows(net: cv2.dnn.Net, image: np.ndarray) -> np.ndarray:
    """Rows of all heads: cx cy w h as shares of the input, objectness, class scores times objectness (0 under a threshold)."""
    net.enableWinograd(False)  # its rounding errors exceed 1e-3 of a box side in deep networks
    net.setInput(image)
    names = [n for _, n in sorted((net.getLayerId(n), n) for n in net.getUnconnectedOutLayersNames())]
    return np.concatenate([out.reshape(-1, out.shape[-1]) for out in net.forward(names)])


def opencv_outputs(cfg_path, weights_path, image: np.ndarray) -> np.ndarray:
    """opencv_rows of a network's files."""
    return opencv_rows(read_darknet(str(cfg_path), str(weights_path)), image)


def as_opencv(model: Darknet) -> Darknet:
    """Make a model comparable, in place: in float64, since deep random networks amplify rounding, and with OpenCV's 1e-6
    in the batch normalisation where Darknet has 1e-5: that difference is OpenCV's, and it would show."""
    for module in model.double().modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.eps == 1e-5
            module.eps = 1e-6
    return model


def our_rows(model: Darknet, image: np.ndarray) -> np.ndarray:
    """Rows of a model that went through as_opencv in OpenCV's order (cell by cell, then anchor) and units."""
    height, width = image.shape[-2:]
    with torch.no_grad():
        decoded, raws = model(torch.from_numpy(image).double())
    rows, start = [], 0
    for raw in raws:
        _, anchors, ny, nx, values = raw.shape
        block = decoded[0, start : start + anchors * ny * nx].view(anchors, ny * nx, values)
        rows.append(block.transpose(0, 1).reshape(-1, values))
        start += anchors * ny * nx
    ours = torch.cat(rows).numpy().astype(np.float64)
    ours[:, :4] /= [width, height, width, height]
    ours[:, 5:] *= ours[:, 4:5]
    return ours


def assert_equals_opencv(model: Darknet, cfg_path, tmp_path, height: int, width: int) -> None:
    save_weights(model, tmp_path / "random.weights")
    image = np.random.default_rng(0).random((1, model.defs.net.channels, height, width), dtype=np.float32)
    theirs = opencv_outputs(cfg_path, tmp_path / "random.weights", image)
    ours = our_rows(as_opencv(copy.deepcopy(model)), image)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours[:, :5], theirs[:, :5], rtol=1e-3, atol=1e-5)
    shown = theirs[:, 5:] > 0  # OpenCV zeroes class scores under its threshold
    assert shown.any()
    np.testing.assert_allclose(ours[:, 5:][shown], theirs[:, 5:][shown], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["residual", "csp", "spp", "depthwise"])  # OpenCV knows neither [se] nor [reorg3d]
@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_tiny_networks_equal_opencv(name, size, tmp_path):
    (tmp_path / "net.cfg").write_text(TOPOLOGIES[name].replace("width=64\nheight=64", f"width={size[1]}\nheight={size[0]}"))
    assert_equals_opencv(network(TOPOLOGIES[name]), tmp_path / "net.cfg", tmp_path, *size)


@pytest.mark.parametrize(
    "family", ["yolov3/yolov3", "yolov3/yolov3-spp", "yolov3tiny/yolov3-tiny", "yolov4/yolov4", "yolov4tiny/yolov4-tiny"]
)
def test_standard_networks_equal_opencv(family, tmp_path, pytestconfig):
    text = (pytestconfig.rootpath / f"cfg/{family}.cfg").read_text()
    lines = [f"{k}=64" if (k := line.split("=")[0]) in ("width", "height") else line for line in text.splitlines()]
    (tmp_path / "net.cfg").write_text("\n".join(lines))
    torch.manual_seed(1)
    assert_equals_opencv(randomise(Darknet(tmp_path / "net.cfg", 64), 0.1), tmp_path / "net.cfg", tmp_path, 64, 64)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_parameter_learns_and_every_head_speaks(name):
    model = network(TOPOLOGIES[name]).train()
    raws = model(torch.rand(2, 3, 64, 64))
    assert [r.shape[1] for r in raws] == [h.predictions for h in model.heads]
    sum(r.square().sum() for r in raws).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_fused_copy_computes_the_same_and_leaves_the_model_alone(name):
    model, image = network(TOPOLOGIES[name]), torch.rand(1, 3, 64, 64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fused = model.inference_copy(torch.device("cpu"), "fp32")
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
    torch.testing.assert_close(fused(image)[0], model(image)[0], rtol=1e-4, atol=1e-4)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_bf16_copy_keeps_anchors_and_heads_in_float32():
    copy = network(SPP).inference_copy(torch.device("cpu"), "bf16")
    decoded, raws = copy(torch.rand(1, 3, 64, 64, dtype=torch.bfloat16))
    assert decoded.dtype == raws[0].dtype == copy.heads[0].anchors.dtype == torch.float32
    assert copy.heads[0].anchors.tolist() == [[20, 16]]


def test_initial_biases_expect_few_objects():
    model = Darknet(NET + conv(8, stride=2) + head(), 64)
    rows = model.module_list[1].conv.bias.detach().view(2, 7)
    with torch.no_grad():
        model.module_list[1].conv.weight.zero_()
    objectness = torch.sigmoid(rows[:, 4])  # 8 objects on a 640 px image of stride 2, give or take the random start
    assert (objectness < 1e-3).all()


@pytest.mark.parametrize("size", [300, 0, -32])
def test_image_size_must_fit_the_stride(size):
    with pytest.raises(UserError, match="multiple of 2|multiple of 4"):
        Darknet(TOPOLOGIES["csp"], size + 1 if size == 300 else size)


@pytest.mark.parametrize(
    ("length", "size", "stride", "expected"), [(5, 2, 1, 5), (5, 2, 2, 3), (6, 2, 2, 3), (7, 3, 2, 4), (6, 5, 1, 6)]
)
def test_max_pool_sizes_are_darknets(length, size, stride, expected):
    x = torch.rand(1, 2, length, length)
    pool = layers.MaxPool(definitions.MaxPool(size=size, stride=stride))
    assert pool(x).shape[-2:] == (expected, expected)


def test_max_pool_2_1_adds_a_row_below_and_a_column_right():
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert layers.MaxPool(definitions.MaxPool(size=2, stride=1))(x).flatten().tolist() == [4, 5, 5, 7, 8, 8, 7, 8, 8]


def test_local_average_counts_only_the_inside():
    x = torch.ones(1, 1, 4, 4)
    assert torch.equal(layers.LocalAvgPool(definitions.LocalAvgPool(size=3, stride=1))(x), x)


def test_reorg3d_by_hand():
    x = torch.arange(8.0).view(1, 2, 2, 2)  # channel 0: 0 1 / 2 3, channel 1: 4 5 / 6 7
    assert layers.Reorg3d(definitions.Reorg3d(stride=2))(x).flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_reorg_follows_the_index_arithmetic_of_yolov2():
    b, channels, h, w, s = 1, 8, 4, 6, 2
    x = torch.rand(b, channels, h, w)
    flat, out = x.flatten(), torch.empty(x.numel())
    small = channels // (s * s)
    for k in range(channels):
        for j in range(h):
            for i in range(w):
                offset = k // small
                source = (i * s + offset % s) + w * s * ((j * s + offset // s) + h * s * (k % small))
                out[i + w * (j + h * k)] = flat[source]
    assert torch.equal(layers.Reorg(definitions.Reorg(stride=s))(x).flatten(), out)


@pytest.mark.parametrize(("normalization", "expected"), [("none", [2.0, -1.0]), ("relu", [2 / 2.0011, 0.001 / 2.0011]),
                                                         ("softmax", [1 / 1.0498871, 0.0497871 / 1.0498871])])  # fmt: skip
def test_weighted_shortcut(normalization, expected):
    shortcut = layers.Shortcut(
        definitions.Shortcut(from_=(-2,), weights_type="per_feature", weights_normalization=normalization), 3
    )
    shortcut.weights.data = torch.tensor([[2.0], [-1.0]])
    a, b = torch.rand(1, 3, 2, 2), torch.rand(1, 3, 2, 2)
    torch.testing.assert_close(shortcut(a, b), a * expected[0] + b * expected[1], rtol=1e-4, atol=1e-5)


def test_shortcut_of_unequal_channels_adds_the_common_ones():
    shortcut = layers.Shortcut(definitions.Shortcut(from_=(-2,)), 3)
    a, narrow, wide = torch.rand(1, 3, 2, 2), torch.rand(1, 2, 2, 2), torch.rand(1, 5, 2, 2)
    assert torch.equal(shortcut(a, narrow), a + F.pad(narrow, (0, 0, 0, 0, 0, 1)))
    assert torch.equal(shortcut(a, wide), a + wide[:, :3])


def test_max_pool_depth():
    x = torch.tensor([1.0, 5, 3, 4]).view(1, 4, 1, 1)
    assert layers.build_layer(_defs("[maxpool]\nmaxpool_depth=1\nout_channels=2\n"), 0, 4)(x).flatten().tolist() == [3, 5]


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [("leaky", -1.0, -0.1), ("mish", 1.0, 0.8650984), ("swish", 1.0, 0.7310586), ("h_swish", 1.0, 4 / 6), ("relu6", 7.0, 6.0),
     ("loggy", 1.0, 0.4621172), ("plse", 5.0, 1.01), ("lhtan", 2.0, 1.001), ("ramp", -1.0, -0.1), ("hard_mish", -1.0, -0.5),
     ("relie", -1.0, -0.01), ("hardtan", 3.0, 1.0), ("elu", -1.0, -0.6321206), ("logistic", 0.0, 0.5)],
)  # fmt: skip
def test_activations(name, x, y):
    assert layers.activation(name)(torch.tensor([x])).item() == pytest.approx(y, rel=1e-5)


def test_unsupported_options_name_the_layer():
    with pytest.raises(UserError, match=r"layer 0 \[convolutional\]: activation=sine is not supported"):
        Darknet(NET + conv(4, activation="sine"), 64)


def _defs(section: str):
    from utils.network.cfg import parse_cfg

    return parse_cfg(NET + section)
