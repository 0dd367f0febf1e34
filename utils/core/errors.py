"""A user's mistake, and what a user should know: both are one line that names the place."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake that its message, one line, tells the user how to mend: `place: what is wrong`. command: what the user can
    type to mend it, with which the message then ends.

    `utils.scripts.cli.run` prints it to stderr and exits with status 2; everything else that is raised is a defect of ours.

    >>> print(UserError("a.data: is too old", command="python convert_dataset.py ..."))
    a.data: is too old; run: python convert_dataset.py ...
    """

    def __init__(self, text: str, *, command: str = "", what_it_does: str = "run") -> None:
        super().__init__(f"{text}; {what_it_does}: {command}" if command else text)
        self.text, self.command = text, command


def one_line(text: str) -> str:
    r"""`text` as one line of a terminal: what would end it there or steer the terminal, as names of files may hold, is escaped.

    >>> print(one_line("a\nb.jpg: no image"))
    a\nb.jpg: no image
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Remark(UserWarning):
    """What was read all the same, but perhaps not as it was meant; `utils.scripts.cli.run` prints it to stderr, once."""


def remark(text: str) -> None:
    """Warn of something in a user's file, `place: what`, that stops nothing."""
    warnings.warn(text, Remark, stacklevel=2)


@contextmanager
def noting_remarks() -> Iterator[list[str]]:
    """Yield a list that takes the remarks of the block instead of the user's terminal; other warnings are shown after it."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Remark)
        yield texts
    texts += dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, Remark))
    for other in (w for w in caught if not issubclass(w.category, Remark)):
        warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
