"""The files of a run, what its checkpoints hold, and how --resume finds its way back."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from utils.cfg import write_cfg
from utils.class_term import CLASS_TERM
from utils.errors import UserError
from utils.training import Run
from utils.weights import load_checkpoint, save_checkpoint

# What belongs to this call rather than to the run: taken from the command line even with --resume.
OF_THIS_CALL = {"resume", "device", "workers", "cache_images", "json", "name", "weights_dir", "results_dir"}


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


def read_last(path: Path, args: argparse.Namespace, defaults: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """(last.pt's content, a line that says which given arguments don't count); `args` become those the run began with.

    Raises UserError when there is no such file, or it holds weights without a run.
    """
    if not path.exists():
        raise UserError(f"{path}: does not exist, so there is no run to --resume; check --name and --weights-dir")
    checkpoint = load_checkpoint(path)
    if "finished" not in checkpoint:
        raise UserError(f"{path}: holds weights but no run to --resume; start a new run from it with --weights {path}")
    ignored = []
    for name, value in checkpoint["args"].items():
        if name in OF_THIS_CALL:
            continue
        if getattr(args, name, value) not in (value, getattr(defaults, name, value)):
            ignored.append(f"--{name.replace('_', '-')} {value}")
        setattr(args, name, value)
    return checkpoint, f"--resume goes on as the run began: {', '.join(ignored)}" if ignored else ""


def save_run(run: Run, files: RunFiles, *, names: list[str], settings: dict[str, Any], results: str,
             args: argparse.Namespace, is_best: bool, finished: bool) -> None:  # fmt: skip
    """Write last.pt, and best.pt before it if `is_best`: a run killed in between repeats the epoch and writes both again.

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
        "args": vars(args),
        "finished": finished,
    }
    if is_best:
        save_checkpoint(files.best, content | {"finished": True})
    save_checkpoint(files.last, content if finished else content | run.state())
    run.saved = True
