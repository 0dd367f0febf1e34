"""utils.data.loader and utils.data.batch: batches from other processes, with and without room in shared memory."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from utils.core.errors import UserError
from utils.data.batch import Batch, ImageInfo
from utils.data.datasets import create_loader
from utils.data.loader import Loader
from utils.scripts.cli import Parser
from utils.scripts.cli import run as run_script

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pictures(tmp_path) -> str:
    rng = np.random.default_rng(0)
    for number in range(6):
        cv2.imwrite(f"{tmp_path}/{number}.png", rng.integers(0, 255, (32, 48, 3), np.uint8))
        (tmp_path / f"{number}.txt").write_text(f"{number % 2} 0.5 0.5 0.25 {0.1 * number + 0.1:.1f}\n")
    return str(tmp_path)


def batches(source: str, workers: int, img_size: int = 64) -> list[Batch]:
    return list(create_loader(source, classes=2, img_size=img_size, batch_size=4, training=False, workers=workers))


def no_room(tensor: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("unable to write to file </torch_1>: No space left on device (28)")


def test_without_room_in_shared_memory_batches_are_the_same_and_that_is_said_once(pictures, monkeypatch, capsys):
    alone, shared = batches(pictures, 0), batches(pictures, 2)
    assert "pipes" not in capsys.readouterr().err
    monkeypatch.setattr(torch.Tensor, "share_memory_", no_room)
    piped = batches(pictures, 2)
    assert capsys.readouterr().err.count("/dev/shm holds less than the batches of --workers 2") == 1
    assert [[b.piped for b in found] for found in (alone, shared, piped)] == [[False] * 2, [False] * 2, [True] * 2]
    for found in (shared, piped):
        for ours, theirs in zip(alone, found, strict=True):
            assert torch.equal(ours.images, theirs.images)
            assert ours.images.stride() == theirs.images.stride()
            assert torch.equal(ours.targets, theirs.targets)
            assert ours.infos == theirs.infos


SMALL = """
mount -t tmpfs -o size={size} tmpfs /dev/shm || exit 77
exec timeout -k 1 100 {python} -c "
import torch
torch.set_num_threads(1)
from tests.data.test_loader import batches, run_script, Parser
run_script(lambda args: print(sum(len(b.images) for b in batches('{source}', 2, 320)), 'images'), Parser('x'))"
"""


@pytest.mark.parametrize(("size", "status", "line"), [("512k", 0, "6 images"), ("4k", 2, "no space is left")])
@pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("unshare"), reason="needs mounts of its own")
def test_a_small_shared_memory(pictures, size, status, line):
    """A mount of its own for /dev/shm, too small for the first batch, or even for the locks of a queue."""
    script = SMALL.format(size=size, python=sys.executable, source=pictures)
    done = subprocess.run(["unshare", "-m", "bash", "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode in (1, 77) and "unshare" in done.stderr + "unshare" * (done.returncode == 77):
        pytest.skip("not allowed to mount")
    assert done.returncode == status, done.stderr
    assert line in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


class Deadly:
    """A dataset whose last image ends the process that reads it, as the kernel does where memory runs out."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.zeros((8, 8, 3), np.uint8), np.zeros((0, 5), np.float32), ImageInfo(Path("a"), index, (8, 8), (1, 1), (0, 0))


def test_a_worker_that_dies_is_one_line():
    with pytest.raises(UserError, match="was ended by the system.*fewer --workers") as error:
        list(Loader(Deadly(), workers=1, batch_size=1))
    assert "\n" not in str(error.value)


def test_a_death_that_is_noticed_elsewhere_is_one_line_too(capsys, monkeypatch):
    """PyTorch's signal handler raises wherever the main process is."""

    def main(args: object) -> None:
        raise RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed. ")

    monkeypatch.setattr(sys, "argv", ["x.py"])
    with pytest.raises(SystemExit) as ended:
        run_script(main, Parser("x"))
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
