"""The files of a run, what its checkpoints hold, and how --resume finds its way back."""

import dataclasses
from pathlib import Path
from typing import Any

from utils.core.commands import option
from utils.core.errors import UserError
from utils.core.fields import described
from utils.core.preparation import PREPARATION, Preparation
from utils.detection.threshold import CONF_THRES
from utils.loading import own_cfg
from utils.network.cfg import parse_cfg, write_cfg
from utils.network.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from utils.network.class_term import CLASS_TERM
from utils.scripts.cli import Parser
from utils.training.run import Run

# What belongs to this call rather than to the run: taken from the command line even with --resume.
OF_THIS_CALL = {"resume", "device", "workers", "cache_images", "json", "name", "weights_dir", "results_dir"}
# What the run reads from where it lies, and goes on reading.
PLACES = {"data", "t_cfg", "t_weights"}


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """Where a run writes; with a name, last_NAME.pt, best_NAME.pt, results_NAME.txt."""

    folder: Path
    name: str = ""
    results_folder: Path = Path()

    def _path(self, folder: Path, kind: str, suffix: str) -> Path:
        return folder / f"{kind}{f'_{self.name}' if self.name else ''}{suffix}"

    @property
    def last(self) -> Path:
        return self._path(self.folder, "last", ".pt")

    @property
    def best(self) -> Path:
        return self._path(self.folder, "best", ".pt")

    @property
    def results(self) -> Path:
        return self._path(self.results_folder, "results", ".txt")

    @property
    def gammas(self) -> Path:
        """Histograms, where training is sparse."""
        return self._path(self.results_folder, "gammas", ".png")


@dataclasses.dataclass(frozen=True)
class Interrupted:
    """A run that goes on. flags: the command line that it began with, but for those of OF_THIS_CALL, and for the PLACES that
    are given: things may have moved. note: a line that says which given arguments don't count, or ""."""

    checkpoint: Checkpoint
    flags: dict[str, Any]
    note: str


def read_last(path: Path, flags: dict[str, Any], given: frozenset[str], parser: Parser) -> Interrupted:
    """The run of last.pt. flags: this call's command line, on which those named `given` stand.

    Raises UserError when there is no such file, when it holds weights without a run, where a PLACE has nothing any more, and
    for a --cfg that is another than the run's.
    """
    if not path.exists():
        raise UserError(f"{path}: does not exist, so there is no run to --resume; check --name and --weights-dir")
    checkpoint = read_checkpoint(path)
    if checkpoint.finished is None:
        raise UserError(f"{path}: holds weights but no run to --resume; start a new run from it with "
                        f"{option('--weights', path)}")  # fmt: skip
    flags, ignored = dict(flags), []
    for name, value in _arguments(checkpoint, parser).items():
        if name in PLACES | {"cfg"} and name in given:
            continue
        if name in given and flags[name] != value:
            ignored.append(f"--{name.replace('_', '-')} {value}")
        flags[name] = value
    if not checkpoint.finished:
        _check_places(path, flags, given)
        _check_state(checkpoint)
        if "cfg" in given:
            _check_cfg(flags["cfg"], checkpoint)
    note = f"--resume goes on as the run began: {', '.join(ignored)}" if ignored else ""
    return Interrupted(checkpoint, flags, note)


def _arguments(checkpoint: Checkpoint, parser: Parser) -> dict[str, Any]:
    """The run's command line; those that this version's train.py doesn't have are left out, and those OF_THIS_CALL."""
    known = vars(parser.parse_args([])).keys() - OF_THIS_CALL
    odd = next((n for n, v in checkpoint.args.items() if n in known and not parser.accepts(n, v)), None)
    if odd:
        raise UserError(f"{checkpoint.path}: its run's --{odd.replace('_', '-')} can't be {described(checkpoint.args[odd])}: "
                        "the file is damaged")  # fmt: skip
    board = {"board": checkpoint.args["board"]} if isinstance(checkpoint.args.get("board"), str) else {}
    return {name: value for name, value in checkpoint.args.items() if name in known} | board


def _check_places(path: Path, flags: dict[str, Any], given: frozenset[str]) -> None:
    """UserError for what the run reads and isn't where it was; for what was given, its own reader says that."""
    for name in PLACES - given:
        place, flag = flags[name], f"--{name.replace('_', '-')}"
        if place and not Path(place).exists():
            raise UserError(f"{path}: its run's {flag} {place} does not exist any more; say with {flag} where it is now")


def _check_state(checkpoint: Checkpoint) -> None:
    """UserError where what a run needs to go on isn't there."""
    needed = ("train_model", "optimizer", "scaler", "scheduler", "rng", "settings", "hyp", "cfg", "args")
    checkpoint.run.required("what --resume needs", *needed)
    checkpoint.run.fields("settings").required("what --resume needs", "img_size", *PREPARATION)


def _check_cfg(cfg: str, checkpoint: Checkpoint) -> None:
    """UserError for a cfg that, read as the run reads it, isn't its own."""
    defs = parse_cfg(cfg)
    if Preparation.of(checkpoint.settings).gray:
        defs.net.channels = 1
    if defs != own_cfg(checkpoint):
        raise UserError(f"--cfg {cfg}: describes another network than {checkpoint.path}, which carries its own; leave it out, "
                        "or start a new run without --resume")  # fmt: skip


def save_run(run: Run, files: RunFiles, *, names: list[str], settings: dict[str, Any], results: str,
             flags: dict[str, Any], conf_thres: float | None, is_best: bool, finished: bool) -> None:  # fmt: skip
    """Write last.pt, and best.pt before it if `is_best`: a run killed in between repeats the epoch and writes both again.

    conf_thres: the threshold that the evaluation of these weights recommends, None where they weren't evaluated.

    last.pt can be resumed until the run is `finished`; then it holds, as best.pt always does, only what its users need.
    """
    content = {
        "epoch": run.epoch - 1,
        "best_fitness": run.best_fitness,
        "training_results": results,
        "model": run.weights.state_dict(),
        "seen": run.model.seen,
        "cfg": write_cfg(run.model.defs),
        "cfg_name": run.model.defs.name,
        "names": names,
        "hyp": dataclasses.asdict(run.hyp),
        "settings": settings,
        "quantization": run.model.quantization.to_dict() if run.model.quantization else None,
        CLASS_TERM: True,
        CONF_THRES: conf_thres,
        "args": flags,
        "finished": finished,
    }
    if is_best:
        save_checkpoint(files.best, content | {"finished": True})
    save_checkpoint(files.last, content if finished else content | run.state())
    run.saved = True
