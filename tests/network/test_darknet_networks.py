"""All 16 networks of shared/darknet/cfg, whole: operations, weights, a training step, and OpenCV's outputs."""

import copy
import filecmp
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.network.test_darknet import as_opencv, opencv_rows, our_rows
from tests.references import read_darknet
from tests.tiny import randomise
from utils.core.hyp import Hyp
from utils.detection.loss import DetectionLoss
from utils.network.cfg import parse_cfg, write_cfg
from utils.network.darknet import Darknet
from utils.network.definitions import Convolutional, Defs, Reorg3d
from utils.network.summary import summarise, totals
from utils.network.weights import darknet_tensors, load_weights, save_weights

NAMES = [
    "cd53paspp-gamma", "enet-coco", "yolov3", "yolov3-spp", "yolov3-tiny", "yolov3-tiny-prn", "yolov3-tiny_3l", "yolov4",
    "yolov4-csp", "yolov4-csp-swish", "yolov4-p5", "yolov4-sam-mish-csp-reorg-bfm", "yolov4-tiny", "yolov4-tiny-3l",
    "yolov4x-mish", "yolov7-tiny",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_operations_are_darknets(name: str, shared: Path) -> None:
    """Within 0.3 %: Darknet also counts a pool's comparisons and a shortcut's additions."""
    record = json.loads((shared / "darknet/layers.json").read_text())[name]
    layers = summarise(parse_cfg(shared / f"darknet/cfg/{name}.cfg"))
    assert len(layers) == record["layers"]
    assert totals(layers)["bflops"] == pytest.approx(record["total_bflops"], rel=3e-3)


@pytest.mark.parametrize("name", NAMES)
def test_network(name: str, shared: Path, tmp_path: Path) -> None:
    """One built network for three checks, in whole width: the largest take seconds to build."""
    model = randomise(Darknet(shared / f"darknet/cfg/{name}.cfg", 64), 0.1)
    sizes = [(64, 64), (64, 64 + model.max_stride)]  # height, width
    images = [np.random.default_rng(0).random((1, 3, *size), dtype=np.float32) for size in sizes]
    calm_heads(model, images)
    one_training_step(model)
    saved_again_is_identical(model, tmp_path / "random.weights")
    equals_opencv(model, tmp_path / "random.weights", images)


def one_training_step(model: Darknet) -> None:
    model.train()
    targets = torch.tensor([[0, 1, 0.4, 0.6, 0.3, 0.2], [1, 0, 0.7, 0.3, 0.8, 0.7]])
    loss, _ = DetectionLoss(model, Hyp())(model(torch.rand(2, 3, 64, 64)), targets, (64, 64))
    loss.backward()
    assert torch.isfinite(loss)
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any() or not p.grad.isfinite().all()]
    assert without == []
    model.zero_grad()
    model.eval()


@torch.no_grad()
def saved_again_is_identical(model: Darknet, file: Path) -> None:
    save_weights(model, file, seen=5)
    for _, tensor in darknet_tensors(model):
        tensor.zero_()
    load_weights(model, file, prefix=False)
    save_weights(model, file.with_name("again.weights"))
    assert filecmp.cmp(file, file.with_name("again.weights"), shallow=False)
    file.with_name("again.weights").unlink()


@torch.no_grad()
def equals_opencv(model: Darknet, file: Path, images: list[np.ndarray]) -> None:
    """Boxes, objectness and classes to 1e-3; ours in float64, since what rounding adds up to is OpenCV's own."""
    defs, file = without_reorg3d(model, file)
    file.with_suffix(".cfg").write_text(write_cfg(defs))
    net = read_darknet(str(file.with_suffix(".cfg")), str(file))
    as_opencv(model)
    for image in images:
        theirs, ours = opencv_rows(net, image), our_rows(model, image)
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours[:, :5], theirs[:, :5], rtol=1e-3, atol=1e-5)
        shown = theirs[:, 5:] > 0  # OpenCV zeroes class scores under its threshold
        assert shown.mean() > 0.05
        np.testing.assert_allclose(ours[:, 5:][shown], theirs[:, 5:][shown], rtol=1e-3, atol=1e-5)


@torch.no_grad()
def calm_heads(model: Darknet, images: list[np.ndarray]) -> None:
    """Scale the convolutions before the heads so that the largest logit is 4: random ones reach 1e20 in deep networks."""
    largest: dict[int, float] = {}
    for source, _ in model.head_convolutions():
        convolution = model.module_list[source].conv
        convolution.register_forward_hook(
            lambda _, inputs, out, s=source: largest.update({s: max(largest.get(s, 0.0), float(out.abs().max()))})
        )
    for image in images:
        model(torch.from_numpy(image))
    for source, factor in largest.items():
        convolution = model.module_list[source].conv
        convolution._forward_hooks.clear()
        convolution.weight.mul_(4 / factor)
        convolution.bias.mul_(4 / factor)


def without_reorg3d(model: Darknet, file: Path) -> tuple[Defs, Path]:
    """The network with each [reorg3d], which OpenCV doesn't know, as the strided convolution that does the same: filter
    (dy * s + dx) * c + k has a single 1, for channel k at row dy, column dx."""
    reorgs = [i for i, d in enumerate(model.defs) if isinstance(d, Reorg3d)]
    if not reorgs:
        return model.defs, file
    defs, layers = copy.deepcopy(model.defs), summarise(model.defs, 64, 64)
    for i in reorgs:
        s = defs[i].stride
        width = layers[i].shape[0]
        defs.layers[i] = Convolutional(filters=width, size=s, stride=s, activation="linear")
    other = Darknet(defs, 64)
    own = model.state_dict()
    other.load_state_dict({n: own.get(n, torch.zeros_like(v)) for n, v in other.state_dict().items()})
    for i in reorgs:
        kernel = other.module_list[i].conv.weight.data  # (s * s * c, c, s, s)
        c, s = kernel.shape[1:3]
        for row, (dy, dx, k) in enumerate((dy, dx, k) for dy in range(s) for dx in range(s) for k in range(c)):
            kernel[row, k, dy, dx] = 1
    path = file.with_name("convolutions.weights")
    save_weights(other, path)
    return defs, path
