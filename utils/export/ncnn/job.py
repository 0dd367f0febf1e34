"""export.py --target ncnn: convert the network, try it in ncnn where that is installed, and only then leave it in its place."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch

from utils.core.files import output_place
from utils.core.folders import replacing_folder
from utils.data.data_file import DataConfig
from utils.export.ncnn.convert import write
from utils.export.ncnn.files import OWN_FILES
from utils.export.onnx.job import make_plan
from utils.export.onnx.trace import OUTPUTS
from utils.export.onnx.verdict import Goal, Trial, in_runtime, lines
from utils.export.options import OnnxOptions
from utils.loading import Loaded
from utils.network.darknet import Darknet


def export(options: OnnxOptions, loaded: Loaded[Darknet], data: DataConfig | None, goal: Goal) -> dict[str, Any]:
    """Write the folder, print and return the figures. Raises UserError, with nothing left behind, when a check fails."""
    source = options.source
    weights = Path(source.weights)
    out = output_place(source.out, weights.with_name(f"{weights.stem}_ncnn"), is_folder=True)
    goal.target.check_network(source.weights, loaded.model.quantization)
    plan, prepared = make_plan(options, loaded), loaded.preparation(source.images)
    tried = dataclasses.replace(loaded, model=rounded(loaded.model) if options.half else loaded.model)
    trial = Trial(tried, data, plan, prepared, loaded.model, options.allowed_drop, options.workers)
    print(f"converting {loaded.model.defs.name}")
    with replacing_folder(out, OWN_FILES) as folder:
        write(folder, loaded, plan, prepared, options.half)
        before = trial.map50(trial.reference, "PyTorch, float") if data is not None else None
        figures: dict[str, Any] = {
            "format": "ncnn", "folder": str(out), "size": plan.size, "outputs_are": OUTPUTS[plan.outputs], "half": options.half,
            "map50": before, "target": in_runtime(folder, trial, goal, before),
            "file_bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        }  # fmt: skip
    height, width = plan.size
    weight = f"{'16' if options.half else '32'}-bit weights"
    said = [*lines(goal, figures["target"], before), f"outputs: {figures['outputs_are']}; decode them outside, in float32"]
    files = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in figures["file_bytes"].items())
    print("\n".join([*said, f"{out}: {height}x{width}, {weight}: {files}"]))
    return figures


@torch.no_grad()
def rounded(model: Darknet) -> Darknet:
    """A copy, folded as ncnn gets it, with the kernels that its 16-bit weights are exactly. Biases stay as they are."""
    copied = copy.deepcopy(model).eval().requires_grad_(False).fuse()
    for weight in copied.parameters():
        if weight.dim() > 1:
            weight.copy_(as_half(weight))
    return copied


def as_half(weight: torch.Tensor) -> torch.Tensor:
    """float32 -> float32 as pnnx stores it in 16 bits: 13 bits less, halves away from 0, and 0 for what is
    too small for a leading 1."""
    bits = weight.contiguous().view(torch.int32)
    values = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    return values.where(weight.abs() >= torch.finfo(torch.float16).smallest_normal, 0)
