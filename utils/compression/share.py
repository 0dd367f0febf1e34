"""Which share of its channels a network has to lose, so that a budget is kept."""

from utils.compression.aim import KINDS, Aim
from utils.core.errors import UserError
from utils.loading import load_model
from utils.pruning.amounts import Goal, smallest_amount
from utils.pruning.masks import POLICIES, Limits
from utils.pruning.pruner import STRATEGIES, Amount, Pruner


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
    return min(round(amount.percent, 3), 0.95)
