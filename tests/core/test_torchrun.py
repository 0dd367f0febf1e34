"""utils.core.torchrun and what stands on it, in two forked processes with the environment that torchrun gives its own."""

import argparse
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from utils.core.distributed import World, joined, of_first_process
from utils.core.errors import UserError
from utils.core.torchrun import made_once_a_machine
from utils.data.image_cache import DiskPlace, Layout, shared_images
from utils.scripts.cli import Parser, run

FORK = multiprocessing.get_context("fork")
Work = Callable[[World, Path], None]


def member(rank: int, port: int, work: Work, folder: Path) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip

    def main(args: argparse.Namespace) -> None:
        with joined("cpu") as (world, _):
            work(world, folder)

    parser = Parser("test")
    parser.prog = "train.py"
    parser.parse_args = argparse.Namespace
    run(main, parser)


def run_two(work: Work, folder: Path) -> list[int | None]:
    """Exit statuses of both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [FORK.Process(target=member, args=(rank, port, work, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


@pytest.mark.parametrize("on_disk", [False, True])
def test_images_are_read_by_one_and_mapped_by_both(tmp_path, on_disk):
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)

    def work(world: World, folder: Path) -> None:
        def read(index: int) -> np.ndarray:
            (folder / f"read {index} by {world.rank}").touch()
            return image + index

        place = DiskPlace(folder / "disk", "set", "key") if on_disk else None
        cache, line = shared_images(Layout(np.array([[2, 4]] * 3), 3), read, place)
        assert all(np.array_equal(cache[index], image + index) for index in range(3))
        assert "3 decoded images in" in line
        (folder / f"inode {os.stat(cache.path).st_ino} of {world.rank}").touch()
        dist.barrier()

    assert run_two(work, tmp_path) == [0, 0]
    found = sorted(path.name for path in tmp_path.glob("* * *"))
    inode = found[0].split()[1]
    assert found == [f"inode {inode} of {rank}" for rank in range(2)] + [f"read {index} by 0" for index in range(3)]


def test_what_the_first_makes_all_have(tmp_path):
    def work(world: World, folder: Path) -> None:
        found = [made_once_a_machine(lambda: ["ä\udcff", world.rank]), of_first_process(lambda: world)]
        assert found == [["ä\udcff", 0], World(0, 2)]

    assert run_two(work, tmp_path) == [0, 0]


def both(world: World, folder: Path) -> None:
    raise UserError("none.data: does not exist")


def only_the_second(world: World, folder: Path) -> None:
    if world.rank == 1:
        time.sleep(0.2)
        both(world, folder)
    dist.barrier()  # which fails when the second has gone


@pytest.mark.parametrize("work", [both, only_the_second])
def test_an_error_is_told_once(tmp_path, capfd, work):
    assert run_two(work, tmp_path) == [2, 2]
    told = capfd.readouterr().err  # beside it PyTorch may log that the other has gone
    assert [line for line in told.splitlines() if "train.py" in line] == ["train.py: none.data: does not exist"]
    assert "Traceback" not in told


def test_a_process_that_was_killed_is_told_by_the_other(tmp_path, capfd):
    def work(world: World, folder: Path) -> None:
        if world.rank == 1:
            os._exit(9)
        dist.barrier()

    assert run_two(work, tmp_path) == [2, 9]
    assert capfd.readouterr().err.startswith("train.py: another of the processes that train together has ended: see ")


def test_a_defect_is_one_traceback(tmp_path, capfd):
    def work(world: World, folder: Path) -> None:
        raise ZeroDivisionError(world.size)

    assert run_two(work, tmp_path) == [1, 1]
    told = capfd.readouterr().err
    assert (told.count("Traceback"), told.count("ZeroDivisionError: 2")) == (1, 1)
