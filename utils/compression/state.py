"""compress.json: what was asked for, what is done, and what was going on when it was last written."""

import json
import os
from pathlib import Path
from typing import Any

from utils.core.errors import UserError
from utils.core.fields import Fields
from utils.core.files import check_writable, make_folder, read_text
from utils.core.tables import write_json

FORMAT = 1


class State:
    """The content of DIR/compress.json, written whole after each stage.

    command: {flag: value} that must be the same to go on; stages: {name: {words, seconds, figures}} of those that are done;
    running: {name, words, since} of the one that was begun.
    """

    def __init__(self, folder: Path, command: dict[str, Any]) -> None:
        """Read what is there. Raises UserError for another command's state, for a file that is none, and for a folder that
        can't be written."""
        self.folder, self.path, self.work = folder, folder / "compress.json", folder / "work"
        check_writable(self.path)
        self.stages: dict[str, dict[str, Any]] = {}
        self.running: dict[str, Any] | None = None
        self.command = json.loads(json.dumps(command))
        self.result: dict[str, Any] = {}
        if self.path.exists():
            self._read()
        elif self.work.exists():
            raise UserError(f"{self.work}: is there, but no {self.path.name} beside it; name another folder with --out")
        else:
            self.save()
        make_folder(self.work)

    def _read(self) -> None:
        try:
            values = json.loads(read_text(self.path, "state of compress.py"))
        except ValueError:
            raise UserError(f"{self.path}: isn't what compress.py wrote; name another folder with --out") from None
        fields = Fields.of(values, str(self.path))
        if fields.whole("format") != FORMAT:
            raise fields.wrong("format", f"{FORMAT}, this version's")
        theirs = fields.fields("command").values
        other = next((k for k in self.command if theirs.get(k) != self.command[k]), None)
        if other:
            was, now = (command.get(other) for command in (theirs, self.command))
            flag = "the network named" if other == "digest" else f"--{other.replace('_', '-')}"
            what = "has changed" if other == "digest" else f"{now} now, {was} there"
            raise UserError(f"{self.path}: belongs to another command ({flag}: {what}); name another folder with --out")
        self.stages = {name: fields.fields("stages").fields(name).values for name in fields.fields("stages").values}
        self.running = fields.fields("running").values or None
        self.result = fields.fields("result").values

    def save(self) -> None:
        values = {"format": FORMAT, "command": self.command, "running": self.running, "stages": self.stages,
                  "result": self.result}  # fmt: skip
        write_json(self.path, values)

    def begin(self, name: str, words: list[str], now: float) -> None:
        self.running = {"name": name, "words": words, "since": now}
        self.save()

    def finish(self, name: str, words: list[str], seconds: float, figures: dict[str, Any]) -> None:
        self.stages[name] = {"words": words, "seconds": seconds, "figures": figures}
        self.running = None
        self.save()


def lock(path: Path) -> int:
    """A file descriptor that this process and the stages that it starts hold: a stage outlives a killed compress.py, and two
    must not write the same files. Waits for those that hold it."""
    import fcntl

    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print(f"{path.parent}: a stage of an earlier call is still at work; waiting for its end", flush=True)
        fcntl.flock(handle, fcntl.LOCK_EX)
    return handle
