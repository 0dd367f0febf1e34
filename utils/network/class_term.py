"""The class probability of networks with one class, and checkpoints that were written before it was trained.

A score is objectness times class probability, also where there is one class; Darknet trains both. Earlier versions of
train.py left the class term out for one class, so that in their checkpoints its logit is what initialisation, and the maps of
a network that never looked at it, make of it: noise in every score.
"""

from collections.abc import Collection

import torch

from utils.network.checkpoint import Checkpoint
from utils.network.darknet import Darknet

CLASS_TERM = "class_term"  # field of a checkpoint: True where the class term was trained for one class as for many
TRAINED_WITH = frozenset({"img_size", "gray", "maxabs", "stretch"})  # settings that train.py alone writes all of
CERTAIN = 17.0  # a logit whose sigmoid is 1 in float32
CLASS = 5  # first filter of an anchor's classes


def is_untrained(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint was trained here before one class had a class term, or made of one that was (PTQ.py, convert.py):
    those keep its settings, which weights that come from Darknet don't have."""
    return not checkpoint.class_term and checkpoint.settings.keys() >= TRAINED_WITH


@torch.no_grad()
def mend_class_term(model: Darknet, checkpoint: Checkpoint, anew: Collection[int] = ()) -> str:
    """Give the one class that nothing trained the probability 1, in the weights, so that a .weights file written from them is
    right in Darknet too. anew: head convolutions that the checkpoint's values didn't go into.

    Returns a line that says so, "" where there was nothing to mend.
    """
    anchored = model.defs.yolo_indices()  # the others have no objectness that could do without
    heads = [(s, i) for s, i in model.head_convolutions() if i in anchored and model.defs[i].classes == 1 and s not in anew]
    if not heads or not is_untrained(checkpoint):
        return ""
    for source, index in heads:
        _make_certain(model, source, len(model.module_list[index].anchors))
    return ("the probability of the one class was never trained in these weights, as in all that earlier versions trained; "
            "it is 1 now, so that a score is the objectness")  # fmt: skip


def _make_certain(model: Darknet, source: int, anchors: int) -> None:
    """Make the logit of the class of each anchor CERTAIN, whatever the image."""
    module = model.module_list[source]
    normalisation = module.BatchNorm2d
    offset = module.conv.bias if normalisation is None else normalisation.bias
    filters = torch.arange(len(offset)).view(anchors, -1)[:, CLASS].to(offset.device)
    offset[filters] = CERTAIN
    module.conv.weight[filters] = 0
    if normalisation is not None:
        normalisation.weight[filters] = 0
    if model.quantization:
        module.grid.high.clamp_(min=CERTAIN)  # of the 16-bit map that decoding reads; NaN, where it doesn't round, stays
