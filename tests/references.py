"""The folder of recorded references, beside the checkout or where DARKEDGE_SHARED says; it is not part of the project."""

import os
from pathlib import Path

import pytest

VARIABLE = "DARKEDGE_SHARED"
STATED = os.environ.get(VARIABLE, "")
FOLDER = Path(STATED or Path(__file__).resolve().parents[2] / "shared")


def reference(name: str = "") -> Path:
    """A file or folder of the references. A test that wants what isn't there is skipped by name; it fails where the
    environment says that the folder is there."""
    path = FOLDER / name
    if not path.exists():
        if STATED:
            pytest.fail(f"{path} is not there, but {VARIABLE} says that the references are", pytrace=False)
        pytest.skip(f"{path} is not there")
    return path
