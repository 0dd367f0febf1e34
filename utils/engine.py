"""Evaluating a network on a dataset: the one way that train.py, test.py and the prune scripts measure mAP."""

import contextlib
import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.boxes import augmented_predictions, nms, unletterbox
from utils.ground_truth import GroundTruth, dataset_ground_truth
from utils.metrics import Evaluation, compute_metrics

if TYPE_CHECKING:
    from models import Darknet

STAGES = ("preprocess", "inference", "nms")


def normalise(images: Tensor, device: torch.device, dtype: torch.dtype = torch.float32, maxabs: bool = False) -> Tensor:
    """uint8 pictures (batch, channels, height, width) -> 0..1, or with `maxabs` -1..1, on `device` in channels_last."""
    images = images.to(device, non_blocking=True)
    if maxabs:  # in float32 first: a bfloat16 between 1 and 2 has no room for 128 levels after the subtraction
        return (images.float() / 127.5 - 1).to(dtype, memory_format=torch.channels_last)
    return images.to(dtype, memory_format=torch.channels_last).div_(255)


@torch.inference_mode()
def evaluate(
    model: "Darknet",
    loader: DataLoader,
    names: list[str],
    *,
    device: torch.device,
    precision: str = "auto",
    conf_thres: float = 0.001,
    iou_thres: float = 0.6,
    augment: bool = False,
    maxabs: bool = False,
    desc: str = "",
    truth: GroundTruth | None = None,
) -> Evaluation:
    """Run a network over a dataset and judge its detections; the network itself stays as it is.

    A fused copy in the precision that suits the device runs (`Darknet.inference_copy`). loader: ordered and not
    augmented (`create_loader(..., training=False)`); augment: test-time augmentation; truth: other ground truth than the
    dataset's labels. With torch.distributed each process evaluates its loader's share and all return the same figures.
    """
    network = model.inference_copy(device, precision)
    detections: dict[int, np.ndarray] = {}
    watch = Stopwatch(device)

    def detect(pictures: Tensor) -> list[Tensor]:
        with watch.stage("preprocess"):
            images = normalise(pictures, device, network.dtype, maxabs)
        with watch.stage("inference"):
            decoded = augmented_predictions(network, images) if augment else network(images)[0]
        with watch.stage("nms"):
            return nms(decoded, conf_thres, iou_thres)

    for batch in tqdm(loader, desc=desc, unit="batch", leave=False, disable=_rank() > 0):
        if len(loader) == 1:  # else the first batch warms everything up
            watch.warm_up(functools.partial(detect, batch.images[:1]))
        found = detect(batch.images)
        watch.images.append(len(batch.images))
        for info, rows in zip(batch.infos, found, strict=True):
            boxes = unletterbox(rows[:, :4], info)
            detections[info.index] = torch.cat((boxes, rows[:, 4:]), 1).float().cpu().numpy()
    detections, speed = _gather(detections, watch.milliseconds())
    dataset = loader.dataset
    truth = truth or dataset_ground_truth(dataset.labels, dataset.shapes, len(names))
    result = compute_metrics(truth, detections, names)
    result.speed_ms = speed
    return result


class Stopwatch:
    """Time spent in each stage of a batch. `images` takes the number of pictures of each batch.

    Figures are of warm calls: the first of all imports, allocates and chooses algorithms, which may take seconds.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.images: list[int] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the block; on CUDA up to the end of the work it queued."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name].append(time.perf_counter() - start)

    def warm_up(self, stages: Callable[[], object]) -> None:
        """Before anything was measured, call what is going to be measured, once, and forget how long it took."""
        if not self.images:
            stages()
            self.seconds.clear()

    def milliseconds(self) -> dict[str, float]:
        """Milliseconds an image and stage; the first batch, whose size is new to the caches, counts only if it is the only
        one, which has to be warmed up for then."""
        first = 1 if len(self.images) > 1 else 0
        images = max(sum(self.images[first:]), 1)
        return {name: 1000 * sum(self.seconds[name][first:]) / images for name in STAGES}


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _gather(detections: dict[int, np.ndarray], speed: dict[str, float]) -> tuple[dict[int, np.ndarray], dict[str, float]]:
    """All processes' detections together, in the dataset's order, and the mean of their speeds."""
    if not (dist.is_available() and dist.is_initialized()):
        return detections, speed
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, (detections, speed))
    merged = {index: rows for found, _ in parts for index, rows in found.items()}
    return dict(sorted(merged.items())), {name: float(np.mean([s[name] for _, s in parts])) for name in STAGES}
