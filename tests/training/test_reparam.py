"""train.py --reparam: what is measured, saved and pruned is the cfg's own network, what goes on training has branches."""

from pathlib import Path

import numpy as np
import pytest
import torch

import normal_prune
import test as test_script
from tests.taught import save
from tests.test_train import BASE, here, results, train_in_two_processes, train_with  # noqa: F401
from tests.tiny import NET, conv, head, network
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.network.branches import FORMS, branch
from utils.network.checkpoint import load_checkpoint
from utils.network.darknet import Darknet
from utils.training.optimizer import build_optimizer

pytestmark = pytest.mark.usefixtures("here")
COMMON = ["--data", "d.data", "--device", "cpu", "--workers", "0"]


EAGER = "lr0_adam: 0.02\nmosaic: 0\nscale: 0.1\nhsv_h: 0\n"


def measured(weights: str) -> object:
    return test_script.main(test_script.get_parser().parse_args([*COMMON, "--weights", weights]))


def test_weights_are_the_cfg_s_network_and_as_good_as_the_training_says(capsys):
    Path("h.yaml").write_text(EAGER)
    figures = train_with("--epochs 40 --adam --hyp h.yaml --reparam --seed 3 --notest")
    assert "repvgg: branches beside 5 3x3 convolutions, with " in capsys.readouterr().out
    assert figures["last"]["map50"] > 0.2
    plain = Darknet("tiny.cfg", 64).state_dict()
    for name in ("last", "best"):
        held = load_checkpoint(f"weights/{name}.pt")
        assert [(n, t.shape) for n, t in held["model"].items()] == [(n, t.shape) for n, t in plain.items()]
        assert not {"train_model", "ema", "optimizer"} & set(held)
    found, table = measured("weights/last.pt"), results()
    assert (found.map50, found.map) == pytest.approx((table["mAP50"][-1], table["mAP"][-1]), abs=1e-3)
    arguments = ["--weights", "weights/best.pt", "--percent", "0.2", "--save-dir", "p", *COMMON]
    normal_prune.main(normal_prune.get_parser().parse_args(arguments))
    assert list(Path("p").glob("*.weights"))


@pytest.mark.parametrize("form", FORMS)
def test_finetuning_begins_with_the_function_that_it_is_given(form, capsys):
    Path("h.yaml").write_text(EAGER)
    train_with("--epochs 15 --adam --hyp h.yaml --seed 3 --notest --name plain")
    before = measured("weights/last_plain.pt")
    assert before.map50 > 0
    capsys.readouterr()
    train_with(f"--epochs 1 --finetune --reparam {form} --weights weights/last_plain.pt --name more")
    line = capsys.readouterr().out.split("before the first epoch:\n")[1].splitlines()[0]
    assert f"mAP@.5 {before.map50:.4f}  mAP {before.map:.4f}" in line


@pytest.mark.parametrize("number", [1, 5])  # one reads the heads' maps, one feature maps, by layer
def test_a_teacher_teaches_branches(number):
    save(network(Path("tiny.cfg").read_text()), Path("t.pt"))
    train_with(f"--epochs 1 --mixedprecision --reparam --t_weights t.pt --KDstr {number}")
    assert np.isfinite(results()["total"]).all()
    assert results()["kd_time"][0] > 0


def test_only_kernels_of_branches_decay():
    model = Darknet("tiny.cfg", 64)
    branch(model, "repvgg", trained=False)
    groups = build_optimizer(model, Hyp(weight_decay=0.5, nominal_batch=64), True, step_images=64).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    assert all(decay[id(p)] == (0.5 if p.ndim == 4 else 0.0) for p in model.parameters())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--prune 0", "--reparam: branches have gammas of their own, none of which says what --prune could take"),
        ("--prune 1 --s 0.01", "--reparam: branches have gammas of their own"),
        ("--quantized 1", "--reparam: branches are folded before anything is rounded"),
    ],
)
def test_what_has_no_meaning_with_branches(flags, message):
    with pytest.raises(UserError, match=message):
        train_with(f"--epochs 1 --reparam {flags}")


def test_a_network_without_3x3_convolutions_is_one_line():
    Path("ones.cfg").write_text(NET + conv(8, 1, stride=8) + head())
    with pytest.raises(UserError, match="ones.cfg: has no 3x3 convolution with batch normalisation, .* leave out --reparam"):
        train_with("--epochs 1 --reparam", BASE.replace("tiny.cfg", "ones.cfg"))
    assert not Path("weights").exists()


def test_two_processes_train_branches_as_one():
    Path("slow.yaml").write_text("lr0: 0.002\nwarmup_bias_lr: 0\n")
    flags = "--reparam --batch-size 8 --epochs 3 --notest --hyp slow.yaml"
    train_with(f"{flags} --name one")
    train_in_two_processes(f"{flags} --name two")
    np.testing.assert_allclose(results("results_two.txt")["total"], results("results_one.txt")["total"], rtol=1e-4)
    one, two = (load_checkpoint(f"weights/last_{name}.pt")["model"] for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
