"""Whether what a runtime makes of an exported file is what PyTorch makes of the network, and how well it detects."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.core.errors import UserError
from utils.core.preparation import Preparation
from utils.data.data_file import DataConfig
from utils.data.datasets import evaluation_loader, validation_dataset
from utils.detection.evaluate import evaluate
from utils.detection.ground_truth import json_ground_truth
from utils.export.onnx import check as check
from utils.export.onnx.trace import GraphPlan
from utils.export.targets import Target
from utils.loading import Loaded
from utils.network.darknet import Darknet
from utils.network.detection_model import DetectionModel
from utils.quantized.transform import quantizers, switched

TOLERANCE = 1e-4  # of check.difference, for fp32 in ONNX Runtime
ELSEWHERE = 1e-3  # and in other runtimes, whose Winograd transforms are off by more than plain sums
IMPRECISION = 4.0  # of check.imprecision, where fp32 is further away
DEVIATION = 2.0  # of check.deviation, for int8

Opener = Callable[[Path], DetectionModel]  # reads an exported file with the runtime that it is for


@dataclass(frozen=True)
class Goal:
    """What --target names: its record, and what opens a file there, None where it isn't installed or doesn't run here."""

    target: Target
    opened: Opener | None = None


@dataclass
class Trial:
    """What checking a written file needs: the network that it was made of, and how images are prepared for it.

    reference: the network without quantizers; the same as the network where there are none. max_drop: of mAP@0.5.
    """

    loaded: Loaded[Darknet]
    data: DataConfig | None
    plan: GraphPlan
    prepared: Preparation
    reference: Darknet
    max_drop: float
    workers: int = 0

    @property
    def precision(self) -> str:
        return "int8" if self.loaded.model.quantization else "fp32"

    def inputs(self) -> list[torch.Tensor]:
        """Noise, and with --data real images."""
        model, dataset = self.loaded.model, None
        if self.data is not None:
            dataset = validation_dataset(self.data, self.prepared, max(self.plan.size))
        channels = model.defs.net.channels
        return check.pictures(self.plan, model.max_stride, channels, self.prepared.maxabs, dataset)

    def map50(self, network: DetectionModel, what: str) -> float:
        """mAP@0.5 on the valid= images, in the graph's size, which every one takes; with the thresholds of its own NMS."""
        loader = evaluation_loader(
            self.data, self.prepared, img_size=max(self.plan.size), batch_size=16, shape=self.plan.size, workers=self.workers
        )
        own = {"conf_thres": self.plan.conf_thres, "iou_thres": self.plan.iou_thres} if self.plan.outputs == "nms" else {}
        return evaluate(network, loader, self.loaded.names, device=check.CPU, precision="fp32",
                        maxabs=self.prepared.maxabs, desc=what, truth=json_ground_truth(self.data, loader.dataset),
                        **own).map50  # fmt: skip

    def refuse_drop(self, before: float, after: float, where: str) -> None:
        """UserError when a file's mAP@0.5 fell by more than --max-drop against the float network's."""
        if before - after > self.max_drop:
            raise UserError(f"not written: mAP@0.5 falls from {before:.4f} to {after:.4f}{where}, by more than "
                            f"--max-drop {self.max_drop:g}; PTQ.py --sensitivity names the worst layers")  # fmt: skip


def without_quantizers(model: Darknet) -> Darknet:
    """A copy of a network whose quantizers let everything pass; the network itself if it has none."""
    if not model.quantization:
        return model
    with switched(quantizers(model), False):
        return copy.deepcopy(model)


def compare(
    found: check.Maps, trial: Trial, plan: GraphPlan, inputs: Sequence[torch.Tensor], who: str, tolerance: float = TOLERANCE
) -> dict[str, Any]:
    """{difference, deviation or imprecision, allowed, tried}: outputs, such as `plan` names, of the runtime `who` against
    PyTorch's; UserError when they are too far apart.

    fp32: by check.difference; where that is too large by check.imprecision: raw maps may be so large that float32 itself
    is off by more than a sigmoid leaves, as with random weights. int8: by check.deviation; a value near the middle between
    two integers may be rounded to either, and what follows from it, by other integers than PyTorch's.
    """
    wanted = check.run_torch(trial.loaded.model, plan, inputs)
    difference = max(check.difference(a, b) for x, y in zip(found, wanted, strict=True) for a, b in zip(x, y, strict=True))
    figures: dict[str, Any] = {"difference": difference, "tried": [list(images.shape) for images in inputs]}
    if trial.precision == "fp32" and difference <= tolerance:
        measure, allowed, unit = difference, tolerance, "(of a value, or of 1 if that is more)"
    elif trial.precision == "fp32":
        exact = check.run_torch(trial.loaded.model, plan, inputs, torch.float64)
        measure, allowed, unit = check.imprecision(found, wanted, exact), IMPRECISION, "times float32's own error"
        figures["imprecision"] = measure
    else:
        measure = check.deviation(found, wanted, check.run_torch(trial.reference, plan, inputs))
        allowed, unit = DEVIATION, "times what quantization itself changed"
        figures["deviation"] = measure
    refuse_far(measure, allowed, unit, who)
    return figures | {"allowed": allowed}


def refuse_far(measure: float, allowed: float, unit: str, who: str) -> None:
    """UserError unless a runtime's outputs are near enough."""
    if not measure <= allowed:
        raise UserError(f"not written: {who}'s outputs differ from PyTorch's by {measure:.2g} {unit}, more than "
                        f"{allowed:g}; please report this")  # fmt: skip


@torch.inference_mode()
def in_runtime(path: Path, trial: Trial, goal: Goal, before: float | None) -> dict[str, Any]:
    """{title, difference, map50}: what the target's own runtime makes of a written file, {title} where it can't be tried.

    before: mAP@0.5 of the float network, None without --data. Boxes that NMS in a graph left aren't compared one by one.
    """
    title = goal.target.title
    if goal.opened is None:
        return {"title": title, "difference": None, "map50": None}
    network, inputs = goal.opened(path), trial.inputs()
    figures: dict[str, Any] = {"title": title, "difference": None, "map50": None}
    if trial.plan.outputs != "nms":
        found = [[network(images)[0].numpy()] for images in inputs]
        figures |= compare(found, trial, dataclasses.replace(trial.plan, outputs="decoded"), inputs, title, ELSEWHERE)
    if before is not None:
        figures["map50"] = trial.map50(network, title)
        trial.refuse_drop(before, figures["map50"], f" in {title}")
    return figures


def lines(goal: Goal, figures: dict[str, Any], before: float | None) -> list[str]:
    """What a user reads of it."""
    title, runtime = goal.target.title, goal.target.runtime
    if not runtime:
        rules = "; ".join(figures["rules"])
        return [
            f"{title} doesn't run here: the file keeps to its documented rules ({rules}), and was tried in ONNX Runtime only"
        ]
    if goal.opened is None:
        return [f"not tried in {title}, which isn't installed: pip install {runtime}"]
    said = [] if figures["difference"] is None else [f"boxes differ from PyTorch's by {figures['difference']:.2g} at most"]
    if before is not None:
        said.append(f"mAP@0.5 {figures['map50']:.4f} there, {before:.4f} in PyTorch")
    return [f"in {title}: {', '.join(said) or 'it runs'}"]
