"""One epoch of training."""

import contextlib
import math
import resource
import sys
import time
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from utils.core.distributed import mean_over_processes
from utils.data.batch import Batch, normalise
from utils.data.loader import Loader
from utils.training.run import DivergedError, Run

TEACHER_TIME = "kd_time"  # beside a distiller's terms: the share of the epoch that the teacher and they took


@dataclass
class EpochFigures:
    """Means over an epoch's batches of the loss and its parts, the last learning rate and the time it took.

    parts: of the detection loss; distillation: the terms of --KDstr and TEACHER_TIME, empty without a teacher; both by name,
    both in `total`.
    """

    parts: dict[str, float]
    total: float
    lr: float
    size: int
    seconds: float
    distillation: dict[str, float] = field(default_factory=dict)


def train_one_epoch(run: Run, loader: Loader) -> EpochFigures:
    """Train `run` on every batch of `loader` (training, see utils.data.datasets.create_loader) once; counts run.epoch up.

    Gradients are accumulated over run.accumulate batches; the epoch's last step takes the batches that are left, so that
    nothing is carried over into the next epoch. Raises UserError naming epoch and step when a loss is not finite.
    """
    begin = time.perf_counter()
    loader.dataset.set_epoch(run.epoch)
    loader.dataset.mosaic = run.uses_mosaic(run.epoch)
    run.model.train()
    run.start_epoch()
    totals, size = torch.zeros(len(part_names(run)), dtype=torch.float64), run.plan.img_size
    clock = run.distiller.clock if run.distiller else None
    taught = clock.seconds if clock else 0.0
    title = f"epoch {run.epoch + 1}/{run.plan.epochs}"
    bar = tqdm(loader, desc=title, unit="batch", disable=not run.world.is_main, dynamic_ncols=True)
    for number, batch in enumerate(bar):
        loss, parts, size = _forward(run, batch)
        parts = mean_over_processes(parts).double().cpu()
        _check_finite(run, number, parts)
        run.backward(loss)
        if (number + 1) % run.accumulate == 0 or number + 1 == len(loader):
            run.optimizer_step()
        totals += parts
        share = (clock.seconds - taught) / (time.perf_counter() - begin) if clock else 0.0
        bar.set_postfix_str(_postfix(run, totals / (number + 1), size, share), refresh=False)
    run.epoch += 1
    run.model.seen += run.plan.batch_size * len(loader)
    means = totals / max(len(loader), 1)
    seconds = time.perf_counter() - begin
    found = dict(zip(part_names(run), means.tolist(), strict=True))
    parts = {name: found.pop(name) for name in run.loss.parts}
    if clock:
        found[TEACHER_TIME] = (clock.seconds - taught) / seconds
    return EpochFigures(parts, sum(means.tolist()), run.schedule.rate(run.step - 1), size, seconds, found)


def part_names(run: Run) -> tuple[str, ...]:
    """What the loss is the sum of: the detection loss's parts and a distiller's terms."""
    return (*run.loss.parts, *(run.distiller.terms if run.distiller else ()))


def _forward(run: Run, batch: Batch) -> tuple[Tensor, Tensor, int]:
    """(loss, its parts as in part_names without gradient, long side of the input). The loss is computed in float32."""
    images = normalise(batch.images, run.device, run.dtype or torch.float32, run.plan.maxabs)
    size = tuple(images.shape[-2:])
    wanted = run.input_size(*size)
    if wanted != size:
        images = F.interpolate(images, size=wanted, mode="bilinear", align_corners=False)
    targets = batch.targets.to(run.device, non_blocking=True)
    with run.autocast(), run.distiller.watch(run.model) if run.distiller else contextlib.nullcontext():
        raws = run.forward(images)
    loss, parts = run.loss(raws, targets, wanted)
    if run.distiller:
        terms = run.distiller(images, raws, targets, run.loss, run.plan.maxabs)
        loss = loss + sum(terms.values())
        parts |= {name: term.detach() for name, term in terms.items()}
    return loss, torch.stack([parts[name] for name in part_names(run)]), max(wanted)


def _check_finite(run: Run, number: int, parts: Tensor) -> None:
    if not math.isfinite(parts.sum()):
        found = ", ".join(f"{name}={value:g}" for name, value in zip(part_names(run), parts.tolist(), strict=True))
        raise DivergedError(f"epoch {run.epoch + 1}, step {number + 1}: the loss is not finite ({found})")


def _postfix(run: Run, means: Tensor, size: int, teacher: float) -> str:
    names = (*part_names(run), "total")
    parts = "  ".join(f"{name} {value:.4f}" for name, value in zip(names, (*means, means.sum()), strict=True))
    share = f"  teacher {teacher:.0%}" if run.distiller else ""
    return f"{memory_gib(run.device):.1f}G  {parts}  lr {run.optimizer.param_groups[0]['lr']:.2g}  {size}px{share}"


def memory_gib(device: torch.device) -> float:
    """The most memory used so far, in GiB: of the GPU, or of this process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
