"""Judge: what the networks of one pruning run are measured with."""

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Subset

from models import Darknet
from utils import cli
from utils.cfg import DataConfig
from utils.datasets import create_loader
from utils.devices import select_device
from utils.engine import evaluate
from utils.ground_truth import json_ground_truth
from utils.hyp import Hyp
from utils.loader import Loader
from utils.measure import costs
from utils.recalibrate import recalibrate


@dataclass
class Judge:
    """Measures models of one size on one device: mAP with a dataset, what they cost in any case."""

    args: argparse.Namespace
    data: DataConfig | None
    loaded: cli.Loaded

    def __post_init__(self) -> None:
        self.device = select_device(self.args.device)
        self.loader = self._loader("valid") if self.data is not None else None
        self.truth = json_ground_truth(self.data, self.loader.dataset) if self.loader is not None else None

    def _loader(self, key: str) -> Loader:
        """The pictures of `key` in the .data file, letterboxed as the network was trained."""
        stretch = self.args.stretch or self.loaded.settings.get("stretch", False)
        return create_loader(
            self.data.source(key), classes=self.data.classes, img_size=self.loaded.img_size,
            batch_size=self.args.batch_size, training=False, hyp=Hyp(), stride=self.loaded.model.max_stride,
            rect=not stretch, stretch=stretch, gray=cli.sees_gray(self.loaded.model), workers=self.args.workers,
        )  # fmt: skip

    @property
    def maxabs(self) -> bool:
        return self.args.maxabsscaler or self.loaded.settings.get("maxabs", False)

    def accuracy(self, model: Darknet, what: str) -> dict[str, Any]:
        """{map50, map, conf_thres}, None without a dataset."""
        if self.loader is None:
            return {"map50": None, "map": None, "conf_thres": None}
        result = evaluate(model, self.loader, self.loaded.names, device=self.device, precision=self.args.precision,
                          maxabs=self.maxabs, desc=what, truth=self.truth)  # fmt: skip
        return {"map50": result.map50, "map": result.map, "conf_thres": result.conf_thres}

    def measure(self, model: Darknet, what: str) -> dict[str, Any]:
        return self.accuracy(model, what) | costs(model, self.loaded.img_size, self.device, self.args.precision)

    def recalibrate(self, model: Darknet, count: int) -> int:
        """Measure a model's batch-normalisation statistics again, in place, on `count` training pictures; returns how many
        there were."""
        return recalibrate(model, self.pictures(count), self.device, self.maxabs)

    def pictures(self, count: int) -> Loader:
        """`count` training pictures, or all if there are fewer, spread evenly over the set and letterboxed without
        augmentation."""
        dataset = self._loader("train").dataset
        indices = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int))
        return Loader(Subset(dataset, indices.tolist()), workers=self.args.workers, batch_size=self.args.batch_size)
