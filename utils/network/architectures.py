"""YOLOv5 (6.0 and later) and YOLOv8 as layer definitions: of a published width and depth, or of any others.

Both are lists of numbered modules that read one another: convolutions, C3 or C2f blocks, a spatial pyramid, a head. Here each
becomes the sections of a cfg that compute the same, and every convolution remembers the name under which checkpoints keep it:

    >>> network = build(YOLOV5, SCALES["yolov5"]["n"])
    >>> network.names[0], network.defs[0].filters, network.names[2], network.defs[2].filters
    ('0', 16, '2.cv2', 16)
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from utils.network.cfg import write_cfg
from utils.network.definitions import Convolutional, Defs, Dfl, LayerDef, MaxPool, Net, Route, Shortcut, Upsample, Yolo

SIDE = 640  # pixels of the input that the published networks are for
WRITTEN = ("batch_normalize", "filters", "size", "stride", "pad", "padding", "activation")  # also where it is the default
ANCHORS = (10, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119, 116, 90, 156, 198, 373, 326)  # width, height in pixels


@dataclass(frozen=True)
class Module:
    """One numbered module of an architecture. channels and repeats: of the network with width and depth 1.

    sources: numbers of the modules that it reads, -1 being the one before it. shortcut: whether its bottlenecks add what they
    read.
    """

    kind: str
    channels: int = 0
    repeats: int = 1
    size: int = 1
    stride: int = 1
    shortcut: bool = False
    sources: tuple[int, ...] = (-1,)


def _down(channels: int, size: int = 3) -> Module:
    return Module("Conv", channels, size=size, stride=2)


def _block(kind: str, channels: int, repeats: int, shortcut: bool = False) -> Module:
    return Module(kind, channels, repeats, shortcut=shortcut)


def _backbone(block: str, stem: int, deepest: int) -> tuple[Module, ...]:
    """Down to a 32nd of the image's sides. stem: size of the first kernel; deepest: repeats of the block at stride 16."""
    stages = ((128, 3), (256, 6), (512, deepest), (1024, 3))
    pairs = (part for channels, repeats in stages for part in (_down(channels), _block(block, channels, repeats, True)))
    return (_down(64, stem), *pairs, Module("SPPF", 1024))


_UP = Module("Upsample")
YOLOV5 = (
    *_backbone("C3", 6, 9),
    Module("Conv", 512), _UP, Module("Concat", sources=(-1, 6)), _block("C3", 512, 3),
    Module("Conv", 256), _UP, Module("Concat", sources=(-1, 4)), _block("C3", 256, 3),
    _down(256), Module("Concat", sources=(-1, 14)), _block("C3", 512, 3),
    _down(512), Module("Concat", sources=(-1, 10)), _block("C3", 1024, 3),
    Module("Anchors", sources=(17, 20, 23)),
)  # fmt: skip

YOLOV8 = (
    *_backbone("C2f", 3, 6),
    _UP, Module("Concat", sources=(-1, 6)), _block("C2f", 512, 3),
    _UP, Module("Concat", sources=(-1, 4)), _block("C2f", 256, 3),
    _down(256), Module("Concat", sources=(-1, 12)), _block("C2f", 512, 3),
    _down(512), Module("Concat", sources=(-1, 9)), _block("C2f", 1024, 3),
    Module("Distributions", sources=(15, 18, 21)),
)  # fmt: skip
YOLOV5U = (*YOLOV5[:-1], Module("Distributions", sources=YOLOV5[-1].sources))  # with YOLOv8's head
ARCHITECTURES = {"yolov5": YOLOV5, "yolov5u": YOLOV5U, "yolov8": YOLOV8}


@dataclass(frozen=True)
class Scale:
    """How much of the full network: depth of the repeats, width of the channels, which are at most `most` before that."""

    depth: float = 1.0
    width: float = 1.0
    most: int = 1024

    def channels(self, full: int) -> int:
        return math.ceil(min(full, self.most) * self.width / 8) * 8

    def repeats(self, full: int) -> int:
        return max(round(full * self.depth), 1)


SCALES = {
    "yolov5": {
        "n": Scale(0.33, 0.25), "s": Scale(0.33, 0.5), "m": Scale(0.67, 0.75), "l": Scale(), "x": Scale(1.33, 1.25),
    },
    "yolov8": {
        "n": Scale(0.33, 0.25), "s": Scale(0.33, 0.5), "m": Scale(0.67, 0.75, 768), "l": Scale(most=512),
        "x": Scale(1, 1.25, 512),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What the tensors of a checkpoint say and an architecture leaves open.

    filters: of each convolution, by its name; those that aren't named have the scale's. biased: names of the convolutions that
    have a bias instead of a batch normalisation. activations: of the convolutions, as a cfg calls them; the others have swish.
    anchors: width and height in pixels, those of all heads one after another. reg_max: values of each side's distribution.
    channels: of the image.
    """

    filters: Mapping[str, int] = field(default_factory=dict)
    biased: frozenset[str] = frozenset()
    activations: Mapping[str, str] = field(default_factory=dict)
    classes: int = 80
    anchors: tuple[float, ...] = ANCHORS
    reg_max: int = 16
    channels: int = 3

    def repeats(self, block: str) -> int:
        """How many bottlenecks of `block` are named, 0 for none."""
        return len({name.split(".")[2] for name in self.filters if name.startswith(f"{block}.m.")})


@dataclass
class Network:
    """An architecture as a cfg. names: layer index -> name of the module whose tensors it has; titles: layer index -> what
    begins there."""

    defs: Defs
    names: dict[int, str]
    titles: dict[int, str]

    def text(self, title: str) -> str:
        """The cfg's text, with comments."""
        net, *sections = write_cfg(self.defs).split("\n\n")
        commented = (f"# {self.titles[i]}\n{s}" if i in self.titles else s for i, s in enumerate(sections))
        return "\n\n".join([f"# {title}\n{net}", *commented])


def build(architecture: tuple[Module, ...], scale: Scale, found: Found | None = None) -> Network:
    """The sections that compute what an architecture's modules do, one after the other."""
    found = found or Found()
    builder = _Builder(scale, found)
    for number, module in enumerate(architecture):
        builder.add(number, module)
    net = Net(width=SIDE, height=SIDE, channels=found.channels, given=("width", "height", "channels"))
    return Network(Defs(net, builder.layers), builder.names, builder.titles)


class _Builder:
    """Adds sections; outputs[k] is the layer whose map is the output of module k."""

    def __init__(self, scale: Scale, found: Found) -> None:
        self.scale, self.found = scale, found
        self.layers: list[LayerDef] = []
        self.names: dict[int, str] = {}
        self.titles: dict[int, str] = {}
        self.outputs: list[int] = []

    @property
    def last(self) -> int:
        return len(self.layers) - 1

    def add(self, number: int, module: Module) -> None:
        self.titles[len(self.layers)] = f"{number} {module.kind}"
        sources = [self.outputs[s] if self.outputs else -1 for s in module.sources]
        _PARTS[module.kind](self, str(number), module, sources)
        self.outputs.append(self.last)

    def _append(self, layer: LayerDef) -> int:
        self.layers.append(layer)
        return self.last

    def _route(self, *sources: int) -> int:
        return self._append(Route(layers=tuple(s - len(self.layers) for s in sources)))

    def _read(self, source: int) -> None:
        """Let the next section read layer `source`."""
        if source != self.last:
            self._route(source)

    def _convolution(self, name: str, filters: int, size: int = 1, stride: int = 1, source: int | None = None) -> int:
        """Convolution, batch normalisation, activation, padded to keep the size (6x6: to halve it)."""
        if source is not None:
            self._read(source)
        self.names[len(self.layers)] = name
        padding: dict[str, Any] = {"pad": 1} if size % 2 else {"padding": (size - 1) // 2}
        normalised, unused = int(name not in self.found.biased), {"pad", "padding"} - padding.keys()
        return self._append(Convolutional(
            batch_normalize=normalised, filters=self.found.filters.get(name, filters), size=size, stride=stride, **padding,
            activation=self.found.activations.get(name, "swish"), given=tuple(k for k in WRITTEN if k not in unused),
        ))  # fmt: skip

    def _linear(self, name: str, filters: int, activation: str, source: int) -> int:
        """The 1x1 convolution with a bias that ends a branch of a head."""
        self._read(source)
        self.names[len(self.layers)] = name
        given = tuple(k for k in WRITTEN if k not in ("batch_normalize", "padding"))
        filters = self.found.filters.get(name, filters)
        return self._append(Convolutional(filters=filters, pad=1, activation=activation, given=given))

    def _conv(self, name: str, module: Module, sources: list[int]) -> None:
        self._convolution(name, self.scale.channels(module.channels), module.size, module.stride, *sources)

    def _bottlenecks(self, name: str, module: Module, channels: int, first: int) -> list[int]:
        """The last layers of the bottlenecks, two convolutions each, one after the other. first: size of the first kernel."""
        ends = []
        for k in range(self.found.repeats(name) or self.scale.repeats(module.repeats)):
            start = self.last
            self._convolution(f"{name}.m.{k}.cv1", channels, first)
            self._convolution(f"{name}.m.{k}.cv2", channels, 3)
            if module.shortcut:
                self._append(Shortcut(from_=(start - len(self.layers),), given=("from", "activation")))
            ends.append(self.last)
        return ends

    def _c3(self, name: str, module: Module, sources: list[int]) -> None:
        """CSP: one half goes through the bottlenecks, the other past them."""
        channels = self.scale.channels(module.channels)
        past = self._convolution(f"{name}.cv2", channels // 2, source=sources[0])
        self._convolution(f"{name}.cv1", channels // 2, source=sources[0])
        (*_, through) = self._bottlenecks(name, module, channels // 2, first=1)
        self._route(through, past)
        self._convolution(f"{name}.cv3", channels)

    def _c2f(self, name: str, module: Module, sources: list[int]) -> None:
        """The second half goes through the bottlenecks; the map of both halves and what each bottleneck gives are joined."""
        channels = self.scale.channels(module.channels)
        both = self._convolution(f"{name}.cv1", channels, source=sources[0])
        self._append(Route(layers=(-1,), groups=2, group_id=1))
        ends = self._bottlenecks(name, module, channels // 2, first=3)
        self._route(both, *ends)
        self._convolution(f"{name}.cv2", channels)

    def _sppf(self, name: str, module: Module, sources: list[int]) -> None:
        """Spatial pyramid pooling: 5x5 three times in a row sees what 5x5, 9x9 and 13x13 see."""
        channels = self.scale.channels(module.channels)
        maps = [self._convolution(f"{name}.cv1", channels // 2, source=sources[0])]
        maps += [self._append(MaxPool(size=5, stride=1, given=("size", "stride"))) for _ in range(3)]
        self._route(*maps)
        self._convolution(f"{name}.cv2", channels)

    def _upsample(self, name: str, module: Module, sources: list[int]) -> None:
        self._read(sources[0])
        self._append(Upsample(stride=2, given=("stride",)))

    def _concat(self, name: str, module: Module, sources: list[int]) -> None:
        self._route(*sources)

    def _anchors(self, name: str, module: Module, sources: list[int]) -> None:
        """Heads with anchors: what their convolutions give has gone through a sigmoid already (new_coords)."""
        places = len(self.found.anchors) // 2
        each = places // len(sources)
        for level, source in enumerate(sources):
            self._linear(f"{name}.m.{level}", each * (5 + self.found.classes), "logistic", source)
            self._append(Yolo(
                mask=tuple(range(level * each, (level + 1) * each)), anchors=tuple(map(float, self.found.anchors)), num=places,
                classes=self.found.classes, scale_x_y=2.0, new_coords=1, ignore_thresh=0.7, iou_loss="ciou",
                extra={"iou_normalizer": "0.05", "cls_normalizer": "0.5", "obj_normalizer": "1.0"},
                given=("mask", "anchors", "classes", "num"),
            ))  # fmt: skip

    def _distributions(self, name: str, module: Module, sources: list[int]) -> None:
        """Heads without anchors: a branch for the boxes, as distributions of their sides, and one for the classes."""
        found, finest = self.found, self._channels(sources[0])
        widths = {"cv2": max(16, finest // 4, 4 * found.reg_max), "cv3": max(finest, min(found.classes, 100))}
        outputs = {"cv2": 4 * found.reg_max, "cv3": found.classes}
        for level, source in enumerate(sources):
            ends = []
            for branch, width in widths.items():
                self._convolution(f"{name}.{branch}.{level}.0", width, 3, source=source)
                self._convolution(f"{name}.{branch}.{level}.1", width, 3)
                ends.append(self._linear(f"{name}.{branch}.{level}.2", outputs[branch], "linear", self.last))
            self._route(*ends)
            self._append(Dfl(classes=found.classes, reg_max=found.reg_max, given=("classes", "reg_max")))

    def _channels(self, layer: int) -> int:
        """Filters of a convolution that was added."""
        d = self.layers[layer]
        assert isinstance(d, Convolutional)
        return d.filters


_PARTS: dict[str, Callable[[_Builder, str, Module, list[int]], None]] = {
    "Conv": _Builder._conv,
    "C3": _Builder._c3,
    "C2f": _Builder._c2f,
    "SPPF": _Builder._sppf,
    "Upsample": _Builder._upsample,
    "Concat": _Builder._concat,
    "Anchors": _Builder._anchors,
    "Distributions": _Builder._distributions,
}
