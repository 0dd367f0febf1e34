"""What a .cfg holds, as types: one dataclass for each kind of section, and `Defs`, the whole network."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

Floats = tuple[float, ...]
Ints = tuple[int, ...]


@dataclass(kw_only=True)
class LayerDef:
    """One section of a .cfg: a field for each key that this program knows, `extra` for the others.

    `given` is the order in which the keys were written and `line` where the section began; neither counts in ==.
    """

    kind: ClassVar[str]
    extra: dict[str, str] = field(default_factory=dict)
    given: tuple[str, ...] = field(default=(), compare=False, repr=False)
    line: int = field(default=0, compare=False, repr=False)

    def references(self) -> Ints:
        """Layers that this one reads besides the one before it, as written (negative: relative)."""
        return ()

    def sources(self, index: int) -> list[int]:
        """Absolute indices of the layers whose maps layer number `index` reads, in order; -1 is the image."""
        return [index - 1, *(absolute(r, index) for r in self.references())]


@dataclass(kw_only=True)
class Net(LayerDef):
    kind: ClassVar[str] = "net"
    width: int = 416
    height: int = 416
    channels: int = 3


@dataclass(kw_only=True)
class Convolutional(LayerDef):
    kind: ClassVar[str] = "convolutional"
    batch_normalize: int = 0
    filters: int = 1
    size: int = 1
    stride: int = 1
    stride_x: int | None = None
    stride_y: int | None = None
    pad: int = 0
    padding: int = 0
    groups: int = 1
    dilation: int = 1
    antialiasing: int = 0
    activation: str = "logistic"

    @property
    def strides(self) -> tuple[int, int]:
        """(vertical, horizontal)."""
        return self.stride_y or self.stride, self.stride_x or self.stride

    @property
    def zero_padding(self) -> int:
        """Zeros added on each side; Darknet spreads the padding as it spreads the kernel."""
        return (self.size // 2 if self.pad else self.padding) * self.dilation


@dataclass(kw_only=True)
class Depthwise(Convolutional):
    """The MobileNet dialect's depthwise convolution: as many groups as channels."""

    kind: ClassVar[str] = "depthwise"


@dataclass(kw_only=True)
class SqueezeExcite(LayerDef):
    """The MobileNet dialect's squeeze-and-excitation. `hidden` (this suite's key) is the inner width when it isn't
    channels // reduction, as after pruning."""

    kind: ClassVar[str] = "se"
    filters: int | None = None
    reduction: int = 4
    hidden: int | None = None

    def inner_width(self, channels: int) -> int:
        """Outputs of the first matrix, for a map of `channels`."""
        return self.hidden or max(channels // self.reduction, 1)


@dataclass(kw_only=True)
class BatchNorm(LayerDef):
    kind: ClassVar[str] = "batchnorm"


@dataclass(kw_only=True)
class MaxPool(LayerDef):
    kind: ClassVar[str] = "maxpool"
    size: int | None = None
    stride: int = 1
    stride_x: int | None = None
    stride_y: int | None = None
    padding: int | None = None
    maxpool_depth: int = 0
    out_channels: int = 1
    antialiasing: int = 0

    @property
    def window(self) -> int:
        return self.stride if self.size is None else self.size

    @property
    def strides(self) -> tuple[int, int]:
        """(vertical, horizontal)."""
        return self.stride_y or self.stride, self.stride_x or self.stride

    @property
    def total_padding(self) -> int:
        """Rows (and columns) added in all; the smaller half goes left and above."""
        return self.window - 1 if self.padding is None else self.padding


@dataclass(kw_only=True)
class LocalAvgPool(MaxPool):
    kind: ClassVar[str] = "local_avgpool"


@dataclass(kw_only=True)
class AvgPool(LayerDef):
    kind: ClassVar[str] = "avgpool"


@dataclass(kw_only=True)
class Upsample(LayerDef):
    kind: ClassVar[str] = "upsample"
    stride: int = 2
    scale: float = 1.0


@dataclass(kw_only=True)
class Route(LayerDef):
    kind: ClassVar[str] = "route"
    layers: Ints
    groups: int = 1
    group_id: int = 0

    def references(self) -> Ints:
        return self.layers

    def sources(self, index: int) -> list[int]:
        return [absolute(r, index) for r in self.layers]


@dataclass(kw_only=True)
class Shortcut(LayerDef):
    kind: ClassVar[str] = "shortcut"
    from_: Ints
    activation: str = "linear"
    weights_type: str = "none"
    weights_normalization: str = "none"

    def references(self) -> Ints:
        return self.from_


@dataclass(kw_only=True)
class ScaleChannels(LayerDef):
    kind: ClassVar[str] = "scale_channels"
    from_: Ints
    scale_wh: int = 0
    activation: str = "linear"

    def references(self) -> Ints:
        return self.from_


@dataclass(kw_only=True)
class Sam(ScaleChannels):
    kind: ClassVar[str] = "sam"


@dataclass(kw_only=True)
class Reorg(LayerDef):
    """Space to depth as YOLOv2's reorg did it, which also mixes neighbouring channels."""

    kind: ClassVar[str] = "reorg"
    stride: int = 1
    reverse: int = 0


@dataclass(kw_only=True)
class Reorg3d(Reorg):
    kind: ClassVar[str] = "reorg3d"


@dataclass(kw_only=True)
class Dropout(LayerDef):
    kind: ClassVar[str] = "dropout"
    probability: float = 0.5


@dataclass(kw_only=True)
class Head(LayerDef):
    """A layer that detects: it reads one map and gives boxes."""

    classes: int = 20

    @property
    def channels(self) -> int:
        """Channels of the map that it reads."""
        raise NotImplementedError

    @property
    def class_channels(self) -> int:
        """How many of them each class has; all others don't depend on the number of classes."""
        return 1

    def demand(self) -> str:
        """What it needs to read, and why, in words."""
        raise NotImplementedError

    def decoding(self) -> dict[str, Any]:
        """What other programs need to know to make boxes of its map, by name."""
        raise NotImplementedError


@dataclass(kw_only=True)
class Yolo(Head):
    kind: ClassVar[str] = "yolo"
    mask: Ints = ()
    anchors: Floats = ()
    num: int = 1
    scale_x_y: float = 1.0
    new_coords: int = 0
    ignore_thresh: float = 0.5
    iou_loss: str = "mse"

    def anchor_sizes(self) -> list[tuple[float, float]]:
        """(width, height) of this head's anchors, in pixels of the network's input."""
        pairs = list(zip(self.anchors[::2], self.anchors[1::2], strict=True))
        return [pairs[m] for m in self.mask]

    @property
    def channels(self) -> int:
        return len(self.mask) * (5 + self.classes)

    @property
    def class_channels(self) -> int:
        return len(self.mask)

    def demand(self) -> str:
        what = f"has {len(self.mask)} anchors and classes={self.classes}"
        return f"{what}, so the layer before it needs filters={self.channels}"

    def decoding(self) -> dict[str, Any]:
        return {"anchors": self.anchor_sizes(), "classes": self.classes, "scale_x_y": self.scale_x_y,
                "new_coords": bool(self.new_coords)}  # fmt: skip


@dataclass(kw_only=True)
class Dfl(Head):
    """The anchor-free head (this suite's section): reads a [route] of two 1x1 convolutions, reg_max logits for each of the
    distances to the left, top, right and bottom side, then a logit for each class. See utils.network.dfl."""

    kind: ClassVar[str] = "dfl"
    reg_max: int = 16

    @property
    def channels(self) -> int:
        return 4 * self.reg_max + self.classes

    def demand(self) -> str:
        what = f"has reg_max={self.reg_max} and classes={self.classes}"
        return f"{what}, so the map before it needs {self.channels} channels (4 * reg_max + classes)"

    def decoding(self) -> dict[str, Any]:
        return {"reg_max": self.reg_max, "classes": self.classes}


SECTIONS: dict[str, type[LayerDef]] = {
    c.kind: c
    for c in (Net, Convolutional, Depthwise, SqueezeExcite, BatchNorm, MaxPool, LocalAvgPool, AvgPool, Upsample, Route,
              Shortcut, ScaleChannels, Sam, Reorg, Reorg3d, Dropout, Yolo, Dfl)
}  # fmt: skip
# Darknet's short names.
SECTIONS |= {"network": Net, "conv": Convolutional, "max": MaxPool, "avg": AvgPool, "local_avg": LocalAvgPool}


@dataclass
class Defs:
    """A whole network: the [net] section and its layers, numbered from 0 as Darknet numbers them."""

    net: Net
    layers: list[LayerDef]
    name: str = field(default="cfg", compare=False)

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[LayerDef]:
        return iter(self.layers)

    def __getitem__(self, index: int) -> LayerDef:
        return self.layers[index]

    def sources(self, index: int) -> list[int]:
        """Absolute indices of the layers that layer `index` reads; -1 is the image."""
        return self.layers[index].sources(index)

    def where(self, index: int) -> str:
        """`file:line: layer 3 [route]`, the beginning of an error message."""
        layer = self.layers[index]
        return f"{self.name}:{layer.line}: layer {index} [{layer.kind}]"

    def head_indices(self) -> list[int]:
        """The layers that detect."""
        return [i for i, d in enumerate(self.layers) if isinstance(d, Head)]

    def yolo_indices(self) -> list[int]:
        """Those of them that have anchors."""
        return [i for i, d in enumerate(self.layers) if isinstance(d, Yolo)]

    def heads_named(self) -> str:
        """The kinds of the layers that detect, for messages: `[yolo]`; those that there are where it has none."""
        kinds = {self.layers[i].kind: None for i in self.head_indices()}
        return " and ".join(f"[{kind}]" for kind in kinds) or "[yolo] or [dfl]"

    def feeding(self, index: int) -> list[int]:
        """The convolutions whose maps head `index` reads, directly or joined by [route]s, in the order of the channels, so that
        the last one makes the classes; [] where anything else comes between, or several predictions are joined."""
        head = self.layers[index]
        found, waiting = [], [self.sources(index)[0]]
        while waiting:
            source = waiting.pop()
            d = self.layers[source] if source >= 0 else None
            if isinstance(d, Convolutional):
                found.append(source)
            elif isinstance(d, Route) and d.groups == 1:
                waiting += reversed(self.sources(source))
            else:
                return []
            if len(found) > head.channels:  # each has one at least; routes of routes would go on without end
                return []
        return found if len(found) == 1 or head.class_channels == 1 else []

    def class_convolutions(self) -> dict[int, int]:
        """{convolution: the head whose classes are its last filters}."""
        return {self.feeding(i)[-1]: i for i in self.head_indices() if self.feeding(i)}

    def joining(self) -> set[int]:
        """The [route]s that bring a head the maps of its convolutions, and that nothing else reads."""
        waiting = [self.sources(i)[0] for i in self.head_indices() if self.feeding(i)]
        found: set[int] = set()
        while waiting:
            index = waiting.pop()
            if isinstance(self.layers[index], Route) and index not in found:
                found.add(index)
                waiting += self.sources(index)
        readers = [s for i in range(len(self)) for s in self.sources(i)]
        return {index for index in found if readers.count(index) == 1}


def is_darknets(defs: Defs) -> bool:
    """Whether Darknet itself knows all kinds of layers, so that it can use the cfg and its .weights."""
    return not any(isinstance(d, Depthwise | SqueezeExcite | Dfl) for d in defs)


def absolute(reference: int, index: int) -> int:
    """Darknet's layer reference, seen from layer `index`: negative ones count back from it."""
    return reference + index if reference < 0 else reference
