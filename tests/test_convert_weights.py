"""convert.py: both ways, with proof, and checkpoints as users of the dialect have them."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import convert
from tests.tiny import DIALECT, RESIDUAL, SPP, TOPOLOGIES, conv, network
from utils.core.errors import UserError
from utils.loading import load_model
from utils.network.cfg import parse_cfg
from utils.network.checkpoint import load_checkpoint, save_checkpoint
from utils.network.darknet import Darknet
from utils.network.weights import darknet_tensors, load_weights, save_weights
from utils.quantized.settings import Settings
from utils.quantized.transform import quantize


def run(*words) -> Path:
    return convert.main(convert.get_parser().parse_args([str(w) for w in words]))


def same_tensors(a: Darknet, b: Darknet) -> bool:
    return all(torch.equal(x, y) for (_, x), (_, y) in zip(darknet_tensors(a), darknet_tensors(b), strict=True))


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_there_and_back_is_byte_identical(name, tmp_path, capsys):
    model = network(TOPOLOGIES[name])
    (tmp_path / "net.cfg").write_text(TOPOLOGIES[name])
    save_weights(model, tmp_path / "a.weights", seen=77)
    assert run("--cfg", tmp_path / "net.cfg", "--weights", tmp_path / "a.weights") == tmp_path / "a.pt"
    count = sum(t.numel() for _, t in darknet_tensors(model))
    assert f"{count:,} values, read back identical" in capsys.readouterr().out
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert {"epoch", "best_fitness", "training_results", "model", "optimizer"} <= set(checkpoint)
    assert parse_cfg(checkpoint["cfg"]) == parse_cfg(TOPOLOGIES[name])
    loaded = load_model("", tmp_path / "a.pt")
    assert same_tensors(loaded.model, model)
    assert loaded.model.seen == 77
    run("--weights", tmp_path / "a.pt", "--out", tmp_path / "b.weights")
    assert (tmp_path / "b.weights").read_bytes() == (tmp_path / "a.weights").read_bytes()
    assert parse_cfg((tmp_path / "b.cfg").read_text()) == parse_cfg(TOPOLOGIES[name])


def test_what_weights_files_lack_is_taken_from_a_checkpoint(tmp_path):
    (tmp_path / "net.cfg").write_text(RESIDUAL)
    model = network(RESIDUAL)
    save_weights(model, tmp_path / "a.weights")
    settings = {"img_size": 96, "gray": False, "maxabs": False, "stretch": True}
    whole = {"model": model.state_dict(), "cfg": RESIDUAL, "names": ["cat", "dog"], "settings": settings}
    save_checkpoint(tmp_path / "like.pt", whole)
    words = ("--cfg", tmp_path / "net.cfg", "--weights", tmp_path / "a.weights")
    loaded = load_model("", run(*words, "--like", tmp_path / "like.pt", "--out", tmp_path / "b.pt"))
    assert (loaded.img_size, loaded.settings, loaded.names) == (96, settings, ["cat", "dog"])
    assert same_tensors(loaded.model, model)
    with pytest.raises(UserError, match=r"--like .*a.weights: is no checkpoint \(.pt\), and nothing else carries settings"):
        run(*words, "--like", tmp_path / "a.weights")


def test_out_decides_the_format_and_content_the_source(tmp_path):
    (tmp_path / "net.cfg").write_text(RESIDUAL)
    save_weights(network(RESIDUAL), tmp_path / "a.bin")
    cfg = ("--cfg", tmp_path / "net.cfg", "--weights", tmp_path / "a.bin")
    assert run(*cfg) == tmp_path / "a.pt"
    assert run(*cfg, "--out", tmp_path / "again.weights").read_bytes() == (tmp_path / "a.bin").read_bytes()
    with pytest.raises(UserError, match=r"--out .*x.onnx: the suffix decides the format"):
        run(*cfg, "--out", tmp_path / "x.onnx")
    with pytest.raises(UserError, match="would overwrite its own source"):
        run("--weights", tmp_path / "a.pt", "--out", tmp_path / "a.pt")
    with pytest.raises(UserError, match="do not exist"):
        run("--cfg", tmp_path / "net.cfg", "--weights", tmp_path / "b.weights")


def test_nothing_is_written_when_the_round_trip_fails(tmp_path, monkeypatch):
    (tmp_path / "net.cfg").write_text(RESIDUAL)
    save_weights(network(RESIDUAL), tmp_path / "a.weights")

    def spoiled(model, path, **options):
        load_weights(model, path, **options)
        model.module_list[2].conv.weight.data[0] += 1e-6

    monkeypatch.setattr(convert, "load_weights", spoiled)
    with pytest.raises(UserError, match="not written: layer 2 came back with other values"):
        run("--cfg", tmp_path / "net.cfg", "--weights", tmp_path / "a.weights")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.weights", "net.cfg"]


def test_quantized_networks_are_refused(tmp_path):
    model = quantize(network(RESIDUAL), Settings())
    data = {"model": model.state_dict(), "cfg": RESIDUAL, "quantization": model.quantization.to_dict()}
    save_checkpoint(tmp_path / "q.pt", data)
    with pytest.raises(UserError, match=r"q.pt: is quantized \(Google .*\), which a .weights file can't hold; export.py"):
        run("--weights", tmp_path / "q.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["q.pt"]


def test_settings_that_weights_cannot_carry_are_said(tmp_path, capsys):
    settings = {"img_size": 64, "gray": False, "maxabs": True, "stretch": True}
    save_checkpoint(tmp_path / "a.pt", {"model": network(RESIDUAL).state_dict(), "cfg": RESIDUAL, "settings": settings})
    run("--weights", tmp_path / "a.pt")
    assert "trained with --maxabsscaler --stretch" in capsys.readouterr().out
    run("--weights", tmp_path / "a.pt", "--out", tmp_path / "b.pt")
    assert load_checkpoint(tmp_path / "b.pt")["settings"] == settings


def dialect_checkpoint(model: Darknet, path: Path, prefix: str = "", numpy_1: bool = False) -> Path:
    """A file as the dialect's users have it: no cfg, a NumPy fitness, profilers' counters, a head's buffers."""
    state = {prefix + name: value.clone() for name, value in model.state_dict().items()}
    state[f"{prefix}module_list.0.total_ops"] = torch.zeros(1)
    state[f"{prefix}module_list.0.Conv2d.total_params"] = torch.zeros(1)
    for index in model.defs.yolo_indices():
        state |= {f"{prefix}module_list.{index}.{n}": torch.zeros(3, 2) for n in ("anchors", "anchor_vec", "grid")}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": np.float64(0.01), "params": [0]}]}
    content = {"epoch": 299, "best_fitness": np.array([0.5]), "training_results": "  1/300 ...\n", "model": state}
    torch.save(content | {"optimizer": optimizer}, path)
    if numpy_1:  # where NumPy 1 kept what pickles name
        with zipfile.ZipFile(path) as archive:
            files = {n: archive.read(n).replace(b"numpy._core", b"numpy.core") for n in archive.namelist()}
        assert any(b"numpy.core.multiarray" in content for content in files.values())
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    return path


@pytest.mark.parametrize("numpy_1", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("cfg", [DIALECT, SPP], ids=["dialect", "two heads"])
def test_checkpoints_of_the_dialect_load_and_convert(cfg, prefix, numpy_1, tmp_path):
    model = network(cfg)
    (tmp_path / "net.cfg").write_text(cfg)
    if cfg == DIALECT:
        assert {"module_list.2.DepthWise2d.weight", "module_list.2.BatchNorm2d.running_var", "module_list.3.se.fc.0.weight",
                "module_list.3.se.fc.2.weight", "module_list.6.Conv2d.bias"} <= set(model.state_dict())  # fmt: skip
    path = dialect_checkpoint(model, tmp_path / "best.pt", prefix, numpy_1)
    loaded = load_model(tmp_path / "net.cfg", path)
    assert same_tensors(loaded.model, model)
    assert loaded.checkpoint.best_fitness == 0.5
    run("--cfg", tmp_path / "net.cfg", "--weights", path)
    again = Darknet(cfg, 64)
    load_weights(again, tmp_path / "best.weights", prefix=False)
    assert same_tensors(again, model)
    with pytest.raises(UserError, match="carries no cfg"):
        load_model("", path)


def test_half_precision_and_plain_state_dicts_load(tmp_path):
    model = network(RESIDUAL)
    torch.save({k: v.half() for k, v in model.state_dict().items()}, tmp_path / "half.pt")
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "named.pt")
    other = Darknet(RESIDUAL, 64)
    load_weights(other, tmp_path / "half.pt")
    assert torch.equal(other.module_list[0].conv.weight, model.module_list[0].conv.weight.half().float())
    load_weights(other, tmp_path / "named.pt")
    assert same_tensors(other, model)


def test_a_convolution_where_the_cfg_has_a_head_is_still_refused(tmp_path):
    model = network(RESIDUAL)
    state = model.state_dict()
    state[f"module_list.{model.defs.yolo_indices()[0]}.Conv2d.weight"] = torch.zeros(1)
    save_checkpoint(tmp_path / "a.pt", {"model": state})
    with pytest.raises(UserError, match="which this cfg has no place for"):
        load_weights(network(RESIDUAL), tmp_path / "a.pt")
    longer = network(RESIDUAL + "[route]\nlayers=-3\n" + conv(4))
    with pytest.raises(UserError, match="which this cfg has no place for"):
        load_weights(network(RESIDUAL), dialect_checkpoint(longer, tmp_path / "b.pt", "module."))
