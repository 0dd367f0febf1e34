"""What is written for people, held to what the programs do: docs/, the doctests of utils/, CONTRIBUTING.md."""

import dataclasses
import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from utils.network.activations import ACTIVATIONS
from utils.network.cfg import parse_cfg
from utils.network.darknet import Darknet
from utils.network.definitions import SECTIONS, LayerDef

ROOT = Path(__file__).resolve().parents[1]
CFG = (ROOT / "docs/cfg.md").read_text()
ROWS = re.findall(r"^\| (\[.*) \|$", CFG, re.M)
PAGES = sorted(p for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")) if p.name != "EXPERIMENTS.md")
EXAMPLES = [p for p in sorted(ROOT.glob("utils/**/*.py")) if ">>> " in p.read_text()]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: str(p.relative_to(ROOT)))
def test_examples_of_docstrings(path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    failed, tried = doctest.testmod(module)
    assert tried > 0
    assert failed == 0


def test_examples_of_contributing():
    """In a process of their own: they add to the tables."""
    command = [sys.executable, "-m", "doctest", "CONTRIBUTING.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout + done.stderr == ""
    assert (ROOT / "CONTRIBUTING.md").read_text().count(">>> ") > 10


def test_every_section_and_key_of_a_cfg_is_described():
    rows = {kind: row for row in ROWS for kind in re.findall(r"\[(\w+)\]", row.split("|")[0])}
    assert set(rows) == {cls.kind for cls in SECTIONS.values()}
    for kind, row in rows.items():
        described = row.split("|")[1]
        as_in = re.search(r"as \[(\w+)\]", described)
        words = set(re.findall(r"(\w+)(?:=[\w.]+)?", rows[as_in[1]].split("|")[1] if as_in else described))
        own = {f.name.rstrip("_") for f in dataclasses.fields(SECTIONS[kind])} - {f.name for f in dataclasses.fields(LayerDef)}
        assert words == own, kind


def test_what_keys_are_if_not_given():
    for row in ROWS:
        kind, keys = row.split("|")[:2]
        for key, value in re.findall(r"(\w+)=([\w.]+)", keys):
            default = {f.name: f.default for f in dataclasses.fields(SECTIONS[re.findall(r"\[(\w+)\]", kind)[0]])}[key]
            assert type(default)(value) == default, row


def test_every_activation_is_listed():
    paragraph = CFG[CFG.index("Activations:") : CFG.index("`silu`")]
    assert set(re.findall(r"`(\w+)`", paragraph)) == set(ACTIVATIONS)


def test_cfgs_in_the_text_can_be_built():
    cfgs = re.findall(r"```cfg\n(.*?)```", CFG, re.S)
    assert len(cfgs) > 0
    for text in cfgs:
        assert Darknet(parse_cfg(text), 64).heads


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_files_that_pages_name_are_there(page):
    text = page.read_text()
    prose = re.sub(r"^    .*$", "", text, flags=re.M)
    links = [name for name in re.findall(r"\]\(([^)#]+)\)", prose) if "://" not in name]
    named = re.findall(r"`((?:utils|tests|docs|data|cfg)/[\w./-]+\.(?:py|md|cfg|data|names))`", text)
    missing = [name for name in links if not (page.parent / name).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert missing == []
