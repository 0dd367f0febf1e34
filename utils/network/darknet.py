"""Darknet: a network built from a .cfg."""

import copy
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from utils.core.devices import inference_dtype
from utils.core.errors import UserError
from utils.core.memory import available_memory
from utils.network.block import Fixable
from utils.network.cfg import parse_cfg
from utils.network.definitions import Defs
from utils.network.fast_cpu import speed_up
from utils.network.footprint import ADDRESSABLE, check_memory
from utils.network.heads import Head
from utils.network.layers import Convolution, build_layer
from utils.network.shapes import check_img_size, input_channels, max_stride, output_shapes


class Quantization(Protocol):
    """What a quantized network was asked to be (utils.quantized.settings.Settings)."""

    def to_dict(self) -> dict[str, Any]: ...


class Darknet(nn.Module):
    """The detector that a .cfg describes.

    cfg: path, text, or parsed definitions; img_size: side of the (square) input in pixels, or (height, width).
    Raises UserError naming file, line and layer for a cfg that can't be built, or an image size that doesn't fit it.

    Training mode: forward(x) -> one raw map a head ([yolo], [dfl]), in the cfg's order, float32, before any sigmoid:
    (batch, anchors, ny, nx, 5 + classes), or (batch, 1, ny, nx, 4 * reg_max + classes).
    Eval mode: forward(x) -> (decoded, raws), decoded (batch, boxes, 5 + classes): cx cy w h in pixels of the input,
    objectness and class probabilities.
    x: (batch, channels, height, width), RGB in 0..1, sides multiples of `max_stride`.
    """

    module_list: Any  # an nn.ModuleList: by torch's types every attribute of a layer would be a Tensor or a Module

    def __init__(self, cfg: str | Path | Defs, img_size: int | tuple[int, int] = 416) -> None:
        super().__init__()
        self.defs = cfg if isinstance(cfg, Defs) else parse_cfg(cfg)
        self.img_size = img_size
        self.max_stride = max_stride(self.defs)
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        check_img_size(height, self.max_stride)
        check_img_size(width, self.max_stride)
        shapes = output_shapes(self.defs, height, width)
        limit = ADDRESSABLE if torch.empty(0).is_meta else available_memory()
        check_memory(self.defs, shapes, (self.defs.net.channels, height, width), limit)
        self.module_list = nn.ModuleList(
            build_layer(self.defs, i, input_channels(self.defs, shapes, i)[0]) for i in range(len(self.defs))
        )
        self.sources = [self.defs.sources(i) for i in range(len(self.defs))]
        last_reader = {s: i for i, sources in enumerate(self.sources) for s in sources}
        self._done = [[s for s in set(sources) if last_reader[s] == i] for i, sources in enumerate(self.sources)]
        self.seen = 0  # images trained on, as the .weights header counts them
        self.quantization: Quantization | None = None  # see utils.quantized.transform.quantize
        self.input_quantizer: nn.Module = nn.Identity()
        self._initialise_heads(shapes, height)

    @property
    def heads(self) -> list[Head]:
        """The layers that detect, in the cfg's order."""
        return [self.module_list[i] for i in self.defs.head_indices()]

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the first layer computes in, so what an input should have."""
        return next(self.parameters()).dtype

    def head_convolutions(self) -> list[tuple[int, int]]:
        """(index of the convolution, index of the head that reads it), of all convolutions that feed heads."""
        return [(s, i) for i in self.defs.head_indices() for s in self.defs.feeding(i)]

    @torch.no_grad()
    def _initialise_heads(self, shapes: list[tuple[int, int, int]], height: int) -> None:
        """Give the heads the biases that training begins with, where convolutions with biases feed them."""
        for index in self.defs.head_indices():
            biases = [self.module_list[s].conv.bias for s in self.defs.feeding(index)]
            if not biases or any(bias is None for bias in biases):
                continue
            joined = torch.cat(biases)
            self.module_list[index].start(joined, height / shapes[index][1])
            for bias, part in zip(biases, joined.split([len(bias) for bias in biases]), strict=True):
                bias.copy_(part)

    def forward(self, x: Tensor) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        height = x.shape[-2]
        maps: dict[int, Tensor] = {-1: self.input_quantizer(x)}
        raws: list[Tensor] = []
        for i, module in enumerate(self.module_list):
            maps[i] = module(*(maps[s] for s in self.sources[i]))
            if isinstance(module, Head):
                raws.append(maps[i])
            for s in self._done[i]:  # a map that nobody reads any more gives its memory back
                del maps[s]
        return raws if self.training else (self.decode(raws, height), raws)

    def decode(self, raws: list[Tensor], height: int) -> Tensor:
        """Raw maps of a `height` pixels high input -> (batch, boxes of all heads, 5 + classes)."""
        if not raws:
            raise UserError.at(self.defs.name, f"has no {self.defs.heads_named()} layer, so it detects nothing")
        return torch.cat([head.decode(raw, height) for head, raw in zip(self.heads, raws, strict=True)], 1)

    def fuse(self) -> "Darknet":
        """Fold every batch normalisation into its convolution, in place; returns self.

        A quantized network becomes its eval mode with everything constant: rounded kernels, scales, zero points.
        """
        for module in self.module_list:
            if isinstance(module, Convolution):
                module.fuse()
        for module in self.modules():
            if isinstance(module, Fixable):
                module.fix()
        return self

    def inference_copy(self, device: torch.device, precision: str = "auto") -> "Darknet":
        """A fused copy in eval mode, on `device`, in channels_last and the precision that suits it.

        precision: auto | fp32 | bf16 | fp16 (see utils.core.devices). The convolutions that feed heads stay in
        float32: box sides are exponentials or means of what exponentials weigh, and bfloat16's 8 bits would cost accuracy. A
        quantized network computes in float32, where its integers are exact: the copy gives the same numbers bit for bit.
        """
        dtype = torch.float32 if self.quantization else inference_dtype(device, precision)
        if self.quantization and precision not in ("auto", "fp32"):
            raise UserError(f"--precision {precision}: a quantized network computes in fp32, where its integers are exact")
        model = copy.deepcopy(self).eval().requires_grad_(False).fuse()
        model.to(device=device, dtype=dtype, memory_format=torch.channels_last)
        for source, _ in model.head_convolutions():
            model.module_list[source].float().float_input = True
        if device.type == "cpu" and self.quantization is None:
            height, width = (model.img_size, model.img_size) if isinstance(model.img_size, int) else model.img_size
            speed_up(model.module_list, model.defs, height, width)
        return model
