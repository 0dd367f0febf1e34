"""demo.py: which commands it runs, and that it can be run again. Its steps have tests of their own."""

import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import demo
from utils.core.errors import UserError


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """The commands that a demo runs, whose files are written at once."""
    monkeypatch.chdir(tmp_path)
    found: list[tuple[str, ...]] = []

    def command(*words: str) -> None:
        found.append(words)
        named = dict(itertools.pairwise(words))
        if words[0] == "compress.py":
            folder = Path(named["--out"])
            assert not folder.exists(), "compress.py would refuse the state of another command"
            folder.mkdir()
            (folder / "compress.json").write_text("{}")
            files = {"pt": str(folder / "network.pt"), "report": str(folder / "report.html")}
            Path(named["--json"]).write_text(json.dumps({"files": files, "outcome": "smaller"}))
        if words[0] == "detect.py":
            Path(named["--output"]).mkdir(exist_ok=True)
            cv2.imwrite(f"{named['--output']}/a.jpg", np.zeros((32, 32, 3), np.uint8))

    monkeypatch.setattr(demo, "command", command)
    return found


def test_the_whole_job_twice(steps, capsys):
    for _ in range(2):
        report = demo.main(demo.get_parser().parse_args([]))
    assert [words[0] for words in steps] == ["data/make_shapes.py", "train.py", "compress.py", "detect.py"] * 2
    assert "output/demo/compressed/network.pt" in steps[3]
    assert json.loads(Path("output/demo/report.json").read_text()) == report
    assert Path("output/demo/detections.png").stat().st_size > 0
    assert "report:     output/demo/compressed/report.html" in capsys.readouterr().out


def test_a_folder_that_is_not_of_compress_py_is_left_alone(tmp_path):
    (tmp_path / "compressed").mkdir()
    (tmp_path / "compressed" / "mine.txt").write_text("mine")
    demo.forget(tmp_path / "compressed")
    assert (tmp_path / "compressed" / "mine.txt").read_text() == "mine"


def test_a_step_that_fails_ends_it():
    with pytest.raises(UserError, match="this step failed with status 2: python test.py --data none.data"):
        demo.command("test.py", "--data", "none.data")


@pytest.mark.parametrize(("missing", "wanted"), [("", "onnxruntime"), ("onnxruntime", "torch")])
def test_the_runtime_is_one_that_is_installed(monkeypatch, missing, wanted):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else object())
    assert demo.runtime() == wanted
