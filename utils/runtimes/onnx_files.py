"""The runtimes that read ONNX files; what a file's outputs mean is said by its metadata (utils.export.onnx.model)."""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from utils.core.commands import command
from utils.core.errors import UserError
from utils.core.preparation import Preparation
from utils.data.images import openable
from utils.export.onnx.header import read_header
from utils.export.onnx.model import OnnxModel, RuntimeSession, load_onnx
from utils.export.targets import TARGETS
from utils.loading import Loaded
from utils.network.darknet import Darknet
from utils.network.file_kind import is_onnx
from utils.pruning.latency import Geometry, Widths
from utils.quantized.calibrate import calibrate
from utils.quantized.settings import Settings
from utils.quantized.transform import quantize
from utils.runtimes.base import Request


class WritesOnnx:
    """How the runtimes that read ONNX files get those whose time is taken. start: the session of a file."""

    start: Any
    bits: ClassVar = (32, 8)
    writing: ClassVar = {"onnx_ir": "onnx-ir", "onnxscript": "onnxscript"}

    def write(self, loaded: Loaded[Darknet], bits: int, folder: Path) -> Path:
        """As export.py writes it for one image of one size, unchecked."""
        import onnx_ir

        from utils.export.onnx.trace import GraphPlan, build, finish

        model, plan = copy.deepcopy(loaded.model).eval(), GraphPlan(loaded.shape, dynamic=False, batch=1)
        if bits == 8:
            quantize(model, Settings())
            generator = torch.Generator().manual_seed(0)
            calibrate(model, [torch.rand(1, model.defs.net.channels, *loaded.shape, generator=generator)], 1)
        path = folder / "network.onnx"
        precision = "fp32" if bits == 32 else "int8"
        graph = finish(build(model, plan), loaded, plan, Preparation.of(loaded.settings), precision)
        onnx_ir.save(graph, path)
        return path

    def layers(self, bits: int, device: torch.device, precision: str) -> Callable[[Geometry, Widths], Callable[[], object]]:
        """Each as a graph of its own."""
        from utils.runtimes.single_layer import LayerGraphs

        graphs = LayerGraphs(bits)

        def make(geometry: Geometry, widths: Widths) -> Callable[[], object]:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "layer.onnx"
                noise = graphs.write(geometry, widths, path)
                session = self.start(path, device, self.start.precisions[0] if precision == "auto" else precision)
            return lambda: session(noise)

        return make


class OnnxRuntime(WritesOnnx):
    """--runtime onnxruntime."""

    name, packages = "onnxruntime", {"onnxruntime": "onnxruntime"}
    start = RuntimeSession

    def load(self, request: Request) -> Loaded[OnnxModel]:
        if not (request.weights and is_onnx(request.weights)):
            raise UserError(f"--runtime {self.name}: {request.weights or 'no --weights'}: it reads ONNX files; make one: "
                            + command("export.py", cfg=request.cfg, weights=request.weights or "FILE"))  # fmt: skip
        check_outputs(self.name, request.weights)
        return load_onnx(**request.arguments(), start=self.start)

    def place(self, network: OnnxModel, device: torch.device, precision: str) -> str:
        return network.runtime(device, precision)

    def threads(self, network: OnnxModel) -> int:
        return network.threads


class OpenVinoSession:
    """A graph in OpenVINO on the CPU, in float32 unless bfloat16 is asked for, which OpenVINO would choose by itself: it
    decodes boxes in float32 even then, but the maps that they are decoded from are off by so much that boxes move by pixels."""

    precisions = ("fp32", "bf16")

    def __init__(self, path: str | Path, device: torch.device | None = None, precision: str = "fp32") -> None:
        import openvino

        wanted = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision),
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # the core that it would choose may be the one that is busy
        }
        try:
            with openable(path) as readable:
                core = openvino.Core()
                self.compiled = core.compile_model(core.read_model(readable), "CPU", wanted)
        except RuntimeError as error:
            raise refused(path, f"OpenVINO {openvino.__version__.split('-')[0]}", error) from None
        self.threads = int(self.compiled.get_property("INFERENCE_NUM_THREADS"))

    def place(self, device: torch.device) -> str:
        return "OpenVINO on the CPU"

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        found = self.compiled([images])
        return [found[output] for output in self.compiled.outputs]


class OpenVino(OnnxRuntime):
    """--runtime openvino."""

    name, packages, start = "openvino", {"openvino": "openvino"}, OpenVinoSession


def check_outputs(name: str, path: str | Path) -> None:
    """UserError for a file whose outputs the runtime `name` can't compute; of a damaged one the runtime says so."""
    try:
        outputs = read_header(path).metadata.get("outputs")
    except UserError:
        return
    if outputs:
        TARGETS[name].check(path, outputs)


def refused(path: str | Path, runtime: str, error: Exception, remedy: str = "") -> UserError:
    """What a user is told of a file that a runtime refuses."""
    gist = " ".join(str(error).split())[:160]
    return UserError(f"{path}: {runtime} can't run this file ({gist}){remedy}")
