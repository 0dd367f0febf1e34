"""utils.core.ranges: every number of every script has a range, which refuses what lies outside in one line."""

import argparse
import importlib.util
from pathlib import Path

import pytest

from utils.core import ranges
from utils.scripts.cli import Parser

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    p for folder in (".", "data", "cfg", "utils") for p in (ROOT / folder).glob("*.py") if "def get_parser" in p.read_text()
)
NONSENSE = ("nan", "inf", "-inf", "-1", str(2**64), "1e9", "1000000000", "-0.001", "", "x", "1e400", "0x10", "None")
ACCEPTED = {(flag, value) for flag in ("--target-params", "--target-macs") for value in ("1e9", "1000000000", str(2**64))}
ACCEPTED |= {("--prune", "-1")}  # one of its choices
ACCEPTED |= {("--seed", "1e9"), ("--seed", "1000000000")}


def parser_of(script: Path) -> argparse.ArgumentParser:
    spec = importlib.util.spec_from_file_location(f"script_{script.stem}", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_parser()


def required(parser: argparse.ArgumentParser) -> list[str]:
    """What a command line of this script can't be without."""
    words = []
    for action in parser._actions:
        if action.required and action.nargs != "*":
            words += [*action.option_strings[:1], str((action.choices or ["x"])[0])]
    return words


def status(parser: argparse.ArgumentParser, words: list[str]) -> int:
    """The exit status of reading this command line; 0 where it is taken."""
    try:
        parser.parse_args([*required(parser), *words])
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_every_number_has_a_range(script, capsys):
    parser = parser_of(script)
    for action in (a for a in parser._actions if a.option_strings and a.type not in (None, str, Path)):
        flag = action.option_strings[-1]
        assert action.type not in (int, float) or action.choices, f"{script.name} {flag}: give it a range of utils.core.ranges"
        for value in NONSENSE:
            words = [flag, *[value] * action.nargs] if isinstance(action.nargs, int) else [f"{flag}={value}"]
            taken = status(parser, words) == 0
            said = capsys.readouterr().err
            assert taken == ((flag, value) in ACCEPTED), f"{script.name} {flag}={value}"
            assert said.count("\n") == (0 if taken else 1), said
            assert taken or flag in said


@pytest.mark.parametrize(
    ("limits", "text", "number"),
    [
        (ranges.SHARE, "0", 0.0),
        (ranges.SHARE, "1", 1.0),
        (ranges.NOT_ALL, "0.999", 0.999),
        (ranges.IMG_SIZE, "416", 416),
        (ranges.EPOCHS, "1e3", 1000),
        (ranges.SEED, str(2**32 - 1), 2**32 - 1),
    ],
)
def test_what_fits_is_taken(limits, text, number):
    assert limits(text) == number
    assert type(limits(text)) is type(number)


@pytest.mark.parametrize(
    ("limits", "text", "said"),
    [
        (ranges.SHARE, "1.0001", "1.0001: must be a number, 0 to 1"),
        (ranges.NOT_ALL, "1", "1: must be a number, at least 0 and below 1"),
        (ranges.NOT_ALL_OR_NONE, "0", "0: must be a number, above 0 and below 1"),
        (ranges.POSITIVE, "0", "0: must be a number, above 0 and up to 1000000"),
        (ranges.IMG_SIZE, "32.5", "32.5: must be a whole number, 1 to 8192"),
        (ranges.SEED, str(2**32), "4294967296: must be a whole number, 0 to 4294967295"),
        (ranges.WORKERS, "", "nothing: must be a whole number, 0 to 256"),
    ],
)
def test_the_ends(limits, text, said):
    with pytest.raises(argparse.ArgumentTypeError) as raised:
        limits(text)
    assert str(raised.value) == said


def test_help_tells_the_range(capsys):
    parser = Parser("x")
    parser.add_argument("--share", type=ranges.NOT_ALL, default=0.5, help="of the channels")
    assert "--share SHARE of the channels (default: 0.5) [at least 0 and below 1]" in " ".join(parser.format_help().split())
