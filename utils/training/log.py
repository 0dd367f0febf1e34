"""What a training leaves to read: results.txt, results.png, TensorBoard, and lines on the console."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from utils.core.errors import UserError
from utils.core.files import make_folder, write_text
from utils.core.plots import plot_results
from utils.detection.metrics import Evaluation
from utils.pruning.sparsity import NEAR_ZERO, QUANTILES, sparsity_warnings
from utils.training.epoch import EpochFigures
from utils.training.run import Plan

LOSSES = ("box", "obj", "cls", "total")
OTHER_LOSSES = ("dfl",)  # columns behind the others, of networks whose heads have such a part
METRICS = {"P": "precision", "R": "recall", "mAP50": "map50", "mAP": "map", "F1": "f1"}  # column: attribute
GAMMAS = ("near_zero", *(f"g{round(100 * q):02d}" for q in QUANTILES))
COLUMNS = ("epoch", *LOSSES, "lr", "size", *METRICS, *GAMMAS, "seconds")
WIDTH = 11
PLOT_EVERY = 10  # epochs; drawing takes as long as a short epoch


def results_row(
    epoch: int, figures: EpochFigures, evaluation: Evaluation | None, gammas: dict[str, Any] | None
) -> dict[str, float]:
    """One epoch as {column: value}; what wasn't measured is nan. gammas: utils.pruning.sparsity.gamma_statistics.

    Other parts of the loss and a distillation's terms follow after COLUMNS.
    """
    row = dict.fromkeys(COLUMNS, math.nan) | {"epoch": epoch, "size": figures.size}
    row |= {"total": figures.total, "lr": figures.lr, "seconds": figures.seconds} | figures.parts
    if evaluation is not None:
        row |= {column: getattr(evaluation, attribute) for column, attribute in METRICS.items()}
    if gammas is not None:
        row["near_zero"] = gammas["near_zero"]
        row |= {f"g{round(100 * q):02d}": value for q, value in gammas["quantiles"].items()}
    return row | figures.distillation


def format_row(row: dict[str, float]) -> str:
    """A line of results.txt."""
    return " ".join(f"{row[c]:>{WIDTH}d}" if c in ("epoch", "size") else f"{row[c]:>{WIDTH}.6g}" for c in row)


def _header(columns: Iterable[str]) -> str:
    return " ".join(f"{c:>{WIDTH}}" for c in columns)


def read_results(text: str) -> dict[str, np.ndarray]:
    """{column: its values, one an epoch} of a results.txt's text; UserError for another file's."""
    lines = text.splitlines()
    columns = lines[0].split() if lines else []
    if columns[: len(COLUMNS)] != list(COLUMNS):
        raise UserError("these are not the results of a training: the header line differs")
    rows = [_numbers(line, len(columns), number) for number, line in enumerate(lines[1:], 2)]
    values = np.array(rows).reshape(-1, len(columns))
    return dict(zip(columns, values.T, strict=True))


def _numbers(line: str, count: int, number: int) -> list[float]:
    try:
        values = [float(v) for v in line.split()]
    except ValueError:
        values = []
    if len(values) != count:
        raise UserError(f"these are not the results of a training: line {number} doesn't hold {count} numbers")
    return values


class RunLog:
    """results.txt (`text` is what it holds), results.png beside it, and TensorBoard where it is installed.

    text: the lines of the epochs before, when a run is resumed; they replace what the file holds, which may be ahead of
    the checkpoint by the epoch in which the run was killed. board: folder of the TensorBoard files; None: no TensorBoard.
    """

    def __init__(self, path: Path, board: str | Path | None, text: str = "") -> None:
        self.path, self.picture = path, path.with_suffix(".png")
        self.text = text
        self.board = _tensorboard(board, max(len(text.splitlines()) - 1, 0)) if board else None

    def add(self, row: dict[str, float], last: bool = False) -> None:
        """Append an epoch (see results_row) to everything; `last` makes sure that the image is up to date."""
        self.text = (self.text or _header(row) + "\n") + format_row(row) + "\n"
        write_text(self.path, self.text)
        if last or row["epoch"] % PLOT_EVERY == 0:
            plot_results(read_results(self.text), self.picture)
        if self.board:
            for column, value in row.items():
                if column != "epoch" and math.isfinite(value):
                    self.board.add_scalar(f"{_group(column)}/{column}", value, row["epoch"])
            self.board.flush()

    def sparsity_warnings(self, plan: Plan) -> list[str]:
        """What the last epoch shows to be wrong with the strength of the penalty on gammas, if there is one."""
        asked = plan.sparsity
        if asked.prune < 0 or asked.directed:
            return []
        adapts = asked.sparse_schedule == "dynamic"
        return sparsity_warnings(read_results(self.text), plan.epochs, 0.0 if adapts else asked.s)

    def close(self) -> None:
        if self.board:
            self.board.close()


def _group(column: str) -> str:
    groups = {"loss": (*LOSSES, *OTHER_LOSSES), "metrics": METRICS, "gamma": GAMMAS}
    other = "distillation" if column.startswith("kd_") else "train"
    return next((name for name, members in groups.items() if column in members), other)


def _tensorboard(folder: str | Path, epochs: int) -> Any | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("TensorBoard is not installed (pip install tensorboard); results.txt has the same figures")
        return None
    if not str(folder).isprintable():
        print(f"{folder}: TensorBoard knows no names that aren't UTF-8; results.txt has the same figures")
        return None
    return SummaryWriter(str(make_folder(folder)), purge_step=epochs + 1 if epochs else None)


def metrics_line(evaluation: Evaluation) -> str:
    return (f"  P {evaluation.precision:.4f}  R {evaluation.recall:.4f}  mAP@.5 {evaluation.map50:.4f}  "
            f"mAP {evaluation.map:.4f}  F1 {evaluation.f1:.4f}")  # fmt: skip


def gammas_line(gammas: dict[str, Any], note: str) -> str:
    """gammas: utils.pruning.sparsity.gamma_statistics; note: what the penalty says of the epoch that ended."""
    quantiles = "  ".join(f"{q:.0%} {value:.3g}" for q, value in gammas["quantiles"].items())
    return f"  gammas: {gammas['near_zero']:.1%} under {NEAR_ZERO:g}; quantiles {quantiles}; {note}"
