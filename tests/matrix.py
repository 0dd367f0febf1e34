"""The pruning matrix: every network x strategy x percent, masked against compact. tests/scripts/test_prune_matrix.py asserts on
it; `python -m tests.matrix` prints it."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cfg.make_variants import VARIANTS
from tests.references import FOLDER
from tests.tiny import randomise
from utils.core.errors import UserError
from utils.network.cfg import parse_cfg, write_cfg
from utils.network.darknet import Darknet
from utils.network.layers import Convolution
from utils.network.weights import load_weights, save_weights
from utils.pruning.graph import ChannelGraph
from utils.pruning.importance import CRITERIA, Evidence
from utils.pruning.masks import Limits
from utils.pruning.pruner import STRATEGIES, Choice, Pruner
from utils.pruning.spend import COSTS
from utils.pruning.surgeon import Factors, readers
from utils.scripts.prune import WORTH_SPLITTING

ROOT = Path(__file__).resolve().parents[1]
PERCENTS = (0.3, 0.7)
CELLS = [(strategy, percent) for strategy in STRATEGIES for percent in PERCENTS]


def networks(shared: Path) -> dict[str, Path]:
    """Every network of cfg/ and of Darknet's own cfg files, by a name of its own; not the variants for datasets, which differ
    from theirs in the filters before the heads only."""
    own = {f"cfg/{p.stem}": p for p in sorted((ROOT / "cfg").glob("*/*.cfg")) if is_source(p)}
    return own | {f"darknet/{p.stem}": p for p in sorted((shared / "darknet/cfg").glob("*.cfg"))}


def is_source(path: Path) -> bool:
    """Whether a cfg below cfg/ is one of the project's networks, not one that make_variants.py or a prune script wrote."""
    if f"{path.parent.name}/{path.stem}" in VARIANTS:
        return False
    return not path.parent.name.startswith(tuple(f"{s}_" for s in STRATEGIES))


@dataclass
class Cell:
    """One pruning and what came of it. share: of the parameters that are left; blocks: dropped. error: masked - compact in
    the raw outputs, relative to their largest value, in float64, with silent removed channels (gamma = beta = 0);
    constant_error: with beta != 0 and circular padding, where no border is left for constants to differ at."""

    strategy: str
    percent: float
    refused: str = ""
    share: float = 1.0
    error: float = 0.0
    constant_error: float = 0.0
    blocks: int = 0


def build(path: Path) -> Darknet:
    torch.manual_seed(0)
    defs = parse_cfg(path)
    defs.net.width = defs.net.height = 64
    return randomise(Darknet(defs, 64))


def cells(model: Darknet, chosen: list[tuple[str, float]], folder: Path, importance: str = "gamma",
          spend: str = "") -> Iterator[Cell]:  # fmt: skip
    """Prune `model` in each of the ways and put every result through its checks; gradients, where the criterion reads them, are
    random numbers."""
    graph = ChannelGraph(model.defs)
    evidence = random_evidence(model, graph, importance)
    cost = COSTS[spend](model, graph, 64) if spend else None
    total = sum(p.numel() for p in model.parameters())
    for strategy, percent in chosen:
        cell = Cell(strategy, percent)
        limits = Limits(layer_keep=STRATEGIES[strategy].layer_keep, round_to=8 if strategy == "regular" else 1,
                        split=WORTH_SPLITTING)  # fmt: skip
        pruner = Pruner(model, strategy, limits, importance, evidence, cost)
        try:
            amount = pruner.check(0.0 if strategy == "layer" else percent, blocks_to_drop(pruner, percent))
        except UserError as error:
            cell.refused = str(error)
            yield cell
            continue
        choice = pruner.choose(amount)
        small = pruner.compact(choice)
        cell.constant_error = relative_error(*map(without_borders, (pruner.masked(choice), pruner.compact(choice))))
        cell.share, cell.blocks = sum(p.numel() for p in small.parameters()) / total, len(choice.dropped)
        cell.error = silent_error(model, pruner, choice)
        check_files(small, folder)
        check_training(small)
        yield cell


def random_evidence(model: Darknet, graph: ChannelGraph, importance: str) -> Evidence:
    rng, channels = np.random.default_rng(0), len(graph.label)
    evidence = Evidence(terms=rng.normal(size=(3, channels)), curvature=rng.random(channels), pictures=12)
    if CRITERIA[importance].needs != "factors":
        return evidence
    kernels = {index: model.module_list[index].conv.weight for index in readers(model, graph)}
    return replace(evidence, factors={index: random_factors(kernel) for index, kernel in kernels.items()})


def random_factors(kernel: torch.Tensor) -> Factors:
    inputs, taps = (torch.randn(n, n, dtype=torch.float64) for n in (kernel.shape[1], kernel[0, 0].numel()))
    return Factors(inputs @ inputs.T, taps @ taps.T, torch.rand(len(kernel), dtype=torch.float64))


def blocks_to_drop(pruner: Pruner, percent: float) -> int | None:
    """For the strategies that drop blocks the same share of them."""
    return round(percent * len(pruner.blocks)) if STRATEGIES[pruner.strategy].shortcuts else None


def silent_error(model: Darknet, pruner: Pruner, choice: Choice) -> float:
    """The error without constants: the betas of all that goes are 0, for which they are put back afterwards."""
    ends = {i for block in choice.dropped for i in block.ends}
    saved = {}
    for index in pruner.graph.gammas():
        beta = model.module_list[index].BatchNorm2d.bias.data
        saved[index] = beta.clone()
        beta[torch.from_numpy(~choice.mask.keep[pruner.graph.out[index]]) | (index in ends)] = 0
    error = relative_error(pruner.masked(choice), pruner.compact(choice))
    for index, beta in saved.items():
        model.module_list[index].BatchNorm2d.bias.data = beta
    return error


def without_borders(model: Darknet) -> Darknet:
    """The model with circular instead of zero padding."""
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.padding_mode = "circular"
    return model


@torch.no_grad()
def relative_error(masked: Darknet, small: Darknet) -> float:
    """Largest difference of the raw outputs over their largest value, in float64."""
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    expected, found = masked.double()(image)[1], small.double()(image)[1]
    small.float()
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, found, strict=True))


def check_files(small: Darknet, folder: Path) -> None:
    """The cfg reparses to itself, and a network built from it takes the .weights exactly."""
    text = write_cfg(small.defs)
    assert parse_cfg(text) == small.defs
    save_weights(small, folder / "small.weights")
    again = Darknet(text, 64)
    load_weights(again, folder / "small.weights", prefix=False)
    pairs = zip(small.state_dict().items(), again.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs if not a.endswith("num_batches_tracked"))


def check_training(small: Darknet) -> None:
    """One training step moves all kernels and leaves them finite."""
    small.train()
    optimizer = torch.optim.SGD(small.parameters(), lr=1e-6)
    sum(raw.square().mean() for raw in small(torch.rand(2, 3, 64, 64))).backward()
    assert all(m.conv.weight.grad is not None for m in small.modules() if isinstance(m, Convolution))
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in small.parameters())


def format_cells(name: str, rows: list[Cell]) -> str:
    """A line a strategy: for each percent the share of parameters left, and the errors."""
    lines = []
    for strategy in STRATEGIES:
        parts = []
        for cell in (r for r in rows if r.strategy == strategy):
            text = f"{cell.share:6.1%} left, {cell.blocks:2d} blocks, error {cell.error:.0e}, beta {cell.constant_error:.0e}"
            parts.append(f"{cell.percent}: {'refused, no residual blocks' if cell.refused else text}")
        if parts:
            lines.append(f"{name:42}{strategy:14}{' | '.join(parts)}")
    return "\n".join(lines)


if __name__ == "__main__":
    import tempfile

    torch.set_num_threads(1)
    for label, cfg in networks(FOLDER).items():
        if len(sys.argv) > 1 and sys.argv[1] not in label:
            continue
        start = time.time()
        with tempfile.TemporaryDirectory() as temporary:
            print(
                format_cells(label, list(cells(build(cfg), CELLS, Path(temporary)))),
                f" {time.time() - start:.0f} s",
                flush=True,
            )
