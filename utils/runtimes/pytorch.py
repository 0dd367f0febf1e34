"""--runtime torch: the suite's own inference, a fused copy in the precision that suits the machine."""

from typing import ClassVar

import torch

from utils.core.devices import inference_dtype
from utils.core.errors import UserError
from utils.loading import Loaded, load_model
from utils.network.darknet import Darknet
from utils.network.file_kind import is_onnx
from utils.runtimes.base import Request


class PyTorch:
    packages: ClassVar = {"torch": "torch"}

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
