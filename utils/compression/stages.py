"""Stages: the suite's own scripts, each in a process of its own, with the command line that does the same by hand."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from utils.compression.state import State
from utils.core.commands import typed
from utils.core.errors import UserError

SCRIPTS = Path(__file__).resolve().parents[2]
GRACE = 20.0  # seconds between asking a training to end and ending it


@dataclass(frozen=True)
class Stage:
    """A command of the suite: the script and its words, without --json, which is added where `measures`. limit: seconds after
    which a training is ended."""

    name: str
    words: list[str]
    measures: bool = True
    limit: float | None = None
    accepts: tuple[int, ...] = (0,)  # exit statuses


class Stages:
    """Runs stages once: what compress.json says is done isn't run again, and a training that was interrupted is resumed.

    Files of a stage lie in the state's `work` folder: NAME.json, and of a training last_NAME.pt and best_NAME.pt.
    """

    def __init__(self, state: State, handle: int) -> None:
        """handle: what every process inherits, see utils.compression.state.lock."""
        self.state, self.handle = state, handle

    def run(self, stage: Stage) -> dict[str, Any]:
        """The figures that the stage's --json wrote. Raises UserError, in the script's own words, where it failed."""
        done = self.state.stages.get(stage.name)
        if done is not None:
            print(f"{stage.name}: done before")
            return done["figures"]
        figures_file = self.state.work / f"{stage.name}.json"
        words = stage.words + (["--json", str(figures_file)] if stage.measures else [])
        was_running = self.state.running is not None and self.state.running["name"] == stage.name
        worked = 0.0
        if was_running:
            words, worked = self.state.running["words"], self._worked(stage)
        else:
            figures_file.unlink(missing_ok=True)
        self.state.begin(stage.name, words, time.time() - worked)
        start = time.perf_counter() - worked
        ended = self._resume(stage, words) if was_running and _is_training(words) else False
        if not ended or (stage.measures and not figures_file.exists()):
            self._call(stage, words)
        seconds = time.perf_counter() - start
        figures = json.loads(figures_file.read_text()) if figures_file.exists() else {}
        self.state.finish(stage.name, words, seconds, figures)
        return figures

    def _worked(self, stage: Stage) -> float:
        """Seconds of an interrupted training up to the last epoch that it saved, which needn't be done again."""
        last = self._last(stage)
        return max(last.stat().st_mtime - self.state.running["since"], 0.0) if last.exists() else 0.0

    def _last(self, stage: Stage) -> Path:
        return self.state.work / f"last_{stage.name}.pt"

    def _resume(self, stage: Stage, words: list[str]) -> bool:
        """Go on with a training that was interrupted, if it has saved an epoch; says whether it did."""
        if not self._last(stage).exists():
            return False
        self._call(stage, [*words, "--resume"])
        return True

    def _call(self, stage: Stage, words: list[str]) -> None:
        print(f"\n$ python {typed(words)}", flush=True)
        status, line = launch(words, stage.limit, self.handle)
        if status not in stage.accepts:
            raise UserError(line or f"this step failed with status {status}: python {typed(words)}")


def _is_training(words: list[str]) -> bool:
    return words[0] == "train.py"


def launch(words: list[str], limit: float | None, handle: int) -> tuple[int, str]:
    """Run a script of the suite in the same Python: (exit status, the line with which it refused, which isn't shown yet).

    limit: seconds after which it is interrupted, as by Ctrl-C; its status counts as 0 then.
    """
    command = [sys.executable, str(SCRIPTS / words[0]), *words[1:]]
    with subprocess.Popen(command, stderr=subprocess.PIPE, pass_fds=(handle,)) as process:
        late = threading.Event()
        timers = (
            [threading.Timer(limit, _interrupt, (process, late)), threading.Timer(limit + GRACE, process.kill)] if limit else []
        )
        for timer in timers:
            timer.start()
        try:
            line = forward(process.stderr, Path(words[0]).name)
            status = process.wait()
        finally:
            for timer in timers:
                timer.cancel()
    if late.is_set() or not status:
        _show(line)
        return 0, ""
    return status, line


def _interrupt(process: subprocess.Popen, late: threading.Event) -> None:
    if process.poll() is None:
        late.set()
        process.send_signal(signal.SIGINT)


def _show(line: str) -> None:
    if line:
        print(line, file=sys.stderr)


def forward(pipe: IO[bytes], script: str) -> str:
    """Show what a script writes to stderr as it comes, but for the last line that begins as its refusals do: that is returned,
    without the script's name."""
    held, rest = "", b""
    while chunk := os.read(pipe.fileno(), 1 << 16):
        *lines, rest = re.split(rb"(?<=[\r\n])", rest + chunk)
        for line in lines:
            text = line.decode("utf-8", "backslashreplace")
            if text.startswith(f"{script}: ") and not text.startswith(f"{script}: warning:"):
                _show(held)
                held = text.strip()
            else:
                sys.stderr.write(text)
        sys.stderr.flush()
    sys.stderr.write(rest.decode("utf-8", "backslashreplace"))
    return held
