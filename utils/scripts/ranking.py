"""Which criterion ranks the channels of a pruning: the one asked for, or the best that there is evidence for."""

import argparse
from dataclasses import dataclass

from utils.core.errors import UserError
from utils.core.ranges import whole
from utils.pruning.amounts import Goal, smallest_amount
from utils.pruning.importance import CRITERIA, Evidence
from utils.pruning.pruner import Amount, Pruner
from utils.pruning.spend import COSTS, MILLISECONDS, NOTHING
from utils.scripts.evaluator import Evaluator

AUTO, ALL = "auto", "all"


def add_ranking_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which channels")
    group.add_argument("--importance", type=_names, default=[AUTO], metavar="NAME",
                       help=f"what a channel is worth: {', '.join(CRITERIA)}; auto: gamma if the gammas are sparse enough for "
                       "the amount, else obs with --refit, else taylor with --data, else group-norm; with --dry-run also "
                       "several, or all")  # fmt: skip
    group.add_argument("--importance-images", type=whole(1, 1_000_000), default=64, metavar="N",
                       help="training images that taylor, fisher, obd and obs take gradients from")  # fmt: skip
    group.add_argument("--spend", choices=[*COSTS, MILLISECONDS, NOTHING], default=None,
                       help="weigh importance against the parameters, the MACs or the milliseconds on --runtime that go with a "
                       "channel (default: for obs what --target-params, -macs or -ms limits, else none)")  # fmt: skip


@dataclass(frozen=True)
class RankingOptions:
    """What decides which channels go; see add_ranking_arguments. spend: None where the criterion and the goal decide."""

    importance: list[str]
    importance_images: int
    spend: str | None


def _names(text: str) -> list[str]:
    """argparse type: names of criteria, separated by commas."""
    names = list(CRITERIA) if text == ALL else text.split(",")
    unknown = sorted(set(names) - {AUTO, *CRITERIA})
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join([AUTO, *CRITERIA])}")
    return list(dict.fromkeys(names))


def check_ranking(options: RankingOptions, *, data: str, dry_run: bool) -> None:
    """Raise UserError for criteria that can't be used."""
    if len(options.importance) > 1 and not dry_run:
        raise UserError(
            f"--importance {','.join(options.importance)}: several can be compared with --dry-run; name one to prune by"
        )
    blind = [name for name in options.importance if name != AUTO and CRITERIA[name].needs]
    if blind and not data:
        raise UserError(f"--importance {blind[0]} needs --data FILE.data: labelled images to take gradients from")


def choose_importance(
    name: str, pruner: Pruner, evaluator: Evaluator, base: Amount, goal: Goal | None, *, refits: bool
) -> str:  # fmt: skip
    """The criterion to prune by: `name`, or for `auto` one that is said with its reason. pruner: one that ranks by gammas;
    base: the amount asked for, or where a goal is, what is tried first; refits: whether --refit follows."""
    if name != AUTO:
        return name
    trial = base
    if goal and goal.kind != "map50":
        trial = smallest_amount(pruner, base, goal, evaluator.loaded.img_size, force=True)
    if not pruner.sparsity_warning(pruner.choose(trial)):
        name, why = "gamma", f"the gammas are sparse enough for {trial}"
    elif evaluator.loader is not None and refits:
        name, why = "obs", f"the gammas aren't sparse enough for {trial}, and --refit makes up for what goes"
    elif evaluator.loader is not None:
        name, why = "taylor", f"the gammas aren't sparse enough for {trial}"
    else:
        name, why = "group-norm", f"the gammas aren't sparse enough for {trial}, and without --data there are no gradients"
    print(f"importance: {name}, as {why}")
    return name


def settle_spend(spend: str | None, name: str, goal: Goal | None) -> str:
    """--spend, also where it wasn't given: a criterion that looks again at what is left is weighed against what the goal
    limits. The others are misled by it: what is cheap by them alone goes together (EXPERIMENTS.md)."""
    if spend is not None:
        return spend
    if goal is None or goal.kind not in (*COSTS, MILLISECONDS) or CRITERIA[name].following is None:
        return NOTHING
    print(f"spend: {goal.kind}, as --target-{goal.kind} limits them")
    return goal.kind


def rank(first: Pruner, names: list[str], evaluator: Evaluator, images: int, spend: str) -> list[Pruner]:
    """A pruner for each criterion, otherwise like `first`; gradients of so many images are taken once for all of them. spend: a
    key of COSTS, MILLISECONDS, or NOTHING."""
    model, needs = first.model, {CRITERIA[name].needs for name in names}
    evidence = Evidence()
    if needs - {""}:
        evidence = evaluator.evidence(first, images, needs)
        print(f"gradients of {evidence.pictures} training images taken")
    costs = COSTS | ({MILLISECONDS: first.times.cost} if first.times else {})
    cost = costs[spend](model, first.graph, evaluator.loaded.img_size) if spend != NOTHING else None
    pruners = [Pruner(model, first.strategy, first.limits, name, evidence, cost) for name in names]
    for pruner in pruners:
        pruner.times = first.times
    return pruners
