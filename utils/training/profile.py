"""benchmark.py --profile: where a training step's time goes, and how fast its convolutions could be alone.

Every operator that PyTorch calls is timed by itself: forward, backward, loss and optimizer. The backward pass of a convolution
is called as its two halves, the gradient of the maps that it read and that of its kernel, which oneDNN computes apart anyway.
One thread is timed by the CPU time of the process, to which what else runs on the machine adds next to nothing.
"""

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from utils.core.tables import format_table
from utils.training.run import Run

FORWARD, MAPS, KERNELS = PASSES = ("forward", "backward, maps", "backward, kernels")
LOSS, UPDATE, IMAGES, REST = "loss", "optimizer, clipping, average", "images to floats", "Python, autograd, memory"
WARM_UP, TRIES = 2, 3
NORMS = "batch normalisation"
ACTIVATIONS = "activations"
# What the name of an operator begins with -> the kind it counts as. Sums, products and joins of maps are OTHER, and so are
# activations that are composed of them, as mish in bfloat16 is.
KINDS = {
    "native_batch_norm": NORMS, "_native_batch_norm": NORMS,
    **dict.fromkeys(("leaky_relu", "relu", "hard", "silu", "mish", "sigmoid", "threshold", "elu", "tanh", "exp"), ACTIVATIONS),
    "max_pool2d": "pooling", "avg_pool2d": "pooling", "_to_copy": "copies from one type to another",
}  # fmt: skip
OTHER = "other work on maps"


@dataclass(frozen=True)
class Shapes:
    """A convolution: the sizes of what it reads (batch, channels, height, width), of its kernel and of its result, and the rest
    of its arguments. learns: whether what it reads needs a gradient."""

    source: tuple[int, ...]
    kernel: tuple[int, ...]
    result: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    learns: bool

    @property
    def kind(self) -> str:
        return "convolutions" if self.groups == 1 else "depthwise and grouped convolutions"

    @property
    def arguments(self) -> list[Any]:
        return [list(self.stride), list(self.padding), list(self.dilation), False, [0, 0], self.groups]


@dataclass
class StepProfile:
    """Seconds of a step, in whole and by kind; best: of the convolutions alone, by kind; products: of the matrix products that
    the ungrouped ones are."""

    whole: float
    kinds: dict[str, float]
    best: dict[str, float]
    products: float


class _Timer(TorchDispatchMode):
    """Adds up what each operator takes, as `stage` or what its name says, and notes each convolution."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self.clock, self.stage = clock, ""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.convolutions: Counter[Shapes] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            return self._backward(func, args)
        kind = self.stage or _kind(func, args)
        start = self.clock()
        result = func(*args, **(kwargs or {}))
        self.seconds[kind] += self.clock() - start
        return result

    def _backward(self, func: Any, args: Any) -> tuple[Tensor | None, ...]:
        """The gradients of what was read and of the kernel one after the other, each by itself."""
        *rest, mask = args
        gradient, source, kernel, _, stride, padding, dilation, _, _, groups, _ = args
        sizes = tuple(source.shape), tuple(kernel.shape), tuple(gradient.shape)
        shapes = Shapes(*sizes, tuple(stride), tuple(padding), tuple(dilation), groups, mask[0])
        self.convolutions[shapes] += 1
        results: list[Tensor | None] = [None, None, None]
        for name, halves in ((MAPS, [mask[0], False, False]), (KERNELS, [False, *mask[1:]])):
            if any(halves):
                start = self.clock()
                found = func(*rest, halves)
                self.seconds[f"{shapes.kind}, {name}"] += self.clock() - start
                results = [new if wanted else old for new, old, wanted in zip(found, results, halves, strict=True)]
        return tuple(results)


def _kind(func: Any, args: Any) -> str:
    name = func.name().removeprefix("aten::")
    if name.startswith("convolution"):
        kind = "convolutions" if args[8] == 1 else "depthwise and grouped convolutions"
        return f"{kind}, {FORWARD}"
    return next((kind for start, kind in KINDS.items() if name.startswith(start)), OTHER)


def profile_step(run: Run, images: Callable[[], Tensor], targets: Tensor, steps: int) -> StepProfile:
    """Where a step of `run` on the CPU spends its time, and how long what it computes takes alone.

    images: gives the batch's images as floats; targets: its boxes. Of `steps` whole steps the median counts, and of the
    operators of as many the mean.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    timer = _Timer(clock)
    for _ in range(WARM_UP):
        _step(run, images, targets, timer)
    whole = statistics.median(_seconds(lambda: _step(run, images, targets, timer), clock) for _ in range(steps))
    with timer:
        for _ in range(steps):
            _step(run, images, targets, timer)
    kinds = {kind: seconds / steps for kind, seconds in timer.seconds.items()}
    kinds[REST] = max(whole - sum(kinds.values()), 0.0)
    best: defaultdict[str, float] = defaultdict(float)
    products = 0.0
    for shapes, number in timer.convolutions.items():
        for name, seconds in alone(shapes, run.dtype, clock):
            best[f"{shapes.kind}, {name}"] += seconds * number / steps
        if shapes.groups == 1:
            products += _products(shapes, run.dtype or torch.float32, clock) * number / steps
    return StepProfile(whole, kinds, dict(best), products)


def _step(run: Run, images: Callable[[], Tensor], targets: Tensor, timer: _Timer) -> None:
    """What train.py does with a batch; the loss's own gradient counts as the loss."""
    timer.stage = IMAGES
    batch = images()
    timer.stage = ""
    with run.autocast():
        raws = run.forward(batch)
    timer.stage = LOSS
    leaves = [raw.detach().requires_grad_() for raw in raws]
    run.backward(run.loss(leaves, targets, (batch.shape[-2], batch.shape[-1]))[0])
    timer.stage = ""
    torch.autograd.backward(raws, [leaf.grad for leaf in leaves])
    timer.stage = UPDATE
    run.optimizer_step()


def alone(shapes: Shapes, dtype: torch.dtype | None, clock: Callable[[], float]) -> Iterator[tuple[str, float]]:
    """(pass, the least seconds of it alone), in the training's type or float32, by whichever is faster."""
    dtypes = {dtype or torch.float32, torch.float32}
    for name in PASSES if shapes.learns else (FORWARD, KERNELS):
        yield name, min(_least(_single(shapes, name, each), clock) for each in dtypes)


def _single(g: Shapes, name: str, dtype: torch.dtype) -> Callable[[], object]:
    source, kernel, gradient = (
        torch.randn(shape).to(dtype, memory_format=torch.channels_last) for shape in (g.source, g.kernel, g.result)
    )
    if name == FORWARD:
        return lambda: F.conv2d(source, kernel, None, g.stride, g.padding, g.dilation, g.groups)
    mask = [name == MAPS, name == KERNELS, False]
    return lambda: torch.ops.aten.convolution_backward(gradient, source, kernel, None, *g.arguments, mask)


def _products(g: Shapes, dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """Seconds of the matrix products that its passes are, without what unfolds windows into rows."""
    filters, columns = g.kernel[0], g.kernel[1] * g.kernel[2] * g.kernel[3]
    rows = g.result[0] * g.result[2] * g.result[3]
    sizes = (rows, columns), (columns, filters), (rows, filters)
    windows, kernel, results = (torch.randn(size).to(dtype) for size in sizes)
    products = [lambda: windows @ kernel, lambda: windows.T @ results]
    if g.learns:
        products.append(lambda: results @ kernel.T)
    return sum(_least(product, clock) for product in products)


def _least(call: Callable[[], object], clock: Callable[[], float]) -> float:
    call()
    return min(_seconds(call, clock) for _ in range(TRIES))


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def report_profile(profile: StepProfile, images: int) -> str:
    """The table: milliseconds an image of each kind, its share, and what its convolutions take alone."""
    unit = 1000 / images
    rows: list[list[Any]] = []
    for kind, seconds in sorted(profile.kinds.items(), key=lambda item: -item[1]):
        best = f"{profile.best[kind] * unit:.2f}" if kind in profile.best else None
        rows.append([kind, f"{seconds * unit:.2f}", f"{seconds / profile.whole:.1%}", best])
    bound = sum(profile.best.values())
    rows.append(["a whole step", f"{profile.whole * unit:.2f}", "100.0%", f"{bound * unit:.2f}"])
    table = format_table(["a training step", "ms an image", "share", "convolutions alone, ms"], rows)
    return f"{table}\nthe matrix products of its ungrouped convolutions: {profile.products * unit:.2f} ms an image"
