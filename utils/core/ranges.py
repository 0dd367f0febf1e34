"""What a number on the command line or in a file of hyper-parameters may be: declared where the number is, told by --help,
checked when it is read."""

import argparse
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """An argparse type: numbers from `least` to `most`. above, below: without that end itself; whole: no fractions.

    >>> Range(1, 4096, whole=True)("16")
    16
    >>> str(Range(0, 1, above=True))
    'above 0 and up to 1'
    """

    least: float
    most: float
    above: bool = False
    below: bool = False
    whole: bool = False

    def __str__(self) -> str:
        if not self.above and not self.below:
            return f"{_plain(self.least)} to {_plain(self.most)}"
        low = f"{'above' if self.above else 'at least'} {_plain(self.least)}"
        return f"{low} and {'below' if self.below else 'up to'} {_plain(self.most)}"

    def __call__(self, text: str) -> float:
        """The number that `text` is, an int if it is to be whole; argparse.ArgumentTypeError naming it and the range."""
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        fits = self.least <= number <= self.most and not (self.above and number == self.least)
        if not fits or (self.below and number == self.most) or (self.whole and not number.is_integer()):
            what = "a whole number" if self.whole else "a number"
            raise argparse.ArgumentTypeError(f"{text or 'nothing'}: must be {what}, {self}")
        return int(number) if self.whole else number


def whole(least: int, most: int) -> Range:
    """Whole numbers from `least` to `most`, both included."""
    return Range(least, most, whole=True)


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else f"{number:g}"


SHARE = Range(0, 1)
NOT_ALL = Range(0, 1, below=True)  # a share after which something is left
NOT_ALL_OR_NONE = Range(0, 1, above=True, below=True)
POSITIVE = Range(0, 1e6, above=True)
IMG_SIZE = whole(1, 8192)  # a side in pixels; a batch of larger images fits no memory
BATCH_SIZE = whole(1, 4096)
WORKERS = whole(0, 256)  # processes: none is the program itself
PROCESSES = whole(1, 256)
THREADS = whole(1, 256)
SEED = whole(0, 2**32 - 1)  # what all random generators take
EPOCHS = whole(1, 100_000)
