"""The losses of --KDstr: what a student is told about its teacher's outputs and feature maps.

Every strategy is called with one `Observed` batch and returns its terms by name, each a mean over the batch, 0 where
student and teacher agree. Terms about outputs weigh what their counterparts in utils.detection.loss weigh. Where a sum is
divided by a count of objects, the count is that of all processes, so that the mean of their gradients is the whole batch's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from utils.core.distributed import mean_over_processes, mean_with_gradient
from utils.detection.assignment import HeadGrid, Matches
from utils.detection.loss import LOGIT_EPS
from utils.network.decode import MAX_EXPONENT, MIN_SHARE, to_corners
from utils.network.heads import Head, YoloHead

NEAR = 0.5  # psi of Wang et al.: share of a target's best overlap above which a position belongs to it
# Weights of 1, of the boxes of 3 to 5, of the maps of 4 and 5, of 6 and of 7: as large a share of the loss as helped a
# strongly pruned yolov3-tiny, or hurt it least (EXPERIMENTS.md): five times as much of 1 or 6 cost four and two points of mAP.
VECTORS, BOXES, ATTENTION, CHANNELS, STANDARD = 0.6, 5.0, 5.0, 2.0, 1.0
OVERLAPS = 2.0  # of the boxes of 8, by its paper
SMALL, MEDIUM = 32**2, 96**2  # areas, in pixels, below which COCO calls objects small and medium
TINY = 1e-12

Assigner = Callable[[Tensor, Tensor, list[HeadGrid]], list[Matches]]
Terms = dict[str, Tensor]


@dataclass
class Observed:
    """One batch as teacher and student saw it; everything is computed in float32.

    heads: the student's; student, teacher: a raw map each head, (batch, anchors, ny, nx, 5 + classes), the teacher's in
    the student's order. maps: pairs of feature maps (batch, channels, height, width) of the same height and width.
    targets (n, 6): image, class, cx cy w h as shares of the input; image_size: (height, width) of the input in pixels.
    weights: of the parts of the detection loss, by name; assign: what gives it its matches. small: see size_weights.
    """

    heads: list[Head]
    student: list[Tensor]
    teacher: list[Tensor]
    maps: list[tuple[Tensor, Tensor]]
    targets: Tensor
    image_size: tuple[int, int]
    weights: dict[str, float]
    temperature: float
    assign: Assigner
    small: float = 1.0

    @property
    def boxes(self) -> Tensor:
        """(n, 4) cx cy w h of the targets in pixels."""
        height, width = self.image_size
        return self.targets[:, 2:] * self.targets.new_tensor([width, height, width, height])

    @property
    def strides(self) -> list[float]:
        return [self.image_size[0] / r.shape[2] for r in self.student]

    @property
    def grids(self) -> list[HeadGrid]:
        return [
            HeadGrid(h.anchors.to(r.device), stride, r.shape[2], r.shape[3], (h.scale_x_y - 1) / 2)
            for h, r, stride in zip(self.heads, self.student, self.strides, strict=True)
        ]

    def confidence(self) -> list[Tensor]:
        """The teacher's objectness, (batch, anchors, ny, nx) a head."""
        return [logits(h, t)[..., 4].sigmoid() for h, t in zip(self.heads, self.teacher, strict=True)]


def logits(head: YoloHead, raw: Tensor) -> Tensor:
    """A raw map before any sigmoid; a new_coords head has applied it already."""
    return torch.logit(raw, LOGIT_EPS) if head.new_coords else raw


def encoded(head: YoloHead, raw: Tensor) -> Tensor:
    """(..., 4): centre as an offset from its cell in cells, log of the sides over the anchor's: what boxes differ in,
    whatever their size (the regression space of Girshick 2015)."""
    xy, wh = raw[..., :2], raw[..., 2:4]
    if head.new_coords:
        sides = 2 * (2 * wh.clamp(min=MIN_SHARE)).log()
    else:
        xy, sides = xy.sigmoid(), wh.clamp(-MAX_EXPONENT, MAX_EXPONENT)
    return torch.cat((head.scale_x_y * xy - (head.scale_x_y - 1) / 2, sides), -1)


def binary_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Elementwise T^2 KL(sigmoid(t/T) || sigmoid(s/T)): [yolo] outputs are independent yes-or-no questions, so each has a
    distribution of its own (Hinton et al. 2015 with two classes)."""
    wanted = (teacher / temperature).sigmoid()
    cross = F.binary_cross_entropy_with_logits(student / temperature, wanted, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(teacher / temperature, wanted, reduction="none")
    return (cross - entropy) * temperature**2


def whole_vectors(o: Observed) -> Terms:
    """1: Hinton et al. 2015: T^2 KL(softmax(t/T) || softmax(s/T)) of each prediction's whole vector (box, objectness and
    classes), mean over all predictions of all heads."""
    classes = o.student[0].shape[-1]
    student, teacher = (
        torch.cat([logits(h, r).reshape(-1, classes) for h, r in zip(o.heads, raws, strict=True)]).div(o.temperature)
        for raws in (o.student, o.teacher)
    )
    divergence = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="sum")
    return {"kd_out": VECTORS * divergence * o.temperature**2 / len(student)}


def objectness_and_classes(o: Observed) -> Terms:
    """binary_kl of the objectness, mean over each map, coarser heads weighing less as in the detection loss; and of the
    classes, mean over classes, weighted with the teacher's objectness (Mehta & Ozturk 2018): what an empty cell thinks of
    classes is noise."""
    obj, cls, total = o.student[0].new_zeros(()), o.student[0].new_zeros(()), o.student[0].new_zeros(())
    finest = min(o.strides)
    for head, student, teacher, confidence, stride in zip(
        o.heads, o.student, o.teacher, o.confidence(), o.strides, strict=True
    ):
        divergence = binary_kl(logits(head, student)[..., 4:], logits(head, teacher)[..., 4:], o.temperature)
        obj = obj + 4 * (finest / stride) ** 2 * divergence[..., 0].mean()
        cls = cls + (confidence * divergence[..., 1:].mean(-1)).sum()
        total += confidence.sum()
    count = mean_over_processes(total).clamp(min=1e-3)
    return {"kd_cls": cls / count * len(o.heads) * o.weights["cls"], "kd_obj": obj * o.weights["obj"]}


def bounded_boxes(o: Observed) -> Terms:
    """2: Chen et al. 2017, equations 4 and 6 with m = 0: KL of objectness and classes, and where the student's distance
    |s - y|^2 to the target box y is larger than the teacher's, that distance, mean over the matches of each head."""
    boxes = o.boxes
    matches = o.assign(o.targets[:, 0].long(), boxes, o.grids)
    counts = mean_over_processes(boxes.new_tensor([len(m.image) for m in matches])).clamp(min=1e-3)
    total = o.student[0].new_zeros(())
    for i, (head, m, grid) in enumerate(zip(o.heads, matches, o.grids, strict=True)):
        target, anchors = boxes[m.target], grid.anchors[m.anchor]
        offset = target[:, :2] / grid.stride - torch.stack((m.column, m.row), 1)
        wanted = torch.cat((offset, (target[:, 2:].clamp(min=1e-3) / anchors).log()), 1)
        student = (encoded(head, o.student[i][m.where]) - wanted).square().sum(1)
        teacher = (encoded(head, o.teacher[i][m.where]) - wanted).square().sum(1)
        total = total + (student * (student.detach() > teacher)).sum() / counts[i]
    return objectness_and_classes(o) | {"kd_box": total * o.weights["box"]}


def teacher_boxes(o: Observed) -> Terms:
    """3: KL of objectness and classes, and |s - t|^2 of the boxes, weighted with the teacher's objectness (Mehta & Ozturk
    2018), mean over that weight."""
    total, weight = o.student[0].new_zeros(()), o.student[0].new_zeros(())
    for head, student, teacher, confidence in zip(o.heads, o.student, o.teacher, o.confidence(), strict=True):
        distance = (encoded(head, student) - encoded(head, teacher)).square().sum(-1)
        total = total + (confidence * distance).sum()
        weight += confidence.sum()
    count = mean_over_processes(weight).clamp(min=1e-3)
    return objectness_and_classes(o) | {"kd_box": BOXES * total / count * len(o.heads) * o.weights["box"]}


def attention(features: Tensor) -> Tensor:
    """(batch, height, width): sum over channels of |F|, divided by its root mean square over the positions
    (Zagoruyko & Komodakis 2017, F_sum; their division by the norm, in a scale that doesn't depend on the map's size)."""
    total = features.abs().sum(1, dtype=torch.float32)
    return total * torch.rsqrt(total.square().mean((1, 2), keepdim=True) + TINY)


def attention_transfer(o: Observed) -> Terms:
    """4: strategy 3, and Zagoruyko & Komodakis 2017: half the squared distance of the maps' attention, mean over
    positions (the squared distance of their Q / |Q|), images and maps."""
    distances = [(attention(s) - attention(t)).square().mean() / 2 for s, t in o.maps]
    return teacher_boxes(o) | {"kd_feat": ATTENTION * torch.stack(distances).mean()}


def fine_grained(o: Observed) -> Terms:
    """5: strategy 4, but the distance counts only at positions near objects and is a mean over those, 1/(2 N) sum I (s - t)^2
    (Wang et al. 2019, equations 1 and 2, on the attention, which needs no adaptation of channels)."""
    parts = []
    for student, teacher in o.maps:
        near = near_objects(o, *student.shape[-2:], len(student))
        distance = (attention(student) - attention(teacher)).square() / 2
        count = mean_over_processes(near.sum(dtype=torch.float32)).clamp(min=1e-3)
        parts.append((distance * near).sum() / count)
    return teacher_boxes(o) | {"kd_feat": ATTENTION * torch.stack(parts).mean()}


@torch.no_grad()
def near_objects(o: Observed, rows: int, columns: int, batch: int) -> Tensor:
    """(batch, rows, columns) bool, the mask of Wang et al. 2019: positions at which an anchor overlaps a target by more than
    NEAR times the best overlap that any position offers that target. Anchors: those of the head nearest in stride."""
    stride = o.image_size[0] / rows
    head = min(range(len(o.heads)), key=lambda i: abs(o.strides[i] - stride))
    anchors, boxes = o.heads[head].anchors.to(o.targets), o.boxes
    across = _overlaps(boxes[:, 0], boxes[:, 2], anchors[:, 0], stride, columns)
    down = _overlaps(boxes[:, 1], boxes[:, 3], anchors[:, 1], stride, rows)
    areas = (boxes[:, 2:].prod(1)[:, None] + anchors.prod(1))[..., None, None]
    near = torch.zeros(batch, rows, columns, dtype=torch.bool, device=boxes.device)
    images = o.targets[:, 0].long()
    for picture in images.unique().tolist():  # one image's targets at a time keep the table small
        mine = images == picture
        overlap = down[mine][..., :, None] * across[mine][..., None, :]  # (targets, anchors, rows, columns)
        iou = overlap / (areas[mine] - overlap)
        near[picture] = (iou > NEAR * iou.amax((1, 2, 3), keepdim=True)).any(1).any(0)
    return near


def _overlaps(centres: Tensor, sides: Tensor, anchors: Tensor, stride: float, cells: int) -> Tensor:
    """(targets, anchors, cells): along one axis, how far targets overlap anchors that are centred on the cells, in pixels."""
    middles = (torch.arange(cells, device=centres.device) + 0.5) * stride
    apart = (centres[:, None] - middles).abs()[:, None]
    reach = (sides[:, None] + anchors)[..., None] / 2
    smaller = torch.minimum(sides[:, None], anchors)[..., None]
    return torch.minimum((reach - apart).clamp(min=0), smaller)


def channel_wise(o: Observed) -> Terms:
    """6: CWD, Shu et al. 2021, equations 3 and 4: each channel's softmax over the positions, KL from the teacher's to the
    student's, tau^2 / (N C) times the sum over channels and positions; N images, C channels; mean over maps.

    With --kd-small a position i counts w_i times (size_weights): the distributions are w_i exp(F_i / tau) / sum_j w_j
    exp(F_j / tau), which is softmax(F / tau + log w). So the divergence stays one, 0 where the maps agree; weights in its sum
    alone would have another minimum. Sabaghian et al. 2025 (arXiv 2509.12918) weigh CWD by the sizes of objects, too; of their
    formula no more than that is known here.
    """
    parts = []
    for student, teacher in o.maps:
        s, t = (f.float().flatten(2).div(o.temperature) for f in (student, teacher))
        if o.small != 1:
            shift = size_weights(o, *student.shape[-2:], len(student)).log().flatten(1)[:, None]
            s, t = s + shift, t + shift
        divergence = F.kl_div(s.log_softmax(-1), t.log_softmax(-1), log_target=True, reduction="sum")
        parts.append(divergence * o.temperature**2 / (s.shape[0] * s.shape[1]))
    return {"kd_feat": CHANNELS * torch.stack(parts).mean()}


@torch.no_grad()
def size_weights(o: Observed, rows: int, columns: int, batch: int) -> Tensor:
    """(batch, rows, columns): `small` at positions whose cell a box of less than SMALL pixels of the input touches, its square
    root at those that only boxes of less than MEDIUM touch, 1 elsewhere. The limits are COCO's."""
    boxes, stride = o.boxes, o.image_size[0] / rows
    cell = boxes.new_tensor([stride])
    across = _overlaps(boxes[:, 0], boxes[:, 2], cell, stride, columns)[:, 0] > 0
    down = _overlaps(boxes[:, 1], boxes[:, 3], cell, stride, rows)[:, 0] > 0
    areas, images = boxes[:, 2:].prod(1), o.targets[:, 0].long()
    weights = boxes.new_ones(batch, rows, columns)
    for most, weight in ((MEDIUM, o.small**0.5), (SMALL, o.small)):  # where both are, the smaller object decides
        for picture in images.unique().tolist():
            chosen = (images == picture) & (areas < most)
            touched = (down[chosen][:, :, None] & across[chosen][:, None, :]).any(0)
            weights[picture][touched] = weight
    return weights


def centred(features: Tensor) -> tuple[Tensor, Tensor]:
    """((values, channels) less each channel's mean, (channels,) its variance), over the images (of all processes) and
    positions."""
    values = features.float().permute(0, 2, 3, 1).reshape(-1, features.shape[1])  # a view of a channels_last map
    values = values - mean_with_gradient(values.mean(0))
    return values, mean_with_gradient(values.square().mean(0))


def pearson(o: Observed) -> Terms:
    """7: PKD, Cao et al. 2022, equation 4: half the mean squared distance of maps whose channels were given mean 0 and
    variance 1, which is 1 less the channels' Pearson correlation; mean over channels and maps."""
    parts = []
    for student, teacher in o.maps:
        (s, s_variance), (t, t_variance) = centred(student), centred(teacher)
        a, b = (torch.rsqrt(variance + 1e-6) for variance in (s_variance, t_variance))
        # mean (a s - b t)^2 / 2, without making either map anew
        half = (a.square() * s_variance + b.square() * t_variance) / 2 - a * b * (s * t).mean(0)
        parts.append(half.mean())
    return {"kd_feat": STANDARD * torch.stack(parts).mean()}


def binary_classification(o: Observed) -> Terms:
    """8: BCKD, Yang et al. 2023 (arXiv 2308.14286): what heads of any kind have in common, scores and boxes. Each class of each
    prediction is a question of its own: sum of |t - s| BCE(s, t) over predictions and classes, with a gradient through |t - s|;
    and the boxes: sum of max |t - s| (1 - GIoU) over predictions, the maximum, without a gradient, over the classes. Formulas
    and weights (1 and 4, where the detection loss has 1 for classes and 2 for GIoU) as in its authors' program
    (TinyTigerPan/BCKD). They divide by the number of matches, here it is the sum of the teacher's best scores, as the detection
    loss of heads without anchors divides by the sum of labels. Where there is objectness, which the paper's detectors lack, a
    score is its product with the class."""
    height = o.image_size[0]
    student, teacher = (
        torch.cat([head.decode(raw, height) for head, raw in zip(o.heads, raws, strict=True)], 1).flatten(0, 1)
        for raws in (o.student, o.teacher)
    )
    scores, wanted = (p[:, 4:5] * p[:, 5:] for p in (student, teacher))
    apart = (wanted - scores).abs()
    cls = (apart * F.binary_cross_entropy(scores.clamp(LOGIT_EPS, 1 - LOGIT_EPS), wanted, reduction="none")).sum()
    overlap = generalized_box_iou_loss(to_corners(student[:, :4]), to_corners(teacher[:, :4]))
    box = (apart.detach().amax(1) * overlap).sum()
    count = mean_over_processes(wanted.amax(1).sum()).clamp(min=1e-3)
    return {"kd_cls": cls / count * o.weights["cls"], "kd_box": OVERLAPS * box / count * o.weights["box"]}


@dataclass(frozen=True)
class KDStrategy:
    """A loss, the names of its terms, and what it looks at: outputs (the heads must agree), of heads with objectness and
    anchors alone (`anchored`), maps, whether their channels are compared one by one (`paired`) and their positions weighed by
    the sizes of objects (`sized`)."""

    loss: Callable[[Observed], Terms]
    terms: tuple[str, ...]
    temperature: float = 3.0
    outputs: bool = True
    anchored: bool = True
    maps: bool = False
    paired: bool = False
    sized: bool = False

    def __call__(self, observed: Observed) -> Terms:
        return self.loss(observed)

    @property
    def title(self) -> str:
        return self.loss.__name__.replace("_", " ")


_PARTS = ("kd_cls", "kd_obj", "kd_box")
KDSTR: dict[int, KDStrategy] = {
    1: KDStrategy(whole_vectors, ("kd_out",)),
    2: KDStrategy(bounded_boxes, _PARTS),
    3: KDStrategy(teacher_boxes, _PARTS),
    4: KDStrategy(attention_transfer, (*_PARTS, "kd_feat"), maps=True),
    5: KDStrategy(fine_grained, (*_PARTS, "kd_feat"), maps=True),
    6: KDStrategy(
        channel_wise, ("kd_feat",), temperature=1.0, outputs=False, anchored=False, maps=True, paired=True, sized=True
    ),
    7: KDStrategy(pearson, ("kd_feat",), outputs=False, anchored=False, maps=True, paired=True),
    8: KDStrategy(binary_classification, ("kd_cls", "kd_box"), anchored=False),
}
