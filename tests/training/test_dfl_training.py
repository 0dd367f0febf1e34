"""train.py on a network with anchor-free heads, with whatever the others take."""

from pathlib import Path

import numpy as np
import pytest
import torch

import test as test_script
from tests.test_train import BASE, here, interrupt_at, results, train_in_two_processes, train_with  # noqa: F401
from tests.tiny import NET, conv, dfl_head
from utils.core.errors import UserError
from utils.network.checkpoint import load_checkpoint

SWISH = {"activation": "swish"}
CFG = (  # a C2f block and two levels of heads, stride 4 and 8
    NET + conv(8, stride=2, **SWISH) + conv(16, stride=2, **SWISH) + "[route]\nlayers=-1\ngroups=2\ngroup_id=1\n"
    + conv(8, **SWISH) + conv(8, **SWISH) + "[shortcut]\nfrom=-3\nactivation=linear\n" + "[route]\nlayers=1,-1\n"
    + conv(16, 1, **SWISH) + conv(24, stride=2, **SWISH) + "[route]\nlayers=7\n"
    + dfl_head(7, 10, reg_max=8) + "[route]\nlayers=8\n" + dfl_head(8, 19, reg_max=8)
)  # fmt: skip


@pytest.fixture
def free(here) -> Path:  # noqa: F811
    (here / "tiny.cfg").write_text(CFG)
    return here


def test_mean_average_precision_rises_and_the_columns_tell_of_it(free, capsys):
    (free / "h.yaml").write_text("lr0_adam: 0.01\nmosaic: 0\nscale: 0.1\nhsv_h: 0\n")
    train_with("--epochs 40 --adam --hyp h.yaml --seed 3 --batch-size 8")
    table = results()
    assert list(table)[-1] == "dfl"
    assert np.isnan(table["obj"]).all()
    assert table["total"] == pytest.approx(table["box"] + table["cls"] + table["dfl"], rel=1e-4)
    assert table["total"][-1] < 0.7 * table["total"][0]
    assert max(table["mAP50"]) > 0.3
    assert Path("results.png").stat().st_size > 1000
    arguments = ["--data", "d.data", "--weights", "weights/last.pt", "--device", "cpu", "--workers", "0"]
    measured = test_script.main(test_script.get_parser().parse_args(arguments))
    assert (measured.map50, measured.map) == pytest.approx((table["mAP50"][-1], table["mAP"][-1]), abs=1e-3)
    assert "confidence threshold" in capsys.readouterr().out


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(free, monkeypatch):
    train_with("--epochs 3 --multi-scale --seed 1 --name whole")
    whole = load_checkpoint("weights/last_whole.pt")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 4)
        train_with("--epochs 3 --multi-scale --seed 1")
    train_with("--resume --workers 0 --device cpu", base="")
    again = load_checkpoint("weights/last.pt")
    assert all(torch.equal(again["model"][name], tensor) for name, tensor in whole["model"].items())
    table, wanted = results(), results("results_whole.txt")
    for column in ("box", "cls", "dfl", "total"):
        assert table[column] == pytest.approx(wanted[column], rel=1e-6)


@pytest.mark.parametrize("flags", ["--gray-scale --rect", "-mas --stretch --image-weights", "--adam -mpt"])
def test_pictures_in_other_shapes(free, flags):
    figures = train_with(f"--epochs 1 {flags}")
    assert figures["last"]["map50"] >= 0
    assert np.isfinite(results()["dfl"]).all()


def test_heads_for_other_classes_start_from_trained_weights(free):
    train_with("--epochs 1")
    (free / "one.cfg").write_text(CFG.replace("classes=2", "classes=1").replace("filters=2\n", "filters=1\n"))
    with pytest.raises(UserError, match=r"tiny.cfg: --single-cls needs \[dfl\] layers with classes=1, these have \[2\]"):
        train_with("--epochs 1 --single-cls")
    figures = train_with("--epochs 1 --single-cls -pt --weights weights/last.pt --name one", base=_with("one.cfg"))
    assert figures["epochs"] == 1
    assert load_checkpoint("weights/last_one.pt")["names"] == ["object"]
    with pytest.raises(
        UserError, match=r"one.cfg: its \[dfl\] layers have classes=1, but d.data has 2; run: python make_cfg.py"
    ):
        train_with("--epochs 1", base=_with("one.cfg"))


def _with(cfg: str) -> str:
    return BASE.replace("tiny.cfg", cfg)


@pytest.mark.parametrize("way", ["--prune 0 --s 0.01", "--prune 1 --s 0.01 --sparse-schedule local-decay",
                                 "--prune 0 --s 0.01 --sparse-schedule global-decay",
                                 "--prune 1 --sparse-schedule dynamic", "--prune 1", "--prune 2"])  # fmt: skip
def test_sparse_training_reaches_the_gammas(free, way):
    train_with("--epochs 1 --seed 2 --name dense")
    train_with(f"--epochs 2 --seed 2 --weights weights/last_dense.pt {way}")
    assert np.isfinite(results()["near_zero"]).all()


@pytest.mark.parametrize("number", [1, 2])
def test_quantized_training(free, number):
    train_with(f"--epochs 2 --quantized {number}")
    quantized = load_checkpoint("weights/last.pt")
    assert quantized["quantization"]["strategy"] == number
    assert np.isfinite(results()["total"]).all()


def test_two_processes_learn_what_one_does(free):
    train_with("--epochs 2 --seed 1 --name one")
    train_in_two_processes("--epochs 2 --seed 1 --name two")
    one, two = results("results_one.txt"), results("results_two.txt")
    for column in ("box", "cls", "dfl"):
        assert two[column] == pytest.approx(one[column], rel=0.02)


def test_both_kinds_of_heads_cannot_be_trained_together(free):
    yolo = conv(14, 1, bn=0, activation="linear") + "[yolo]\nmask=0,1\nanchors=8,10, 20,16\nclasses=2\nnum=2\n"
    (free / "tiny.cfg").write_text(CFG + "[route]\nlayers=8\n" + yolo)
    with pytest.raises(UserError, match=r"tiny.cfg: has both \[dfl\] and \[yolo\] layers; training needs heads of one kind"):
        train_with("--epochs 1")
    assert not Path("weights").exists()
