"""Distillation: a student learns from a trained teacher, usually the network that it was pruned from.

`load_teacher` reads and checks the teacher before training, `links` finds the feature maps that belong together, and a
`Distiller` adds the terms of a --KDstr (utils.distillation.losses) to each batch's loss.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from utils.core.devices import PRECISIONS
from utils.core.distributed import mean_over_processes
from utils.core.errors import UserError
from utils.core.fields import Fields
from utils.core.restore import restore_module
from utils.detection.head_loss import HeadLoss
from utils.distillation.links import Link
from utils.distillation.losses import KDSTR, Observed
from utils.distillation.teacher import DistillationOptions, Teacher
from utils.network.darknet import Darknet

KD_CHOICES = ", ".join(f"{n} {strategy.title}" for n, strategy in KDSTR.items())


def check_distillation(options: DistillationOptions) -> None:
    """Raises UserError for options that don't make sense together."""
    if options.KDstr and not options.t_weights:
        raise UserError(
            f"--KDstr {options.KDstr} needs a trained teacher: --t_weights FILE.pt, or --t_cfg FILE --t_weights FILE"
        )
    if options.t_weights and not options.KDstr:
        raise UserError(f"--t_weights needs --KDstr: {KD_CHOICES}")
    if options.kd_small != 1 and not (options.KDstr and KDSTR[options.KDstr].sized):
        numbers = " or ".join(str(n) for n, strategy in KDSTR.items() if strategy.sized)
        raise UserError(f"--kd-small {options.kd_small:g} weighs the positions of feature maps for --KDstr {numbers}; "
                        f"add that, or leave out --kd-small")  # fmt: skip
    if options.t_cfg and not options.t_weights:
        raise UserError(f"--t_cfg {options.t_cfg} needs the teacher's weights: --t_weights FILE")


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
                 seed: int = 0, dtype: torch.dtype | None = None, small: float = 1.0) -> None:  # fmt: skip
        self.strategy, self.weight, self.small = KDSTR[number], weight, small
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

    @classmethod
    def of(
        cls, options: DistillationOptions, teacher: Teacher, device: torch.device, seed: int, dtype: torch.dtype | None
    ) -> "Distiller":
        """As a command line asks for it."""
        return cls(teacher, options.KDstr, options.kd_weight, options.kd_temperature, device, seed, dtype, options.kd_small)

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

    def __call__(
        self, images: Tensor, raws: list[Tensor], targets: Tensor, loss: HeadLoss, maxabs: bool = False
    ) -> dict[str, Tensor]:
        """The terms for a batch that the student has just seen in `watch`; their sum belongs to the loss.

        images (batch, channels, height, width), with `maxabs` in -1..1; raws: the student's raw maps; targets (n, 6) as for
        the detection loss of the student, `loss`.
        """
        with self.clock.running():
            theirs: dict[int, Tensor] = {}
            with torch.no_grad(), listening(self.teacher, [link.teacher for link in self.links], theirs):
                outputs = self.teacher(self._as_trained(images, maxabs).to(self.teacher.dtype))[1]
            size = tuple(images.shape[-2:])
            with torch.autocast(images.device.type, enabled=False):
                observed = Observed(
                    heads=loss.heads, student=[r.float() for r in raws], teacher=[outputs[i].float() for i in self.heads],
                    maps=self._pairs(theirs), targets=targets.to(images.device).float(), image_size=size,
                    weights=dict(zip(loss.parts, loss.weights(*size), strict=True)),
                    temperature=self.temperature, assign=loss.assign, small=self.small,
                )  # fmt: skip
                terms = {name: term * self.weight for name, term in self.strategy(observed).items()}
        self._maps.clear()
        return terms

    def _as_trained(self, images: Tensor, maxabs: bool) -> Tensor:
        """Images in the range that the teacher was trained on."""
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


def _precision(teacher: Darknet, dtype: torch.dtype | None) -> str:
    if teacher.quantization:  # its integers are exact in nothing else
        return "fp32"
    return next(name for name, known in PRECISIONS.items() if known is (dtype or torch.float32))


def _picked(link: Link, device: torch.device) -> Tensor | None:
    return None if link.channels is None else torch.from_numpy(link.channels).to(device)
