"""What a compression is for: a budget of something that a network costs, or how much of mAP@0.5 it may lose."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from utils.core.errors import UserError
from utils.pruning.amounts import Milliseconds, Target
from utils.pruning.budget import TOLERANCE
from utils.pruning.spend import MILLISECONDS

MAX_DROP = 0.01  # of mAP@0.5, where no budget is given
ALONG = "macs"  # what is reduced, step by step, where only accuracy limits it


@dataclass(frozen=True)
class Kind:
    """Something that a network costs and a budget can limit. `--target-<key in KINDS>` is the flag here as in the prune
    scripts, `figure` its name in their --json; digits: behind the point; tolerance: by which share a budget may be exceeded."""

    title: str
    help: str
    figure: str
    target: Callable[[str], Target] = Target
    digits: int = 0
    tolerance: float = 0.0

    def told(self, value: float) -> str:
        return f"{value:,.{self.digits}f} {self.title}"

    def bound(self, limit: float) -> str:
        """A budget in words."""
        return f"about {self.told(limit)}, to {self.tolerance:.0%}" if self.tolerance else f"at most {self.told(limit)}"


KINDS = {
    "macs": Kind("MACs", "at most F multiply-accumulates of one image: a share (0.3) or a number (800M)", "macs"),
    "params": Kind("parameters", "at most F parameters: a share (0.2) or a number (2.5M)", "params"),
    MILLISECONDS: Kind(
        "milliseconds",
        "about F milliseconds of one image on --runtime: a number (12) or a share (50%%)",
        "latency_ms",
        Milliseconds,
        2,
        TOLERANCE,
    ),
}


@dataclass(frozen=True)
class Aim:
    """kind: a key of KINDS, along which networks get smaller. limit: the most that may be left of it, None if as little as
    accuracy allows. max_drop: how much of mAP@0.5 may be lost, None where the limit alone counts."""

    kind: str
    limit: float | None
    max_drop: float | None

    def is_kept(self, before: dict[str, Any], after: dict[str, Any]) -> bool:
        """Whether a network with these figures, {map50, params, macs, perhaps latency_ms}, is what was asked for."""
        if self.limit is not None:
            return after[self.figure] <= self.limit * (1 + KINDS[self.kind].tolerance)
        return before["map50"] - after["map50"] <= self.max_drop + 1e-9

    @property
    def figure(self) -> str:
        """The name of what it limits among a network's figures."""
        return KINDS[self.kind].figure

    def __str__(self) -> str:
        kind = KINDS[self.kind]
        if self.limit is not None:
            return kind.bound(self.limit)
        return f"as few {kind.title} as {self.max_drop:g} of mAP@0.5 allows"


@dataclass(frozen=True)
class AimOptions:
    """Flags of which at most one is given: the budget."""

    target_macs: Target | None = None
    target_params: Target | None = None
    target_ms: Milliseconds | None = None
    max_drop: float | None = None


def asked(options: AimOptions) -> tuple[str, Target | None]:
    """(key of KINDS, target) of the command line; the target is None where accuracy limits."""
    found = [(key, target) for key in KINDS if (target := getattr(options, f"target_{key}")) is not None]
    return found[0] if found else (ALONG, None)


def aim_of(options: AimOptions, before: dict[str, Any]) -> Aim:
    """The aim for a network of {params, macs, and with --target-ms latency_ms}; UserError for a budget that it keeps
    already."""
    kind, target = asked(options)
    if target is None:
        return Aim(kind, None, MAX_DROP if options.max_drop is None else options.max_drop)
    had = before[KINDS[kind].figure]
    limit = target.of(had)
    if limit * (1 + KINDS[kind].tolerance) >= had:
        raise UserError(f"--target-{kind} {target}: the network has {KINDS[kind].told(had)}, which is no more; give less, for "
                        "example 30%")  # fmt: skip
    return Aim(kind, limit, None)
