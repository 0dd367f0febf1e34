"""The integer reference against torch and hand-worked numbers, and its files against themselves and against damage."""

import doctest
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.tiny import NET
from utils.core.errors import UserError
from utils.export.fpga import dump as integer_dump
from utils.export.fpga import integer
from utils.export.fpga.dump import Tiling, pack, read, tile, unpack, untile, write
from utils.export.fpga.integer import MOVES, SUMS, Grid, Network, Step, finish, requantise, round_shift, run
from utils.network import layers
from utils.network.cfg import parse_cfg

BYTES = Grid(0, -128, 127)
ROOT = Path(__file__).resolve().parents[2]


def step(kind: str = "convolutional", output: Grid = BYTES, **more) -> Step:
    return Step(kind, 0, [-1], output, [1, 1, 1], **more)


def integers(*shape: int, low: int = -128, high: int = 128) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, shape)


@pytest.mark.parametrize("module", [integer, integer_dump])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("shift", [-3, 0, 1, 2, 5, 11])
def test_shifts_round_half_to_even(shift):
    v = np.arange(-5000, 5000)
    assert np.array_equal(round_shift(v, shift), np.rint(v / 2.0**shift))  # IEEE's own rounding: half to even


def test_far_shifts():
    v = np.array([-(2**31), -1, 0, 1, 2**31 - 1])
    assert round_shift(v, 100).tolist() == [0] * 5
    assert requantise(v, -100, BYTES).tolist() == [-128, -128, 0, 127, 127]
    assert requantise(v, -3, BYTES).tolist() == [-128, -8, 0, 8, 127]


@pytest.mark.parametrize(("filters", "channels", "size", "strides", "padding", "dilation", "groups"), [
    (4, 3, 3, (1, 1), 1, 1, 1), (4, 3, 3, (2, 1), 0, 1, 1), (6, 4, 1, (1, 1), 0, 1, 2), (8, 8, 3, (2, 2), 1, 1, 8),
    (2, 2, 3, (1, 3), 2, 2, 1), (6, 3, 2, (2, 2), 1, 1, 3),
])  # fmt: skip
def test_convolutions_against_torch(filters, channels, size, strides, padding, dilation, groups):
    x, kernel = integers(2, channels, 9, 7), integers(filters, channels // groups, size, size)
    bias = integers(filters, low=-(2**20), high=2**20)
    options = {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}
    arrays = {"weights": kernel.astype(np.int8), "biases": bias.astype(np.int32)}
    found = SUMS["convolutional"](step(options=options, arrays=arrays), x)
    expected = F.conv2d(*(torch.from_numpy(v).double() for v in (x, kernel, bias)), strides, padding, dilation, groups)
    assert np.array_equal(found, expected.numpy())


def test_activations_by_hand():
    sums = np.array([-1000, -64, -5, 0, 3, 8, 1000])
    assert finish(step(shift=2), sums).tolist() == [-128, -16, -1, 0, 1, 2, 127]
    assert finish(step(shift=2, activation="relu"), sums).tolist() == [0, 0, 0, 0, 1, 2, 127]
    leaky = step(shift=9, activation="leaky", options={"widen": 7, "factor": 13})  # 2 bits more than the 7 of its slope
    assert finish(leaky, sums).tolist() == [-25, -2, 0, 0, 1, 2, 127]  # -64 * 13 / 512 = -1.625; -65 / 512
    six = step(shift=1, activation="relu6", options={"widen": 0, "limit": 6 << 1})  # sums in halves
    assert finish(six, sums).tolist() == [0, 0, 0, 0, 2, 4, 6]
    coarse = step(shift=0, activation="relu6", options={"widen": 2, "limit": 6})  # sums in fours: 4 and 8 are 1 and 2 of them
    assert finish(coarse, np.array([-1, 1, 2])).tolist() == [0, 4, 6]
    table = step(shift=3, activation="table", index=Grid(0, -2, 1), arrays={"table": np.array([50, 60, 70, 80], np.int8)})
    assert finish(table, sums).tolist() == [50, 50, 60, 70, 70, 80, 80]  # indices -125 -8 -0.6 0 0.4 1 125


def pool(**options) -> Step:
    return step("maxpool", options=options)


@pytest.mark.parametrize(("size", "strides", "padding"), [(2, (2, 2), 1), (2, (1, 1), 1), (3, (2, 1), 2), (5, (1, 1), 4),
                                                          (3, (3, 2), 0), (9, (1, 1), 8)])  # fmt: skip
def test_maximum_against_the_float_layer(size, strides, padding):
    x = integers(2, 3, 7, 10)
    text = f"[maxpool]\nsize={size}\nstride_y={strides[0]}\nstride_x={strides[1]}\npadding={padding}\n"
    expected = layers.build_layer(parse_cfg(NET + text), 0, 3)(torch.from_numpy(x).float())
    found = MOVES["maxpool"](pool(size=size, strides=strides, padding=padding), x)
    assert np.array_equal(found, expected.numpy())


@pytest.mark.parametrize(("kind", "text", "options"), [
    ("reorg", "[reorg]\nstride=2\n", {"stride": 2}), ("reorg3d", "[reorg3d]\nstride=2\n", {"stride": 2}),
    ("upsample", "[upsample]\nstride=2\n", {"stride": 2}),
    ("maxpool_depth", "[maxpool]\nmaxpool_depth=1\nout_channels=4\n", {"channels": 4}),
])  # fmt: skip
def test_moves_against_the_float_layers(kind, text, options):
    x = integers(2, 8, 4, 6)
    expected = layers.build_layer(parse_cfg(NET.replace("channels=3", "channels=8") + text), 0, 8)(torch.from_numpy(x).float())
    assert np.array_equal(MOVES[kind](step(kind, options=options), x), expected.numpy())


def test_routes_bring_groups_to_one_exponent():
    a, b = integers(1, 4, 2, 2), integers(1, 2, 2, 2)
    found = MOVES["route"](step("route", align=[1, -2], options={"groups": 2, "group": 1}), a, b)
    assert found[:, :2].tolist() == np.rint(a[:, 2:] / 2).tolist()
    assert found[:, 2:].tolist() == np.clip(b[:, 1:] * 4, -128, 127).tolist()


def test_shortcuts_of_unequal_width():
    a, b, c = (np.full((1, channels, 1, 1), 3) for channels in (3, 2, 4))
    found = SUMS["shortcut"](step("shortcut", align=[0, -1, 1]), a, b, c)
    assert found.ravel().tolist() == [3 + 6 + 2, 3 + 6 + 2, 3 + 2]  # 1.5 rounds to 2
    assert a.ravel().tolist() == [3, 3, 3]  # others read it, too


def test_products_of_a_factor_a_channel_and_one_a_position():
    x = integers(2, 3, 4, 4)
    for factor in (integers(2, 3, 1, 1), integers(2, 1, 4, 4), integers(2, 3, 4, 4)):
        expected = (torch.from_numpy(x) * torch.from_numpy(factor)).numpy()
        assert np.array_equal(SUMS["product"](step("product"), factor, x), expected)


def test_means_round_half_to_even():
    x = np.array([[[[1, 2]], [[2, 3]], [[-1, -2]], [[-128, -128]], [[0, 1]]]])
    mean = step("avgpool", output=Grid(0, -100, 100))
    assert MOVES["avgpool"](mean, x).ravel().tolist() == [2, 2, -2, -100, 0]
    assert MOVES["avgpool"](replace(mean, shift=-1), x).ravel().tolist() == [3, 5, -3, -100, 1]
    assert MOVES["avgpool"](replace(mean, shift=1), x).ravel().tolist() == [1, 1, -1, -64, 0]  # 0.75 1.25 -0.75 -64 0.25


def test_peaks_are_of_sums_before_anything_is_cut_off():
    network = small_network()
    result = run(network, np.full((1, 1, 2, 2), 255, np.uint8))
    assert result.peaks == {0: 127 * 7 + 100}  # filter 1 of step 0: 7 * 127 + 100
    assert result.maps[0][0].max(axis=(1, 2)).tolist() == [-8, 124]  # -63 / 8 and 989 / 8


def small_network() -> Network:
    """One 1x1 convolution of two filters on a gray image."""
    arrays = {"weights": np.array([-1, 7], np.int8).reshape(2, 1, 1, 1), "biases": np.array([64, 100], np.int32)}
    options = {"bits": 4, "strides": [1, 1], "padding": 0, "dilation": 1, "groups": 1}
    only = Step("convolutional", 0, [-1], Grid(2, -128, 127), [2, 2, 2], 3, options=options, arrays=arrays,
                exponents={"inputs": [7], "weights": -2, "sums": 5}, bound=996)  # fmt: skip
    return Network(Grid(7, -128, 127), (np.arange(256) // 2).astype(np.int8), [only], [0], {"heads": [{"anchors": [[1, 1]]}]})


def wide_network(filters: int = 7, channels: int = 5, groups: int = 1, size: int = 3, bits: int = 8) -> Network:
    network, rng = small_network(), np.random.default_rng(1)
    limit, dtype = 2 ** (bits - 1), np.int8 if bits <= 8 else np.int16
    kind = "depthwise" if groups == channels == filters else "convolutional"
    arrays = {"weights": rng.integers(-limit, limit, (filters, channels // groups, size, size)).astype(dtype),
              "biases": rng.integers(-(2**31), 2**31, filters).astype(np.int32),
              "table": np.arange(-8, 8).astype(np.int8)}  # fmt: skip
    options = network.steps[0].options | {"bits": bits, "groups": groups}
    network.steps[0] = replace(network.steps[0], kind=kind, arrays=arrays, options=options, index=Grid(3, -8, 7), align=[])
    return network


def equal(a: Network, b: Network) -> bool:
    def plain(network: Network) -> str:
        steps = [[vars(s) | {"arrays": {k: (v.dtype.name, v.tolist()) for k, v in s.arrays.items()}}] for s in network.steps]
        return repr((network.input, network.pixels.tolist(), steps, network.outputs, network.info))

    return plain(a) == plain(b)


@pytest.mark.parametrize("tiling", [None, Tiling(4, 2), Tiling(1, 1), Tiling(16, 16)])
@pytest.mark.parametrize("shape", [
    {}, {"bits": 4}, {"bits": 3, "size": 1}, {"bits": 16}, {"filters": 6, "channels": 6, "groups": 6},
    {"filters": 6, "channels": 4, "groups": 2},
])  # fmt: skip
def test_round_trip_of_the_files(tmp_path, shape, tiling):
    network = wide_network(**shape)
    write(tmp_path, network, tiling)
    assert equal(read(tmp_path), network)


def test_tiles_by_hand(tmp_path):
    """Three filters of three channels, 1x1, in tiles of two by two: filters 0 and 1 on channels 0 and 1, then on channel 2
    and nothing, then filter 2 and nothing on the same."""
    kernel = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]]).reshape(3, 3, 1, 1)
    tiles = tile(kernel, 1, 2, 2)
    assert tiles.ravel().tolist() == [1, 2, 4, 5, 3, 0, 6, 0, 7, 8, 0, 0, 9, 0, 0, 0]
    assert np.array_equal(untile(tiles, kernel.shape), kernel)
    network = small_network()
    network.steps[0].arrays = {"weights": kernel.astype(np.int8), "biases": np.zeros(3, np.int32)}
    network.steps[0].options["bits"] = 8
    write(tmp_path, network, Tiling(2, 2))
    assert list((tmp_path / "weights.bin").read_bytes()) == tiles.ravel().tolist()


def test_tiles_of_groups_and_depthwise_kernels():
    """Groups one after the other; depthwise filters side by side, tn counting for nothing."""
    kernel = np.arange(1, 9).reshape(4, 2, 1, 1)
    assert tile(kernel, 2, 2, 1).ravel().tolist() == [1, 3, 2, 4, 5, 7, 6, 8]
    depthwise = wide_network(filters=3, channels=3, groups=3, size=1).steps[0]
    assert Tiling(2, 9).of(depthwise) == (1, 2, 1)
    assert tile(np.array([1, 2, 3]).reshape(3, 1, 1, 1), 1, 2, 1).ravel().tolist() == [1, 2, 3, 0]


def test_four_bits():
    values = np.array([-8, 7, 0, -1, 5])
    assert pack(values) == bytes([0x78, 0xF0, 0x05])
    assert unpack(pack(values), 5).tolist() == values.tolist()


def test_places_in_the_files(tmp_path):
    """What somebody without this program needs: offsets, types and shapes say where the numbers are."""
    network = wide_network()
    network.steps.append(replace(network.steps[0], sources=[0]))
    write(tmp_path, network)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for number, expected in enumerate(network.steps):
        for name, dtype in (("weights", "<i1"), ("biases", "<i4"), ("table", "<i1")):
            place = manifest["steps"][number]["arrays"][name]
            assert place["offset"] % 64 == 0
            data = (tmp_path / place["file"]).read_bytes()[place["offset"] :][: place["bytes"]]
            assert np.frombuffer(data, dtype).reshape(place["shape"]).tolist() == expected.arrays[name].tolist()
        place = manifest["steps"][number]["arrays"]["exponents"]
        row = np.frombuffer((tmp_path / place["file"]).read_bytes()[place["offset"] :][: place["bytes"]], "<i2")
        assert row.tolist() == [7, -2, 5, 2, 3]  # inputs, weights, sums, output, shift


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


DAMAGES = {
    "a flipped bit": (lambda d: flip(d / "weights.bin"), "weights.bin: differs from what was exported"),
    "a flipped bias": (lambda d: flip(d / "biases.bin"), "biases.bin: differs"),
    "a flipped table": (lambda d: flip(d / "tables.bin"), "tables.bin: differs"),
    "a flipped exponent": (lambda d: flip(d / "exponents.bin"), "exponents.bin: differs"),
    "a short file": (lambda d: (d / "biases.bin").write_bytes(b"ab"), "biases.bin: has 2 bytes, but 28"),
    "a lost file": (lambda d: (d / "tables.bin").unlink(), "tables.bin: cannot be read"),
    "no manifest": (lambda d: (d / "manifest.json").unlink(), "manifest.json: this manifest of an FPGA dump does not exist"),
    "half a manifest": (lambda d: edit(d / "manifest.json", '"steps": [', ""), "manifest.json: damaged"),
    "a list": (lambda d: (d / "manifest.json").write_text("[]"), "manifest.json: damaged"),
    "no such key": (lambda d: edit(d / "manifest.json", '"outputs"', '"out"'), "manifest.json: damaged"),
    "an unknown kind": (lambda d: edit(d / "manifest.json", '"kind": "conv', '"kind": "k'), "kolutional is no kind of step"),
    "a newer version": (lambda d: edit(d / "manifest.json", '"version": 1', '"version": 2'), "version 2; only"),
    "another shift": (lambda d: edit(d / "manifest.json", '"shift": 3', '"shift": 4'), "step 0 has other exponents"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed(tmp_path, damage):
    write(tmp_path, wide_network())
    read(tmp_path)
    harm, message = DAMAGES[damage]
    harm(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


def test_needs_no_torch(tmp_path):
    write(tmp_path, small_network(), Tiling(4, 4))
    code = (
        "import sys; sys.modules['torch'] = None\nimport numpy as np\nfrom utils.export.fpga import dump, integer\n"
        f"network = dump.read({str(tmp_path)!r})\n"
        "print(integer.run(network, np.full((1, 1, 1, 1), 255, np.uint8)).maps[0].ravel().tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("[-8, 124]\n", "")
