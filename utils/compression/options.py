"""What a compression is asked to be: compress.py's command line."""

from dataclasses import dataclass

from utils.compression.aim import AimOptions


@dataclass(frozen=True)
class CompressOptions:
    """The flags of the same names."""

    data: str
    weights: str
    cfg: str
    aim: AimOptions
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
