"""The hours that training may take, and how many epochs fit into them."""

import math
from dataclasses import dataclass

SPARSE = 4 / 7  # of a round's epochs: 40 of sparse training and 30 of finetuning are what README's figures were made with


@dataclass
class Clock:
    """seconds: that all trainings together may take, None without a limit. spent: what they took so far. pace: seconds an
    epoch, of the last training; None before the first."""

    seconds: float | None
    spent: float = 0.0
    pace: float | None = None

    @property
    def left(self) -> float:
        return math.inf if self.seconds is None else max(self.seconds - self.spent, 0.0)

    def note(self, seconds: float, epochs: int) -> None:
        """A training of so many epochs took so long."""
        self.spent += seconds
        if epochs:
            self.pace = seconds / epochs

    def allowed(self, share: float) -> float | None:
        """Seconds of a training that may take this share of what is left; None without a limit."""
        return None if self.seconds is None else share * self.left

    def epochs(self, wanted: int, share: float) -> int:
        """As many of the epochs wanted as fit into the share of what is left; 0 if not even one does.

        >>> Clock(seconds=1000, spent=100, pace=15.0).epochs(40, 0.5)
        30
        """
        if self.seconds is None:
            return wanted
        return min(wanted, int(share * self.left / self.pace)) if self.pace else wanted
