"""utils.data.datasets: which samples a training sees, and when."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from tests.data.test_datasets import STILL, loader, make_set
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.data.augment import letterbox
from utils.data.datasets import BatchPlan, DetectionDataset


def drawn(dataset: DetectionDataset, batch_size: int, rank: int = 0, world_size: int = 1, rect: bool = False) -> list[list]:
    return list(BatchPlan(dataset, batch_size, rect=rect, stride=32, rank=rank, world_size=world_size))


def test_ranks_share_out_the_same_batches(tmp_path):
    dataset = DetectionDataset(make_set(tmp_path, [(8, 8)] * 10), classes=3, img_size=64, training=True)
    whole = drawn(dataset, 4)
    parts = [drawn(dataset, 4, rank, 2) for rank in (0, 1)]
    assert [len(b) for b in whole] == [4, 4, 4]
    assert [b[0::2] for b in whole] == parts[0]
    assert [b[1::2] for b in whole] == parts[1]
    first = [d.index for b in whole for d in b]
    assert sorted(first[:10]) == list(range(10))
    assert first[10:] == first[:2]  # filled up from the beginning, as samples of their own
    assert [d.position for b in whole for d in b] == list(range(12))
    dataset.set_epoch(1)
    assert [d.index for b in drawn(dataset, 4) for d in b] != first


def test_batch_larger_than_the_set(tmp_path):
    dataset = DetectionDataset(make_set(tmp_path, [(8, 8)] * 3), classes=3, img_size=64, training=True)
    (batch,) = drawn(dataset, 8)
    assert len(batch) == 8
    assert {d.index for d in batch} == {0, 1, 2}


def test_batch_size_must_divide(tmp_path):
    source = make_set(tmp_path, [(8, 8)])
    with pytest.raises(UserError, match="--batch-size 3: must be a multiple of the number of processes, 2"):
        loader(source, training=True, batch_size=3, world_size=2)


def test_rect_training_shuffles_and_turns_mosaic_off(tmp_path):
    source = make_set(tmp_path, [(50, 100)] * 6 + [(100, 50)] * 6)
    dataset = DetectionDataset(source, classes=3, img_size=64, training=True)
    epochs = []
    for epoch in range(8):
        dataset.set_epoch(epoch)
        batches = drawn(dataset, 3, rect=True)
        assert not any(d.mosaic for b in batches for d in b)
        assert [b[0].size for b in batches].count((32, 64)) == 2
        assert all(len({d.size for d in b}) == 1 and len({d.index < 6 for d in b}) == 1 for b in batches)
        epochs.append([d.index for b in batches for d in b])
    assert len({tuple(e) for e in epochs}) == 8
    assert {e[0] < 6 for e in epochs} == {True, False}  # not always the wide ones first


def test_samples_do_not_depend_on_workers(tmp_path):
    source = make_set(tmp_path, [(40, 60)] * 6)
    options = {"training": True, "hyp": Hyp(), "batch_size": 3, "seed": 5}
    alone, workers = loader(source, **options), loader(source, workers=2, **options)
    epochs = []
    for epoch in (0, 1):
        alone.dataset.set_epoch(epoch)
        workers.dataset.set_epoch(epoch)
        expected, found = list(alone), list(workers)
        pairs = [(getattr(a, k), getattr(b, k)) for a, b in zip(expected, found, strict=True) for k in ("images", "targets")]
        assert all(torch.equal(a, b) for a, b in pairs)
        epochs.append(expected)
    assert not torch.equal(epochs[0][0].images, epochs[1][0].images)


def test_mosaic_is_closed_in_workers_that_persist(tmp_path):
    source, hyp = make_set(tmp_path, [(32, 64)] * 2), dataclasses.replace(STILL, mosaic=1)
    batches = loader(source, training=True, gray=True, hyp=hyp, batch_size=2, workers=1)
    gray = {i: letterbox(cv2.imread(p, cv2.IMREAD_GRAYSCALE), (64, 64))[0] for i, p in enumerate(batches.dataset.paths)}

    def is_plain() -> bool:
        (batch,) = batches
        return all(np.array_equal(gray[i.index], batch.images[k, 0].numpy()) for k, i in enumerate(batch.infos))

    assert not is_plain()
    batches.dataset.mosaic = False
    assert is_plain()


def test_loader_leaves_the_global_generator_alone(tmp_path):
    source, before = make_set(tmp_path, [(8, 8)] * 4), torch.get_rng_state()
    list(loader(source, training=True, hyp=Hyp()))
    assert torch.equal(torch.get_rng_state(), before)
