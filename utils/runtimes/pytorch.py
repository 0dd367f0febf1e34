"""--runtime torch: the suite's own inference, a fused copy in the precision that suits the machine."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch

from utils.core.devices import inference_dtype
from utils.core.errors import UserError
from utils.loading import Loaded, load_model
from utils.network.cfg import write_cfg
from utils.network.checkpoint import save_checkpoint
from utils.network.darknet import Darknet
from utils.network.file_kind import is_onnx
from utils.pruning.latency import Geometry, Widths
from utils.runtimes.base import Request


class PyTorch:
    packages: ClassVar = {"torch": "torch"}
    writing: ClassVar = {}
    bits: ClassVar = (32,)  # it computes quantized networks with their roundings, in float

    def load(self, request: Request) -> Loaded[Darknet]:
        """Of a .cfg, with .weights or without, or of a .pt."""
        if request.weights and is_onnx(request.weights):
            raise UserError(f"--runtime torch: {request.weights} is an ONNX file; name the .pt or .weights that it comes from, "
                            "or --runtime onnxruntime")  # fmt: skip
        return load_model(**request.arguments())

    def place(self, network: Darknet, device: torch.device, precision: str) -> str:
        dtype = torch.float32 if network.quantization else inference_dtype(device, precision)
        return f"{device}, {dtype}".replace("torch.", "")

    def threads(self, network: Darknet) -> int:
        return torch.get_num_threads()

    def write(self, loaded: Loaded[Darknet], bits: int, folder: Path) -> Path:
        """A checkpoint."""
        model, path = loaded.model, folder / "network.pt"
        content = {"model": model.state_dict(), "cfg": write_cfg(model.defs), "names": loaded.names}
        save_checkpoint(path, content | {"settings": loaded.settings | {"img_size": loaded.img_size}})
        return path

    def layers(self, bits: int, device: torch.device, precision: str) -> Callable[[Geometry, Widths], Callable[[], object]]:
        """As the suite's own inference computes them."""
        from utils.runtimes.single_layer import SingleLayer

        def make(geometry: Geometry, widths: Widths) -> Callable[[], object]:
            network = SingleLayer(geometry, widths).inference_copy(device, precision)
            image = torch.rand(1, widths[0], geometry.height, geometry.width, device=device, dtype=network.dtype)
            image = image.to(memory_format=torch.channels_last)
            return lambda: network(image)

        return make
