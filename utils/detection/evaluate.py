"""Evaluating a network on a dataset: the one way that train.py, test.py and the prune scripts measure mAP."""

import dataclasses
import functools

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from utils.core.distributed import in_group, of_first_process
from utils.core.timing import STAGES, Stopwatch
from utils.data.batch import normalise
from utils.data.loader import Loader
from utils.detection.boxes import augmented_predictions, nms, unletterbox
from utils.detection.ground_truth import GroundTruth, dataset_ground_truth
from utils.detection.metrics import Evaluation, compute_metrics
from utils.network.detection_model import DetectionModel


@torch.inference_mode()
def evaluate(
    model: DetectionModel,
    loader: Loader,
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
    dataset's labels. With torch.distributed each process detects in its loader's share, the first, which alone needs `truth`,
    judges, and all return its figures, without `detections`.
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

    def judged() -> Evaluation:
        dataset = loader.dataset
        result = compute_metrics(truth or dataset_ground_truth(dataset.labels, dataset.shapes, len(names)), detections, names)
        return dataclasses.replace(result, speed_ms=speed, detections={} if in_group() else detections)

    return of_first_process(judged)


def _rank() -> int:
    return dist.get_rank() if in_group() else 0


def _gather(detections: dict[int, np.ndarray], speed: dict[str, float]) -> tuple[dict[int, np.ndarray], dict[str, float]]:
    """All processes' detections together, in the dataset's order, and the mean of their speeds, for the first process; the
    others keep their own."""
    if not in_group():
        return detections, speed
    parts: list | None = [None] * dist.get_world_size() if _rank() == 0 else None
    dist.gather_object((detections, speed), parts)
    if parts is None:
        return detections, speed
    merged = {index: rows for found, _ in parts for index, rows in found.items()}
    return dict(sorted(merged.items())), {name: float(np.mean([s[name] for _, s in parts])) for name in STAGES}
