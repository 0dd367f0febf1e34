"""The hours that training may take, and how many epochs fit into them."""

import math
from dataclasses import dataclass
from typing import Any

SPARSE = 4 / 7  # of a round's epochs: 40 of sparse training and 30 of finetuning are what README's figures were made with,
FIRST = 6 / 13  # and 60 of them before, where the network is trained here, too


@dataclass
class Clock:
    """seconds: that all trainings together may take, None without a limit. spent: what they took so far. pace: seconds an
    epoch of the last training, evaluation included, None before the first; start: seconds before its first epoch."""

    seconds: float | None
    spent: float = 0.0
    pace: float | None = None
    start: float = 0.0

    @property
    def left(self) -> float:
        return math.inf if self.seconds is None else max(self.seconds - self.spent, 0.0)

    def note(self, spent: float, figures: dict[str, Any]) -> None:
        """A training took `spent` seconds. figures: {seconds, epochs} that it measured itself; {} if it was ended early."""
        self.spent += spent
        if figures:
            self.pace = figures["seconds"] / figures["epochs"]
            self.start = max(spent - figures["seconds"], 0.0)

    def allowed(self, share: float) -> float | None:
        """Seconds of a training that may take this share of what is left; None without a limit."""
        return None if self.seconds is None else share * self.left

    def epochs(self, wanted: int, share: float) -> int:
        """As many of the epochs wanted as fit into the share of what is left; 0 if not even one does.

        >>> Clock(seconds=1000, spent=100, pace=15.0).epochs(40, 0.5)
        30
        """
        if self.seconds is None or self.pace is None:
            return wanted
        return min(wanted, max(int((share * self.left - self.start) / self.pace), 0))
