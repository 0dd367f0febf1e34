"""Trying an exported graph in ONNX Runtime: does it compute what PyTorch computes, how fast, and how well does it detect?"""

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from utils.core.timing import median_seconds
from utils.data.batch import normalise
from utils.data.datasets import DetectionDataset, Draw
from utils.detection.boxes import nms
from utils.export.onnx.model import open_session
from utils.export.onnx.trace import GraphPlan, given

LATENCY_SECONDS, LATENCY_RUNS, WARM_UP = 3.0, 50, 3
REAL_PICTURES = 4
CPU = torch.device("cpu")


def sizes(plan: GraphPlan, stride: int) -> list[tuple[int, tuple[int, int]]]:
    """(batch, (height, width)) of the inputs to try: two batches, and a second shape, where the graph takes them."""
    height, width = plan.size
    other = (max(height - stride, stride), width + stride) if plan.dynamic else plan.size
    return [(plan.batch or 1, plan.size), (plan.batch or 3, other)]


def pictures(
    plan: GraphPlan, stride: int, channels: int, maxabs: bool = False, dataset: DetectionDataset | None = None
) -> list[Tensor]:
    """Inputs (batch, channels, height, width) to compare on: noise, and the first images of a data set."""
    random = torch.Generator().manual_seed(0)
    tries = sizes(plan, stride)
    found = [torch.randint(256, (batch, channels, *size), generator=random, dtype=torch.uint8) for batch, size in tries]
    if dataset is not None:
        for batch, size in tries:
            chosen = [k % min(REAL_PICTURES, len(dataset)) for k in range(batch)]
            images = [dataset[Draw(k, k, 0, False, size)][0] for k in chosen]
            found.append(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
    return [normalise(images, CPU, maxabs=maxabs).contiguous() for images in found]


def errors(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """|found - expected| / max(1, |expected|): probabilities as they are, pixels in proportion; inf for other shapes."""
    if found.shape != expected.shape:
        return np.array([np.inf])
    with np.errstate(invalid="ignore"):
        values = np.abs(found - expected) / np.maximum(1, np.abs(expected))
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    return np.where(same, 0, np.nan_to_num(values, nan=np.inf, posinf=np.inf))


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest of the errors."""
    return float(np.max(errors(found, expected), initial=0))


Maps = Sequence[list[np.ndarray]]  # of each input the graph's outputs before NMS


def total_error(found: Maps, expected: Maps) -> float:
    """The sum of all errors."""
    return sum(float(errors(x, y).sum()) for xs, ys in zip(found, expected, strict=True) for x, y in zip(xs, ys, strict=True))


def deviation(found: Maps, expected: Maps, without: Maps) -> float:
    """Mean error of an integer graph's outputs over the mean error that quantization makes in PyTorch: 0 for equal values,
    about 1 for another rounding of everything. without: the outputs of the network without its quantizers."""
    return total_error(found, expected) / max(total_error(expected, without), 1e-9)


def imprecision(found: Maps, expected: Maps, exact: Maps) -> float:
    """Mean error of a float graph's outputs over the mean error of PyTorch's, both against the same network in float64: about
    1 for the same sums in another order, however large they get; for another function a multiple of that. An error counts
    as 1 at most: a size that overflowed is no worse than a sigmoid that flipped."""

    def total(some: Maps) -> float:
        pairs = [(x, y.astype(np.float32)) for xs, ys in zip(some, exact, strict=True) for x, y in zip(xs, ys, strict=True)]
        return sum(float(np.minimum(errors(x, y), 1).sum()) for x, y in pairs)

    with np.errstate(over="ignore"):
        return total(found) / max(total(expected), 1e-9)


@dataclass
class Outputs:
    """What a graph gave for one input: its map(s) before NMS, and the rows of NMS where it has one."""

    maps: list[np.ndarray]
    rows: np.ndarray | None


def run_graph(path: Path, plan: GraphPlan, inputs: Sequence[Tensor]) -> list[Outputs]:
    """The graph's outputs for each input; of one with NMS also the boxes that went into it."""
    content = onnx.load(path)
    if plan.outputs == "nms":
        content.graph.output.append(onnx.helper.make_tensor_value_info("decoded", onnx.TensorProto.FLOAT, None))
    session = open_session(content.SerializeToString())
    name = session.get_inputs()[0].name
    results = []
    for images in inputs:
        outputs = session.run(None, {name: images.numpy()})
        results.append(Outputs(outputs[1:], outputs[0]) if plan.outputs == "nms" else Outputs(outputs, None))
    return results


@torch.inference_mode()
def run_torch(model: nn.Module, plan: GraphPlan, inputs: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> Maps:
    """What PyTorch gives in the place of the graph's maps, computed in `dtype`."""
    model = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
    found = []
    for images in inputs:
        decoded, raws = model(images.to(dtype))
        found.append([t.numpy() for t in given(plan.outputs, decoded, raws)])
    return found


def nms_difference(results: Sequence[Outputs], plan: GraphPlan) -> float:
    """Largest difference between NMS in the graph and utils.detection.boxes.nms of the same boxes; inf where they keep
    others."""
    worst = 0.0
    for result in results:
        if result.rows is None:
            continue
        kept = nms(torch.from_numpy(result.maps[0]), plan.conf_thres, plan.iou_thres, max_det=plan.max_det)
        expected = np.zeros_like(result.rows)
        for picture, rows in zip(expected, kept, strict=True):
            picture[: len(rows)] = rows
        worst = max(worst, difference(result.rows, expected))
    return worst


def latencies(paths: Sequence[Path], shape: tuple[int, int, int, int]) -> list[float]:
    """Median milliseconds of one run of each file on a random input; they take turns, after warming up."""
    sessions = [open_session(path) for path in paths]
    image = np.random.default_rng(0).random(shape, np.float32)
    calls = [functools.partial(session.run, None, {session.get_inputs()[0].name: image}) for session in sessions]
    return [1000 * s for s in median_seconds(calls, CPU, runs=LATENCY_RUNS, warm_up=WARM_UP, limit=LATENCY_SECONDS)]
