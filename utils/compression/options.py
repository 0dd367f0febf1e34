"""What a compression is asked to be: compress.py's command line."""

from dataclasses import dataclass
from pathlib import Path

from utils.compression.aim import AimOptions
from utils.core.errors import UserError
from utils.runtimes.deployment import Deployment

NETWORK = Path(__file__).resolve().parents[2] / "cfg/yolov3tiny/yolov3-tiny.cfg"  # what is trained where nothing else is named


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
    baselines: str | None
    bits: int
    runtime: str
    threads: int | None
    out: str
    workers: int
    seed: int
    device: str
    json: str

    @property
    def network(self) -> str:
        """The file that the network comes from."""
        return self.weights or self.cfg or str(NETWORK)

    @property
    def trains_baselines(self) -> bool:
        """Whether baselines are finetuned, where there is time: also with --hours, which says how much there is."""
        return self.baselines == "train" or (self.baselines is None and self.hours is not None)

    def deployment(self) -> Deployment | None:
        """Where the milliseconds of --target-ms are measured, None without it. Raises UserError where the runtime isn't named
        or can't be asked, and where one is named for nothing."""
        if self.aim.target_ms is None:
            flag = "--runtime" if self.runtime else "--threads" if self.threads else ""
            if flag:
                raise UserError(f"{flag}: is about milliseconds; add --target-ms T, or leave it out")
            return None
        if not self.runtime:
            raise UserError("--target-ms: name the runtime of the milliseconds with --runtime")
        return Deployment.of(self.runtime, self.threads, self.bits, "cpu", "auto")

    def place(self) -> list[str]:
        """The same for a prune script."""
        threads = ["--threads", str(self.threads)] if self.threads else []
        return ["--runtime", self.runtime, *threads, "--bits", str(self.bits)]
