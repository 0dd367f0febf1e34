"""results.txt, results.png and TensorBoard."""

import builtins
import dataclasses
import math

import cv2
import numpy as np
import pytest

from utils.core.errors import UserError
from utils.detection.metrics import Evaluation
from utils.pruning.sparsity_options import SparsityOptions
from utils.training.epoch import EpochFigures
from utils.training.log import COLUMNS, RunLog, format_row, gammas_line, metrics_line, read_results, results_row
from utils.training.run import Plan

FIGURES = EpochFigures({"box": 0.125, "obj": 0.5, "cls": 0.25}, total=0.875, lr=0.0123456, size=416, seconds=12.5)
EVALUATION = Evaluation(map50=0.75, map=0.5, precision=0.625, recall=0.875, f1=0.7, images=9, targets=20, per_class=[])
GAMMAS = {"near_zero": 0.375, "quantiles": {0.05: 0.001, 0.25: 0.01, 0.5: 0.1, 0.75: 0.5, 0.95: 1.5}}


def row(epoch, evaluation=EVALUATION, gammas=GAMMAS):
    return results_row(epoch, FIGURES, evaluation, gammas)


def test_results_can_be_read_back(tmp_path):
    log = RunLog(tmp_path / "results.txt", None)
    log.add(row(1, None, None))
    log.add(row(2))
    text = (tmp_path / "results.txt").read_text()
    assert text == log.text
    assert len({len(line) for line in text.splitlines()}) == 1  # columns are aligned
    table = np.genfromtxt(tmp_path / "results.txt", names=True)
    expected = {"epoch": 2, "box": 0.125, "obj": 0.5, "cls": 0.25, "total": 0.875, "lr": 0.0123456, "size": 416, "P": 0.625,
                "R": 0.875, "mAP50": 0.75, "mAP": 0.5, "F1": 0.7, "near_zero": 0.375, "g05": 0.001, "g25": 0.01, "g50": 0.1,
                "g75": 0.5, "g95": 1.5, "seconds": 12.5}  # fmt: skip
    assert table.dtype.names == COLUMNS == tuple(expected)
    assert dict(zip(COLUMNS, table[1].tolist(), strict=True)) == expected
    assert math.isnan(table[0]["mAP50"])
    assert math.isnan(table[0]["near_zero"])
    assert read_results(text)["lr"].tolist() == [0.0123456, 0.0123456]


def test_a_resumed_log_begins_with_the_checkpoints_lines(tmp_path):
    log = RunLog(tmp_path / "results.txt", None)
    log.add(row(1))
    saved = log.text
    log.add(row(2))  # killed before the checkpoint of epoch 2
    resumed = RunLog(tmp_path / "results.txt", None, saved)
    resumed.add(row(2, None))
    assert (tmp_path / "results.txt").read_text() == saved + format_row(row(2, None)) + "\n"


def test_another_file_is_no_result():
    with pytest.raises(UserError, match="header"):
        read_results("1 2 3\n")


def test_the_picture_is_drawn(tmp_path):
    log = RunLog(tmp_path / "results_a.txt", None)
    log.add(row(1))
    assert not (tmp_path / "results_a.png").exists()
    log.add(row(2), last=True)
    with_gammas = cv2.imread(str(tmp_path / "results_a.png"))
    assert with_gammas.std() > 10
    bare = RunLog(tmp_path / "results_b.txt", None)
    bare.add(row(10, None, None))
    picture = cv2.imread(str(tmp_path / "results_b.png"))  # drawn every tenth epoch
    assert picture.shape[0] < with_gammas.shape[0]  # only the panels that have something to show


def test_tensorboard_has_the_same_figures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path / "results.txt", tmp_path / "runs")
    log.add(row(1, None))
    log.add(row(2))
    log.close()
    board = EventAccumulator(str(tmp_path / "runs"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("metrics/mAP50")] == [(2, 0.75)]
    assert [(e.step, e.value) for e in board.Scalars("gamma/near_zero")] == [(1, 0.375), (2, 0.375)]
    assert [e.value for e in board.Scalars("loss/total")] == [0.875, 0.875]


def test_a_file_in_the_place_of_tensorboards_folder_is_named(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "runs").touch()
    with pytest.raises(UserError, match="runs/a: cannot create this folder"):
        RunLog(tmp_path / "results.txt", tmp_path / "runs" / "a")


def test_without_tensorboard_one_line_says_so(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    log = RunLog(tmp_path / "results.txt", tmp_path / "runs")
    log.add(row(1))
    assert "TensorBoard is not installed" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("prune", "warnings"), [(0, 1), (-1, 0)])
def test_only_sparse_training_is_warned_of_s(tmp_path, prune, warnings):
    log = RunLog(tmp_path / "results.txt", None)
    for epoch, map50 in enumerate([0.8, 0.8, 0.3, 0.3], 1):
        log.add(row(epoch, dataclasses.replace(EVALUATION, map50=map50)))
    plan = Plan(epochs=100, batch_size=1, batches=1, img_size=64, sparsity=SparsityOptions(prune, 0.01))
    assert len(log.sparsity_warnings(plan)) == warnings


def test_console_lines():
    assert metrics_line(EVALUATION) == "  P 0.6250  R 0.8750  mAP@.5 0.7500  mAP 0.5000  F1 0.7000"
    assert (
        gammas_line(GAMMAS, "s 0.02")
        == "  gammas: 37.5% under 0.01; quantiles 5% 0.001  25% 0.01  50% 0.1  75% 0.5  95% 1.5; s 0.02"
    )
