"""The loss of anchor-free heads: classes, boxes and the distributions of their sides, for any number of [dfl] heads."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import complete_box_iou_loss

from utils.core.distributed import mean_over_processes
from utils.core.hyp import Hyp
from utils.detection.head_loss import HeadLoss, pixel_boxes
from utils.detection.task_aligned import Assignment, TaskAlignedAssigner
from utils.network.decode import to_corners
from utils.network.dfl import cell_centres, decode_sides, side_distances
from utils.network.heads import DflHead

SHORT = 0.01  # of the largest distance, so that there is a bin above it


class TaskAlignedLoss(HeadLoss):
    """Loss of [dfl] heads, raw maps (batch, 1, ny, nx, 4 * reg_max + classes), whose cells are taken together.

    cls: binary cross-entropy of all cells and classes with the labels of utils.detection.task_aligned, 0 where nothing was
    assigned; after `weigh_classes` the cells of a match count as much as hyp.cls_weights makes its class count. box: CIoU loss;
    dfl: see distribution_focal_loss; both of the assigned cells, weighted with their labels. All three are sums, divided by the
    sum of the labels (or 1, if that is less), and weighted by hyp.dfl_cls, hyp.dfl_box and hyp.dfl.

    With torch.distributed, the divisor is the mean of all processes', so that the mean of their losses (and gradients)
    equals one process's loss of the whole batch.
    """

    parts = ("box", "cls", "dfl")
    own_hyp = ("dfl_box", "dfl_cls", "dfl")
    heads: list[DflHead]

    def __init__(self, model: nn.Module, hyp: Hyp) -> None:
        super().__init__(model, hyp)
        self.assign = TaskAlignedAssigner()

    def weights(self, height: int, width: int) -> tuple[float, ...]:
        return self.hyp.dfl_box, self.hyp.dfl_cls, self.hyp.dfl

    def _parts(self, raws: list[Tensor], targets: Tensor, image_size: tuple[int, int]) -> Tensor:
        sides, logits = zip(*(self._split(h, r) for h, r in zip(self.heads, raws, strict=True)), strict=True)
        logits = torch.cat(logits, 1)
        strides = [image_size[0] / r.shape[2] for r in raws]
        cells = [cell_centres(*r.shape[2:4], r.device).flatten(0, 1) for r in raws]
        predicted = torch.cat([
            to_corners(decode_sides(side_distances(s, h.reg_max), c, stride))
            for h, s, c, stride in zip(self.heads, sides, cells, strides, strict=True)
        ], 1)  # fmt: skip
        images, labels, boxes = targets[:, 0].long(), targets[:, 1].long(), to_corners(pixel_boxes(targets, image_size))
        centres = torch.cat([c * stride for c, stride in zip(cells, strides, strict=True)])
        found = self.assign(images, labels, boxes, logits.detach(), predicted.detach(), centres)
        wanted, weight = boxes[found.target], found.score
        box = complete_box_iou_loss(predicted[found.where], wanted)
        dfl = self._side_loss(sides, found, wanted, cells, strides)
        parts = torch.stack(((box * weight).sum(), self._class_loss(logits, found, labels), (dfl * weight).sum()))
        return parts / mean_over_processes(weight.sum()).clamp(min=1)

    @staticmethod
    def _split(head: DflHead, raw: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, cells, 4 * reg_max) and (batch, cells, classes) of a raw map."""
        return raw.flatten(1, 3).split((4 * head.reg_max, head.classes), -1)

    def _class_loss(self, logits: Tensor, found: Assignment, labels: Tensor) -> Tensor:
        """Sum of the binary cross-entropies of logits (batch, cells, classes)."""
        labels = labels[found.target]
        wanted = torch.zeros_like(logits)
        wanted[found.where] = self._smoothed(F.one_hot(labels, logits.shape[-1]) * found.score[:, None])
        weight = None
        if self.class_weights is not None:
            weight = torch.ones_like(logits[..., :1])
            weight[found.where] = self.class_weights.to(logits)[labels, None]
        return F.binary_cross_entropy_with_logits(logits, wanted, weight, reduction="sum")

    def _side_loss(
        self, sides: tuple[Tensor, ...], found: Assignment, wanted: Tensor, cells: list[Tensor], strides: list[float]
    ) -> Tensor:
        """(pairs,) distribution_focal_loss of the sides that the assigned cells predict, mean over the four."""
        losses, first = wanted.new_zeros(len(wanted)), 0
        for head, logits, centres, stride in zip(self.heads, sides, cells, strides, strict=True):
            mine = (found.cell >= first) & (found.cell < first + len(centres))
            cell = found.cell[mine] - first
            corners = wanted[mine] / stride
            distances = torch.cat((centres[cell] - corners[:, :2], corners[:, 2:] - centres[cell]), 1)
            predicted = logits[found.image[mine], cell].unflatten(-1, (4, head.reg_max))
            losses[mine] = distribution_focal_loss(predicted, distances).mean(-1)
            first += len(centres)
        return losses


def distribution_focal_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """logits (..., reg_max), distances (...) in cells -> (...): cross-entropy with the two bins around the distance, weighted
    by how near they are: -(i + 1 - y) log p_i - (y - i) log p_(i+1) (Li et al. 2020, equation 6). Distances that the bins
    don't reach count as the last one."""
    y = distances.clamp(0, logits.shape[-1] - 1 - SHORT)
    lower = y.long()
    share = y - lower
    p = logits.log_softmax(-1)
    below, above = (p.gather(-1, (lower + k)[..., None])[..., 0] for k in (0, 1))
    return -(below * (1 - share) + above * share)
