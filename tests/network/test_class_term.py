"""One class: its probability is trained, and what earlier versions left untrained is mended in the weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

import convert
from tests.data.test_class_handling import ONE, one  # noqa: F401
from tests.references import read_darknet
from tests.test_train import here, interrupt_at, train_with  # noqa: F401
from tests.tiny import NET, conv, head, network
from utils.loading import load_model
from utils.network.cfg import write_cfg
from utils.network.checkpoint import load_checkpoint, save_checkpoint
from utils.network.darknet import Darknet
from utils.network.weights import load_weights, save_weights
from utils.quantized.settings import Settings
from utils.quantized.transform import quantize

CFG = NET + conv(8, stride=2) + conv(16, stride=2) + conv(24, stride=2) + head(classes=1)
TWO_HEADS = CFG + "[route]\nlayers=-4\n" + conv(8, stride=2) + head("0", classes=1)
SETTINGS = {"img_size": 64, "gray": False, "maxabs": False, "stretch": False}
LINE = "the probability of the one class was never trained in these weights"


def save(model: Darknet, path: Path, **fields: object) -> Path:
    """A checkpoint as earlier versions wrote it, of a training; `fields` make it another."""
    content = {"model": model.state_dict(), "cfg": write_cfg(model.defs), "settings": SETTINGS, "names": ["object"]}
    save_checkpoint(path, content | fields)
    return path


def outputs(model: Darknet) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))[0]


@pytest.mark.parametrize("cfg", [CFG, TWO_HEADS], ids=["one head", "two heads"])
def test_the_class_of_an_old_checkpoint_becomes_certain_and_nothing_else_changes(tmp_path, cfg):
    model = network(cfg)
    before = outputs(model)
    loaded = load_model("", save(model, tmp_path / "old.pt"))
    assert loaded.report.message.startswith(LINE)
    after = outputs(loaded.model)
    assert torch.equal(after[..., :5], before[..., :5])
    assert before[..., 5].max() < 1
    assert torch.equal(after[..., 5], torch.ones_like(after[..., 5]))


def test_the_weights_written_from_an_old_checkpoint_are_right_in_opencv(tmp_path, capsys):
    model = network(CFG)
    convert.main(convert.get_parser().parse_args(["--weights", str(save(model, tmp_path / "old.pt"))]))
    assert LINE in capsys.readouterr().out
    picture = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    reader = read_darknet(str(tmp_path / "old.cfg"), str(tmp_path / "old.weights"))
    reader.setInput(picture)
    rows = reader.forward()  # x y w h objectness, class scores: probability times objectness
    seen = rows[:, 5] > 0  # OpenCV sets scores under its threshold to 0
    assert seen.sum() > 10
    np.testing.assert_allclose(rows[seen, 5], rows[seen, 4], rtol=1e-6)


def test_a_head_with_batch_normalisation(tmp_path):
    model = network(CFG.replace("filters=12", "batch_normalize=1\nfilters=12"))
    assert model.module_list[3].conv.bias is None
    before, after = outputs(model), outputs(load_model("", save(model, tmp_path / "old.pt")).model)
    assert torch.equal(after[..., :5], before[..., :5])
    assert torch.equal(after[..., 5], torch.ones_like(after[..., 5]))


@pytest.mark.parametrize(
    ("cfg", "fields"),
    [
        (CFG, {"class_term": True}),
        (CFG, {"settings": {"img_size": 64}}),  # what convert.py makes of a .weights
        (CFG, {"settings": {"img_size": 64, "gray": False}}),  # what PTQ.py makes of one
        (CFG, {"settings": {}}),
        (CFG.replace("filters=12", "filters=14").replace("classes=1", "classes=2"), {}),
    ],
    ids=["trained", "converted", "quantized", "another program's", "two classes"],
)  # fmt: skip
def test_what_is_right_or_unknown_stays_as_it_is(tmp_path, cfg, fields):
    model = network(cfg)
    loaded = load_model("", save(model, tmp_path / "x.pt", **fields))
    assert loaded.report.message == ""
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.model.state_dict().values(), strict=True))


def test_darknets_own_weights_stay_untouched_through_every_conversion(tmp_path):
    (tmp_path / "net.cfg").write_text(CFG)
    save_weights(network(CFG), tmp_path / "a.weights")
    for source, out in (("a.weights", "a.pt"), ("a.pt", "b.weights")):
        words = ["--cfg", tmp_path / "net.cfg", "--weights", tmp_path / source, "--out", tmp_path / out]
        convert.main(convert.get_parser().parse_args([str(w) for w in words]))
    assert (tmp_path / "a.weights").read_bytes() == (tmp_path / "b.weights").read_bytes()


def test_heads_that_start_anew_are_not_mended(tmp_path):
    many = network(CFG.replace("filters=12", "filters=14").replace("classes=1", "classes=2"))
    model = Darknet(CFG, 64)
    own = model.state_dict()["module_list.3.Conv2d.weight"].clone()
    report = load_weights(model, save(many, tmp_path / "two.pt"), pretrained=True)
    assert report.skipped_layers == [3]
    assert LINE not in report.message
    assert torch.equal(own, model.state_dict()["module_list.3.Conv2d.weight"])


@pytest.mark.parametrize("settings", [Settings(), Settings(strategy=2), Settings(fpga=True), Settings(a_bit=32)], ids=str)
def test_a_quantized_checkpoint_is_mended_in_integers_too(tmp_path, settings):
    model = quantize(network(CFG), settings).train()
    for seed in range(3):
        model(torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(seed)))
    path = save(model.eval(), tmp_path / "old.pt", quantization=settings.to_dict())
    loaded = load_model("", path)
    assert loaded.report.message.startswith(LINE)
    before, after = outputs(model), outputs(loaded.model.inference_copy(torch.device("cpu")))
    assert before[..., 5].max() < 1
    assert after[..., 5].min() > 1 - 1e-6
    # the raw map's 16 bits cover the new logit: what else it holds is rounded a little differently
    assert (after[..., 4] - before[..., 4]).abs().max() < 2e-3


def test_trainings_and_what_is_made_of_them_carry_the_field(one):  # noqa: F811
    train_with("--epochs 1 --single-cls", ONE)
    convert.main(convert.get_parser().parse_args(["--weights", "weights/last.pt", "--out", "again.pt"]))
    for path in ("weights/last.pt", "weights/best.pt", "again.pt"):
        assert load_checkpoint(path)["class_term"] is True
        assert load_model("", path).report.message == ""


def test_an_old_run_is_mended_when_it_goes_on(one, monkeypatch, capsys):  # noqa: F811
    flags = "--epochs 3 --single-cls"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 4)
        train_with(flags, ONE)
    old = load_checkpoint("weights/last.pt")
    del old["class_term"]
    save_checkpoint("weights/last.pt", old)
    capsys.readouterr()
    train_with("--resume", ONE)
    assert LINE in capsys.readouterr().out
    last = load_model("", "weights/last.pt")
    assert last.report.message == ""
    assert load_checkpoint("weights/last.pt")["class_term"] is True
    assert outputs(last.model)[..., 5].min() > 0.9999
