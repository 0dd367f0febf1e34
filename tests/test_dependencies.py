"""pyproject.toml declares what is imported, and the two requirements files that `make venv` installs say the same."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PACKAGES = {"cv2": "opencv-python", "PIL": "pillow", "fontTools": "fonttools", "onnx_ir": "onnx-ir"}  # imported as -> called
PACKAGES |= {"PySide6": "pyside6", "yaml": "pyyaml"}
NEEDED = PROJECT["dependencies"]
OPTIONAL = [line for extra, lines in EXTRAS.items() if extra != "dev" for line in lines]
LEFT_OUT = {"openvino", "ncnn", "browser"}  # extras that `make venv` does without; tests that need them skip
INSTALLED = [line for extra, lines in EXTRAS.items() if extra not in LEFT_OUT for line in lines]
NOT_IMPORTED = {"mypy", "pytest-cov", "pytest-xdist", "ruff"}  # programs, and what pytest loads


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~\[; ]", line)[0] for line in requirements}


def third_party(path: Path) -> set[str]:
    """The packages that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    own = {p.stem for p in ROOT.iterdir()}
    return {PACKAGES.get(name, name) for name in found - own - set(sys.stdlib_module_names)}


def imported(*patterns: str) -> set[str]:
    return {name for pattern in patterns for path in ROOT.glob(pattern) for name in third_party(path)}


OURS = imported("*.py", "utils/**/*.py", "cfg/*.py", "data/*.py")


def test_what_is_imported_is_declared():
    assert OURS - names(NEEDED + OPTIONAL) == set()
    assert imported("tests/**/*.py") - names(NEEDED + OPTIONAL + EXTRAS["dev"]) == set()


def test_what_is_declared_is_imported():
    assert names(NEEDED) - OURS == set()
    assert names(OPTIONAL + EXTRAS["dev"]) - OURS - imported("tests/**/*.py") - NOT_IMPORTED == set()


@pytest.mark.parametrize(("file", "stated"), [("requirements.txt", NEEDED), ("requirements-dev.txt", INSTALLED)])
def test_requirements_say_the_same(file, stated):
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    assert sorted(lines) == sorted(stated)


def test_every_package_has_a_lower_bound():
    assert [line for line in NEEDED + OPTIONAL + EXTRAS["dev"] if ">=" not in line] == []
