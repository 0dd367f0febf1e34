"""FPGA dumps: the integer reference, from the files alone, against PyTorch, bit for bit; and export.py --format fpga."""

import copy
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import export
from tests.tiny import NET, TOPOLOGIES, conv, head, network, randomise
from utils.core.errors import UserError
from utils.data.batch import normalise
from utils.export.fpga import job as fpga_job
from utils.export.fpga.check import CPU, compare
from utils.export.fpga.dump import Tiling, read, write
from utils.export.fpga.integer import run, values
from utils.export.fpga.lower import lower
from utils.network import definitions
from utils.network.cfg import parse_cfg, write_cfg
from utils.network.checkpoint import save_checkpoint
from utils.network.darknet import Darknet
from utils.network.definitions import Defs
from utils.quantized.settings import Settings
from utils.quantized.transform import quantize

CFGS = Path(__file__).resolve().parents[2] / "cfg"
NETWORKS = {"tiny": CFGS / "yolov3tiny/yolov3-tiny.cfg",
            "mobilenet": CFGS / "yolov3tiny-mobilenet-small/yolov3tiny-mobilenet-small-coco.cfg"}  # fmt: skip
GROUPED = (
    NET + conv(8, stride=2) + conv(12, groups=4, activation="mish") + "[maxpool]\nmaxpool_depth=1\nout_channels=4\n" + head()
)
STRIDES = (
    NET + conv(8, stride_x=2, stride_y=2, activation="relu6") + "[maxpool]\nsize=2\nstride=1\n[dropout]\n"
    + conv(8, size=2, activation="relu") + conv(9, dilation=2, activation="tanh") + head()
)  # fmt: skip
SHORTCUTS = (
    NET + conv(8, stride=2) + conv(6, activation="relu") + conv(8) + "[shortcut]\nfrom=-2,-3\nactivation=leaky\n"
    + conv(8, 1) + "[shortcut]\nfrom=-2\nactivation=mish\n" + "[reorg]\nstride=2\n" + head()
)  # fmt: skip
INDIRECT = NET + conv(8, stride=2) + head().replace("[yolo]", "[upsample]\nstride=2\n[yolo]")
OTHERS = {"grouped": GROUPED, "strides": STRIDES, "shortcuts": SHORTCUTS, "indirect": INDIRECT}
BITS = [{}, {"w_bit": 4}, {"w_bit": 4, "a_bit": 4, "keep_first_last": True}, {"strategy": 2, "w_bit": 3, "shortcut_way": 2}]


OWN_FILES = {"biases.bin", "exponents.bin", "manifest.json", "tables.bin", "weights.bin"}


def calibrated(model: Darknet, size: int = 64, **settings) -> Darknet:
    """Quantized with --FPGA, ranges from random images."""
    quantize(model, Settings(**{"strategy": 1, "fpga": True} | settings)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        model(torch.rand(2, model.defs.net.channels, size, size))
    return model.eval()


def noise(size: int = 64, channels: int = 3, batch: int = 2) -> torch.Tensor:
    return torch.randint(256, (batch, channels, size, size), dtype=torch.uint8)


def dumped(model: Darknet, folder: Path, size: int = 64, tiling: Tiling | None = None, maxabs: bool = False):
    """The integer network as its files tell it."""
    write(folder, lower(model.inference_copy(CPU), size, size, maxabs), tiling)
    return read(folder)


def narrow(path: Path, factor: int = 8) -> Defs:
    """A network of cfg/ with so many times fewer filters."""
    defs = parse_cfg(path)
    heads = {s for i in defs.head_indices() for s in defs.feeding(i)}
    for index, d in enumerate(defs):
        if isinstance(d, definitions.Convolutional) and index not in heads:
            d.filters //= factor
    return defs


def assert_bit_for_bit(model: Darknet, folder: Path, size: int = 64, tiling: Tiling | None = None) -> None:
    network, pictures = dumped(model, folder, size, tiling), noise(size)
    raws = model(normalise(pictures, CPU))[1]
    found = values(network, run(network, pictures.numpy()))
    assert len(found) == len(raws) > 0
    for mine, raw in zip(found, raws, strict=True):
        assert mine.dtype == np.float32
        assert np.array_equal(mine, raw.detach().numpy())
        assert np.unique(mine).size > 10  # neither all zeros nor all cut off


@pytest.mark.parametrize("settings", BITS, ids=lambda s: " ".join(f"{k}={v}" for k, v in s.items()) or "8 bits")
@pytest.mark.parametrize("name", [*TOPOLOGIES, *OTHERS])
def test_every_topology_bit_for_bit(tmp_path, name, settings):
    model = calibrated(network((TOPOLOGIES | OTHERS)[name]), **settings)
    assert_bit_for_bit(model, tmp_path, tiling=Tiling(4, 3))


@pytest.mark.parametrize("settings", BITS[:2], ids=["8 bits", "4-bit kernels"])
@pytest.mark.parametrize("name", NETWORKS)
def test_narrowed_networks_bit_for_bit(tmp_path, name, settings):
    """yolov3-tiny and tiny-mobilenet-small, h_swish and squeeze-and-excitation included, with an eighth of the filters."""
    torch.manual_seed(0)
    model = calibrated(randomise(Darknet(narrow(NETWORKS[name]), 64)), **settings)
    assert_bit_for_bit(model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("settings", BITS[:2], ids=["8 bits", "4-bit kernels"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_bit_for_bit(tmp_path, name, settings):
    assert_bit_for_bit(calibrated(network(str(NETWORKS[name]), 96), 96, **settings), tmp_path, 96, Tiling(32, 4))


def test_sixteen_bits_need_float64(tmp_path):
    """Sums beyond 2^24, which float32 rounds: the integers are those of the same network in float64."""
    model = calibrated(network(TOPOLOGIES["dialect"]), a_bit=16)
    network_ = dumped(model, tmp_path)
    agreement = compare(model.inference_copy(CPU), network_, [noise(64), noise(96)])
    assert max(agreement.peaks.values()) > 2**24
    assert agreement.equal < agreement.outputs == agreement.equal_float64


def test_a_wrong_integer_is_noticed(tmp_path):
    model = calibrated(network(TOPOLOGIES["residual"]))
    network_ = dumped(model, tmp_path)
    network_.steps[0].arrays["biases"] = network_.steps[0].arrays["biases"] + 2**9
    agreement = compare(model.inference_copy(CPU), network_, [noise()])
    assert max(agreement.equal, agreement.equal_float64) < agreement.outputs


@pytest.mark.parametrize(("maxabs", "low", "middle"), [(False, 0, 64), (True, -128, 1)])
def test_pictures_become_integers_through_a_table(tmp_path, maxabs, low, middle):
    """0..1 or -1..1 in steps of 2^-7: the integer of byte b is round(128 b / 255), or round(128 (b / 127.5 - 1))."""
    model = quantize(network(TOPOLOGIES["residual"]), Settings(1, True)).train()
    with torch.no_grad():
        model(normalise(torch.tensor([0, 255], dtype=torch.uint8).repeat(2, 3, 64, 32), CPU, maxabs=maxabs))
    found = dumped(model.eval(), tmp_path, maxabs=maxabs)
    assert (found.input.exponent, found.input.low, found.input.high) == (7, -128, 127)
    assert found.pixels[[0, 128, 255]].tolist() == [low, middle, 127]
    agreement = compare(model.inference_copy(CPU), found, [noise()], maxabs)
    assert agreement.equal == agreement.outputs


def test_one_layer_by_hand(tmp_path):
    """A 1x1 convolution before [yolo]: kernel 0.5 for channel 0 of filter 0, bias -0.25; the rest is 0."""
    model = Darknet(NET + conv(7, 1, bn=0, activation="linear") + "[yolo]\nmask=0\nanchors=16,16\nclasses=2\nnum=1\n", 64)
    convolution = model.module_list[0].conv
    convolution.weight.data.zero_()
    convolution.bias.data.zero_()
    convolution.weight.data[0, 0], convolution.bias.data[0] = 0.5, -0.25
    quantize(model, Settings(1, True, observer="minmax")).train()
    with torch.no_grad():
        model(torch.cat((torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64))))
    found = dumped(model.eval(), tmp_path)
    (step,) = found.steps
    # scales: nearest to 1/127 and 0.25/32767: 2^-7 and 2^-17; the coarsest that holds 0.5 without error: 2^-7
    assert step.exponents == {"inputs": [7], "weights": 7, "sums": 14}
    assert (step.output.exponent, step.shift) == (17, -3)
    assert step.arrays["weights"][0].ravel().tolist() == [64, 0, 0]
    assert step.arrays["biases"].tolist() == [-(2**12), 0, 0, 0, 0, 0, 0]
    pictures = np.zeros((1, 3, 64, 64), np.uint8)
    pictures[0, 0, 0, :2] = 255, 128
    result = run(found, pictures)
    assert result.maps[0][0, 0, 0, :3].tolist() == [8 * (64 * 127 - 2**12), 0, -(2**15)]
    assert result.peaks == {0: 2**12}
    assert step.bound == 64 * 128 + 2**12
    assert values(found, result)[0][0, 0, 0, 0, 0] == (64 * 127 - 2**12) / 2**14


def test_float_activation_of_a_head_is_left_to_decoding(tmp_path):
    cfg = NET + conv(8, stride=2) + conv(7, 1, bn=0, activation="logistic")
    model = calibrated(network(cfg + "[yolo]\nmask=0\nanchors=16,16\nclasses=2\nnum=1\nnew_coords=1\nscale_x_y=2\n"))
    found, pictures = dumped(model, tmp_path), noise()
    (head_,) = found.info["heads"]
    assert head_ == {
        "layer": 2, "kind": "yolo", "step": 1, "exponent": found.steps[1].output.exponent, "activation": "logistic",
        "new_coords": 1, "scale_x_y": 2, "classes": 2, "stride": [2, 2], "anchors": [[16, 16]],
    }  # fmt: skip
    (mine,), (raw,) = values(found, run(found, pictures.numpy())), model(normalise(pictures, CPU))[1]
    torch.testing.assert_close(torch.from_numpy(mine).sigmoid(), raw.detach(), rtol=0, atol=1e-6)
    agreement = compare(model.inference_copy(CPU), found, [pictures])
    assert agreement.equal == agreement.outputs == pictures.shape[0] * 7 * 32 * 32


def test_a_map_between_floats_and_integers_is_refused():
    cfg = NET + conv(8, stride=2) + conv(7, 1, bn=0, activation="logistic")
    yolo = "[yolo]\nmask=0\nanchors=16,16\nclasses=2\nnum=1\nnew_coords=1\n"
    model = calibrated(network(cfg + yolo + "[route]\nlayers=-2\n" + conv(7, 1, bn=0, activation="linear") + yolo))
    with pytest.raises(UserError, match=r"layer 1 \[convolutional\]: its map is read by a head"):
        lower(model.inference_copy(CPU), 64, 64)


@torch.no_grad()
def test_dead_layers(tmp_path):
    """A gamma of 0 everywhere, a kernel of zeros and a map of zeros leave shifts short and biases what they are."""
    model = network(TOPOLOGIES["csp"].replace("leaky", "relu"))
    faint, zero, dark = (model.module_list[i] for i in (1, 3, 4))
    faint.BatchNorm2d.weight.zero_()
    zero.conv.weight.zero_()
    dark.BatchNorm2d.bias.fill_(-100)
    assert_bit_for_bit(calibrated(model), tmp_path)
    found = read(tmp_path)
    assert all(abs(step.shift) <= 48 for step in found.steps)
    (step,) = (s for s in found.steps if s.layer == 1)
    biases = step.arrays["biases"] * 2.0 ** -step.exponents["sums"]
    bn = faint.BatchNorm2d
    np.testing.assert_allclose(biases, bn.bias, atol=1e-6)


def test_squeeze_and_excitation_is_four_steps():
    found = lower(calibrated(network(TOPOLOGIES["dialect"])).inference_copy(CPU), 64, 64)
    kinds = [(s.kind, s.sources, s.activation, s.shape) for s in found.steps if s.layer == 3]
    assert kinds == [
        ("avgpool", [2], "linear", [16, 1, 1]), ("convolutional", [3], "relu", [4, 1, 1]),
        ("convolutional", [4], "table", [16, 1, 1]), ("product", [5, 2], "linear", [16, 32, 32]),
    ]  # fmt: skip


def test_bounds_hold_for_every_picture():
    """The bound is reached by the image made for it: all signs as the kernel's."""
    found = lower(calibrated(network(TOPOLOGIES["csp"])).inference_copy(CPU), 64, 64)
    peaks = run(found, noise().numpy()).peaks
    assert all(peaks[number] <= found.steps[number].bound for number in peaks)
    first = found.steps[0]
    sums = np.abs(first.arrays["weights"].astype(int)).sum((1, 2, 3)) * 128 + np.abs(first.arrays["biases"].astype(int))
    assert first.bound == sums.max()


# export.py --format fpga


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save(calibrated(network(TOPOLOGIES["csp"]), w_bit=4), tmp_path / "small.pt")


def save(model: Darknet, path: Path) -> Path:
    quantization = model.quantization and model.quantization.to_dict()
    content = {"model": model.state_dict(), "cfg": write_cfg(model.defs), "cfg_name": "small.cfg", "names": ["a", "b"]}
    save_checkpoint(path, content | {"quantization": quantization, "settings": {"img_size": 64}})
    return path


def dump(path: Path, *flags: object) -> dict:
    arguments = ["--weights", path, "--format", "fpga", *flags]
    return export.main(export.get_parser().parse_args(list(map(str, arguments))))


def test_export(tmp_path, checkpoint, capsys):
    figures = dump(checkpoint, "--json", tmp_path / "f.json")
    folder = tmp_path / "small_fpga"
    assert files(folder) == OWN_FILES
    assert json.loads((tmp_path / "f.json").read_text()) == figures
    outputs = 2 * 14 * 24 * 24  # noise of 96 pixels
    assert (figures["outputs"], figures["equal"], figures["tried"]) == (outputs, outputs, [[2, 3, 96, 96]])
    printed = capsys.readouterr().out
    assert f"{outputs:,} outputs, all equal" in printed
    assert f"{figures['peak']:,} (step" in printed
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["info"]["names"] == ["a", "b"]
    assert manifest["info"]["quantization"]["w_bit"] == 4
    assert manifest["info"]["picture"]["width"] == 64
    assert manifest["tiling"] is None
    kernels = sum(s.arrays["weights"].size for s in read(folder).steps if "weights" in s.arrays)
    assert kernels / 2 <= figures["bytes"]["weights.bin"] <= kernels / 2 + 64 * len(manifest["steps"])  # 4 bits each


def test_sizes_and_tiles(tmp_path, checkpoint):
    tiles = ["--reorder", "--tm", 4, "--tn", 3]
    figures = dump(checkpoint, "--out", tmp_path / "a", "--img-size", "32x64", "--check-size", 32, *tiles)
    assert figures["tried"] == [[2, 3, 32, 32]]
    manifest = json.loads((tmp_path / "a/manifest.json").read_text())
    assert (manifest["tiling"]["tm"], manifest["tiling"]["tn"]) == (4, 3)
    assert manifest["steps"][0]["shape"] == [8, 16, 32]
    assert manifest["steps"][0]["arrays"]["weights"]["tiles"] == [1, 2, 1, 3, 3, 4, 3]
    plain = tmp_path / "b"
    dump(checkpoint, "--out", plain, "--check-size", 32)
    assert (plain / "weights.bin").read_bytes() != (tmp_path / "a/weights.bin").read_bytes()
    for a, b in zip(read(plain).steps, read(tmp_path / "a").steps, strict=True):
        assert all(np.array_equal(a.arrays[k], b.arrays[k]) for k in a.arrays)


def test_vectors_are_every_step_of_a_picture(tmp_path, checkpoint):
    dump(checkpoint, "--vectors", "--check-size", 32)
    folder = tmp_path / "small_fpga"
    vectors, found = np.load(folder / "vectors.npz"), read(folder)
    assert sorted(vectors) == sorted(["picture", "image", *map(str, range(len(found.steps)))])
    assert np.array_equal(vectors["image"], found.pixels[vectors["picture"]])
    (result,) = run(found, vectors["picture"]).maps
    assert np.array_equal(vectors[str(found.outputs[0])], result)


def test_pictures_of_a_data_set_are_tried(tmp_path, checkpoint):
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
        (tmp_path / f"{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "v.list").write_text("".join(f"{tmp_path}/{name}.png\n" for name in "ab"))
    (tmp_path / "d.data").write_text("classes=2\nvalid=v.list\n")
    figures = dump(checkpoint, "--data", tmp_path / "d.data", "--check-size", 64)
    assert figures["tried"] == [[2, 3, 64, 64], [2, 3, 64, 64]]
    assert figures["equal"] == figures["outputs"] == 4 * 14 * 16 * 16


def test_gray_and_maxabs_come_from_the_checkpoint(tmp_path):
    model = network(TOPOLOGIES["csp"].replace("channels=3", "channels=1"))
    path = save(calibrated(model), tmp_path / "gray.pt")
    content = torch.load(path, weights_only=True)
    content["settings"] = {"img_size": 64, "maxabs": True, "gray": True, "stretch": True}
    torch.save(content, path)
    figures = dump(path, "--check-size", 64)
    assert figures["tried"] == [[2, 1, 64, 64]]
    picture = read(tmp_path / "gray_fpga").info["picture"]
    assert (picture["order"], picture["resized"], picture["value"]) == ("gray", "stretched", "byte / 127.5 - 1")


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def test_nothing_is_left_where_integers_differ(tmp_path, checkpoint, monkeypatch):
    dump(checkpoint, "--check-size", 32)
    (tmp_path / "small_fpga/manifest.json").write_text("old")
    before, honest = files(tmp_path), fpga_job.compare

    def one_wrong(*arguments):
        agreement = honest(*arguments)
        agreement.equal -= 1
        return agreement

    monkeypatch.setattr(fpga_job, "compare", one_wrong)
    with pytest.raises(UserError, match="not written: 1 of 1792 integers"):
        dump(checkpoint, "--check-size", 32)
    assert files(tmp_path) == before
    assert (tmp_path / "small_fpga/manifest.json").read_text() == "old"


def test_an_earlier_dump_is_replaced_and_nothing_else(tmp_path, checkpoint):
    dump(checkpoint, "--check-size", 32, "--vectors")
    dump(checkpoint, "--check-size", 32)
    assert not (tmp_path / "small_fpga/vectors.npz").exists()
    assert files(tmp_path) == {"small.pt", "small_fpga", *(f"small_fpga/{name}" for name in OWN_FILES)}
    (tmp_path / "small_fpga/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files \(notes.txt\)"):
        dump(checkpoint, "--check-size", 32)
    with pytest.raises(UserError, match="is a file"):
        dump(checkpoint, "--check-size", 32, "--out", checkpoint)


def test_what_a_killed_process_left_is_cleared_away(tmp_path, checkpoint, monkeypatch):
    """Killed while it writes, and between the two moves that put the new dump in its place."""
    dump(checkpoint, "--check-size", 32)
    before = files(tmp_path)
    (tmp_path / ".small_fpga.tmp/new").mkdir(parents=True)
    (tmp_path / ".small_fpga.tmp/new/weights.bin").write_text("half")
    dump(checkpoint, "--check-size", 32)
    assert files(tmp_path) == before
    (tmp_path / ".small_fpga.tmp").mkdir()
    (tmp_path / "small_fpga").rename(tmp_path / ".small_fpga.tmp/old")
    monkeypatch.setattr(fpga_job, "judge", lambda agreement: (_ for _ in ()).throw(UserError("no")))
    with pytest.raises(UserError, match="no"):
        dump(checkpoint, "--check-size", 32)
    assert files(tmp_path) == before  # the earlier dump is back


@pytest.mark.parametrize(("flags", "message"), [
    (["--reorder"], "--reorder needs --tm N and --tn N"), (["--reorder", "--tm", "4"], "needs --tm N and --tn N"),
    (["--tn", "4"], "add it"), (["--check-size", "33"], "--check-size 33: .* a multiple of 4"),
    (["--img-size", "30"], "a multiple of 4"),
    (["--img-size", "32", "32", "32"], "not 3 numbers"), (["--nms"], "--nms: means something with --format onnx only"),
    (["--static"], "--static: means something"), (["--max-drop", "0.1"], "--max-drop: means something"),
])  # fmt: skip
def test_flags_that_make_no_sense(checkpoint, flags, message):
    with pytest.raises(UserError, match=message) as error:
        dump(checkpoint, *flags)
    assert "\n" not in str(error.value)


def test_flags_of_dumps_are_refused_elsewhere(checkpoint):
    with pytest.raises(UserError, match="--check-size: means something with --format fpga only, not with onnx"):
        export.main(export.get_parser().parse_args(["--weights", str(checkpoint), "--check-size", "64"]))
    with pytest.raises(SystemExit):
        export.get_parser().parse_args(["--weights", str(checkpoint), "--tm", "0"])


def test_networks_that_are_no_integers_are_refused(tmp_path):
    model = network(TOPOLOGIES["csp"])
    with pytest.raises(UserError, match="is not quantized, .*python PTQ.py --FPGA"):
        dump(save(model, tmp_path / "float.pt"))
    google = quantize(copy.deepcopy(model), Settings(1))
    with pytest.raises(UserError, match="is quantized in another way .*train.py --quantized 1 --FPGA"):
        dump(save(google, tmp_path / "google.pt"))
    never = quantize(model, Settings(1, True))
    with pytest.raises(UserError, match="range was never observed"):
        dump(save(never, tmp_path / "never.pt"))
    assert files(tmp_path) == {"float.pt", "google.pt", "never.pt"}
