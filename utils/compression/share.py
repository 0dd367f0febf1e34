"""Which share of its channels a network has to lose, so that a budget is kept."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from utils.compression.aim import KINDS, Aim
from utils.core.errors import UserError
from utils.loading import load_model
from utils.pruning.amounts import Goal, smallest_amount
from utils.pruning.masks import POLICIES, Limits
from utils.pruning.pruner import STRATEGIES, Amount, Pruner

MOST = 0.95  # of the channels


def share_to_go(weights: str, strategy: str, aim: Aim, target: float) -> float:
    """The share for train.py --sparse-target, by the gammas as they are: training chooses otherwise, but about as many.

    target: what is to be left of aim.kind. Raises UserError for a limit that the strategy can't reach.
    """
    loaded = load_model("", weights)
    settings = STRATEGIES[strategy]
    pruner = Pruner(loaded.model, strategy, Limits(1, settings.layer_keep, POLICIES[settings.policy].round_to))
    amount = smallest_amount(pruner, Amount(0.0, 0), Goal(aim.kind, target), loaded.img_size, force=True)
    left = pruner.size(pruner.choose(amount), loaded.img_size)[aim.kind]
    if aim.limit is not None and left > target:
        raise UserError(f"--target-{aim.kind} {target:,.0f}: {strategy} pruning leaves at least {left:,} "
                        f"{KINDS[aim.kind].title} of this network; ask for more, or take another --strategy")  # fmt: skip
    return min(round(amount.percent, 3), MOST)


def share_by_sweep(rows: Sequence[dict[str, Any]], strategy: str, target: float) -> float:
    """The same for milliseconds, from a prune script's --dry-run: rows of {percent, ms}, from nothing pruned on."""
    left = np.minimum.accumulate([row["ms"] for row in rows])
    if target < left[-1]:
        raise UserError(f"--target-ms {target:g}: {strategy} pruning leaves about {left[-1]:.3g} milliseconds of this network; "
                        "ask for more, or take another --strategy")  # fmt: skip
    return min(round(float(np.interp(-target, -left, [row["percent"] for row in rows])), 3), MOST)
