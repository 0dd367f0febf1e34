"""benchmark.py: that its figures are about what they say; how large they are is no test's business."""

import json
import os
from pathlib import Path

import pytest
import torch

import benchmark
from tests.tiny import RESIDUAL
from utils.core.errors import UserError


def run(tmp_path: Path, *arguments: str) -> dict:
    (tmp_path / "net.cfg").write_text(RESIDUAL)
    fixed = ["--cfg", str(tmp_path / "net.cfg"), "--img-size", "64", "--device", "cpu", "--steps", "1"]
    return benchmark.main(benchmark.get_parser().parse_args([*fixed, *arguments]))


def test_all_parts(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    report = tmp_path / "figures.json"
    figures = run(tmp_path, "--batch-size", "2", "--workers", "0", "--images", "4", "--json", str(report))
    training = figures["training"]
    assert training["ratio"] == training["plain_s"] / training["suite_s"]
    assert set(figures["inference"]) == {"1", "2"}
    assert figures["peak_gflops"]["float32"] > 0
    consumed = 2 / training["suite_s"]
    speeds = figures["pipeline_images_per_s"]
    assert list(speeds) == ["from image files", "decoded in memory", "decoded on a disk"]
    assert figures["pipeline_ratio"] == pytest.approx(speeds["from image files"] / consumed)
    assert list(Path(os.environ["XDG_CACHE_HOME"], "darkedge", "images").glob("*tmp*")) == []  # named after a temporary folder
    assert json.loads(report.read_text())["training"] == training
    out = capsys.readouterr().out
    for text in ("training step, batch 2", "inference, batch 1", "peak, float32", "image pipeline", "peak memory"):
        assert text in out


def test_only_the_parts_wanted(tmp_path: Path) -> None:
    figures = run(tmp_path, "--parts", "inference", "--batch-size", "1")
    assert set(figures["inference"]) == {"1"}
    assert not {"training", "peak_gflops", "pipeline_images_per_s"} & set(figures)


def test_both_ways_take_turns_and_warm_ups_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 100, 0, 200, 0, 99, 0, 99, 0, 1, 0, 10, 0, 3, 0, 30, 0, 2, 0, 20])  # begin and end of each call
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    order: list[str] = []
    found = benchmark.compare(lambda: order.append("a"), lambda: order.append("b"), 3, torch.device("cpu"))
    assert found == {"plain_s": 2, "suite_s": 20, "ratio": 0.1}
    assert "".join(order) == "ab" * 5


def test_a_profile(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    figures = run(tmp_path, "--profile", "--batch-size", "2", "--threads", "1", "--json", str(tmp_path / "figures.json"))
    assert figures["profile"]["whole"] > 0
    assert json.loads((tmp_path / "figures.json").read_text())["profile"]["best"].keys() == figures["profile"]["best"].keys()
    out = capsys.readouterr().out
    for text in ("batch 2, 1 threads", "convolutions, forward", "a whole step", "peak memory"):
        assert text in out


def test_a_profile_has_no_turns(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--workers doesn't go with --profile$"):
        run(tmp_path, "--profile", "--workers", "0")
