"""What a compression is asked to be: compress.py's command line."""

from dataclasses import dataclass

from utils.pruning.amounts import GoalOptions


@dataclass(frozen=True)
class CompressOptions:
    """The flags of the same names; goal: the budget."""

    data: str
    weights: str
    cfg: str
    goal: GoalOptions
    hours: float | None
    rounds: int
    epochs: int | None
    strategy: str
    refit: int
    teacher: bool
    bits: int
    out: str
    workers: int
    seed: int
    device: str
    json: str
