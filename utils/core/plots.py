"""Images of figures: what a training did, epoch by epoch."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.core.files import replacing

# panel title -> columns of results.txt
PANELS = {
    "loss": ("box", "obj", "cls", "dfl", "total"),
    "validation": ("P", "R", "F1", "mAP50", "mAP"),
    "distillation": ("kd_out", "kd_cls", "kd_obj", "kd_box", "kd_feat"),
    "learning rate": ("lr",),
    "penalised gammas": ("near_zero", "g05", "g25", "g50", "g75", "g95"),
}


def plot_results(results: dict[str, np.ndarray], path: Path) -> None:
    """Draw the columns of a results.txt (utils.training.log.read_results) over the epochs into an image file."""
    there = {title: tuple(c for c in columns if c in results) for title, columns in PANELS.items()}
    panels = {title: columns for title, columns in there.items() if any(np.isfinite(results[c]).any() for c in columns)}
    figure = Figure(figsize=(11, 4 * ((len(panels) + 1) // 2)), layout="constrained")
    for number, (title, columns) in enumerate(panels.items(), 1):
        axes = figure.add_subplot((len(panels) + 1) // 2, 2, number)
        _curves(axes, results, columns)
        axes.set(title=title, xlabel="epoch")
    _save(figure, path)


def _curves(axes: Axes, results: dict[str, np.ndarray], columns: tuple[str, ...]) -> None:
    for column in columns:
        measured = np.isfinite(results[column])
        if measured.any():
            marker = "." if measured.sum() < 30 else ""
            axes.plot(results["epoch"][measured], results[column][measured], label=column, marker=marker)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def plot_channels(layers: list[dict[str, int]], path: Path) -> None:
    """Bars of each convolution's filters before and after pruning; layers: [{index, before, after}]."""
    figure = Figure(figsize=(max(8, 0.22 * len(layers)), 4), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(layers))
    axes.bar(places, [row["before"] for row in layers], color="lightgray", label="before")
    axes.bar(places, [row["after"] for row in layers], color="tab:blue", label="after")
    axes.set_xticks(places, [str(row["index"]) for row in layers], fontsize=7, rotation=90)
    axes.set(title="filters of each convolution", xlabel="layer", yscale="log")
    axes.legend()
    _save(figure, path)


def plot_sweep(rows: list[dict[str, Any]], before: dict[str, Any], what: str, stage: str, path: Path) -> None:
    """What the amounts of a pruning sweep leave.

    rows: those of utils.pruning.amounts.sweep, with the importance that ranked; before: {params, macs} of the original; what:
    "percent" or "shortcuts"; stage: of which network mAP@0.5 was measured, if it was. One importance: shares of parameters and
    MACs and mAP@0.5 over the amounts. Several, or rows with milliseconds: a curve of mAP@0.5, or of parameters, for each of
    them over these or the MACs left.
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    names, measured = list(dict.fromkeys(row["importance"] for row in rows)), rows[0]["map50"] is not None
    over_amounts = len(names) == 1 and "ms" not in rows[0]
    for name in [] if over_amounts else names:
        curve = [row for row in rows if row["importance"] == name]
        heights = [row["map50"] if measured else row["params"] / before["params"] for row in curve]
        places = [row.get("ms", row["macs"] / before["macs"]) for row in curve]
        axes.plot(places, heights, marker=".", label=name)
        axes.set(
            xlabel="milliseconds" if "ms" in rows[0] else "MACs left",
            ylabel=f"mAP@0.5, {stage}" if measured else "parameters left",
        )
    if over_amounts:
        places = [row[what] for row in rows]
        for key, label in (("params", "parameters left"), ("macs", "MACs left")):
            axes.plot(places, [row[key] / before[key] for row in rows], marker=".", label=label)
        if measured:
            axes.plot(places, [row["map50"] for row in rows], marker="o", color="black", label=f"mAP@0.5, {stage}")
        axes.set(xlabel=what, ylim=(0, 1.05))
    axes.set(title="pruning sweep")
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def plot_gammas(gammas: dict[str, np.ndarray], path: Path) -> None:
    """Histograms of |gamma|, one a named model, over the same bins."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    top = max((float(np.quantile(values, 0.999)) for values in gammas.values() if len(values)), default=1.0)
    for name, values in gammas.items():
        axes.hist(
            np.minimum(values, top),
            bins=np.linspace(0, top, 61).tolist(),
            alpha=0.6,
            label=f"{name}: {(values < 0.01).mean():.0%} under 0.01",
        )
    axes.set(title="gammas that the strategy can prune", xlabel="|gamma|", ylabel="channels", yscale="log")
    axes.legend()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format=path.suffix.removeprefix("."))
