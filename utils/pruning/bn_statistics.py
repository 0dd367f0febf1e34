"""Batch-normalisation statistics measured again: what a pruned network needs before anything is trained.

Removing channels changes what the next layers see; their running means and variances are those of the network before.
One pass over training images measures them again (Li et al. 2020, EagleEye).
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from utils.core.errors import UserError
from utils.data.batch import Batch, normalise
from utils.network.darknet import Darknet


class _OnlyNorms(nn.Module):
    """A network of which `train` reaches the batch normalisations alone: nothing drops out, heads decode as in eval mode."""

    def __init__(self, network: Darknet) -> None:
        super().__init__()
        self.network = network

    def train(self, mode: bool = True) -> "_OnlyNorms":
        super().train(False)
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train(mode)
        return self

    def forward(self, images: Tensor) -> object:
        return self.network(images)


def recalibrate(model: Darknet, batches: Iterable[Batch], device: torch.device, maxabs: bool = False) -> int:
    """Replace, in place, all running means and variances by their averages over `batches`; returns the number of images.

    Each batch counts the same. Weights and everything that isn't a batch normalisation stay as they are. Raises UserError when
    no batch has two images or more.
    """
    counts: list[int] = []

    def inputs() -> Iterator[Tensor]:
        for batch in tqdm(batches, desc="batch normalisation", unit="batch", leave=False):
            if len(batch.images) > 1:  # a 1x1 map of a single image has no variance
                counts.append(len(batch.images))
                yield normalise(batch.images, device, maxabs=maxabs)

    home, training = next(model.parameters()).device, model.training
    update_bn(inputs(), _OnlyNorms(model.to(device)).eval())
    if not counts:
        raise UserError("--bn-recal: statistics need batches of at least 2 images; raise --bn-recal or --batch-size")
    model.to(home).train(training)
    return sum(counts)
