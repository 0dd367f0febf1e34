"""A user's mistake, and what a user should know: both are one line that names the place."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake that its message, one line, tells the user how to mend: `place: what is wrong`. place: the file and the line in
    it, "" where there is none; command: what the user can type to mend it, with which the message then ends.

    `utils.scripts.cli.run` prints it to stderr and exits with status 2; everything else that is raised is a defect of ours.

    >>> print(UserError.at("a.data", "is too old", command="python convert_dataset.py ..."))
    a.data: is too old; run: python convert_dataset.py ...
    """

    def __init__(self, what: str, *, place: object = "", command: str = "", what_it_does: str = "run") -> None:
        self.place, self.what, self.command = str(place), what, command
        super().__init__(_placed(self.place, f"{what}; {what_it_does}: {command}" if command else what))

    @classmethod
    def at(cls, place: object, what: str, **more: str) -> "UserError":
        """What is wrong at a place; more: see __init__."""
        return UserError(what, place=place, **more)


def _placed(place: str, what: str) -> str:
    return f"{place}: {what}" if place else what


def one_line(text: str) -> str:
    r"""`text` as one line of a terminal: what would end it there or steer the terminal, as names of files may hold, is escaped.

    >>> print(one_line("a\nb.jpg: no image"))
    a\nb.jpg: no image
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Remark(UserWarning):
    """What was read all the same, but perhaps not as it was meant: `place: what`. `utils.scripts.cli.run` prints it to stderr,
    once."""

    def __init__(self, what: str, place: object = "") -> None:
        self.place, self.what = str(place), what
        super().__init__(_placed(self.place, what))


def remark(what: str, place: object = "") -> None:
    """Warn of something in a user's file that stops nothing."""
    warnings.warn(Remark(what, place), stacklevel=2)


@contextmanager
def noting_remarks() -> Iterator[list[Remark]]:
    """Yield a list that takes the remarks of the block instead of the user's terminal; other warnings are shown after it."""
    found: list[Remark] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Remark)
        yield found
    found += {str(w.message): w.message for w in caught if isinstance(w.message, Remark)}.values()
    for other in (w for w in caught if not isinstance(w.message, Remark)):
        warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
