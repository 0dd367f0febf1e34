"""Commands that are printed to be typed: whatever the files are called, a shell reads them as they were meant."""

import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path


def quoted(word: str | Path) -> str:
    r"""One word of a command line for bash and zsh; what can't be shown in a line is written as its bytes.

    >>> print(quoted("a.data"), quoted("my data/a.data"), quoted("a\nb"))
    a.data 'my data/a.data' $'a\x0ab'
    """
    text = str(word)
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(c if c.isprintable() and c not in "'\\" else _as_bytes(c) for c in text) + "'"


def _as_bytes(char: str) -> str:
    """Two digits a byte, so that no letter behind it is taken for a third."""
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))


def option(flag: str, value: object) -> str:
    """`--weights x.pt`; `--weights=-x.pt` for a value that would be taken for a flag."""
    word = quoted(str(value))
    return f"{flag}={word}" if str(value).startswith("-") else f"{flag} {word}"


def typed(words: Iterable[str | Path]) -> str:
    """The words in a line."""
    return " ".join(map(quoted, words))


def command(script: str, *words: str, **values: object) -> str:
    """`python script --name value ... words`; an empty value is left out.

    >>> command("train.py", "-pt", data="my data/a.data", cfg="", img_size=320)
    "python train.py --data 'my data/a.data' --img-size 320 -pt"
    """
    options = [option(f"--{name.replace('_', '-')}", value) for name, value in values.items() if value not in ("", None)]
    return " ".join(["python", script, *options, *map(quoted, words)])


def beside(path: str | Path) -> str:
    """A file as an argument without a flag, which must not look like one: `./-x.names`."""
    return quoted(re.sub("^-", "./-", str(path)))
