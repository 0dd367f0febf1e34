"""export.py --format onnx: build the graph, try it, and only then leave it in its place."""

import tempfile
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
import torch

from utils.core.errors import UserError
from utils.core.files import output_place, replacing
from utils.core.tables import format_table
from utils.data.data_file import DataConfig
from utils.detection.threshold import choose_threshold
from utils.export.inputs import input_size
from utils.export.onnx import check as check
from utils.export.onnx.model import OnnxModel, open_session
from utils.export.onnx.rules import check_rules
from utils.export.onnx.trace import OPSETS, OUTPUTS, GraphPlan, build, finish
from utils.export.onnx.verdict import TOLERANCE, Goal, Trial, compare, in_runtime, refuse_far, without_quantizers
from utils.export.onnx.verdict import lines as verdict
from utils.export.options import ExportOptions, OnnxOptions
from utils.export.targets import TARGETS
from utils.loading import Loaded
from utils.network.darknet import Darknet
from utils.network.definitions import Convolutional

EVEN = 4  # filters come in multiples of this where ONNX Runtime is fast (EXPERIMENTS.md)


def export(options: OnnxOptions, loaded: Loaded[Darknet], data: DataConfig | None, goal: Goal | None = None) -> dict[str, Any]:
    """Write the .onnx, print and return the figures; goal: the runtime that it is for, which tries it, too.

    Raises UserError, with nothing left behind, when a check fails.
    """
    plan, source = make_plan(options, loaded), options.source
    prepared, out = loaded.preparation(source.images), output_file(source)
    reference = without_quantizers(loaded.model)
    trial = Trial(loaded, data, plan, prepared, reference, options.allowed_drop, options.workers)
    print(f"tracing {loaded.model.defs.name}")
    with replacing(out) as temporary, tempfile.TemporaryDirectory() as folder:
        paths = {"fp32": Path(folder) / "fp32.onnx"} | {trial.precision: temporary}
        for precision, path in reversed(paths.items()):  # what is asked for first: it may be impossible
            model = loaded.model if precision == trial.precision else trial.reference
            ir.save(finish(build(model, plan), loaded, plan, prepared, precision), path)
        rules = check_rules(temporary, goal.target) if goal is not None else []
        figures = {"format": "onnx", "file": str(out), "precision": trial.precision} | describe(temporary, plan)
        figures |= agreement(temporary, trial)
        figures |= {"map50": accuracy(temporary, trial)} if data is not None else {}
        if goal is not None:
            found = in_runtime(temporary, trial, goal, figures.get("map50", {}).get("float"))
            figures["target"] = found | {"rules": rules}
        figures |= speed(paths, trial) | {"file_bytes": {name: path.stat().st_size for name, path in paths.items()}}
        figures["uneven"] = uneven(loaded.model, goal.target.filters if goal else EVEN)
    print(report(figures, goal))
    return figures


def make_plan(options: OnnxOptions, loaded: Loaded[Darknet]) -> GraphPlan:
    """What is asked for, in one piece; UserError for what doesn't go together."""
    if options.opset not in OPSETS:
        raise UserError(f"--opset {options.opset}: must be {OPSETS[0]} to {OPSETS[-1]}, which PyTorch's exporter can write")
    nms = {k: v for k in ("conf_thres", "iou_thres", "max_det") if (v := getattr(options, k)) is not None}
    if nms and options.outputs != "nms":
        raise UserError(f"--{next(iter(nms)).replace('_', '-')} is about the NMS in the graph; add --nms")
    if options.outputs == "nms":
        nms["conf_thres"] = choose_threshold(options.conf_thres, loaded.conf_thres, "checkpoint")
    size = input_size(options.source.img_size, loaded)
    signed = bool(options.target) and TARGETS[options.target].symmetric
    return GraphPlan(size, not options.static, options.batch, options.opset, outputs(options, loaded), signed, **nms)


def outputs(options: OnnxOptions, loaded: Loaded[Darknet]) -> str:
    """What the graph gives, as in OUTPUTS; UserError for a layout that doesn't go with it."""
    if options.layout == "darknet":
        return options.outputs
    if options.outputs != "decoded":
        raise UserError(f"--layout {options.layout} is about decoded boxes, so it doesn't go with --{options.outputs}")
    if options.source.images.maxabs or loaded.settings.get("maxabs"):
        raise UserError(f"--layout {options.layout}: their programs give images in 0..1, but this network was trained with "
                        "--maxabsscaler")  # fmt: skip
    return "yolov5" if loaded.model.defs.yolo_indices() else "yolov8"


def output_file(source: ExportOptions) -> Path:
    """The file to write; UserError if it is one of the inputs."""
    path = output_place(source.out, Path(source.weights).with_suffix(".onnx"))
    if path.exists() and path.resolve() in {Path(p).resolve() for p in (source.weights, source.cfg, source.data) if p}:
        raise UserError(f"{path}: would overwrite an input; name another file with --out")
    return path


def describe(path: Path, plan: GraphPlan) -> dict[str, Any]:
    """{opset, size, outputs_are, inputs, outputs} of a written graph; shapes have names where any number will do."""
    session = open_session(path)
    ends = {side: {v.name: v.shape for v in values}
            for side, values in (("inputs", session.get_inputs()), ("outputs", session.get_outputs()))}  # fmt: skip
    return {"opset": plan.opset, "size": plan.size, "outputs_are": OUTPUTS[plan.outputs]} | ends


def agreement(path: Path, trial: Trial) -> dict[str, Any]:
    """Figures of verdict.compare for the graph's own outputs; UserError when they are too far from PyTorch's, or other boxes
    are left by the graph's NMS than by ours."""
    inputs, plan = trial.inputs(), trial.plan
    results = check.run_graph(path, plan, inputs)
    figures = compare([result.maps for result in results], trial, plan, inputs, "ONNX Runtime")
    refuse_far(check.nms_difference(results, plan), TOLERANCE, "after NMS", "ONNX Runtime")
    return figures


def accuracy(path: Path, trial: Trial) -> dict[str, float]:
    """mAP@0.5 {float, quantized, onnx}; UserError when the file's fell by more than --max-drop against the float one."""
    figures = {"float": trial.map50(trial.reference, "PyTorch, float")}
    if trial.precision == "int8":
        figures["quantized"] = trial.map50(trial.loaded.model, "PyTorch, quantized")
    figures["onnx"] = trial.map50(OnnxModel(path), "ONNX Runtime")
    trial.refuse_drop(figures["float"], figures["onnx"], "")
    return figures


def speed(paths: dict[str, Path], trial: Trial) -> dict[str, Any]:
    """{latency_ms: {fp32, int8}, batch, threads, runtime}: medians of warmed-up runs that take turns."""
    batch, channels = trial.plan.batch or 1, trial.loaded.model.defs.net.channels
    times = check.latencies(list(paths.values()), (batch, channels, *trial.plan.size))
    return {
        "latency_ms": dict(zip(paths, times, strict=True)), "batch": batch, "threads": torch.get_num_threads(),
        "runtime": f"ONNX Runtime {onnxruntime.__version__}",
    }  # fmt: skip


def uneven(model: Darknet, even: int = EVEN) -> int:
    """Convolutions whose number of filters `even` doesn't divide, as the runtime's fast kernels want it; those before a head
    can't help it."""
    heads = {source for source, _ in model.head_convolutions()}
    convolutions = (d for i, d in enumerate(model.defs) if isinstance(d, Convolutional) and i not in heads)
    return sum(d.filters % even != 0 for d in convolutions)


def report(figures: dict[str, Any], goal: Goal | None) -> str:
    """What a user reads."""
    height, width = figures["size"]
    maps = {"fp32": "float", "int8": "onnx"} if figures["precision"] == "int8" else {"fp32": "onnx"}
    found = figures.get("map50", {})
    rows = [
        [f"ONNX {name}", f"{figures['file_bytes'][name] / 1e6:.2f}", f"{ms:.2f}", found.get(maps[name])]
        for name, ms in figures["latency_ms"].items()
    ]
    lines = [format_table(["", "MB", "ms", "mAP@0.5"], rows)]
    lines.append(f"latency: median, warmed up, {height}x{width}, batch {figures['batch']}, {figures['threads']} threads, "
                 f"{figures['runtime']}")  # fmt: skip
    if "quantized" in found:
        lines.append(f"mAP@0.5 of PyTorch's quantized network: {found['quantized']:.4f}")
    tried = ", ".join("x".join(map(str, shape)) for shape in figures["tried"])
    lines.append(f"against PyTorch, inputs {tried}: outputs differ by {figures['difference']:.2g} at most")
    if "deviation" in figures:
        lines.append(f"on average by {figures['deviation']:.2g} of what quantization changed ({figures['allowed']:g} allowed)")
    if "imprecision" in figures:
        lines.append(f"on average by {figures['imprecision']:.2g} of what float32 is off, against float64: its maps are too "
                     f"large for it ({figures['allowed']:g} allowed)")  # fmt: skip
    for side in ("inputs", "outputs"):
        lines += [f"{side[:-1]} {name} {shape}".replace("'", "") for name, shape in figures[side].items()]
    lines += [f"outputs: {figures['outputs_are']}", f"{figures['file']}: {figures['precision']}, opset {figures['opset']}"]
    if goal is not None:
        lines += verdict(goal, figures["target"], found.get("float"))
    if figures["uneven"]:
        even, title = (goal.target.filters, goal.target.title) if goal else (EVEN, "ONNX Runtime")
        lines.append(f"hint: {figures['uneven']} convolutions have numbers of filters that {even} doesn't divide, which "
                     f"{title} computes slowly; prune with --round-to {even}")  # fmt: skip
    return "\n".join(lines)
