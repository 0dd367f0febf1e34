"""Which amount is tried next: bisection over what was tried."""

import math
from dataclasses import dataclass
from typing import Any

from utils.compression.aim import Aim

FIRST = 0.3  # share of the MACs left by the first trial: measured on BCCD at -0.012 mAP@0.5 without sparse training
CLOSE = 0.9  # what is kept and what is not are so near that another round isn't worth it


@dataclass(frozen=True)
class Trial:
    """A pruned and finetuned network. target: what it was pruned to; weights: its checkpoint; epochs: for which it was trained
    since it came, sparsely and after pruning."""

    round: int
    target: float
    params: int
    macs: int
    map50: float
    map: float
    is_kept: bool
    weights: str
    figures: str  # the stage that measured it
    epochs: int = 0
    latency_ms: float = math.nan  # on the runtime of --target-ms, else of PyTorch


def best_of(aim: Aim, trials: list[Trial]) -> Trial | None:
    """The smallest network that is what was asked for, None if none is."""
    return min((t for t in trials if t.is_kept), key=lambda t: getattr(t, aim.figure), default=None)


def next_target(aim: Aim, before: dict[str, Any], trials: list[Trial], rounds: int) -> float | None:
    """What is to be left after the next round, in units of aim.kind; None if nothing more is to be tried.

    A budget is pruned to once. Otherwise the geometric mean of the smallest network that kept to --max-drop and the largest
    smaller one that didn't; half of the smallest where all did.
    """
    if len(trials) >= rounds or (aim.limit is not None and trials):
        return None
    if aim.limit is not None:
        return aim.limit
    if not trials:
        return FIRST * before[aim.kind]
    kept = best_of(aim, trials)
    high = getattr(kept, aim.kind) if kept else before[aim.kind]
    low = max((size for t in trials if (size := getattr(t, aim.kind)) < high and not t.is_kept), default=None)
    if low is None:
        return high / 2
    return None if low > CLOSE * high else math.sqrt(low * high)
