"""Images and labels as batches: what train.py and test.py iterate over.

    source (list or folder) -> scan -> DetectionDataset -> BatchPlan says who draws what -> Loader of Batch

Sample number p of epoch e is a function of (seed, e, p) alone: neither the number of workers nor the number of
processes changes it. The plan carries epoch and mosaic to the workers, so that those may persist.
"""

import contextlib
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.preparation import Preparation
from utils.data import augment
from utils.data.augment import Picture, fitted_size, letterbox
from utils.data.batch import ImageInfo, Sample, Size
from utils.data.class_balance import weighted_order
from utils.data.data_file import DataConfig
from utils.data.image_cache import CACHE_ROOM, DISK, NONE, ImageCache, Layout, disk_place, shared_images
from utils.data.image_size import measure
from utils.data.images import read_picture
from utils.data.labels import Finding, Problems, as_one_class, image_paths, label_path, note_two_places, read_labels
from utils.data.loader import Loader
from utils.data.packed import PackedPaths, PackedRows

_THREADS = 8  # reading small files waits for the disk more than it computes


class Draw(NamedTuple):
    """An order to the dataset: image `index` as sample number `position` of `epoch`, at `size` (height, width).

    partners: the other three of its mosaic; empty: any.
    """

    index: int
    position: int
    epoch: int
    mosaic: bool
    size: Size
    partners: tuple[int, ...] = ()


@dataclass
class Scan:
    """What a source holds: paths, labels (n, 5) an image, (height, width) of each, and what had to be mended."""

    paths: Sequence[str]
    labels: Sequence[np.ndarray]
    shapes: np.ndarray
    problems: Problems


def scan(source: str | Path, classes: int) -> Scan:
    """Look through a list or folder of images once: their headers and their label files.

    Corrupt and missing images are left out and noted in `problems`, as are boxes that had to be clipped or dropped.
    Raises UserError for labels that cannot be used (see utils.data.labels) and when there is no box in the whole set.
    """
    problems = Problems()
    paths = image_paths(source, problems)
    kept: list[tuple[str, np.ndarray, Size]] = []
    labelled = 0
    with ThreadPool(_THREADS) as pool:
        looks = pool.imap(lambda path: _look(path, classes), paths, chunksize=32)
        bar = tqdm(looks, desc=f"Scanning {source}", total=len(paths), delay=1, leave=False)
        for path, (shape, remark, labels, findings) in zip(paths, bar, strict=True):
            if shape is None:
                problems.add("corrupt images, skipped", f"{path}: {remark}")
                continue
            if remark:
                problems.add(remark, path)
            for kind, line in findings:
                problems.add(kind, f"{label_path(path)}:{line}")
            labelled += labels is not None
            kept.append((path, np.zeros((0, 5), np.float32) if labels is None else labels, shape))
    if not kept:
        raise UserError(f"{source}: all {len(paths)} images are corrupt; {problems.summary()}")
    result = Scan(
        PackedPaths(path for path, _, _ in kept), PackedRows([rows for _, rows, _ in kept]),
        np.array([shape for _, _, shape in kept], np.int64), problems,
    )  # fmt: skip
    if not any(map(len, result.labels)):
        raise UserError(f"{source}: {_no_labels(result, labelled)}")
    note_two_places(result.paths, result.problems)
    return result


def _look(path: str, classes: int) -> tuple[Size | None, str, np.ndarray | None, list[Finding]]:
    """(size or None, a remark on the image or why it has no size, labels, what was mended in them)."""
    try:
        height, width, remark = measure(path)
    except ValueError as error:
        return None, str(error), None, []
    return (height, width), remark, *read_labels(path, classes)


def _no_labels(found: Scan, labelled: int) -> str:
    expected = label_path(found.paths[0])
    if not labelled:
        return f"no labels for any of {len(found.paths)} images; looked in {expected.parent} (for {expected.name}, ...)"
    mended = found.problems.summary()
    return f"no box in any of the {labelled} label files in {expected.parent}" + (f" ({mended})" if mended else "")


class DetectionDataset(Dataset):
    """Images of one source; `dataset[i]` is a Sample, letterboxed or, when `training`, augmented.

    `mosaic`, `epoch` and `weights`, how often each image is drawn relative to the others (None: each once), take effect
    when the next epoch begins, in workers that persist too. label_classes: how many classes the labels have where all of
    them count as one; 0: `classes`. Raises UserError as scan.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        classes: int,
        img_size: int,
        label_classes: int = 0,
        training: bool = False,
        hyp: Hyp | None = None,
        stretch: bool = False,
        gray: bool = False,
        seed: int = 0,
    ) -> None:
        found = scan(source, label_classes or classes)
        if label_classes > classes:
            found.labels = PackedRows([as_one_class(rows) for rows in found.labels])
        self.weights: np.ndarray | None = None
        self.paths, self.labels, self.shapes, self.problems = found.paths, found.labels, found.shapes, found.problems
        self.source, self.classes, self.img_size, self.training = Path(source), classes, img_size, training
        self.hyp, self.stretch, self.gray, self.seed = hyp or Hyp(), stretch, gray, seed
        self.mosaic, self.epoch = training and self.hyp.mosaic > 0, 0
        self.unreadable = torch.zeros(len(self.paths), dtype=torch.uint8)
        with contextlib.suppress(RuntimeError):  # no room in shared memory: each worker names them
            self.unreadable.share_memory_()  # each is named once by all workers
        self.cache: ImageCache | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def set_epoch(self, epoch: int) -> None:
        """Choose the random numbers of the next iteration."""
        self.epoch = epoch

    def __getitem__(self, item: int | Draw) -> Sample:
        if not isinstance(item, Draw):
            item = Draw(item, item, self.epoch, self.mosaic, (self.img_size, self.img_size))
        image, labels, info = self._augmented(item) if self.training else self._letterboxed(item)
        return image.reshape(*image.shape[:2], -1), labels, info

    def _letterboxed(self, item: Draw) -> Sample:
        picture, labels = self._picture(item.index)
        height, width = self._shape(item.index)
        image, (ratio_x, ratio_y), pad = letterbox(picture, item.size, self.stretch)
        ratio = (ratio_x * picture.shape[1] / width, ratio_y * picture.shape[0] / height)
        result = np.array(item.size[::-1])
        scale = np.array(ratio) * (width, height) / result
        labels = np.concatenate([labels[:, :1], labels[:, 1:3] * scale + pad / result, labels[:, 3:5] * scale], 1)
        info = ImageInfo(Path(self.paths[item.index]), item.index, (height, width), ratio, pad)
        return image if self.gray else cv2.cvtColor(image, cv2.COLOR_BGR2RGB), labels, info

    def _augmented(self, item: Draw) -> Sample:
        rng = np.random.default_rng((self.seed, item.epoch, item.position))
        if item.mosaic and rng.random() < self.hyp.mosaic:
            indices = rng.permutation([item.index, *(item.partners or rng.integers(len(self), size=3))])
            picture = augment.mosaic([self._picture(i) for i in indices], item.size, self.hyp, rng)
        else:
            picture = augment.affine(self._picture(item.index), item.size, self.hyp, rng)
        image, labels = augment.flip(picture, rng.random() < self.hyp.fliplr, rng.random() < self.hyp.flipud)
        info = ImageInfo(Path(self.paths[item.index]), item.index, self._shape(item.index), (1.0, 1.0), (0, 0))
        return augment.colour_to_rgb(image, augment.hsv_gains(self.hyp, rng)), labels, info

    def _shape(self, index: int) -> Size:
        return int(self.shapes[index, 0]), int(self.shapes[index, 1])

    def _picture(self, index: int) -> Picture:
        """The image at the size that the network sees it, and its labels; gray without labels if it can't be decoded."""
        image = self.cache[index] if self.cache is not None else None
        if image is None:
            image = self._read(index)
        if image is None:
            self._name_unreadable(index)
            size = self._cached_size(index)
            return np.full(size if self.gray else (*size, 3), augment.FILL, np.uint8), np.zeros((0, 5), np.float32)
        return image, self.labels[index]

    def _cached_size(self, index: int) -> Size:
        """(height, width) with the long side, or both with `stretch`, of img_size."""
        size = (self.img_size, self.img_size)
        return size if self.stretch else fitted_size(self._shape(index), size)

    def _read(self, index: int) -> np.ndarray | None:
        """Decode and resize; None for what can't be decoded."""
        image = read_picture(self.paths[index], self.gray)
        return None if image is None else augment.resize(image, *self._cached_size(index))

    def _name_unreadable(self, index: int) -> None:
        if not self.unreadable[index]:
            self.unreadable[index] = 1
            tqdm.write(f"{self.paths[index]}: cannot be decoded; a gray image without boxes stands in for it", file=sys.stderr)

    def fill_cache(self, where: str | None) -> tuple[bool, str]:
        """Keep all images, decoded and resized, in memory or on a disk (see utils.data.image_cache; None: in memory if they
        take a small part of it): (whether they are, a line that says where or why not). To be called before the workers
        fork, who then share them, and by all processes of a training."""
        sizes = np.array([self._cached_size(index) for index in range(len(self))], np.int32).reshape(-1, 2)
        place = None
        if where == DISK:
            place = disk_place(self.source, self.paths, self.img_size, stretch=self.stretch, gray=self.gray)
        layout = Layout(sizes, 1 if self.gray else 3)
        self.cache, line = shared_images(layout, self._read, place, CACHE_ROOM.get(where, 1.0))
        return self.cache is not None, line


def rect_size(shapes: np.ndarray, img_size: int, stride: int) -> Size:
    """The smallest (height, width), in multiples of `stride`, that holds all of `shapes` (n, 2) at long side img_size."""
    fitted = np.array([fitted_size((int(h), int(w)), (img_size, img_size)) for h, w in shapes])
    height, width = fitted.max(0)
    return math.ceil(height / stride) * stride, math.ceil(width / stride) * stride


class BatchPlan(Sampler[list[Draw]]):
    """Which rank draws which samples, batch by batch; `batch_size` counts the images of all ranks together.

    Training: a permutation of the set, filled up from its own beginning to whole batches; rank r takes every
    world_size-th sample of each, so that together they see the same batch, whatever their number. With the dataset's
    `weights`, images and partners of mosaics are drawn by them instead. Otherwise: every image once, in order (by aspect
    ratio with `rect`), batch number b going to rank b % world_size.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        batch_size: int,
        *,
        rect: bool,
        stride: int,
        rank: int,
        world_size: int,
        shape: Size | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"--batch-size {batch_size}: must be at least 1")
        if dataset.training and batch_size % world_size:
            raise UserError(f"--batch-size {batch_size}: must be a multiple of the number of processes, {world_size}")
        self.dataset, self.rect, self.stride = dataset, rect and not dataset.stretch, stride
        self.shape = shape or (dataset.img_size, dataset.img_size)
        self.rank, self.world_size = rank, world_size
        self.batch_size = batch_size if dataset.training else math.ceil(batch_size / world_size)

    def __len__(self) -> int:
        batches = math.ceil(len(self.dataset) / self.batch_size)
        return batches if self.dataset.training else len(range(self.rank, batches, self.world_size))

    def __iter__(self) -> Iterator[list[Draw]]:
        dataset = self.dataset
        epoch, mosaic = dataset.epoch, dataset.mosaic and not self.rect
        for first, indices in self._batches():
            size = rect_size(dataset.shapes[indices], dataset.img_size, self.stride) if self.rect else self.shape
            partners = self._partners(epoch, first, len(indices))
            draws = [Draw(int(i), first + k, epoch, mosaic, size, partners[k]) for k, i in enumerate(indices)]
            yield draws[self.rank :: self.world_size] if dataset.training else draws

    def _partners(self, epoch: int, first: int, count: int) -> list[tuple[int, ...]]:
        """The partners of `count` samples from number `first` on; none are chosen where images have no weights."""
        weights = self.dataset.weights
        if weights is None:
            return [()] * count
        rng = np.random.default_rng((self.dataset.seed, epoch, first, 1))  # four numbers: no sample's own
        return list(map(tuple, rng.choice(len(weights), (count, 3), p=weights / weights.sum()).tolist()))

    def _batches(self) -> list[tuple[int, np.ndarray]]:
        """(position of the first sample, indices) of each batch that this rank has a part in."""
        count, training = len(self.dataset), self.dataset.training
        rng = np.random.default_rng((self.dataset.seed, self.dataset.epoch))
        order = rng.permutation(count) if training else np.arange(count)
        if training and self.dataset.weights is not None:
            order = weighted_order(self.dataset.weights, rng)
        if self.rect:  # stable, so that images of one shape stay shuffled
            shapes = self.dataset.shapes[order]
            order = order[np.argsort(shapes[:, 0] / shapes[:, 1], kind="stable")]
        if training:
            order = np.resize(order, math.ceil(count / self.batch_size) * self.batch_size)
        batches = [(start, order[start : start + self.batch_size]) for start in range(0, len(order), self.batch_size)]
        if not training:
            return batches[self.rank :: self.world_size]
        return [batches[i] for i in rng.permutation(len(batches))] if self.rect else batches


def create_loader(
    source: str | Path,
    *,
    classes: int,
    img_size: int,
    batch_size: int,
    training: bool,
    label_classes: int = 0,
    hyp: Hyp | None = None,
    stride: int = 32,
    rect: bool = False,
    shape: Size | None = None,
    stretch: bool = False,
    gray: bool = False,
    cache_images: str | None = NONE,
    workers: int = 2,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """A Loader over a list or a folder of images.

    `batch_size` counts the images of all `world_size` processes together; a training loader gives each process its equal
    part of every batch. `training` shuffles and augments (call `loader.dataset.set_epoch(e)` before each epoch; set
    `loader.dataset.mosaic = False` to close mosaic); otherwise every image comes once, letterboxed. `rect` gives each
    batch the smallest shape, in multiples of `stride`, that holds its images, and turns mosaic off; without it all have
    `shape`, a square if not given. `cache_images`: where
    decoded images are kept, see DetectionDataset.fill_cache. Raises UserError as scan; what was mended is said once, on rank 0.
    """
    if workers < 0:
        raise UserError(f"--workers {workers}: must be at least 0")
    dataset = DetectionDataset(
        source, classes=classes, img_size=img_size, training=training, hyp=hyp, stretch=stretch, gray=gray,
        seed=seed, label_classes=label_classes,
    )  # fmt: skip
    if rank == 0 and dataset.problems.counts:
        tqdm.write(f"{source}: {dataset.problems.summary()}", file=sys.stderr)
    if cache_images != NONE:
        is_kept, line = dataset.fill_cache(cache_images)
        if rank == 0 and cache_images and not is_kept:
            tqdm.write(f"--cache-images {cache_images}: {line}; reading the image files instead", file=sys.stderr)
        elif rank == 0 and cache_images == DISK:
            tqdm.write(f"{source}: {line}", file=sys.stderr)
    plan = BatchPlan(dataset, batch_size, rect=rect, stride=stride, rank=rank, world_size=world_size, shape=shape)
    return Loader(
        dataset, workers=workers, batch_sampler=plan, pin_memory=torch.cuda.is_available(), persistent_workers=workers > 0,
        generator=torch.Generator(),
    )  # fmt: skip


def validation_dataset(data: DataConfig, prepared: Preparation, img_size: int) -> DetectionDataset:
    """The images of the .data file's line valid=, without augmentation, for one look at some of them."""
    return DetectionDataset(
        data.source("valid"), classes=data.classes, img_size=img_size, stretch=prepared.stretch, gray=prepared.gray
    )


def evaluation_loader(
    data: DataConfig, prepared: Preparation, *, split: str = "valid", shape: Size | None = None, **options: Any
) -> Loader:
    """Every image of a line (`valid` or `train`) of the .data file once, without augmentation, prepared as the network sees
    them. shape: (height, width) that all are letterboxed into; if not given each batch has the rectangle that suits it, which
    stretching needs none of. options: of create_loader."""
    return create_loader(
        data.source(split), classes=data.classes, label_classes=data.label_classes, training=False,
        rect=shape is None and not prepared.stretch, shape=shape, stretch=prepared.stretch, gray=prepared.gray, **options,
    )  # fmt: skip
