"""utils.core.options: what the parts of a program know of its command line."""

import dataclasses
import importlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from utils.core.options import flag, flags_of, options_of

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Inner:
    size: int | None
    gray: bool = field(default=False, metadata=flag("gray_scale"))


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner


FLAGS = {"name": "x", "size": None, "gray_scale": True, "gray": "not this", "inner": "nor this", "more": 1}


def test_fields_are_the_flags_of_their_names_and_groups_are_filled_too():
    assert options_of(Outer, FLAGS) == Outer("x", Inner(None, True))


def test_options_become_the_flags_that_they_were_made_of():
    assert flags_of(options_of(Outer, FLAGS)) == {"name": "x", "size": None, "gray_scale": True}


@pytest.mark.parametrize("lacking", ["name", "size", "gray_scale"])
def test_a_field_without_its_flag_is_refused_even_with_a_default(lacking):
    flags = {name: value for name, value in FLAGS.items() if name != lacking}
    with pytest.raises(KeyError, match=f"no argument {lacking}"):
        options_of(Outer, flags)


SCRIPTS = [("PTQ", "PTQ:PtqOptions"), *((f"{s}_prune", "utils.scripts.prune:PruneOptions") for s in ("slim", "layer")),
           ("train", "utils.training.options:TrainOptions"), ("test", "test:TestOptions"), ("detect", "detect:DetectOptions"),
           ("compress", "utils.compression.options:CompressOptions")]  # fmt: skip
WITHOUT = {"train": {"resume", "evolve", "device", "weights_dir", "results_dir", "logdir"}}  # what main itself reads


@pytest.mark.parametrize(("script", "name"), SCRIPTS)
def test_a_script_has_every_flag_of_its_options_and_reads_every_flag(script, name):
    module, kind = name.split(":")
    kind, parser = getattr(importlib.import_module(module), kind), importlib.import_module(script).get_parser()
    flags = {action.dest for action in parser._actions} - {"help"}
    needed = flags_read(kind)
    assert flags - needed == WITHOUT.get(script, set())
    options = options_of(kind, dict.fromkeys(needed, 0))  # --strategy and --precision may be the script's own
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.json = "other"


def flags_read(kind: type) -> set[str]:
    """Names of the flags that `options_of` reads."""

    class Asked(dict):
        def __contains__(self, name: object) -> bool:
            read.add(name)
            return True

        def __missing__(self, name: str) -> None:
            return None

    read: set[str] = set()
    options_of(kind, Asked())
    return read


def test_command_lines_are_known_to_scripts_alone():
    """And read, not changed: what follows from one is another value."""
    rooms = [p for p in ROOT.glob("utils/**/*.py") if p.parent.name != "scripts" and p.name != "foreign.py"]  # names of pickles
    assert [str(p) for p in rooms if "Namespace" in p.read_text()] == []
    changed = re.compile(r"\bargs\.\w+ = |setattr\(args\b")
    assert [
        str(p) for p in (*rooms, *ROOT.glob("*.py"), *ROOT.glob("utils/scripts/*.py")) if changed.search(p.read_text())
    ] == []
