"""The detection loss: boxes, objectness and classes, for any number of [yolo] heads."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou, complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from utils.core.distributed import mean_over_processes
from utils.core.hyp import Hyp
from utils.detection.boxes import paired_iou
from utils.detection.head_loss import HeadLoss, pixel_boxes
from utils.network.decode import decode_boxes, decode_map, to_corners
from utils.network.heads import YoloHead

LOGIT_EPS = 1e-6  # probabilities that a new_coords head gives are kept this far from 0 and 1


@dataclass
class HeadGrid:
    """A head as the assignment sees it: its anchors (anchors, 2) in pixels, its cells, and how far a cell can reach.

    reach: share of a cell by which a centre may leave the cell that predicts it, (scale_x_y - 1) / 2.
    """

    anchors: Tensor
    stride: float
    rows: int
    columns: int
    reach: float


@dataclass
class Matches:
    """Which predictions of one head learn which targets, n pairs: indices (n,) of the target, the image, the anchor,
    the row and the column."""

    target: Tensor
    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor

    @property
    def where(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Index of the pairs' predictions in a raw map."""
        return self.image, self.anchor, self.row, self.column


class RatioAssigner:
    """A target belongs to those anchors, of all heads, whose width and height differ from its own by less than the factor
    `anchor_t`, to the `most` most similar ones of them (0: to all), and to the most similar anchor if there is none. The
    cell that holds its centre predicts it, and those neighbours whose decoded centres can reach it (none where scale_x_y
    is 1).
    """

    def __init__(self, anchor_t: float = Hyp.anchor_t, most: int = Hyp.most_anchors) -> None:
        self.anchor_t, self.most = anchor_t, most

    def __call__(self, images: Tensor, boxes: Tensor, grids: list[HeadGrid]) -> list[Matches]:
        """images (n,): each target's image; boxes (n, 4): cx cy w h in pixels. Returns the matches of each grid."""
        anchors = torch.cat([g.anchors for g in grids])
        ratio = boxes[:, None, 2:] / anchors
        ratio = torch.maximum(ratio, 1 / ratio).amax(-1)  # (n, all anchors)
        most_similar = ratio.argsort(dim=1, stable=True)[:, : self.most or len(anchors)]
        chosen = torch.zeros_like(ratio, dtype=torch.bool).scatter(1, most_similar, True) & (ratio < self.anchor_t)
        nearest = F.one_hot(ratio.argmin(1), len(anchors)).bool() if len(boxes) else chosen
        chosen |= nearest & ~chosen.any(1, keepdim=True)
        parts = chosen.split([len(g.anchors) for g in grids], 1)
        return [_cells(images, boxes, part, grid) for part, grid in zip(parts, grids, strict=True)]


def _cells(images: Tensor, boxes: Tensor, chosen: Tensor, grid: HeadGrid) -> Matches:
    """The cells of one grid that predict each (target, anchor) pair set in `chosen` (targets, anchors)."""
    target, anchor = chosen.nonzero(as_tuple=True)
    centre = boxes[target, :2] / grid.stride
    cell = centre.floor()
    inside = centre - cell
    steps = centre.new_tensor([[0, 0], [-1, 0], [0, -1], [1, 0], [0, 1]])
    reached = torch.cat((inside < grid.reach, inside > 1 - grid.reach), 1)  # left, upper, right, lower neighbour
    limit = centre.new_tensor([grid.columns - 1, grid.rows - 1])
    cell = cell.clamp_(min=torch.zeros_like(limit), max=limit)  # a centre on the right or lower edge of the image
    candidates = cell + steps[:, None]  # (5, pairs, 2)
    valid = torch.cat((torch.ones_like(reached[:, :1]), reached), 1).T & ((candidates >= 0) & (candidates <= limit)).all(-1)
    step, pair = valid.nonzero(as_tuple=True)
    column, row = candidates[step, pair].long().unbind(-1)
    target = target[pair]
    return Matches(target, images[target], anchor[pair], row, column)


# iou_loss of a [yolo] section -> loss of paired boxes. `mse`, Darknet's default, regresses coordinates one by one; CIoU
# does the same job better (Zheng et al. 2020) and isn't a property of the trained network, so it stands in for it.
BOX_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": complete_box_iou_loss,
    "iou": lambda a, b: 1 - paired_iou(a, b),
    "giou": generalized_box_iou_loss,
    "diou": distance_box_iou_loss,
    "ciou": complete_box_iou_loss,
}


class DetectionLoss(HeadLoss):
    """Loss of [yolo] heads, raw maps (batch, anchors, ny, nx, 5 + classes).

    box: the head's iou_loss, mean over its matches. obj: binary cross-entropy with the matched box's IoU as the label
    (0 elsewhere), mean over the map, a head's share falling with the square of its stride as its number of cells does;
    a prediction that overlaps a target by more than the cfg's ignore_thresh without being matched isn't pushed to 0, as
    in Darknet (`ignore=False` pushes it). cls: binary cross-entropy, mean over matches and classes; after
    `weigh_classes` a match counts as much as hyp.cls_weights makes its class count.
    Parts are summed over heads and weighted by hyp.box, hyp.obj, hyp.cls, kept independent of heads, classes and size.

    With torch.distributed, matches are averaged over all processes' counts: the mean of the processes' losses (so of
    their gradients) equals one process's loss of the whole batch.
    """

    parts = ("box", "obj", "cls")
    own_hyp = ("box", "obj", "cls", "anchor_t")
    heads: list[YoloHead]

    def __init__(self, model: nn.Module, hyp: Hyp, ignore: bool = True) -> None:
        super().__init__(model, hyp)
        self.ignore = ignore
        self.assign = RatioAssigner(hyp.anchor_t, hyp.most_anchors)
        self.box_losses = [BOX_LOSSES.get(h.definition.iou_loss, complete_box_iou_loss) for h in self.heads]

    def _parts(self, raws: list[Tensor], targets: Tensor, image_size: tuple[int, int]) -> Tensor:
        height, _ = image_size
        grids = [
            HeadGrid(h.anchors.to(r.device), height / r.shape[2], r.shape[2], r.shape[3], (h.scale_x_y - 1) / 2)
            for h, r in zip(self.heads, raws, strict=True)
        ]
        images, labels = targets[:, 0].long(), targets[:, 1].long()
        boxes = pixel_boxes(targets, image_size)
        matches = self.assign(images, boxes, grids)
        counts = mean_over_processes(raws[0].new_tensor([len(m.image) for m in matches]))
        counts = counts.clamp(min=1e-3)  # 0 only where the sums they divide are 0 too
        finest = min(g.stride for g in grids)
        parts = raws[0].new_zeros(3)
        for i, (head, raw, grid) in enumerate(zip(self.heads, raws, grids, strict=True)):
            box, obj, cls = self._head_loss(i, raw, grid, matches[i], images, boxes, labels)
            balance = 4 * (finest / grid.stride) ** 2
            parts = parts + torch.stack((box / counts[i], obj * balance, cls / (counts[i] * head.classes)))
        return parts

    def weights(self, height: int, width: int) -> tuple[float, float, float]:
        """The hyper-parameters hold for three heads, 80 classes and 640 pixels.

        The class part grows with the square root of the number of classes: in proportion to it, as for the sum over
        classes, few classes would hardly be learned in short trainings (EXPERIMENTS.md).
        """
        heads = 3 / len(self.heads)
        classes = math.sqrt(max(h.classes for h in self.heads) / 80)
        return self.hyp.box * heads, self.hyp.obj * heads * height * width / 640**2, self.hyp.cls * heads * classes

    def _head_loss(
        self, index: int, raw: Tensor, grid: HeadGrid, matches: Matches, images: Tensor, boxes: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(box loss summed over matches, objectness loss averaged over the map, class loss summed over matches)."""
        head = self.heads[index]
        scores = torch.logit(raw[..., 4:], LOGIT_EPS) if head.new_coords else raw[..., 4:]
        predicted, wanted = to_corners(self._matched_boxes(head, raw, grid, matches)), to_corners(boxes[matches.target])
        objectness = torch.zeros_like(scores[..., 0])
        overlap = paired_iou(predicted.detach(), wanted)
        flat = _flat_index(matches, objectness.shape)
        objectness.view(-1).scatter_reduce_(0, flat, overlap, "amax")  # where two targets meet, the better fit counts
        obj = F.binary_cross_entropy_with_logits(scores[..., 0], objectness, reduction="none")
        if self.ignore and head.definition.ignore_thresh < 1:
            ignored = self._overlapping(head, raw.detach(), grid, images, boxes)
            ignored.view(-1)[flat] = False
            obj = obj.masked_fill(ignored, 0.0)
        box = self.box_losses[index](predicted, wanted).sum()
        return box, obj.mean(), self._class_loss(scores[..., 1:][matches.where], labels[matches.target])

    def _matched_boxes(self, head: YoloHead, raw: Tensor, grid: HeadGrid, m: Matches) -> Tensor:
        cells = torch.stack((m.column, m.row), 1)
        return decode_boxes(
            raw[m.where], cells, grid.anchors[m.anchor], grid.stride, head.scale_x_y, head.new_coords, bounded=True
        )

    def _class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """logits (n, classes), labels (n,) -> sum of binary cross-entropies. One class is no exception, as in Darknet: scores
        are objectness times class probability, so a probability that nothing trains would make noise of them."""
        classes = logits.shape[1]
        wanted = self._smoothed(F.one_hot(labels, classes).to(logits))
        weight = None if self.class_weights is None else self.class_weights.to(logits)[labels, None]
        return F.binary_cross_entropy_with_logits(logits, wanted, weight, reduction="sum")

    @torch.no_grad()
    def _overlapping(self, head: YoloHead, raw: Tensor, grid: HeadGrid, images: Tensor, boxes: Tensor) -> Tensor:
        """(batch, anchors, ny, nx): whether a prediction overlaps a target of its image by more than ignore_thresh."""
        predicted = to_corners(decode_map(raw, grid.anchors, grid.stride, head.scale_x_y, head.new_coords)).flatten(1, 3)
        corners = to_corners(boxes)
        overlapping = torch.zeros(predicted.shape[:2], dtype=torch.bool, device=raw.device)
        for picture in images.unique().tolist():  # a loop over images keeps the pairs' matrix small
            ious = box_iou(predicted[picture], corners[images == picture])
            overlapping[picture] = ious.amax(1) > head.definition.ignore_thresh
        return overlapping.view(raw.shape[:-1])


def _flat_index(m: Matches, shape: torch.Size) -> Tensor:
    """Position of each match in a flattened (batch, anchors, ny, nx) map."""
    _, anchors, ny, nx = shape
    return ((m.image * anchors + m.anchor) * ny + m.row) * nx + m.column
