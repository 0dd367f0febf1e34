"""benchmark_data.py: what it generates is what the converters read, and what it reports."""

import json
import os

import pytest

import benchmark_data
from tests.raw import convert
from utils.core.errors import UserError


def arguments(*words: object):
    return benchmark_data.get_parser().parse_args([str(word) for word in words])


@pytest.mark.parametrize("form", sorted(benchmark_data.WRITERS))
def test_generated_files_are_clean(tmp_path, form):
    benchmark_data.generate(tmp_path / "raw", arguments("--format", form, "--files", 20, "--boxes", 3))
    report = convert(form, tmp_path / "raw", tmp_path / "out")
    assert (report.images, report.class_boxes.total()) == ({"train": 18, "valid": 2}, 60)
    assert report.problems.counts == {}


def test_memory_and_processor_time_are_known():
    assert 0.01 < benchmark_data.memory_of(os.getpid()) < 8
    assert benchmark_data.memory_of(2**22 + 1) == 0  # no such process
    assert benchmark_data.cpu_seconds() >= 0


def test_mistakes(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_data, "ROOT", tmp_path)
    (tmp_path / "convert_dataset.py").write_text("import sys; sys.exit(f'{sys.argv[3]}: does not exist')")
    with pytest.raises(UserError, match="convert_dataset.py visdrone .* failed: .*gone: does not exist"):
        benchmark_data.convert(tmp_path / "gone", tmp_path / "out", arguments("--files", 1, "--workers", 1))


@pytest.mark.slow
def test_the_whole_measurement(tmp_path, capsys):
    figures = tmp_path / "figures.json"
    benchmark_data.main(arguments("--files", 300, "--workers", 2, "--folder", tmp_path / "x", "--json", figures))
    written = json.loads(figures.read_text())
    assert written["first"].keys() == {"seconds", "cpu_seconds", "peak_gib"}
    assert 0.1 < written["again"]["peak_gib"] < 2
    assert written["check"].keys() == written["first"].keys()
    assert "300 visdrone files of 10 boxes, 2 processes:" in capsys.readouterr().out
    assert os.listdir(tmp_path / "x") == []
