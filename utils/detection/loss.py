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
from utils.detection.assignment import HeadGrid, Matches, RatioAssigner
from utils.detection.boxes import paired_iou
from utils.detection.head_loss import HeadLoss, pixel_boxes
from utils.detection.picked import Picked
from utils.detection.task_aligned import Pairs, alignment
from utils.network.decode import decode_boxes, decode_map, to_corners
from utils.network.heads import YoloHead

LOGIT_EPS = 1e-6  # probabilities that a new_coords head gives are kept this far from 0 and 1
NEAR = 0.5  # cells: a centre this near to its cell's border is learned by the neighbour, too, with ALIGNED
LEAST = (1e-9, 1e-2)  # of score and overlap, so that a target that nothing overlaps yet is learned
ANCHOR, ALIGNED = ASSIGNMENTS = ("anchor", "aligned")
DEFAULT = ALIGNED


# iou_loss of a [yolo] section -> loss of paired boxes. `mse`, Darknet's default, regresses coordinates one by one; CIoU
# does the same job better (Zheng et al. 2020) and isn't a property of the trained network, so it stands in for it.
BOX_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": complete_box_iou_loss,
    "iou": lambda a, b: 1 - paired_iou(a, b),
    "giou": generalized_box_iou_loss,
    "diou": distance_box_iou_loss,
    "ciou": complete_box_iou_loss,
}


@dataclass
class Fit:
    """What one head makes of its n matches.

    objectness (batch, anchors, ny, nx): logits of the whole map; predicted, wanted: corners (n, 4) of the prediction's and the
    target's box, overlap (n,) their IoU; scores (n, 1 + classes): logits of objectness and classes; labels (n,): the target's
    class. weight (n,): what a match counts in boxes and classes; quality (n,): the label of its objectness.
    """

    grid: HeadGrid
    matches: Matches
    objectness: Tensor
    predicted: Tensor
    wanted: Tensor
    scores: Tensor
    overlap: Tensor
    labels: Tensor
    weight: Tensor
    quality: Tensor


class DetectionLoss(HeadLoss):
    """Loss of [yolo] heads, raw maps (batch, anchors, ny, nx, 5 + classes).

    box: the head's iou_loss, mean over its matches. obj: binary cross-entropy with the matched box's IoU as the label
    (0 elsewhere), mean over the map, a head's share falling with the square of its stride as its number of cells does;
    a prediction that overlaps a target by more than the cfg's ignore_thresh without being matched isn't pushed to 0, as
    in Darknet (`ignore=False` pushes it). cls: binary cross-entropy, mean over matches and classes; after
    `weigh_classes` a match counts as much as hyp.cls_weights makes its class count.
    Parts are summed over heads and weighted by hyp.box, hyp.obj, hyp.cls, kept independent of heads, classes and size.

    assign: what matches is what RatioAssigner finds (ANCHOR), or what fits best of that, and of the nearest neighbours, now
    (ALIGNED, see `align`). Then the means of box and cls are weighted ones, over all heads' matches, as heads with few
    matches aren't there for others than those that fit. The first epochs, hyp.static_share of them, take ANCHOR all the same,
    as PP-YOLOE does (Xu et al. 2022): of a network that knows nothing yet nothing fits, and few learn.

    With torch.distributed, matches are averaged over all processes' counts: the mean of the processes' losses (so of
    their gradients) equals one process's loss of the whole batch.
    """

    parts = ("box", "obj", "cls")
    own_hyp = ("box", "obj", "cls", "anchor_t", "static_share")
    heads: list[YoloHead]

    def __init__(self, model: nn.Module, hyp: Hyp, assign: str = DEFAULT, ignore: bool = True) -> None:
        super().__init__(model, hyp)
        self.ignore, self.assignment, self.aligned = ignore, assign, assign == ALIGNED
        self.assign = RatioAssigner(hyp.anchor_t, hyp.most_anchors)
        self.box_losses = [BOX_LOSSES.get(h.definition.iou_loss, complete_box_iou_loss) for h in self.heads]

    def start_epoch(self, done: float) -> None:
        self.aligned = self.assignment == ALIGNED and done >= self.hyp.static_share

    def _parts(self, raws: list[Tensor], targets: Tensor, image_size: tuple[int, int]) -> Tensor:
        fits = self.fits(raws, targets, image_size)
        counts = mean_over_processes(torch.stack([f.weight.sum() for f in fits]))
        if self.aligned:
            counts = counts.mean().expand(len(fits))
        counts = counts.clamp(min=1e-3)  # 0 only where the sums they divide are 0 too
        finest = min(f.grid.stride for f in fits)
        parts = raws[0].new_zeros(3)
        for i, (head, raw, fit) in enumerate(zip(self.heads, raws, fits, strict=True)):
            box = (self.box_losses[i](fit.predicted, fit.wanted) * fit.weight).sum() / counts[i]
            obj = self._objectness_loss(head, raw, fit, targets[:, 0].long(), pixel_boxes(targets, image_size))
            cls = self._class_loss(fit) / (counts[i] * head.classes)
            parts = parts + torch.stack((box, obj * 4 * (finest / fit.grid.stride) ** 2, cls))
        return parts

    def fits(self, raws: list[Tensor], targets: Tensor, image_size: tuple[int, int]) -> list[Fit]:
        """Each head's matches."""
        least = NEAR if self.aligned else 0.0
        reaches = [max((h.scale_x_y - 1) / 2, least) for h in self.heads]
        grids = [
            HeadGrid(h.anchors.to(r.device), image_size[0] / r.shape[2], r.shape[2], r.shape[3], reach)
            for h, r, reach in zip(self.heads, raws, reaches, strict=True)
        ]
        boxes, labels = pixel_boxes(targets, image_size), targets[:, 1].long()
        matches = self.assign(targets[:, 0].long(), boxes, grids)
        each = zip(self.heads, raws, grids, matches, strict=True)
        fits = [_fit(head, raw, grid, m, boxes[m.target], labels[m.target]) for head, raw, grid, m in each]
        if self.aligned:
            align(fits, [r.shape[:-1] for r in raws], len(boxes))
        return fits

    def weights(self, height: int, width: int) -> tuple[float, float, float]:
        """The hyper-parameters hold for three heads, 80 classes and 640 pixels.

        The class part grows with the square root of the number of classes: in proportion to it, as for the sum over
        classes, few classes would hardly be learned in short trainings (EXPERIMENTS.md).
        """
        heads = 3 / len(self.heads)
        classes = math.sqrt(max(h.classes for h in self.heads) / 80)
        return self.hyp.box * heads, self.hyp.obj * heads * height * width / 640**2, self.hyp.cls * heads * classes

    def _objectness_loss(self, head: YoloHead, raw: Tensor, fit: Fit, images: Tensor, boxes: Tensor) -> Tensor:
        """Mean over the map."""
        logits = fit.objectness
        wanted, flat = torch.zeros_like(logits), fit.matches.flat(logits.shape)
        wanted.view(-1).scatter_reduce_(0, flat, fit.quality, "amax")  # where two targets meet, the better fit counts
        losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        if self.ignore and head.definition.ignore_thresh < 1:
            ignored = self._overlapping(head, raw.detach(), fit.grid, images, boxes)
            ignored.view(-1)[flat] = False
            losses = losses.masked_fill(ignored, 0.0)
        return losses.mean()

    def _class_loss(self, fit: Fit) -> Tensor:
        """Weighted sum of binary cross-entropies. One class is no exception, as in Darknet: scores are objectness times class
        probability, so a probability that nothing trains would make noise of them."""
        logits, weight = fit.scores[:, 1:], fit.weight
        wanted = self._smoothed(F.one_hot(fit.labels, logits.shape[1]).to(logits))
        if self.class_weights is not None:
            weight = weight * self.class_weights.to(logits)[fit.labels]
        return F.binary_cross_entropy_with_logits(logits, wanted, weight[:, None], reduction="sum")

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


def _fit(head: YoloHead, raw: Tensor, grid: HeadGrid, m: Matches, boxes: Tensor, labels: Tensor) -> Fit:
    """boxes (n, 4), labels (n,): of the matches' targets."""
    (found, objectness), cells, anchors = Picked.apply(raw, *m.where), torch.stack((m.column, m.row), 1), grid.anchors[m.anchor]
    decoded = decode_boxes(found, cells, anchors, grid.stride, head.scale_x_y, head.new_coords, bounded=True)
    predicted, wanted = to_corners(decoded), to_corners(boxes)
    overlap = paired_iou(predicted.detach(), wanted)
    scores, logits, one = _logits(head, found[..., 4:]), _logits(head, objectness), torch.ones_like(overlap)
    return Fit(grid, m, logits, predicted, wanted, scores, overlap, labels, one, overlap)


def _logits(head: YoloHead, scores: Tensor) -> Tensor:
    """Of raw values of objectness and classes, which a new_coords head has squashed already."""
    return torch.logit(scores, LOGIT_EPS) if head.new_coords else scores


@torch.no_grad()
def align(fits: list[Fit], shapes: list[torch.Size], targets: int) -> None:
    """Weigh all heads' matches with `targets` targets, in place, by utils.detection.task_aligned: a target's best prediction
    counts 1 and learns its own overlap as the objectness, the others as much less as they are less aligned, those that are
    not assigned 0. The score is objectness times class probability. shapes: (batch, anchors, ny, nx) of each head's map."""
    offset, predictions = 0, []
    for fit, shape in zip(fits, shapes, strict=True):
        predictions.append(offset + fit.matches.flat(shape))
        offset += shape.numel()
    scores = [f.scores[:, 0].sigmoid() * f.scores[:, 1:].gather(1, f.labels[:, None])[:, 0].sigmoid() for f in fits]
    overlap, score = torch.cat([f.overlap for f in fits]), torch.cat(scores)
    t = alignment(score.clamp(min=LEAST[0]), overlap.clamp(min=LEAST[1]))
    pairs = Pairs(torch.cat([f.matches.target for f in fits]), torch.cat(predictions), t, overlap)
    chosen = pairs.assigned()
    weight, quality = torch.zeros_like(t), torch.zeros_like(t)
    weight[chosen], quality[chosen] = pairs.at(chosen).scores(targets)
    sizes = [len(f.overlap) for f in fits]
    for fit, w, q in zip(fits, weight.split(sizes), quality.split(sizes), strict=True):
        fit.weight, fit.quality = w, q
