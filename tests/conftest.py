"""Shared by all tests: one thread a worker (two workers share two cores), fixed seeds, the recorded references."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import pytest
import torch

torch.set_num_threads(1)
cv2.setNumThreads(1)

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded references; a checkout without it skips the tests that compare with them."""
    if not SHARED.is_dir():
        pytest.skip("../shared is not there")
    return SHARED
