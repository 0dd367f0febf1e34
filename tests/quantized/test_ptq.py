"""PTQ.py and calibration on a tiny trained network."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import detect
import PTQ
import test as test_script
from tests.test_train import CFG, train_with, write_set
from tests.tiny import TOPOLOGIES, network
from utils.core.errors import UserError
from utils.loading import load_model
from utils.network.checkpoint import load_checkpoint, save_checkpoint
from utils.network.darknet import Darknet
from utils.quantized import calibrate
from utils.quantized.config import QuantizerConfig
from utils.quantized.layers import QuantConv2d
from utils.quantized.settings import Settings
from utils.quantized.transform import quantize, quantizers, switched
from utils.scripts.cli import run as run_script


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a dataset and a network that finds most of its boxes."""
    folder = tmp_path_factory.mktemp("ptq")
    write_set(folder)
    (folder / "h.yaml").write_text("lr0_adam: 0.02\nmosaic: 0\nscale: 0.1\nhsv_h: 0\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        torch.manual_seed(0)
        train_with("--epochs 40 --adam --hyp h.yaml --seed 3 --notest")
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A copy of it to work in."""
    shutil.copytree(trained, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


BASE = "--data d.data --weights weights/last.pt --workers 0 --device cpu --batch-size 4"


def ptq(text: str, base: str = BASE) -> dict:
    return PTQ.main(PTQ.get_parser().parse_args([*base.split(), *text.split()]))


def calibrated(settings: Settings, name: str = "residual") -> tuple[Darknet, list[torch.Tensor]]:
    batches = [torch.rand(4, 3, 64, 64) for _ in range(2)]
    model = quantize(network(TOPOLOGIES[name]), settings)
    assert calibrate.calibrate(model, iter(batches), 8) == 8
    return model, batches


def test_a_network_is_quantized_without_training(here, capsys):
    figures = ptq("--json f.json --calib 6 --observer moving --sensitivity")
    output = capsys.readouterr().out
    assert figures["float"]["map50"] > 0.3
    assert figures["drop"] == figures["float"]["map50"] - figures["quantized"]["map50"] < 0.05
    assert (figures["calib"], figures["raw_maps_db"] > 15) == (6, True)
    assert json.loads(Path("f.json").read_text())["quantized"] == figures["quantized"]
    assert "mAP@0.5:0.95" in output
    assert "export.py" in output
    # the rows of the table: the image and every layer that rounds, the loudest first
    table = figures["sensitivity"]
    assert [r["db"] for r in table] == sorted(r["db"] for r in table)
    assert len(table) == 1 + len([m for m in load_model("", "weights/last_ptq.pt").model.module_list if quantizers(m)])
    assert sum(r["map50"] is not None for r in table) == PTQ.WORST
    # test.py and detect.py need no flags and find the same
    arguments = ["--data", "d.data", "--weights", "weights/last_ptq.pt", "--device", "cpu", "--workers", "0"]
    measured = test_script.main(test_script.get_parser().parse_args(arguments))
    figures_of_test = {"map50": measured.map50, "map": measured.map, "conf_thres": measured.conf_thres}
    assert figures_of_test == pytest.approx(figures["quantized"], abs=1e-6)
    arguments = ["--weights", "weights/last_ptq.pt", "--source", "valid", "--output", "out", "--device", "cpu"]
    assert detect.main(detect.get_parser().parse_args(arguments))["detections"] > 0
    # training can go on from it
    train_with("--epochs 1 --weights weights/last_ptq.pt --quantized 1 --notest --name qat", base=BASE_OF_TRAIN)
    assert load_checkpoint("weights/last_qat.pt")["quantization"]["observer"] == ""


BASE_OF_TRAIN = "--data d.data --batch-size 4 --accumulate 1 --workers 0 --device cpu --logdir="


@pytest.mark.parametrize("flags", ["--FPGA", "--observer percentile --w-bit 6", "--observer minmax --shortcut_way 2"])
def test_settings_reach_the_checkpoint(here, flags):
    figures = ptq(f"{flags} --calib 4 --out q/x.pt --no-bias-correction")
    stored = load_checkpoint("q/x.pt")
    assert stored["quantization"] == figures["settings"]
    assert stored["quantization"]["fpga"] == ("--FPGA" in flags)
    assert stored["quantization"]["observer"] == ("mse" if "--observer" not in flags else flags.split()[1])
    assert (stored["names"], stored["settings"]["img_size"]) == (["red", "green"], 64)
    assert not figures["bias_correction"]


@torch.no_grad()
def test_ranges_are_those_of_the_float_maps():
    model, batches = calibrated(Settings(1, observer="minmax"))
    plain = network(TOPOLOGIES["residual"])
    seen: dict[int, list[torch.Tensor]] = {}
    for i, module in enumerate(plain.module_list):
        module.register_forward_hook(lambda m, x, out, i=i: seen.setdefault(i, []).append(out.clone()))
    for images in batches:
        plain(images)
    for i, module in enumerate(model.module_list):
        if getattr(module, "out_quant", None) is not None:
            assert module.out_quant.low.item() == pytest.approx(min(float(m.min()) for m in seen[i]), abs=1e-6)
            assert module.out_quant.high.item() == pytest.approx(max(float(m.max()) for m in seen[i]), abs=1e-6)
    assert model.input_quantizer.observed == 2


@torch.no_grad()
def test_biases_make_up_for_rounded_kernels():
    """Behind a corrected convolution the mean of each filter is that of the float kernel on the same input, but for half a
    step of the integer sums, in which biases come."""
    model, batches = calibrated(Settings(1, w_bit=3))
    layer = next(m for m in model.module_list if isinstance(m, QuantConv2d))
    before = [b.clone() for b in calibrate.biases(model)]
    images = torch.cat(batches)
    x = model.input_quantizer(images)
    factor = layer.BatchNorm2d.weight / (layer.BatchNorm2d.running_var + 1e-5).sqrt()
    shift = layer.BatchNorm2d.bias - layer.BatchNorm2d.running_mean * factor
    wanted = (torch.nn.functional.conv2d(x, layer.conv.weight * factor.view(-1, 1, 1, 1), stride=2, padding=1)).mean(
        (0, 2, 3)
    ) + shift
    off = (layer.convolve(x).mean((0, 2, 3)) - wanted).abs().max()
    changes = calibrate.correct_biases(model, iter(batches), 8)
    assert off > 0.01
    step = layer.deployed().scale * model.input_quantizer.qparams()[0]
    assert ((layer.convolve(x).mean((0, 2, 3)) - wanted).abs() < step / 2 + 1e-5).all()
    assert step.max() < off / 3
    assert set(changes) == {i for i, m in enumerate(model.module_list) if isinstance(m, QuantConv2d)}
    assert not torch.equal(before[0], calibrate.biases(model)[0])
    calibrate.restore_biases(model, before)
    assert all(torch.equal(a, b) for a, b in zip(before, calibrate.biases(model), strict=True))


@torch.no_grad()
def test_signal_to_noise_by_hand():
    wanted = [[torch.full((2, 5), 3.0)], [torch.full((1, 4), 1.0)]]
    found = [[torch.full((2, 5), 3.3)], [torch.full((1, 4), 1.0)]]
    assert calibrate.signal_to_noise(found, wanted) == pytest.approx(10 * np.log10(94 / 0.9), rel=1e-4)
    assert calibrate.signal_to_noise(wanted, wanted) == np.inf


@pytest.mark.parametrize("settings", [Settings(1), Settings(1, fpga=True)], ids=str)
@torch.no_grad()
def test_sensitivity_finds_the_layer_that_hurts(settings):
    model, batches = calibrated(settings)
    guilty = 3
    layer = model.module_list[guilty]
    layer.weight_quant.config = QuantizerConfig(2, narrow=True, power_of_two=settings.fpga, dynamic=True)
    wanted = calibrate.raw_maps(model, batches, rounding=False)
    found = calibrate.sensitivity(model, batches, wanted)
    assert found[0].index == guilty
    assert str(found[0]) == "layer 3 [convolutional]"
    with switched(quantizers(model), False), switched(quantizers(layer), True):
        alone = calibrate.signal_to_noise(calibrate.raw_maps(model, batches, rounding=True), wanted)
    assert found[0].db == pytest.approx(alone)
    assert all(q.enabled for q in quantizers(model))


def run_main(monkeypatch, text: str) -> None:
    monkeypatch.setattr("sys.argv", ["PTQ.py", *BASE.split(), *text.split()])
    run_script(PTQ.main, PTQ.get_parser())


@pytest.mark.parametrize(
    "flags", ["--w-bit 2 --a-bit 2 --observer minmax", "--w-bit 2 --a-bit 2 --observer minmax --max-drop 0.1"]
)
def test_a_network_that_detects_too_little_is_refused_with_the_guilty_layers(here, monkeypatch, capsys, flags):
    before = sorted(here.rglob("*.pt"))
    with pytest.raises(SystemExit) as exit_:
        run_main(monkeypatch, f"{flags} --calib 4 --no-bias-correction --json f.json")
    assert exit_.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("PTQ.py: weights/last.pt: not written: mAP@0.5 falls by 0.")
    assert ("more than half" in last) == ("--max-drop" not in flags)
    table = json.loads(Path("f.json").read_text())
    assert table["weights"] is None
    for row in table["sensitivity"][: PTQ.WORST]:
        assert f"{'image' if row['layer'] < 0 else row['layer']} ({row['db']:.1f} dB)" in last
    assert sorted(here.rglob("*.pt")) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--weights=", "name the trained network with --weights"),
        ("--weights none.pt", "none.pt"),
        ("--out x.weights", "must end in .pt"),
        ("--out weights/last.pt", "overwrite its own source"),
        ("--FPGA --a-bit 32", "--a-bit 32: with --FPGA"),
        ("--img-size 33", "--img-size 33"),
    ],
)
def test_mistakes_are_named(here, flags, message):
    before = sorted(here.rglob("*"))
    with pytest.raises(UserError, match=message):
        ptq(flags)
    assert sorted(here.rglob("*")) == before


def test_ranges_that_are_nan_are_refused_once_they_were_seen(here):
    model = quantize(Darknet("tiny.cfg", 64), Settings())
    save_checkpoint("unseen.pt", {"model": model.state_dict(), "cfg": CFG, "quantization": Settings().to_dict()})
    assert load_model("", "unseen.pt").model.quantization == Settings()
    ptq("")
    checkpoint = load_checkpoint("weights/last_ptq.pt")
    name = next(k for k in checkpoint["model"] if k.endswith(".high"))
    checkpoint["model"][name].fill_(np.nan)
    save_checkpoint("nan.pt", checkpoint)
    with pytest.raises(UserError, match=rf"nan.pt: tensors with NaN or infinite values: 1, the first is {name}"):
        load_model("", "nan.pt")


def test_weights_whose_maps_are_not_finite_are_refused(here):
    checkpoint = load_checkpoint("weights/last.pt")
    kernel = next(v for k, v in checkpoint["model"].items() if k.endswith("Conv2d.weight"))
    kernel[:] = 3e38  # sums of it overflow
    torch.save(checkpoint, "large.pt")
    with pytest.raises(UserError, match=r"large.pt: its raw maps of training images aren't finite"):
        ptq("--weights large.pt")
    assert not Path("large_ptq.pt").exists()


@pytest.mark.parametrize("out", ["d.data/x.pt", "train"])
def test_a_place_that_cannot_be_written_is_named_before_the_work(here, monkeypatch, out):
    monkeypatch.setattr(PTQ, "load_model", lambda *_, **__: pytest.fail("the work has begun"))
    (here / "train.pt").mkdir()
    with pytest.raises(UserError, match="d.data is no folder|train.pt: is a folder"):
        ptq(f"--out {out if out.endswith('.pt') else out + '.pt'}")


def test_quantized_weights_are_refused(here):
    ptq("--calib 4 --out q.pt")
    with pytest.raises(UserError, match=r"q.pt: is quantized already \(Google .*begin with float weights"):
        ptq("--weights q.pt")


def test_the_float_network_stays_as_it_was(here):
    model = load_model("", "weights/last.pt").model
    state = copy.deepcopy(model.state_dict())
    ptq("--calib 4")
    assert all(
        torch.equal(a, b)
        for a, b in zip(state.values(), load_model("", "weights/last.pt").model.state_dict().values(), strict=True)
    )
