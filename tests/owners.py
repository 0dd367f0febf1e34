"""YOLOv5, YOLOv5u and YOLOv8 as modules that compute by themselves, written for the tests from the architectures' description,
and checkpoints of them as their owners' packages pickle theirs: an oracle for convert.py that needs no other package.

>>> network = make("yolov5", width=8, repeats=1, classes=2)
>>> network(torch.rand(1, 3, 64, 64)).shape         # boxes of three levels: cx cy w h in pixels, objectness, classes
torch.Size([1, 252, 7])
"""

import contextlib
import itertools
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn


class Conv(nn.Module):
    def __init__(self, channels: int, filters: int, size: int = 1, stride: int = 1, pad: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, size, stride, size // 2 if pad is None else pad, bias=False)
        self.bn = nn.BatchNorm2d(filters, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, channels: int, first: int, add: bool) -> None:
        super().__init__()
        self.cv1, self.cv2, self.add = Conv(channels, channels, first), Conv(channels, channels, 3), add

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class C3(nn.Module):
    def __init__(self, channels: int, filters: int, repeats: int, add: bool) -> None:
        super().__init__()
        half = filters // 2
        self.cv1, self.cv2, self.cv3 = Conv(channels, half), Conv(channels, half), Conv(2 * half, filters)
        self.m = nn.Sequential(*(Bottleneck(half, 1, add) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class C2f(nn.Module):
    def __init__(self, channels: int, filters: int, repeats: int, add: bool) -> None:
        super().__init__()
        half = filters // 2
        self.cv1, self.cv2 = Conv(channels, 2 * half), Conv((2 + repeats) * half, filters)
        self.m = nn.ModuleList(Bottleneck(half, 3, add) for _ in range(repeats))

    def forward(self, x: Tensor) -> Tensor:
        maps = list(self.cv1(x).chunk(2, 1))
        for bottleneck in self.m:
            maps.append(bottleneck(maps[-1]))
        return self.cv2(torch.cat(maps, 1))


class SPPF(nn.Module):
    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(channels, channels // 2), Conv(4 * (channels // 2), filters)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.cv1(x)]
        for _ in range(3):
            maps.append(self.m(maps[-1]))
        return self.cv2(torch.cat(maps, 1))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.d = 1

    def forward(self, maps: list[Tensor]) -> Tensor:
        return torch.cat(maps, self.d)


def cells(x: Tensor) -> Tensor:
    """(2, ny, nx) column and row of each cell of a map."""
    return torch.stack(torch.meshgrid(torch.arange(x.shape[3]), torch.arange(x.shape[2]), indexing="xy"))


class AnchorDetect(nn.Module):
    """YOLOv5's head; anchors are kept in cells."""

    def __init__(self, channels: list[int], classes: int) -> None:
        super().__init__()
        self.nc, self.no, self.nl, self.na = classes, classes + 5, 3, 3
        anchors = torch.tensor([10, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119, 116, 90, 156, 198, 373, 326.0]).view(3, 3, 2)
        self.register_buffer("anchors", anchors / torch.tensor([8, 16, 32]).view(3, 1, 1))
        self.m = nn.ModuleList(nn.Conv2d(c, 3 * self.no, 1) for c in channels)

    def forward(self, maps: list[Tensor]) -> Tensor:
        rows = []
        for conv, x, anchors, stride in zip(self.m, maps, self.anchors, (8, 16, 32), strict=True):
            y = conv(x).view(len(x), 3, self.no, *x.shape[2:]).sigmoid()
            xy = (2 * y[:, :, :2] - 0.5 + cells(x)) * stride
            wh = (2 * y[:, :, 2:4]) ** 2 * anchors.view(1, 3, 2, 1, 1) * stride
            rows.append(torch.cat((xy, wh, y[:, :, 4:]), 2).permute(0, 1, 3, 4, 2).reshape(len(x), -1, self.no))
        return torch.cat(rows, 1)


class DFL(nn.Module):
    def __init__(self, bins: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data.copy_(torch.arange(bins).view(1, bins, 1, 1))


class DistributionDetect(nn.Module):
    """YOLOv8's head: distances to the four sides as distributions, no anchors, no objectness."""

    def __init__(self, channels: list[int], classes: int, bins: int = 16) -> None:
        super().__init__()
        self.nc, self.nl, self.reg_max, self.no = classes, 3, bins, classes + 4 * bins
        box, cls = max(16, channels[0] // 4, 4 * bins), max(channels[0], min(classes, 100))
        self.cv2, self.cv3 = (
            nn.ModuleList(nn.Sequential(Conv(c, width, 3), Conv(width, width, 3), nn.Conv2d(width, out, 1)) for c in channels)
            for width, out in ((box, 4 * bins), (cls, classes))
        )
        self.dfl = DFL(bins)

    def forward(self, maps: list[Tensor]) -> Tensor:
        rows = []
        for box, cls, x, stride in zip(self.cv2, self.cv3, maps, (8, 16, 32), strict=True):
            bins = box(x).view(len(x), 4, self.reg_max, *x.shape[2:]).softmax(2)
            left, top, right, bottom = (bins * torch.arange(self.reg_max).view(-1, 1, 1)).sum(2).unbind(1)
            column, row = cells(x) + 0.5
            sides = (column - left, row - top, column + right, row + bottom)
            x1, y1, x2, y2 = (side * stride for side in sides)
            boxes = torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), 1)
            rows.append(torch.cat((boxes, cls(x).sigmoid()), 1).flatten(2))
        return torch.cat(rows, 2).transpose(1, 2)


class DetectionModel(nn.Module):
    """Runs the modules in order; each reads the outputs that its `f` names."""

    def __init__(self, modules: list[nn.Module], names: Any) -> None:
        super().__init__()
        self.model, self.names = nn.Sequential(*modules), names

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for module in self.model:
            sources = [x if not outputs else outputs[f] for f in (module.f if isinstance(module.f, list) else [module.f])]
            outputs.append(module(sources if isinstance(module.f, list) else sources[0]))
        return outputs[-1]


def make(family: str, width: int = 8, repeats: int = 1, classes: int = 3, names: Any = None) -> DetectionModel:
    """A network whose first map has `width` channels, with random weights and statistics."""
    modules = {"yolov5": _yolov5, "yolov5u": _yolov5u, "yolov8": _yolov8}[family](width, repeats, classes)
    for number, (module, reads) in enumerate(modules):
        module.i, module.f, module.type = number, reads, type(module).__name__
    model = DetectionModel([m for m, _ in modules], names or {k: f"class {k}" for k in range(classes)})
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.5, 0.5), (module.running_var, 0.2, 2)):
                tensor.data.uniform_(low, high, generator=generator)
            module.running_mean.normal_(generator=generator)
    return model.eval()


def _backbone(w: int, n: int, block: type, stem: Conv) -> list[tuple[nn.Module, Any]]:
    parts: list[nn.Module] = [stem]
    for c in (2 * w, 4 * w, 8 * w, 16 * w):
        parts += [Conv(c // 2, c, 3, 2), block(c, c, n, True)]
    return [(part, -1) for part in (*parts, SPPF(16 * w, 16 * w))]


def _yolov5(w: int, n: int, classes: int) -> list[tuple[nn.Module, Any]]:
    return [
        *_backbone(w, n, C3, Conv(3, w, 6, 2, 2)),
        (Conv(16 * w, 8 * w), -1), (nn.Upsample(scale_factor=2.0), -1), (Concat(), [-1, 6]), (C3(16 * w, 8 * w, n, False), -1),
        (Conv(8 * w, 4 * w), -1), (nn.Upsample(scale_factor=2.0), -1), (Concat(), [-1, 4]), (C3(8 * w, 4 * w, n, False), -1),
        (Conv(4 * w, 4 * w, 3, 2), -1), (Concat(), [-1, 14]), (C3(8 * w, 8 * w, n, False), -1),
        (Conv(8 * w, 8 * w, 3, 2), -1), (Concat(), [-1, 10]), (C3(16 * w, 16 * w, n, False), -1),
        (AnchorDetect([4 * w, 8 * w, 16 * w], classes), [17, 20, 23]),
    ]  # fmt: skip


def _yolov5u(w: int, n: int, classes: int) -> list[tuple[nn.Module, Any]]:
    """YOLOv5 with YOLOv8's head."""
    *body, (_, sources) = _yolov5(w, n, classes)
    return [*body, (DistributionDetect([4 * w, 8 * w, 16 * w], classes), sources)]


def _yolov8(w: int, n: int, classes: int) -> list[tuple[nn.Module, Any]]:
    return [
        *_backbone(w, n, C2f, Conv(3, w, 3, 2)),
        (nn.Upsample(scale_factor=2.0), -1), (Concat(), [-1, 6]), (C2f(24 * w, 8 * w, n, False), -1),
        (nn.Upsample(scale_factor=2.0), -1), (Concat(), [-1, 4]), (C2f(12 * w, 4 * w, n, False), -1),
        (Conv(4 * w, 4 * w, 3, 2), -1), (Concat(), [-1, 12]), (C2f(12 * w, 8 * w, n, False), -1),
        (Conv(8 * w, 8 * w, 3, 2), -1), (Concat(), [-1, 9]), (C2f(24 * w, 16 * w, n, False), -1),
        (DistributionDetect([4 * w, 8 * w, 16 * w], classes), [15, 18, 21]),
    ]  # fmt: skip


LAYERS = (Conv, Bottleneck, C3, C2f, SPPF, Concat, DFL)
# What the owners' packages call the classes.
NAMES = {
    "yolov5": {cls: f"models.common.{cls.__name__}" for cls in LAYERS}
    | {AnchorDetect: "models.yolo.Detect", DetectionModel: "models.yolo.DetectionModel"},
    "yolov8": {cls: f"ultralytics.nn.modules.block.{cls.__name__}" for cls in LAYERS}
    | {DistributionDetect: "ultralytics.nn.modules.head.Detect", DetectionModel: "ultralytics.nn.tasks.DetectionModel"},
}
NAMES["yolov5u"] = NAMES["yolov8"]


@contextlib.contextmanager
def packaged(names: dict[type, str]) -> Iterator[None]:
    """While this lasts, pickles find the classes under these names."""
    before = {cls: (cls.__module__, cls.__name__) for cls in names}
    with pytest.MonkeyPatch.context() as patch:
        for cls, origin in names.items():
            place, _, name = origin.rpartition(".")
            for package in itertools.accumulate(place.split("."), "{}.{}".format):
                patch.setitem(sys.modules, package, sys.modules.get(package, types.ModuleType(package)))
            patch.setattr(sys.modules[place], name, cls, raising=False)
            _call(cls, place, name)
        try:
            yield
        finally:
            for cls, (place, name) in before.items():
                _call(cls, place, name)


def _call(cls: type, place: str, name: str) -> None:
    cls.__module__, cls.__name__, cls.__qualname__ = place, name, name


def save(path: Path, family: str, content: Any, renamed: dict[type, str] | None = None, **options: Any) -> Path:
    """torch.save with the owners' names; renamed: those of some classes, in their place."""
    with packaged(NAMES[family] | (renamed or {})):
        torch.save(content, path, **options)
    return path


def checkpoint(model: nn.Module, **more: Any) -> dict[str, Any]:
    """What the file of a training that is over holds."""
    held = {"epoch": -1, "best_fitness": None, "ema": None, "model": model, "optimizer": None, "train_args": {"imgsz": 96}}
    return held | more
