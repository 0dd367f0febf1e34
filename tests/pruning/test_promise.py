"""train.py keeps what it promises: directed sparsity ends within --max-drop, and finetuning with nothing worse than went in."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from tests.rectangles import BLUE, CELLS, RED, cells, write_rectangles
from tests.test_train import BASE, here, interrupt_at, results, train_in_two_processes, train_with  # noqa: F401
from utils.loading import load_model
from utils.network.checkpoint import load_checkpoint
from utils.network.weights import save_weights
from utils.pruning.masks import Limits
from utils.pruning.promise import Promise
from utils.pruning.pruner import Amount, Pruner
from utils.training.optimizer import Schedule

FROM_A = BASE.replace("--cfg tiny.cfg", "--weights weights/last_a.pt")


@pytest.fixture
def seeing(tmp_path, monkeypatch) -> Path:
    """A working directory with cells.weights, a network that finds every rectangle of cells.data."""
    monkeypatch.chdir(tmp_path)
    places = [(16, 16, 32, 32), (32, 0, 48, 16), (0, 48, 16, 64), (48, 48, 64, 64)]
    write_rectangles(tmp_path, {"red": RED, "blue": BLUE}, [((64, 64), a, b) for a, b in pairwise(places)])
    with Path("x.data").open("a") as file:
        file.write(f"train={tmp_path}/images\n")
    Path("cells.cfg").write_text(CELLS)
    save_weights(cells(), "cells.weights")
    return tmp_path


SEEING = "--data x.data --cfg cells.cfg --weights cells.weights --batch-size 2 --workers 0 --device cpu --logdir="


def test_finetuning_never_ends_with_less_than_went_in(seeing, capsys):
    Path("ruin.yaml").write_text("lr0_adam: 1\n")
    figures = train_with("--epochs 3 --adam --finetune --hyp ruin.yaml", SEEING)
    assert (figures["best"]["epoch"], figures["best"]["map"]) == (0, pytest.approx(1.0))
    assert figures["last"]["map50"] < 0.5
    best = load_model("", "weights/best.pt").model
    assert all(torch.equal(a, b) for a, b in zip(best.parameters(), cells().parameters(), strict=True))
    assert "after epoch 0, what went in: weights/best.pt" in capsys.readouterr().out
    assert results()["epoch"].tolist() == [1, 2, 3]
    ruined = train_with("--epochs 3 --adam --hyp ruin.yaml --name plain", SEEING)
    assert ruined["best"]["map50"] < 0.5  # without --finetune nobody looks at what went in


def fake_evaluations(monkeypatch, values: list[float]) -> None:
    """Let the evaluations of a training come out as `values`, one after the other."""
    real, left = train.measure, list(values)

    def measure(setup):
        map50 = left.pop(0) if left else values[-1]
        return dataclasses.replace(real(setup), map50=map50, map=map50 / 2)

    monkeypatch.setattr(train, "measure", measure)


def test_directed_sparsity_ends_with_the_largest_share_that_kept_the_promise(here, monkeypatch, capsys):  # noqa: F811
    train_with("--epochs 1 --name a")
    capsys.readouterr()
    with monkeypatch.context() as patch:
        fake_evaluations(patch, [0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.785, *[0.6] * 20])
        figures = train_with("--epochs 16 --prune 0 --adam", FROM_A)
    output = capsys.readouterr().out
    assert output.count("; paused: mAP@.5 is 0.2000 below where it began") == 3
    assert output.count("; let go what fades: mAP@.5 is 0.2000 below where it began") == 6
    assert (figures["best"]["epoch"], figures["best"]["map50"]) == (6, 0.785)
    assert "mAP@.5 0.8000 -> 0.7850, as it was after epoch 6; --max-drop 0.02 is kept, with more it wasn't" in output
    last, best = load_checkpoint("weights/last.pt"), load_checkpoint("weights/best.pt")
    assert all(torch.equal(tensor, best["model"][name]) for name, tensor in last["model"].items())
    gone = int(output.split(" of 56 channels are gone")[0].split()[-1])
    percent = float(output.split("next: python normal_prune.py --data d.data --weights weights/last.pt --percent ")[1])
    assert (round(56 * percent), 0 < gone < 0.7 * 56) == (gone, True)
    pruner = Pruner(load_model("", "weights/last.pt").model, "normal", Limits())
    scores = np.sort(pruner.scores[pruner.pool])
    assert scores[gone - 1] == 0 < 0.1 < scores[gone]


def test_what_is_left_when_it_ends_is_what_was_evaluated(here, capsys):  # noqa: F811
    """No accuracy is lost by the cut: the compact network finds what the sparse one found."""
    Path("fast.yaml").write_text("lr0_adam: 0.02\nmosaic: 0\nscale: 0.1\nhsv_h: 0\n")
    train_with("--epochs 30 --adam --hyp fast.yaml --seed 3 --name a --notest")
    figures = train_with("--epochs 12 --prune 1 --adam --hyp fast.yaml --max-drop 1 --sparse-target 0.4", FROM_A)
    output = capsys.readouterr().out
    amount = float(output.split("--weights weights/last.pt --percent ")[1].split()[0])
    assert amount == pytest.approx(0.4, abs=0.01)
    model = load_model("", "weights/last.pt").model
    pruner = Pruner(model, "shortcut", Limits())
    choice = pruner.choose(Amount(amount))
    assert choice.mask.threshold == 0
    image = torch.rand(2, 3, 64, 64)
    for before, after in zip(model.eval()(image)[1], pruner.compact(choice).eval()(image)[1], strict=True):
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    assert figures["best"]["map50"] == pytest.approx(figures["last"]["map50"])


def test_without_evaluations_nothing_is_promised(here, capsys):  # noqa: F811
    train_with("--epochs 1 --name a --notest")
    train_with("--epochs 12 --prune 0 --adam --notest", FROM_A)
    output = capsys.readouterr().out
    assert "warning: --notest: nothing is evaluated on the way, so --max-drop 0.02 can't be held" in output
    assert "39 of 56 channels are gone (69.6%; 70.0% asked for)\n" in output


def test_steps_that_are_too_few_are_said(here, capsys):  # noqa: F811
    train_with("--epochs 1 --name a --notest")
    train_with("--epochs 2 --prune 0", FROM_A)
    assert "warning: 4 optimizer steps are few" in capsys.readouterr().out


def test_two_processes_choose_the_same(here):  # noqa: F811
    train_with("--epochs 1 --name a --notest")
    output = train_in_two_processes("--epochs 12 --prune 0 --adam --max-drop 1", FROM_A)
    assert output.count("are gone") == 1
    assert "39 of 56 channels are gone" in output
    norms = [v for k, v in load_checkpoint("weights/last.pt")["model"].items() if k.endswith("BatchNorm2d.weight")]
    assert sum(int((v == 0).sum()) for v in norms) == 39


def test_an_evaluation_below_the_promise_is_never_kept():
    promise, model = Promise(0.02, start=0.8), torch.nn.Linear(1, 1)
    found = {"epoch": 1, "map50": 0.78, "map": 0.4}
    assert promise.note(found, 0.4, 0.3, model)
    assert not promise.note(found | {"map50": 0.7799}, 0.9, 0.5, model)
    assert (promise.broken, promise.lost) == (False, False)
    assert not promise.note(found | {"map50": 0.7799}, 0.9, 0.5, model)
    assert promise.broken
    assert not promise.note(found, 0.4, 0.3, model)  # no better than what is kept
    assert promise.note(found, 0.41, 0.3, model)
    assert promise.note(found, 0.1, 0.31, model)
    assert not promise.broken


def test_what_was_begun_is_given_up_unless_it_comes_back():
    promise, model = Promise(0.02, start=0.8), torch.nn.Linear(1, 1)

    def lost(map50: float) -> bool:
        promise.note({"epoch": 1, "map50": map50, "map": 0.4}, 0.4, 0.3, model)
        return promise.lost

    assert [lost(map50) for map50 in (0.7, 0.6, 0.6, 0.61, 0.62, 0.62, 0.61, 0.79, 0.7)] == [
        False, False, False, False, False, True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("found", "rates"),
    [
        ([0.54, 0.59], [0.0001] * 7),  # no epoch is fitter by a tenth than the best before
        ([0.56], [0.002] * 7),
        ([0.48, 0.56], [0.0001] + [0.002] * 6),
        ([0.5, 0.5, 0.9], [0.0001] * 7),  # after the first quarter of the epochs it is too late
    ],
)
def test_a_cut_that_went_deep_is_finetuned_at_the_whole_rate(here, monkeypatch, capsys, found, rates):  # noqa: F811
    """Interrupted, too: the checkpoint has the rate."""
    train_with("--epochs 1 --name a --notest")
    flags, deep = "--epochs 8 --adam --finetune", rates[-1] == 0.002
    with monkeypatch.context() as patch:
        fake_evaluations(patch, [0.5, *found])
        train_with(f"{flags} --name whole", FROM_A)
    assert ("the cut went deep, so at the whole rate of 0.002 from now on" in capsys.readouterr().out) is deep
    schedules = [Schedule(16, 5, rate, 0.05, 0.937, 0.0, 0.8) for rate in rates]  # 2 batches an epoch
    wanted = [schedule.rate(2 * epoch + 3) for epoch, schedule in enumerate(schedules)]
    assert results("results_whole.txt")["lr"][1:] == pytest.approx(wanted, rel=1e-4)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        fake_evaluations(patch, [0.5, *found])
        interrupt_at(patch, 8)
        train_with(f"{flags} --name cut", FROM_A)
    with monkeypatch.context() as patch:
        fake_evaluations(patch, found[-1:])
        train_with("--resume --name cut --device cpu --workers 0", base="")
    one, two = (load_checkpoint(f"weights/last_{name}.pt") for name in ("whole", "cut"))
    assert (one["hyp"], one["hyp"]["lr0_adam"], one["hyp"]["ema_share"]) == (two["hyp"], rates[-1], 0.05 if deep else 0.2)
    assert all(torch.equal(tensor, two["model"][name]) for name, tensor in one["model"].items())
