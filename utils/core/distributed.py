"""Several training processes as one: start and end, and what has to be the same in all of them.

`torchrun --nproc_per_node 2 train.py ...` starts the processes and tells each its place through the environment.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.core.devices import select_device
from utils.core.errors import UserError
from utils.core.torchrun import several, wait_for_all

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process's place among `size` processes; the one of rank 0 writes files and talks."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0


@contextmanager
def joined(device_name: str) -> Iterator[tuple[World, torch.device]]:
    """Join the processes that torchrun started, if it did, and leave them when the block ends.

    Yields this process's place and its device: with several processes each takes the GPU of its local rank.
    Processes talk through nccl on CUDA and gloo on the CPU. Raises UserError where another has ended in the meantime; one that
    fails leaves with its links open, or the others would fail before it has said why.
    """
    device = select_device(device_name)
    if not several():
        yield World(), device
        return
    if device.type == "cuda":
        device = select_device(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(device)
    with _explained_links():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        wait_for_all()
        yield World(dist.get_rank(), dist.get_world_size()), device
        dist.destroy_process_group()


@contextmanager
def _explained_links() -> Iterator[None]:
    """Make a UserError of a link to another process that broke."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        text = str(error).splitlines()[0][:100]
        raise UserError(
            f"another of the processes that train together has ended: see what torchrun says of it ({text})"
        ) from None


def in_group() -> bool:
    """Whether this process has joined others."""
    return dist.is_available() and dist.is_initialized()


def mean_over_processes(tensor: Tensor) -> Tensor:
    """The mean of all processes' tensors, in place; without processes, the tensor as it is."""
    if in_group():
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return tensor


def of_first_process(make: Callable[[], T]) -> T:
    """What `make` returns in the process of rank 0, for all processes, however long it takes."""
    if not in_group():
        return make()
    found = [make() if dist.get_rank() == 0 else None]
    if several():
        wait_for_all()  # a collective would be given up after minutes
    dist.broadcast_object_list(found)
    return found[0]


def mean_with_gradient(tensor: Tensor) -> Tensor:
    """The mean of all processes' tensors, differentiable: each process's gradient reaches the tensors of all."""
    return _ProcessMean.apply(tensor)


def parallel(model: nn.Module, device: torch.device, world: World) -> nn.Module:
    """What to call for a forward pass: the model, or its wrapper that averages the gradients of all processes.

    With several processes the model's batch normalisations are converted, to SyncBatchNorm2d on CUDA and to
    ProcessGroupBatchNorm2d on the CPU: at the same total batch they then see what one process would.
    """
    if world.size == 1:
        return model
    normalise_together(model, device)
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids)


def normalise_together(model: nn.Module, device: torch.device) -> None:
    """Put batch normalisations over all processes' batches in the place of those of `model`, whose parameters and statistics
    they take over. State dicts stay the same.

    nn.SyncBatchNorm.convert_sync_batchnorm would make nn.SyncBatchNorm, which is no nn.BatchNorm2d any more.
    """
    kind = SyncBatchNorm2d if device.type == "cuda" else ProcessGroupBatchNorm2d
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, _as(kind, child))


def _as(kind: type[nn.BatchNorm2d], norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Another kind of batch normalisation that holds the very tensors of `norm`."""
    made = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    for name, tensor in (*norm.named_parameters(), *norm.named_buffers()):
        setattr(made, name, tensor)
    return made.train(norm.training)


class SyncBatchNorm2d(nn.SyncBatchNorm, nn.BatchNorm2d):
    """nn.SyncBatchNorm over all processes, which still counts as the nn.BatchNorm2d that it was made of."""


class ProcessGroupBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes together where nn.SyncBatchNorm, which needs CUDA, can't be used.

    Every process must have as many values a channel as the others. State dict and evaluation are nn.BatchNorm2d's.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x.float()
        mean = _ProcessMean.apply(values.mean((0, 2, 3)))
        # from the common mean, not as E[x^2] - E[x]^2, which cancels where the mean is large
        variance = _ProcessMean.apply((values - mean[:, None, None]).square().mean((0, 2, 3)))
        self._track(mean.detach(), variance.detach(), x.numel() // x.shape[1] * dist.get_world_size())
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, None, None], values, scale[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)


class _ProcessMean(torch.autograd.Function):
    """Mean over processes; each one's gradient is the mean of what all of them want of the result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return mean_over_processes(x.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return mean_over_processes(gradient.clone())
