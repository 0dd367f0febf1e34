"""How much to prune: the sweep of --dry-run, and the bisections behind --target-params, --target-macs and --max-drop (behind
--target-ms: utils.pruning.budget)."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from tqdm import tqdm

from utils.core.errors import UserError
from utils.pruning.pruner import Amount, Pruner
from utils.pruning.spend import MILLISECONDS

Item = TypeVar("Item")
UNITS = {"%": 0.01, "k": 1e3, "m": 1e6, "g": 1e9}


@dataclass(frozen=True)
class Goal:
    """What the amount is chosen for. kind: params | macs | ms | map50; value: the most parameters, MACs or milliseconds that
    may be left, or the least mAP@0.5."""

    kind: str
    value: float


@dataclass(frozen=True)
class Target:
    """argparse type of what is to be left: `0.2`, `20%`: that share; `2.5M`, `800k`, `3000000`: that many.

    >>> Target("0.2").of(500), Target("20%").of(500), Target("2.5M").of(5_000_000)
    (100.0, 100.0, 2500000.0)
    """

    text: str
    most: ClassVar[float] = sys.float_info.max
    examples: ClassVar[str] = "a share such as 0.2, or a number such as 300000 or 2.5M"

    def __post_init__(self) -> None:
        if not 0 < self.value <= self.most:
            raise argparse.ArgumentTypeError(f"{self.text or 'nothing'}: give what is to be left: {self.examples}")

    @property
    def value(self) -> float:
        """The number, units counted in; NaN for what isn't one."""
        unit = UNITS.get(self.text[-1:].lower())
        try:
            return float(self.text[:-1] if unit else self.text) * (unit or 1.0)
        except ValueError:
            return math.nan

    @property
    def is_share(self) -> bool:
        return self.value < 1 or self.text.endswith("%")

    def of(self, before: float) -> float:
        """How many are to be left of `before`."""
        return self.value * before if self.is_share else self.value

    def __str__(self) -> str:
        return self.text


class Milliseconds(Target):
    """The same for milliseconds, of which there may be less than one: `0.5`: so many; `50%`: that share."""

    most: ClassVar[float] = 1e6
    examples: ClassVar[str] = "milliseconds such as 12 or 0.8, or a share such as 50%"

    @property
    def is_share(self) -> bool:
        return self.text.endswith("%")


@dataclass(frozen=True)
class GoalOptions:
    """Flags of a prune script that say what the amount has to reach, of which at most one is given, instead of the amount."""

    max_drop: float | None = None
    target_params: Target | None = None
    target_macs: Target | None = None
    target_ms: Milliseconds | None = None

    @property
    def is_given(self) -> bool:
        return any(value is not None for value in vars(self).values())


def axis(pruner: Pruner, base: Amount, step: float) -> list[Amount]:
    """The amounts to search, from nothing to everything: percents in steps of `step`, or numbers of blocks when `base` asks
    for no channels."""
    if base.shortcuts and not base.percent:
        return [Amount(0.0, n) for n in range(1, len(pruner.blocks) + 1)]
    count = round(1 / step)
    return [Amount(n / count, base.shortcuts) for n in range(count)]


def first_true(values: Sequence[Item], holds: Callable[[Item], bool]) -> Item | None:
    """The first value, an amount for example, that `holds`, by bisection: if it holds for one, it does for all later ones."""
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(values[middle]) else (middle + 1, high)
    return values[low] if low < len(values) else None


def smallest_amount(pruner: Pruner, base: Amount, goal: Goal, img_size: int, force: bool) -> Amount:
    """The smallest amount that leaves at most goal.value parameters or MACs. UserError if none does; with `force` all."""
    amounts = axis(pruner, base, 0.001)
    found = first_true(amounts, lambda a: pruner.size(pruner.choose(a), img_size)[goal.kind] <= goal.value)
    if found is None and not force:
        least = pruner.size(pruner.choose(amounts[-1]), img_size)[goal.kind]
        raise UserError(f"--target-{goal.kind} {goal.value:,.0f}: {pruner.strategy} pruning leaves at least {least:,} here; "
                        "--force goes as far as that, or choose another strategy or smaller limits")  # fmt: skip
    return found or amounts[-1]


def largest_amount(pruner: Pruner, base: Amount, goal: Goal, accuracy: Callable[[Amount], float], force: bool) -> Amount:
    """The largest amount whose compact network keeps an mAP@0.5 of goal.value, to 0.01 of percent, by bisection.

    Raises UserError if the smallest one doesn't; with `force` that is taken.
    """
    amounts = axis(pruner, base, 0.01)
    amounts = amounts if base.shortcuts else amounts[1:]
    past = first_true(amounts, lambda a: accuracy(a) < goal.value)
    place = len(amounts) if past is None else amounts.index(past)
    if place == 0 and not force:
        raise UserError(f"{amounts[0]} already leaves an mAP@0.5 under {goal.value:.3f}; train sparse (train.py --prune P), "
                        "allow a larger --max-drop, or take it with --force and finetune")  # fmt: skip
    return amounts[max(place - 1, 0)]


def sweep(pruner: Pruner, base: Amount, img_size: int, accuracy: Callable[[Amount], float] | None) -> list[dict[str, Any]]:
    """A row for each of about ten amounts: {percent, shortcuts, achieved, params, macs, channels, map50 (masked)}, and ms where
    the pruner knows them."""
    amounts = axis(pruner, base, 0.05)
    if base.shortcuts and not base.percent:
        amounts = amounts[:: -(-len(amounts) // 12)]
    else:
        amounts = [a for a in amounts if a.percent >= 0.6 or round(20 * a.percent) % 2 == 0]
    rows = []
    for amount in tqdm(amounts, desc="sweep", unit="amount", leave=False):
        choice = pruner.choose(amount)
        row = {"percent": amount.percent, "shortcuts": amount.shortcuts, "achieved": choice.mask.achieved}
        row |= pruner.size(choice, img_size)
        rows.append(row | {"map50": accuracy(amount) if accuracy else None})
    return rows


def goal_of(options: GoalOptions, before: dict[str, Any]) -> Goal | None:
    """The goal that the command line names, None where it names amounts; `before`: {params, macs, map50} of the original, and
    with --target-ms latency_ms on the runtime."""
    if options.target_params:
        return Goal("params", options.target_params.of(before["params"]))
    if options.target_macs:
        return Goal("macs", options.target_macs.of(before["macs"]))
    if options.target_ms:
        return Goal(MILLISECONDS, options.target_ms.of(before["latency_ms"]))
    return Goal("map50", before["map50"] - options.max_drop) if options.max_drop is not None else None
