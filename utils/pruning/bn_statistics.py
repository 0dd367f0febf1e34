"""Batch-normalisation statistics measured again: what a pruned network needs before anything is trained.

Removing channels changes what the next layers see; their running means and variances are those of the network before.
One pass over training pictures measures them again (Li et al. 2020, EagleEye).
"""

from collections.abc import Iterable

import torch
from torch import nn
from tqdm import tqdm

from utils.core.errors import UserError
from utils.data.batch import Batch, normalise
from utils.network.darknet import Darknet


@torch.no_grad()
def recalibrate(model: Darknet, batches: Iterable[Batch], device: torch.device, maxabs: bool = False) -> int:
    """Replace, in place, all running means and variances by their averages over `batches`; returns the number of pictures.

    Each batch counts the same (momentum None). Weights and everything that isn't a batch normalisation stay as they are.
    Raises UserError when no batch has two pictures or more.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta, images = [m.momentum for m in norms], 0
    home, training = next(model.parameters()).device, model.training
    model.to(device).eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for batch in tqdm(batches, desc="batch normalisation", unit="batch", leave=False):
        if len(batch.images) > 1:  # a 1x1 map of a single picture has no variance
            model(normalise(batch.images, device, maxabs=maxabs))
            images += len(batch.images)
    if not images:
        raise UserError("--bn-recal: statistics need batches of at least 2 pictures; raise --bn-recal or --batch-size")
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.to(home).train(training)
    return images
