"""Which loss a network's heads learn by."""

from torch import nn

from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.detection.dfl_loss import TaskAlignedLoss
from utils.detection.head_loss import HeadLoss
from utils.detection.loss import ANCHOR, DEFAULT, DetectionLoss

# kind of a head's section -> its loss
LOSSES: dict[str, type[HeadLoss]] = {"yolo": DetectionLoss, "dfl": TaskAlignedLoss}


def build_loss(model: nn.Module, hyp: Hyp, assign: str = DEFAULT) -> HeadLoss:
    """The loss of a Darknet's heads; assign: one of utils.detection.loss.ASSIGNMENTS.

    Raises UserError for a network whose heads are of several kinds, or that has none, and for anchors where heads have none.
    """
    kinds = {head.definition.kind for head in model.heads}
    if len(kinds) != 1:
        found = f"both {model.defs.heads_named()}" if kinds else f"no {model.defs.heads_named()}"
        raise UserError(f"{model.defs.name}: has {found} layers; training needs heads of one kind, as each has its own loss")
    kind = LOSSES[kinds.pop()]
    if kind is DetectionLoss:
        return DetectionLoss(model, hyp, assign)
    if assign == ANCHOR:
        raise UserError(
            f"--assign {assign}: {model.defs.heads_named()} layers of {model.defs.name} have no anchors; leave it out"
        )
    return kind(model, hyp)
