"""Shared by all tests: one thread a worker (two workers share two cores), fixed seeds, the recorded references."""

import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import pytest
import torch

from tests.references import reference

torch.set_num_threads(1)
cv2.setNumThreads(1)

ROOT = Path(__file__).resolve().parents[1]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `gpu`, or `gpu(n)`, are skipped where there are fewer CUDA devices."""
    for marker in item.iter_markers("gpu"):
        wanted = marker.args[0] if marker.args else 1
        if torch.cuda.device_count() < wanted:
            pytest.skip(f"needs {wanted} CUDA device{'s' * (wanted > 1)}, and there are {torch.cuda.device_count()}")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path_factory, monkeypatch) -> None:
    """What tests keep for later runs isn't the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "caches"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded references."""
    return reference()


@pytest.fixture(scope="session")
def bccd(shared, tmp_path_factory) -> Path:
    """The small BCCD that `copy` copies; planted imports scripts, so only those who use it do."""
    from tests.planted import make_bccd

    return make_bccd(shared / "data/bccd", tmp_path_factory.mktemp("made"))


@pytest.fixture
def copy(bccd, tmp_path, monkeypatch):
    """A planted.Copy, which is the working directory."""
    from tests.planted import Copy

    shutil.copytree(bccd, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Copy(tmp_path)
