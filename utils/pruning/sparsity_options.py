"""What sparse training is asked to be: the flags of train.py that are about it, and which of them go together."""

from dataclasses import dataclass, replace
from typing import Self

from utils.core.errors import UserError
from utils.pruning.spend import NOTHING

USES = {"sparse_keep": ("local-decay",), "sparse_target": ("directed", "dynamic"), "max_drop": ("directed",),
        "spend": ("directed",)}  # fmt: skip
STRATEGIES = "--prune: 0 for normal or regular, 1 for shortcut or slim, 2 for layer pruning"


@dataclass(frozen=True)
class SparsityOptions:
    """The flags of the same names. sparse_schedule: one of utils.pruning.sparsity.SCHEDULES, or "" where none is named."""

    prune: int = -1
    s: float = 0.0
    sparse_schedule: str = "constant"
    sparse_keep: float = 0.85
    sparse_target: float = 0.7
    max_drop: float = 0.02
    spend: str = NOTHING

    @property
    def directed(self) -> bool:
        """Whether channels are chosen and brought to zero."""
        return self.prune >= 0 and self.sparse_schedule == "directed"

    @property
    def penalised(self) -> bool:
        """Whether all gammas are, by a strength that is a share of the gradient."""
        return self.s > 0 or self.sparse_schedule == "dynamic"

    def settled(self) -> Self:
        """With a schedule where none was named: directed, or constant with --s or without --prune. Raises UserError for options
        that can't be used together."""
        self._check_strategy()
        schedule = self.sparse_schedule or ("directed" if self.prune >= 0 and self.s == 0 else "constant")
        if self.prune >= 0 and self.s == 0 and schedule not in ("directed", "dynamic"):
            raise UserError(f"--sparse-schedule {schedule} needs --s, the strength of the penalty on gammas, for example "
                            "--s 0.01; without both the channels that are to go are chosen and brought to zero")  # fmt: skip
        if self.s > 0 and schedule == "directed":
            raise UserError("--sparse-schedule directed finds out how strongly to push; leave out --s")
        if self.prune == 2 and self.spend != NOTHING:
            raise UserError(f"--spend {self.spend} weighs channels, and --prune 2 takes whole blocks; leave it out")
        for flag, schedules in USES.items():
            if getattr(self, flag) != getattr(SparsityOptions, flag) and schedule not in schedules:
                wanted = " or ".join(schedules)
                raise UserError(f"--{flag.replace('_', '-')} only means something with --sparse-schedule {wanted}; add that")
        return replace(self, sparse_schedule=schedule)

    def _check_strategy(self) -> None:
        if self.s > 0 and self.prune < 0:
            raise UserError(f"--s {self.s:g} needs {STRATEGIES}")
        if self.sparse_schedule not in ("", "constant") and self.prune < 0:
            raise UserError(f"--sparse-schedule {self.sparse_schedule} needs {STRATEGIES}")
