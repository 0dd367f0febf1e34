"""Stages as processes: what fails passes its own line on; what compress.json says is done isn't run again."""

import json
import os
import subprocess
import sys
import time

import pytest

from utils.compression import stages
from utils.compression.stages import Stage, Stages, forward, launch
from utils.compression.state import State, lock
from utils.core.errors import UserError

COMMAND = {"data": "d.data", "target_macs": "0.3"}


def test_the_line_of_a_script_that_refuses_is_returned_and_not_shown(capfd, tmp_path):
    status, line = launch(["check.py", "--data", "/nowhere.data"], None, os.open(tmp_path, os.O_RDONLY))
    assert (status, line) == (2, "check.py: --data /nowhere.data: there is no such file; check the path")
    assert capfd.readouterr().err == ""


def test_other_lines_of_a_script_are_shown(capsys, tmp_path):
    text = "x.py: warning: odd\n  3%|\r 99%|\rx.py: first\nx.py: no weights\n"
    (tmp_path / "err").write_text(text)
    with open(tmp_path / "err", "rb", buffering=0) as pipe:
        assert forward(pipe, "x.py") == "x.py: no weights"
    assert capsys.readouterr().err == "x.py: warning: odd\n  3%|\r 99%|\rx.py: first\n"


@pytest.fixture
def calls(monkeypatch) -> list[list[str]]:
    """The words of every script that is run; a script writes {"n": number of the call} as its figures."""
    found: list[list[str]] = []

    def run(words: list[str], limit: float | None, handle: int) -> tuple[int, str]:
        found.append(words)
        if "broken.py" in words:
            return 2, "broken.py: its own line"
        with open(words[words.index("--json") + 1], "w") as file:
            json.dump({"n": len(found)}, file)
        return 0, ""

    monkeypatch.setattr(stages, "launch", run)
    return found


def test_a_stage_runs_once(tmp_path, calls):
    stage = Stage("a", ["test.py"])
    assert Stages(State(tmp_path, COMMAND), 0).run(stage) == {"n": 1}
    assert Stages(State(tmp_path, COMMAND), 0).run(stage) == {"n": 1}
    assert calls == [["test.py", "--json", str(tmp_path / "work/a.json")]]


def test_a_training_that_was_killed_is_resumed_as_it_began(tmp_path, calls):
    state = State(tmp_path, COMMAND)
    state.begin("a", ["train.py", "--epochs", "7", "--json", str(tmp_path / "work/a.json")], 0.0)
    stage = Stage("a", ["train.py", "--epochs", "5"])
    last = tmp_path / "work/last_a.pt"
    last.touch()
    os.utime(last, (60, 60))
    state = State(tmp_path, COMMAND)
    Stages(state, 0).run(stage)
    assert [words[2:3] + words[5:] for words in calls] == [["7", "--resume"]]
    assert 60 <= state.stages["a"]["seconds"] < 70


def test_a_training_that_was_killed_before_its_first_epoch_begins_again(tmp_path, calls):
    State(tmp_path, COMMAND).begin("a", ["train.py", "--json", str(tmp_path / "work/a.json")], 0.0)
    Stages(State(tmp_path, COMMAND), 0).run(Stage("a", ["train.py"]))
    assert len(calls) == 1
    assert "--resume" not in calls[0]


def test_a_broken_stage_passes_its_line_on(tmp_path, calls):
    with pytest.raises(UserError, match="^broken.py: its own line$"):
        Stages(State(tmp_path, COMMAND), 0).run(Stage("a", ["broken.py"]))
    assert State(tmp_path, COMMAND).stages == {}


def test_another_commands_state_is_refused(tmp_path):
    State(tmp_path, COMMAND)
    with pytest.raises(UserError, match=r"belongs to another command \(--target-macs: 0.5 now, 0.3 there\)"):
        State(tmp_path, COMMAND | {"target_macs": "0.5"})


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}', '{"format": 1, "stages": []}'])
def test_a_file_that_is_no_state_is_refused(text, tmp_path):
    (tmp_path / "compress.json").write_text(text)
    with pytest.raises(UserError, match="compress.json"):
        State(tmp_path, {})


def test_a_folder_of_others_is_refused(tmp_path):
    (tmp_path / "work").mkdir()
    with pytest.raises(UserError, match="no compress.json beside it; name another folder with --out"):
        State(tmp_path, COMMAND)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is no folder; choose another"):
        State(tmp_path / "file", COMMAND)


def test_a_training_is_ended_at_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "SCRIPTS", tmp_path)
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\n")
    start = time.monotonic()
    assert launch(["slow.py"], 0.5, os.open(tmp_path, os.O_RDONLY)) == (0, "")
    assert time.monotonic() - start < 30


def test_a_stage_holds_the_lock_of_a_killed_command(tmp_path, capfd):
    handle = lock(tmp_path / "lock")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"], pass_fds=(handle,)):
        os.close(handle)
        os.close(lock(tmp_path / "lock"))
    assert "waiting for its end" in capfd.readouterr().out
