"""Layers for ncnn: a file that pnnx made of a few channels, with the numbers of other widths in it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from utils.export.ncnn.files import BIN, PARAM
from utils.pruning.latency import Geometry, Widths
from utils.runtimes.ncnn_layers import widened
from utils.runtimes.registry import installed

PLAIN = """7767517
3 3
Input                    in0                      0 1 in0
Convolution              convrelu_0               1 1 in0 1 0=56 1=3 -23310=1,0.1 11=3 2=1 5=1 6=20160 9=2
ConvolutionDepthWise     convdw_2                 1 1 1 out0 0=56 1=2 5=0 6=224 7=56
"""
GROUPED = """7767517
2 2
Input in0 0 1 in0
ConvolutionDepthWise c 1 1 in0 out0 0=64 1=3 5=1 6=9216 7=4
"""


@pytest.mark.parametrize(("text", "old", "new", "arguments", "counts"), [
    (PLAIN, (40, 56), (3, 20), ("0=20 6=540 9=2", "0=20 6=80 7=20"), [9 * 3 * 20 + 20, 4 * 20]),
    (PLAIN, (40, 56), (512, 1024), ("0=1024 6=4718592", "0=1024 6=4096 7=1024"), [9 * 512 * 1024 + 1024, 4 * 1024]),
    (GROUPED, (64, 64), (64, 64), ("0=64 5=1 6=9216 7=4",), [9216 + 64]),
    (GROUPED.replace("7=4", "7=64").replace("9216", "576"), (64, 64), (7, 7), ("0=7 5=1 6=63 7=7",), [9 * 7 + 7]),
])  # fmt: skip
def test_numbers_of_other_widths(text: str, old: Widths, new: Widths, arguments: tuple[str, ...], counts: list[int]) -> None:
    found, numbers = widened(text, old, new)
    lines = [line for line in found.splitlines() if line.startswith("Convolution")]
    for line, wanted in zip(lines, arguments, strict=True):
        assert set(wanted.split()) <= set(line.split())
    assert numbers == counts
    assert [line.split()[:6] for line in found.splitlines()] == [line.split()[:6] for line in text.splitlines()]


def layer_of(folder: Path, geometry: Geometry, widths: Widths, noise: np.ndarray) -> torch.Tensor:
    """The layer with the weights of the folder, in PyTorch."""
    groups = geometry.groups or widths[0]
    shape = (widths[1], widths[0] // groups, geometry.size, geometry.size)
    numbers = torch.from_numpy(np.fromfile(folder / BIN, np.float32)[1:])
    count = int(np.prod(shape))
    kernel, bias = numbers[:count].view(shape), numbers[count:]
    x = torch.from_numpy(noise)[None]
    return torch.nn.functional.conv2d(x, kernel, bias, geometry.strides, geometry.padding, 1, groups)


@pytest.mark.parametrize("groups", [1, 0, 4])
def test_files_compute_the_layer_at_any_width_and_size(groups: int, tmp_path: Path) -> None:
    pytest.importorskip("pnnx")
    if "ncnn" not in installed():
        pytest.skip("ncnn isn't installed")
    from utils.runtimes.ncnn_files import NcnnSession
    from utils.runtimes.ncnn_layers import LayerFiles, between_layers

    geometry = Geometry(3, (2, 2), 1, 1, groups, 0, "leaky", 12, 20)
    files = LayerFiles()
    for widths in {1: [(6, 9), (64, 48), (3, 17)], 0: [(7, 7), (64, 64)], 4: [(32, 16)]}[groups]:
        files.write(geometry, widths, tmp_path)
        session = NcnnSession(tmp_path)
        noise = np.random.default_rng(0).random((widths[0], 12, 20), np.float32)
        (found,) = session(noise[None])
        wanted = torch.nn.functional.leaky_relu(layer_of(tmp_path, geometry, widths, noise), 0.1)
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-3)
        status, made = between_layers(session.ncnn, session.net, noise)()
        np.testing.assert_allclose(np.array(session.ncnn.convert_packing(made, 1)), wanted[0].numpy(), rtol=1e-4, atol=1e-3)
        assert status == 0
    assert len(files.converted) == 1
    assert (tmp_path / PARAM).read_text().startswith("7767517")
