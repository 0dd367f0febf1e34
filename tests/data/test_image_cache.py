"""utils.data.image_cache: one file of decoded images, which is whole or not there, and whose content decides its name."""

import multiprocessing
import os
import pickle
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from tests.data.test_datasets import make_set
from utils.data.datasets import DetectionDataset, create_loader
from utils.data.image_cache import DiskPlace, ImageCache, Layout, shared_images

SIZES = np.array([[4, 6], [5, 3], [2, 2]], np.int32)
FORK = multiprocessing.get_context("fork")


def image(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (*SIZES[index], 3), np.uint8)


def place(folder: Path, key: str = "a") -> DiskPlace:
    return DiskPlace(folder, "set-64", key)


def cached(where: DiskPlace | None, read: Callable[[int], np.ndarray | None] = image) -> ImageCache:
    cache, line = shared_images(Layout(SIZES, 3), read, where)
    assert cache is not None, line
    return cache


def never(index: int) -> None:
    pytest.fail("read again")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_was_read_is_what_there_is(tmp_path, on_disk):
    cache = cached(place(tmp_path) if on_disk else None)
    assert len(cache) == 3
    for index in range(3):
        assert np.array_equal(cache[index], image(index))
        assert not cache[index].flags.writeable
    with pytest.raises(IndexError):
        cache[3]


def test_an_image_that_could_not_be_read_is_not_held(tmp_path):
    cache = cached(place(tmp_path), lambda index: None if index == 1 else image(index))
    assert cache[1] is None
    assert np.array_equal(cache[2], image(2))


def test_a_file_is_found_again(tmp_path):
    assert cached(place(tmp_path)).path == str(tmp_path / "set-64-a.images")
    assert np.array_equal(cached(place(tmp_path), never)[2], image(2))
    assert names(tmp_path) == ["set-64-a.images"]


@pytest.mark.parametrize("on_disk", [False, True])
def test_another_process_maps_the_same_pages(tmp_path, on_disk):
    """An inode that both map: a copy would have one of its own."""
    cache = cached(place(tmp_path) if on_disk else None)
    ours, theirs = FORK.Pipe()
    packed = pickle.dumps(cache)

    def other() -> None:
        opened = pickle.loads(packed)
        theirs.send((os.stat(opened.path).st_ino, opened[0].tolist()))

    process = FORK.Process(target=other)
    process.start()
    assert ours.recv() == (os.stat(cache.path).st_ino, image(0).tolist())
    process.join()


def test_memory_is_freed_with_the_cache():
    cache = cached(None)
    path = cache.path
    assert Path(path).exists()
    del cache
    assert not Path(path).exists()


def killed_while_reading(where: DiskPlace) -> None:
    def read(index: int) -> np.ndarray:
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return image(index)

    process = FORK.Process(target=shared_images, args=(Layout(SIZES, 3), read, where))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_killed_build_leaves_nothing_that_is_taken_for_whole(tmp_path):
    killed_while_reading(place(tmp_path))
    assert names(tmp_path) == ["set-64-a.part"]
    assert np.array_equal(cached(place(tmp_path))[2], image(2))
    assert names(tmp_path) == ["set-64-a.images"]


def test_earlier_states_of_a_dataset_go(tmp_path):
    cached(place(tmp_path, "a"))
    killed_while_reading(place(tmp_path, "b"))
    cached(DiskPlace(tmp_path, "other-64", "a"))
    cached(place(tmp_path, "c"))
    assert names(tmp_path) == ["other-64-a.images", "set-64-c.images"]


def test_an_interrupted_build_leaves_nothing(tmp_path):
    def interrupted(index: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            shared_images(Layout(SIZES, 3), interrupted, place(tmp_path))
    finally:
        signal.signal(signal.SIGINT, usual)
    assert names(tmp_path) == []


def test_of_two_that_begin_at_once_one_reads(tmp_path, capfd):
    def slowly(index: int) -> np.ndarray:
        time.sleep(0.3)
        return image(index)

    process = FORK.Process(target=cached, args=(place(tmp_path), slowly))
    process.start()
    while not names(tmp_path):
        time.sleep(0.01)
    time.sleep(0.05)
    cache = cached(place(tmp_path), never)
    process.join()
    assert np.array_equal(cache[1], image(1))
    assert process.exitcode == 0
    assert "waiting for another process" in capfd.readouterr().err
    assert names(tmp_path) == ["set-64-a.images"]


def test_without_room_reading_goes_on(tmp_path, monkeypatch, capfd):
    source = make_set(tmp_path, [(64, 64)] * 2)
    options = {"classes": 3, "img_size": 64, "batch_size": 2, "training": False, "workers": 0}
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    loader = create_loader(source, cache_images="disk", **options)
    folder = Path(os.environ["XDG_CACHE_HOME"], "darkedge", "images")
    told = f"--cache-images disk: 0.0 MiB needed, 0.0 MiB free in {folder}; the environment variable XDG_CACHE_HOME names"
    assert told in capfd.readouterr().err
    assert loader.dataset.cache is None
    assert torch.equal(next(iter(loader)).images, next(iter(create_loader(source, **options))).images)


@pytest.mark.parametrize("content", ["", None])
def test_a_folder_that_cannot_be_used(tmp_path, monkeypatch, capfd, content):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none" if content is None else str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    source = make_set(tmp_path, [(8, 8)])
    loader = create_loader(source, classes=3, img_size=64, batch_size=2, training=False, cache_images="disk")
    assert loader.dataset.cache is None
    assert "cannot create this folder" in capfd.readouterr().err


def test_a_file_that_the_system_refuses(tmp_path):
    """A limit of its size, of which Python hears as it does of a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, limits[1]))
    try:
        found = shared_images(Layout(SIZES, 3), image, place(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert found == (None, f"{tmp_path}: File too large")
    assert names(tmp_path) == []


def places(folder: Path, **options) -> set[str]:
    found = {"img_size": 64, "stretch": False, "gray": False} | options
    dataset = DetectionDataset(folder / "list.txt", classes=3, **found)
    kept, line = dataset.fill_cache("disk")
    assert kept, line
    for index, path in enumerate(dataset.paths):
        expected = cv2.imread(path, cv2.IMREAD_GRAYSCALE if found["gray"] else cv2.IMREAD_COLOR)
        if expected.shape[:2] == (64, 64) and found["img_size"] == 64:
            assert np.array_equal(dataset.cache[index], expected)
        assert dataset.cache[index].ndim == expected.ndim
    return {dataset.cache.path}


def test_whatever_changes_an_image_is_in_the_name(tmp_path):
    make_set(tmp_path, [(64, 64), (32, 64)])
    first = places(tmp_path)
    assert places(tmp_path) == first
    different = [places(tmp_path, gray=True), places(tmp_path, stretch=True), places(tmp_path, img_size=32)]
    listed = (tmp_path / "list.txt").read_text().splitlines()
    (tmp_path / "list.txt").write_text("\n".join(reversed(listed)))
    different.append(places(tmp_path))
    (tmp_path / "list.txt").write_text("\n".join(listed))
    assert places(tmp_path) == first
    cv2.imwrite(str(tmp_path / "images" / "0.png"), np.full((64, 64, 3), 7, np.uint8))
    different.append(places(tmp_path))
    os.utime(tmp_path / "images" / "1.png", ns=(0, 0))
    different.append(places(tmp_path))
    assert len(set.union(first, *different)) == 7
