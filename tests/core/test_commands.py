"""utils.core.commands: what is printed to be typed is read by a shell as it was meant."""

import os
import re
import subprocess
from pathlib import Path

import pytest

import test as test_script
from utils.core.commands import beside, command, option, quoted, typed

ROOT = Path(__file__).resolve().parents[2]
NAMES = [
    "a.data", "my data/a b.data", "it's.cfg", 'say "x".pt', "$HOME/x", "`ls`", "a;b", "a&b", "*", "~", "!x", "#x", "{a,b}",
    "a\\b",    "-x.pt", "--weights", "行人.pt", "a\nb", "a\tb", "\x1b[1mred", "\udcff\udce9.jpg", "it's\n\\n", "\x7f1", "é\n1",
    "\u202egpj.exe",    " ", "",
]  # fmt: skip


def read_by_bash(line: str) -> list[str]:
    """The words that bash makes of a line."""
    shell = ["bash", "-c", os.fsencode(f"printf '%s\\0' {line}")]
    return [os.fsdecode(word) for word in subprocess.run(shell, capture_output=True, check=True).stdout.split(b"\0")[:-1]]


def test_a_shell_reads_what_was_meant():
    line = typed(NAMES)
    assert line.isprintable()
    assert read_by_bash(line) == NAMES


@pytest.mark.parametrize("name", [name for name in NAMES if name])
def test_commands_come_back_through_the_parser(name):
    words = read_by_bash(command("test.py", "--augment", data=name, weights=Path(name), batch_size=3))
    assert words[:2] == ["python", "test.py"]
    args = test_script.get_parser().parse_args(words[2:])
    assert (args.data, args.weights, args.batch_size, args.augment) == (name, str(Path(name)), 3, True)


def test_usual_names_stay_as_they_are():
    assert command("test.py", data="d/x.data", weights="w/best.pt") == "python test.py --data d/x.data --weights w/best.pt"
    assert (quoted("a b"), option("--hyp", "-h"), beside("-x")) == ("'a b'", "--hyp=-h", "./-x")


@pytest.mark.parametrize("script", sorted([*ROOT.glob("*.py"), *ROOT.glob("utils/**/*.py")]), ids=lambda p: p.stem)
def test_no_command_is_put_together_by_hand(script):
    """A name in an f-string behind `python x.py` or a flag of a file would break at its first space."""
    found = re.findall(r"""python \w+\.py[^"'\n]*\{|[\w:] --(?:weights|data|cfg|hyp) \{""", script.read_text())
    assert found == []
