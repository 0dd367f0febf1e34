"""Distillation: a student learns from a trained teacher, usually the network that it was pruned from.

`load_teacher` reads and checks the teacher before training, `links` finds the feature maps that belong together, and a
`Distiller` adds the terms of a --KDstr (utils.distill_losses) to each batch's loss.
"""

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from utils import definitions as c
from utils.cli import Loaded, load_model
from utils.devices import PRECISIONS
from utils.distill_losses import KDSTR, Observed
from utils.distributed import mean_over_processes
from utils.errors import UserError
from utils.fields import Fields
from utils.filekinds import is_checkpoint
from utils.graph import ChannelGraph
from utils.origin import origin_of, surviving_ids
from utils.ranges import POSITIVE
from utils.restore import restore_module
from utils.shapes import output_shapes

if TYPE_CHECKING:
    from models import Darknet
    from utils.training import Run

COARSE = 8  # stride from which on backbone maps count: heads read no finer ones, and they would cost the most
FEATURES_ONLY = " and ".join(str(n) for n, strategy in KDSTR.items() if not strategy.outputs)
STRATEGIES = ", ".join(f"{n} {strategy.title}" for n, strategy in KDSTR.items())


def add_distillation_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--t_cfg", default="", help="teacher's .cfg; not needed with a .pt checkpoint, which carries its own")
    parser.add_argument("--t_weights", default="", help="teacher's .weights or .pt: distil from it")
    parser.add_argument("--KDstr", type=int, choices=list(KDSTR), help=f"what to distil: {STRATEGIES}")
    parser.add_argument("--kd-weight", type=POSITIVE, default=1.0, help="what the distillation terms are multiplied with")
    parser.add_argument("--kd-temperature", type=POSITIVE, help="of the softened distributions; default: 3, for --KDstr 6: 1")


def check_distillation_arguments(args: argparse.Namespace) -> None:
    """Raises UserError for arguments of add_distillation_arguments that don't make sense together."""
    if args.KDstr and not args.t_weights:
        raise UserError(f"--KDstr {args.KDstr} needs a trained teacher: --t_weights FILE.pt, or --t_cfg FILE --t_weights FILE")
    if args.t_weights and not args.KDstr:
        raise UserError(f"--t_weights needs --KDstr: {STRATEGIES}")
    if args.t_cfg and not args.t_weights:
        raise UserError(f"--t_cfg {args.t_cfg} needs the teacher's weights: --t_weights FILE")


@dataclass(frozen=True)
class Link:
    """Layer `student` of the student and layer `teacher` of the teacher, whose maps belong together.

    channels: which of the teacher's channels the student's are, None for all of them in order; adapted: neither is known,
    and the counts differ: (student's channels, teacher's channels).
    """

    student: int
    teacher: int
    channels: np.ndarray | None = None
    adapted: tuple[int, int] | None = None


@dataclass(frozen=True)
class Reading:
    """A place at which a feature map is read: layer `reader` reads the map of layer `source`, whose stride is `stride`."""

    reader: int
    source: int
    stride: int
    head: bool


def readings(defs: c.Defs, size: int) -> list[Reading]:
    """The maps before the heads (read by the convolution that feeds a [yolo]) and, before the first of those or the first
    upsampling, those that a layer of the backbone halves. size: side of the input, a multiple of the largest stride.
    """
    heights = [shape[1] for shape in output_shapes(defs, size, size)]
    neck = min(i for i, d in enumerate(defs) if isinstance(d, c.Upsample | c.Yolo))
    feeding = [defs.sources(i)[0] for i in defs.yolo_indices()]
    heads = [i for i in feeding if i >= 0 and isinstance(defs[i], c.Convolutional)]
    halving = [i for i, d in enumerate(defs) if i < neck and isinstance(d, c.Convolutional | c.MaxPool | c.Reorg)]
    found: dict[int, Reading] = {}
    for index in (*heads, *halving):
        source = defs.sources(index)[0]
        if source < 0 or source in found or not (index in heads or heights[index] < heights[source]):
            continue
        stride = size // heights[source]
        if index in heads or stride >= COARSE:
            found[source] = Reading(index, source, stride, index in heads)
    return list(found.values())


def links(student: c.Defs, teacher: c.Defs, size: int) -> list[Link]:
    """The maps that student and teacher have in common.

    A pruned student says in its cfg which layers and channels it kept (utils.origin): its map is what the teacher's same
    reader reads, so that dropped blocks don't matter. Otherwise maps of the same stride belong together.
    """
    kept = _surviving(student, teacher)
    if kept is not None:
        graph, keep = kept
        found = []
        for r in readings(student, size):
            reader = origin_of(student, r.reader)
            channels = np.flatnonzero(keep[graph.inputs(reader)])
            found.append(Link(r.source, teacher.sources(reader)[0], channels))
        return found
    theirs = {(r.head, r.stride): r.source for r in readings(teacher, size)}
    mine = {(r.head, r.stride): r.source for r in readings(student, size)}
    counts = [[shape[0] for shape in output_shapes(defs, size, size)] for defs in (student, teacher)]
    pairs = [(s, theirs[place]) for place, s in mine.items() if place in theirs]
    widths = [(counts[0][s], counts[1][t]) for s, t in pairs]
    return [Link(s, t, None, w if w[0] != w[1] else None) for (s, t), w in zip(pairs, widths, strict=True)]


def _surviving(student: c.Defs, teacher: c.Defs) -> tuple[ChannelGraph, np.ndarray] | None:
    """The teacher's graph and the ids that the student kept; None where the student wasn't pruned from this teacher."""
    origins = [origin_of(student, i) for i in range(len(student))]
    if any(o >= len(teacher) or type(teacher[o]) is not type(d) for o, d in zip(origins, student, strict=True)):
        return None
    graph = ChannelGraph(teacher)
    try:
        return graph, surviving_ids(graph, student)
    except UserError:
        return None


@dataclass
class Teacher:
    """A trained network. heads: for each head of the student the number of the teacher's; maxabs: whether
    it was trained on pictures in -1..1, None if it doesn't say; parameters: their number."""

    model: "Darknet"
    heads: list[int]
    links: list[Link]
    maxabs: bool | None
    parameters: int


def load_teacher(args: argparse.Namespace, student: "Darknet", gray: bool) -> Teacher:
    """The teacher of --t_cfg and --t_weights. gray: whether the student was asked to see one-channel pictures.

    Raises UserError, naming what differs and which strategies don't mind, where --KDstr can't be used with this student.
    """
    name = args.t_weights
    own = is_checkpoint(name)
    if not own and not args.t_cfg:
        raise UserError(f"{name}: the teacher's weights carry no cfg; name the one they belong to with --t_cfg")
    try:
        loaded = load_model(args.t_cfg, name, gray=gray and not own)
    except UserError as error:
        raise UserError(f"teacher: {str(error).replace('--cfg', '--t_cfg')}") from None
    model, strategy = loaded.model, KDSTR[args.KDstr]
    _check_inputs(student, loaded, name)
    size = 32 * student.max_stride
    shared = links(student.defs, model.defs, size)
    reason, heads = _match_heads(student, model, size)
    if strategy.outputs and reason:
        others = f"--KDstr {FEATURES_ONLY}, which compare feature maps only, can" if shared else "no other --KDstr can either"
        raise UserError(f"{name}: --KDstr {args.KDstr} compares outputs, but {reason}; {others}")
    if strategy.maps and not shared:
        others = "--KDstr 1, 2 and 3, which compare outputs only, can" if not reason else "no other --KDstr can either"
        raise UserError(f"{name}: --KDstr {args.KDstr} compares feature maps, but teacher and student have none of the same "
                        f"stride; {others}")  # fmt: skip
    parameters = sum(p.numel() for p in model.parameters())
    return Teacher(model, heads, shared if strategy.maps else [], loaded.settings.get("maxabs"), parameters)


def _check_inputs(student: "Darknet", teacher: Loaded, name: str) -> None:
    theirs, mine = teacher.model.defs.net.channels, student.defs.net.channels
    if theirs != mine:
        raise UserError(f"{name}: the teacher reads pictures of {theirs} channels, the student of {mine} (--gray-scale); "
                        "train one of them as the other")  # fmt: skip
    if student.max_stride % teacher.model.max_stride:
        raise UserError(f"{name}: the teacher needs pictures whose sides are multiples of {teacher.model.max_stride}, the "
                        f"student's are multiples of {student.max_stride}: they can't see the same ones")  # fmt: skip


def _match_heads(student: "Darknet", teacher: "Darknet", size: int) -> tuple[str, list[int]]:
    """("", number of the teacher's head for each of the student's), or (why they can't be compared, [])."""
    mine, theirs = _strides(student, size), _strides(teacher, size)
    if sorted(mine) != sorted(theirs):
        return f"the teacher has {_heads(theirs)}, the student {_heads(mine)}", []
    order = sorted(range(len(theirs)), key=theirs.__getitem__)
    heads = [0] * len(mine)
    for position, number in zip(sorted(range(len(mine)), key=mine.__getitem__), order, strict=True):
        heads[position] = number
    for head, number in zip(student.heads, heads, strict=True):
        other = teacher.heads[number]
        if head.classes != other.classes:
            return f"the teacher has {other.classes} classes, the student {head.classes}", []
        if head.new_coords != other.new_coords:
            return "only one of teacher and student has new_coords=1, which makes other outputs", []
        if head.anchors.shape != other.anchors.shape or not torch.allclose(head.anchors, other.anchors):
            return f"the anchors at stride {mine[student.heads.index(head)]} differ", []
    return "", heads


def _strides(model: "Darknet", size: int) -> list[int]:
    shapes = output_shapes(model.defs, size, size)
    return [size // shapes[i][1] for i in model.defs.yolo_indices()]


def _heads(strides: list[int]) -> str:
    return f"{len(strides)} head{'s' * (len(strides) > 1)} of stride {', '.join(map(str, sorted(strides)))}"


@contextlib.contextmanager
def listening(model: nn.Module, indices: list[int], maps: dict[int, Tensor]) -> Iterator[None]:
    """Inside the block every forward pass of the Darknet leaves the maps of the layers `indices` in `maps`.

    The hooks go when the block ends: copies of the model, for averaging or evaluation, must not have them.
    """
    modules = {i: model.module_list[i] for i in set(indices)}
    handles = [m.register_forward_hook(lambda _, __, out, i=i: maps.__setitem__(i, out)) for i, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Clock:
    """Sums up the seconds of its `running` blocks, on CUDA those of the work that they queue, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self.cuda, self._seconds = device.type == "cuda", 0.0
        self._pending: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        begin = time.perf_counter()
        events = tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) if self.cuda else ()
        if events:
            events[0].record()
        yield
        if events:
            events[1].record()
            self._pending.append(events)
        else:
            self._seconds += time.perf_counter() - begin

    @property
    def seconds(self) -> float:
        while self._pending and self._pending[0][1].query():
            begin, end = self._pending.pop(0)
            self._seconds += begin.elapsed_time(end) / 1000
        return self._seconds


class Distiller:
    """The teacher at work: `watch` a forward pass of the student, then call for the terms that its loss gains.

    `adapters` are 1x1 convolutions from the student's channels to the teacher's where neither the student's cfg nor equal
    counts tell which channels belong together. They learn with the student, and only a resumed run needs them.
    clock: seconds spent on the teacher and the terms. dtype: what the student's autocast computes in, None for float32; the
    teacher, as for inference, in the same.
    """

    def __init__(self, teacher: Teacher, number: int, weight: float, temperature: float | None, device: torch.device,
                 seed: int = 0, dtype: torch.dtype | None = None) -> None:  # fmt: skip
        self.strategy, self.weight = KDSTR[number], weight
        self.temperature = temperature or self.strategy.temperature
        self.heads, self.links, self.maxabs, self._parameters = teacher.heads, teacher.links, teacher.maxabs, teacher.parameters
        self.teacher = teacher.model.inference_copy(device, _precision(teacher.model, dtype))
        self.adapters = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the same in all processes
            for link in self.links if self.strategy.paired else ():
                if link.adapted:
                    self.adapters[str(link.student)] = nn.Conv2d(*link.adapted, 1, bias=False)
        self.adapters.to(device)
        self._channels = [_picked(link, device) for link in self.links]
        self._maps: dict[int, Tensor] = {}
        self.clock = Clock(device)

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms, columns of results.txt."""
        return self.strategy.terms

    def parameters(self) -> list[nn.Parameter]:
        """What learns besides the student."""
        return list(self.adapters.parameters())

    def watch(self, student: nn.Module) -> contextlib.AbstractContextManager:
        """Remember the student's maps of the forward pass inside the block."""
        return listening(student, [link.student for link in self.links], self._maps)

    def __call__(self, run: "Run", images: Tensor, raws: list[Tensor], targets: Tensor) -> dict[str, Tensor]:
        """The terms for a batch that the student has just seen in `watch`; images (batch, channels, height, width), raws: the
        student's raw maps, targets (n, 6) as for the detection loss. Their sum belongs to the loss."""
        with self.clock.running():
            theirs: dict[int, Tensor] = {}
            with torch.no_grad(), listening(self.teacher, [link.teacher for link in self.links], theirs):
                outputs = self.teacher(self._as_trained(images, run.plan.maxabs).to(self.teacher.dtype))[1]
            size = tuple(images.shape[-2:])
            with torch.autocast(images.device.type, enabled=False):
                observed = Observed(
                    heads=run.loss.heads, student=[r.float() for r in raws], teacher=[outputs[i].float() for i in self.heads],
                    maps=self._pairs(theirs), targets=targets.to(images.device).float(), image_size=size,
                    weights=run.loss.weights(*size), temperature=self.temperature, assign=run.loss.assign,
                )  # fmt: skip
                terms = {name: term * self.weight for name, term in self.strategy(observed).items()}
        self._maps.clear()
        return terms

    def _as_trained(self, images: Tensor, maxabs: bool) -> Tensor:
        """Pictures in the range that the teacher was trained on."""
        if self.maxabs is None or self.maxabs == maxabs:
            return images
        return images * 2 - 1 if self.maxabs else (images + 1) / 2

    def _pairs(self, theirs: dict[int, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """(student's map, teacher's map) of each link; where channels are compared one by one, the same channels."""
        pairs = []
        for link, channels in zip(self.links, self._channels, strict=True):
            mine, other = self._maps[link.student], theirs[link.teacher]
            if self.strategy.paired:
                other = other if channels is None else other.index_select(1, channels)
                mine = self.adapters[str(link.student)](mine.float()) if link.adapted else mine
            pairs.append((mine, other))
        return pairs

    def average_gradients(self) -> None:
        """Give the adapters, which no wrapper knows, the mean of all processes' gradients."""
        for parameter in self.parameters():
            if parameter.grad is not None:
                mean_over_processes(parameter.grad)

    def state(self) -> dict[str, Any]:
        return {"adapters": self.adapters.state_dict()}

    def restore(self, state: Fields) -> None:
        """Go on from what `state` gave; UserError where the adapters are others."""
        restore_module(self.adapters, state.tensors("adapters"), f"{state.origin}: {state.where}adapters")

    def describe(self, say: Callable[[str], None]) -> None:
        """Say who teaches what."""
        pairs = ", ".join(f"{link.student}<-{link.teacher}" for link in self.links)
        maps = f"; maps of layers (student<-teacher) {pairs}" if pairs else ""
        say(f"teacher {self.teacher.defs.name}: {self._parameters:,} parameters; {self.strategy.title}{maps}")
        if self.adapters:
            say(f"the student's cfg doesn't tell which of the teacher's channels it kept: {len(self.adapters)} maps are "
                "compared through 1x1 convolutions that are trained along")  # fmt: skip


def _precision(teacher: "Darknet", dtype: torch.dtype | None) -> str:
    if teacher.quantization:  # its integers are exact in nothing else
        return "fp32"
    return next(name for name, known in PRECISIONS.items() if known is (dtype or torch.float32))


def _picked(link: Link, device: torch.device) -> Tensor | None:
    return None if link.channels is None else torch.from_numpy(link.channels).to(device)
