"""Evaluator: what the networks of one pruning run are measured with."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

from utils.core.devices import select_device
from utils.core.hyp import Hyp
from utils.core.memory import available_memory
from utils.core.preparation import Preparation
from utils.data.batch import normalise
from utils.data.data_file import DataConfig
from utils.data.datasets import evaluation_loader
from utils.data.loader import Loader
from utils.detection.evaluate import evaluate
from utils.detection.ground_truth import json_ground_truth
from utils.detection.losses import build_loss
from utils.loading import Loaded
from utils.network.cost import costs
from utils.network.darknet import Darknet
from utils.pruning.bn_statistics import recalibrate
from utils.pruning.evidence import BATCH as EVIDENCE_BATCH
from utils.pruning.evidence import gather
from utils.pruning.importance import Evidence
from utils.pruning.pruner import Choice, Pruner
from utils.pruning.refit import bytes_per_picture, refit


@dataclass(frozen=True)
class EvaluationOptions:
    """What networks are measured with."""

    device: str
    precision: str
    batch_size: int
    workers: int
    images: Preparation


@dataclass
class Evaluator:
    """Measures models of one size on one device: mAP with a dataset, what they cost in any case."""

    options: EvaluationOptions
    data: DataConfig | None
    loaded: Loaded[Darknet]

    def __post_init__(self) -> None:
        self.device = select_device(self.options.device)
        self.loader = self._loader("valid") if self.data is not None else None
        self.truth = json_ground_truth(self.data, self.loader.dataset) if self.loader is not None else None

    def _loader(self, key: str) -> Loader:
        """The images of `key` in the .data file, prepared as the network was trained to see them."""
        return evaluation_loader(
            self.data, self.prepared, split=key, img_size=self.loaded.img_size, batch_size=self.options.batch_size,
            stride=self.loaded.model.max_stride, shape=self.loaded.fixed_size, workers=self.options.workers,
        )  # fmt: skip

    @property
    def prepared(self) -> Preparation:
        """How images are prepared."""
        return self.loaded.preparation(self.options.images)

    def accuracy(self, model: Darknet, what: str) -> dict[str, Any]:
        """{map50, map, conf_thres}, None without a dataset."""
        if self.loader is None:
            return {"map50": None, "map": None, "conf_thres": None}
        result = evaluate(model, self.loader, self.loaded.names, device=self.device, precision=self.options.precision,
                          maxabs=self.prepared.maxabs, desc=what, truth=self.truth)  # fmt: skip
        return {"map50": result.map50, "map": result.map, "conf_thres": result.conf_thres}

    def measure(self, model: Darknet, what: str) -> dict[str, Any]:
        return self.accuracy(model, what) | costs(model, self.loaded.img_size, self.device, self.options.precision)

    def recalibrate(self, model: Darknet, count: int) -> int:
        """Measure a model's batch-normalisation statistics again, in place, on `count` training images; returns how many
        there were."""
        return recalibrate(model, self.pictures(count), self.device, self.prepared.maxabs)

    def evidence(self, pruner: Pruner, count: int, needs: Collection[str]) -> Evidence:
        """What `count` training images tell of the channels; see utils.pruning.evidence."""
        batches = self.pictures(count, EVIDENCE_BATCH)
        return gather(
            pruner.model, pruner.graph, batches, lambda m: build_loss(m, Hyp()), self.device, self.prepared.maxabs, needs
        )

    def refit(self, pruner: Pruner, choice: Choice, small: Darknet, count: int) -> tuple[int, int]:
        """Refit a compact model, in place, on `count` training images, or as many as half of the memory holds: (images,
        layers that were fitted)."""
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else available_memory()
        size = self.loaded.img_size
        most = max(1, free // 2 // bytes_per_picture(pruner.model, size, size)) if free is not None else count
        if most < count:
            print(f"--refit: half of the free memory, {free / 2**31:.1f} GiB, holds the maps of {most} images only")
        batches = [normalise(b.images, self.device, maxabs=self.prepared.maxabs) for b in self.pictures(min(count, most))]
        layers = refit(pruner.model, small, pruner.graph, choice.mask.keep, choice.dropped, batches)
        return sum(map(len, batches)), len(layers)

    def pictures(self, count: int, batch_size: int = 0) -> Loader:
        """`count` training images, or all if there are fewer, spread evenly over the set and letterboxed without
        augmentation; batch_size 0: that of the evaluation."""
        dataset = self._loader("train").dataset
        indices = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int))
        batch = batch_size or self.options.batch_size
        return Loader(Subset(dataset, indices.tolist()), workers=self.options.workers, batch_size=batch)
