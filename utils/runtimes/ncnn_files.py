"""--runtime ncnn: folders that export.py --target ncnn writes, and whatever PyTorch loads, converted on the way."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from utils.core.errors import UserError
from utils.core.preparation import Preparation
from utils.data.images import libraries_silenced, openable
from utils.export.ncnn.files import BIN, METADATA_FILE, PARAM
from utils.export.onnx.model import OnnxModel, load_onnx
from utils.export.targets import TARGETS
from utils.loading import Loaded, load_model
from utils.network.darknet import Darknet
from utils.network.file_kind import is_onnx
from utils.pruning.latency import Geometry, Widths
from utils.runtimes.base import Request, check_installed
from utils.runtimes.onnx_files import check_outputs, refused

TARGET = TARGETS["ncnn"]
CONVERTER = {"onnx_ir": "onnx-ir", "onnxscript": "onnxscript", "pnnx": "pnnx"}  # what makes a folder of what PyTorch loads


def is_folder(path: str | Path) -> bool:
    """Whether export.py --target ncnn wrote this."""
    return bool(path) and (Path(path) / METADATA_FILE).is_file()


def outputs_of(names: list[str]) -> list[str]:
    """Those that pnnx named `out0`, `out1` and so on, in this order, of all maps that nothing reads: halves that a network
    leaves out are among them."""
    numbers = sorted(int(match[1]) for match in map(re.compile(r"out(\d+)").fullmatch, names) if match)
    return [f"out{number}" for number in numbers]


class NcnnSession:
    """A network in ncnn on the CPU. Its own usual is to keep and compute maps in 16 bits where the processor can (ARM); here
    that is what --precision fp16 asks for, and otherwise everything is float32."""

    precisions = ("fp32", "fp16")

    def __init__(self, path: str | Path, device: torch.device | None = None, precision: str = "fp32") -> None:
        import ncnn

        self.path, self.ncnn, self.net = path, ncnn, ncnn.Net()
        options, half = self.net.opt, precision == "fp16"
        options.num_threads, options.use_vulkan_compute = torch.get_num_threads(), False
        options.use_fp16_storage = options.use_fp16_packed = options.use_fp16_arithmetic = half
        options.use_bf16_storage = False
        with openable(path) as readable, libraries_silenced():
            for file, read in ((PARAM, self.net.load_param), (BIN, self.net.load_model)):
                if not (Path(readable) / file).is_file() or read(str(Path(readable) / file)):
                    raise self.refused(f"{file} can't be read")
        self.names = self.net.input_names()[0], outputs_of(self.net.output_names())

    @property
    def threads(self) -> int:
        return self.net.opt.num_threads

    def place(self, device: torch.device) -> str:
        return "ncnn on the CPU"

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Of one image, which is all that a network in ncnn reads."""
        name, outputs = self.names
        extractor = self.net.create_extractor()
        image = np.ascontiguousarray(images[0])  # ncnn reads it where it lies
        failed = extractor.input(name, self.ncnn.Mat(image))
        maps = []
        for output in outputs:
            status, found = extractor.extract(output)
            failed = failed or status
            maps.append(np.array(found)[None])
        if failed:
            raise self.refused(f"status {failed}")
        return maps

    def refused(self, reason: str) -> UserError:
        return refused(self.path, f"ncnn {self.ncnn.__version__}", RuntimeError(reason))


class Ncnn:
    """--runtime ncnn."""

    packages: ClassVar = {"ncnn": "ncnn"}
    bits: ClassVar = (32,)  # files hold float networks
    writing: ClassVar = CONVERTER

    def load(self, request: Request) -> Loaded[OnnxModel]:
        if is_folder(request.weights):
            check_outputs("ncnn", request.weights)
            return load_onnx(**request.arguments(), start=NcnnSession)
        if request.weights and not Path(request.weights).is_dir() and is_onnx(request.weights):
            raise UserError(f"--runtime ncnn: {request.weights} is an ONNX file; name the .pt or .weights that it comes from, "
                            "or the folder that export.py --target ncnn makes")  # fmt: skip
        return _converted(request)

    def place(self, network: OnnxModel, device: torch.device, precision: str) -> str:
        return network.runtime(device, precision)

    def threads(self, network: OnnxModel) -> int:
        return network.threads

    def write(self, loaded: Loaded[Darknet], bits: int, folder: Path) -> Path:
        """The folder that export.py --target ncnn makes, unchecked."""
        from utils.export.ncnn.convert import write
        from utils.export.onnx.trace import GraphPlan

        plan = GraphPlan(loaded.shape, dynamic=False, batch=1, outputs=TARGET.outputs[0])
        write(folder, loaded, plan, loaded.preparation(Preparation()), half=False)
        return folder

    def layers(self, bits: int, device: torch.device, precision: str) -> Callable[[Geometry, Widths], Callable[[], object]]:
        """Each as two files of its own."""
        from utils.runtimes.ncnn_layers import LayerFiles, between_layers

        files = LayerFiles()

        def make(geometry: Geometry, widths: Widths) -> Callable[[], object]:
            with tempfile.TemporaryDirectory() as place:
                files.write(geometry, widths, Path(place))
                session = NcnnSession(place, device, NcnnSession.precisions[0] if precision == "auto" else precision)
            shape = widths[0], geometry.height, geometry.width
            compute = between_layers(session.ncnn, session.net, np.random.default_rng(0).random(shape, np.float32))
            if compute()[0]:
                raise session.refused(f"a convolution {geometry} of {widths[1]} filters")
            return compute

        return make


def _converted(request: Request) -> Loaded[OnnxModel]:
    """What PyTorch loads, in ncnn: a folder is made for it that lasts as long as the network."""
    loaded = load_model(**request.arguments())
    TARGET.check_network(request.weights or request.cfg, loaded.model.quantization)
    check_installed("ncnn", CONVERTER)
    folder = tempfile.TemporaryDirectory(prefix="darkedge_ncnn")
    Ncnn().write(loaded, 32, Path(folder.name))
    network = load_onnx("", folder.name, start=NcnnSession)
    network.model.folder = folder
    return Loaded(network.model, loaded.names, loaded.img_size, loaded.checkpoint, loaded.report, network.fixed_size)
