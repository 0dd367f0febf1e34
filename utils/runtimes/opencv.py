"""--runtime opencv: Darknet's own files where it is OpenCV 4, ONNX files in 4 and 5."""

import copy
import dataclasses
import re
import tempfile
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from utils.core.errors import UserError
from utils.data.images import libraries_silenced, openable
from utils.export.onnx.model import OnnxModel, load_onnx
from utils.loading import Loaded, load_model
from utils.network.cfg import write_cfg
from utils.network.darknet import Darknet
from utils.network.definitions import Dfl
from utils.network.file_kind import is_onnx
from utils.network.weights import save_weights
from utils.runtimes.base import Request
from utils.runtimes.onnx_files import WritesOnnx, check_outputs, refused

NAME = f"OpenCV {cv2.__version__}"
EPSILON = 1e-6  # that it adds to variances of Darknet's files, as measured
AGREEMENT = 1e-3  # with PyTorch's raw maps, of a value or of 1 if that is more: OpenCV's Winograd is off by less


class OpenCVSession:
    """A graph in OpenCV's dnn."""

    precisions = ("fp32",)

    def __init__(self, path: str | Path, device: torch.device | None = None, precision: str = "fp32") -> None:
        self.path = path
        cv2.setNumThreads(torch.get_num_threads())
        try:
            with openable(path) as readable, libraries_silenced():
                self.net = cv2.dnn.readNetFromONNX(readable)
        except cv2.error as error:
            raise self._refused(error) from None
        self.names = self.net.getUnconnectedOutLayersNames()

    @property
    def threads(self) -> int:
        return cv2.getNumThreads()

    def place(self, device: torch.device) -> str:
        return f"{NAME} on the CPU"

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        try:
            self.net.setInput(images)
            return [np.array(output) for output in self.net.forward(self.names)]
        except cv2.error as error:
            raise self._refused(error) from None

    def _refused(self, error: cv2.error) -> UserError:
        return refused(self.path, NAME, error, "; export it with --target opencv")


class OpenCVDarknet:
    """A network that OpenCV 4 reads from Darknet's files. It computes what the heads read; what that means is decoded by the
    suite, since OpenCV's own decoding drops scores below 0.2, which a mean average precision needs.

    Raises UserError for a network that OpenCV can't read, or computes otherwise than PyTorch does.
    """

    dtype = torch.float32

    def __init__(self, model: Darknet, img_size: tuple[int, int]) -> None:
        self.defs, self.max_stride, self.quantization = model.defs, model.max_stride, None
        self.heads, self.sources = model.heads, [model.defs.sources(i)[0] for i in model.defs.head_indices()]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "x.weights"
            save_weights(_with_its_epsilon(model), file)
            self.weights = np.fromfile(file, np.uint8)
        self.nets: dict[tuple[int, int], cv2.dnn.Net] = {}
        cv2.setNumThreads(torch.get_num_threads())
        self._compare(model, img_size)

    def inference_copy(self, device: torch.device, precision: str = "auto") -> "OpenCVDarknet":
        if precision not in ("auto", "fp32"):
            raise UserError(f"--precision {precision}: {NAME} computes in fp32")
        return self

    def __call__(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        raws = self._raws(images)
        decoded = [head.decode(raw, images.shape[-2]) for head, raw in zip(self.heads, raws, strict=True)]
        return torch.cat(decoded, 1).to(images.device), []

    @torch.no_grad()
    def _raws(self, images: Tensor) -> list[Tensor]:
        """The heads' raw maps, as a Darknet gives them."""
        try:
            net, names = self._net(*images.shape[-2:])
            net.setInput(images.float().cpu().contiguous().numpy())
            maps = [torch.from_numpy(np.array(output)) for output in net.forward(names)]
        except cv2.error as error:
            raise refused(self.defs.name, NAME, error, "; export it and name the .onnx") from None
        return [head(found) for head, found in zip(self.heads, maps, strict=True)]

    def _net(self, height: int, width: int) -> tuple[cv2.dnn.Net, list[str]]:
        """OpenCV's network for one size of input, and the layers whose maps its heads read."""
        if (height, width) not in self.nets:
            text = write_cfg(self.defs)
            for key, value in (("width", width), ("height", height)):
                text = re.sub(rf"(?m)^{key} *=.*$", f"{key}={value}", text, count=1)
            with libraries_silenced():
                net = cv2.dnn.readNetFromDarknet(np.frombuffer(text.encode(), np.uint8), self.weights)
            self.nets[height, width] = net
        net = self.nets[height, width]
        layers = {name.rpartition("_")[2]: name for name in net.getLayerNames()}  # of each number the last, its activation
        return net, [layers[str(source)] for source in self.sources]

    @torch.no_grad()
    def _compare(self, model: Darknet, img_size: tuple[int, int]) -> None:
        """UserError if OpenCV's raw maps of noise are not PyTorch's."""
        noise = torch.rand(1, model.defs.net.channels, *img_size, generator=torch.Generator().manual_seed(0))
        for found, wanted in zip(self._raws(noise), model(noise)[1], strict=True):
            error = float(((found - wanted).abs() / wanted.abs().clamp(min=1)).max()) if found.shape == wanted.shape else np.inf
            if not error <= AGREEMENT:
                raise UserError(f"{self.defs.name}: {NAME} computes another function of it than PyTorch (maps differ by "
                                f"{error:.2g}); export it and name the .onnx")  # fmt: skip


def _with_its_epsilon(model: Darknet) -> Darknet:
    """A copy with variances that OpenCV makes the same standard deviations of: it adds less to them than PyTorch."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var += module.eps - EPSILON
    return copied


class OpenCV(WritesOnnx):
    packages: ClassVar = {"cv2": "opencv-python"}
    start = OpenCVSession

    def load(self, request: Request) -> Loaded[OpenCVDarknet | OnnxModel]:
        """Of a .onnx; with OpenCV 4 also of what PyTorch loads, unless it is quantized or has a [dfl] head."""
        if request.weights and is_onnx(request.weights):
            check_outputs("opencv", request.weights)
            return _tried(load_onnx(**request.arguments(), start=OpenCVSession))
        loaded = load_model(**request.arguments())
        name = request.weights or request.cfg
        if not hasattr(cv2.dnn, "readNetFromDarknet"):
            raise UserError(f"--runtime opencv: {name}: {NAME} no longer reads Darknet's files; export it and name the .onnx")
        if any(isinstance(d, Dfl) for d in loaded.model.defs):
            raise UserError(f"--runtime opencv: {name}: Darknet's files have no [dfl] in OpenCV; export it for it "
                            "(--target opencv) and name the .onnx")  # fmt: skip
        if loaded.model.quantization:
            raise UserError(f"--runtime opencv: {name}: is a quantized network, which Darknet's files can't hold; export it "
                            "and name the .onnx")  # fmt: skip
        return dataclasses.replace(loaded, model=OpenCVDarknet(loaded.model, loaded.shape))

    def place(self, network: OpenCVDarknet | OnnxModel, device: torch.device, precision: str) -> str:
        return network.runtime(device, precision) if isinstance(network, OnnxModel) else f"{NAME} on the CPU, fp32"

    def threads(self, network: OpenCVDarknet | OnnxModel) -> int:
        return cv2.getNumThreads()


def _tried(loaded: Loaded[OnnxModel]) -> Loaded[OnnxModel]:
    """A network that OpenCV has computed once: what it lacks shows only then."""
    loaded.model(torch.zeros(1, loaded.model.defs.net.channels, *loaded.shape))
    return loaded
