"""Boxes: from a head's raw map to pixels, non-maximum suppression, back to the original image."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.data.batch import ImageInfo
from utils.network.decode import to_corners

MAX_CANDIDATES = 30000  # boxes of one image that NMS looks at
COORDINATE_LIMIT = 1e4  # pixels; larger coordinates lose batched_nms, which adds offsets to them, the precision it needs
AUGMENTATIONS = ((1.0, False), (0.83, True), (0.67, False))  # (scale, mirrored) of test-time augmentation


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of a[i] and b[i], (n, 4) x1 y1 x2 y2 -> (n,)."""
    overlap = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    areas = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1)
    return overlap / (areas - overlap).clamp(min=1e-7)


def nms(
    decoded: Tensor,
    conf_thres: float,
    iou_thres: float,
    agnostic: bool = False,
    multi_label: bool = True,
    max_det: int = 300,
    classes: list[int] | None = None,
) -> list[Tensor]:
    """Non-maximum suppression of decoded predictions (batch, boxes, 5 + classes), class by class.

    Returns an image's detections each: (n, 6) x1 y1 x2 y2 confidence class, most confident first, n <= max_det.
    confidence = objectness * class probability. agnostic: boxes of different classes suppress each other too;
    multi_label: a box counts for every class above conf_thres, not only its best; classes: keep only these.
    """
    return [_nms_one(p, conf_thres, iou_thres, agnostic, multi_label, max_det, classes) for p in decoded]


def _nms_one(
    predictions: Tensor, conf_thres: float, iou_thres: float, agnostic: bool, multi_label: bool, max_det: int,
    classes: list[int] | None,
) -> Tensor:  # fmt: skip
    predictions = predictions[predictions[:, 4] > conf_thres]  # no class probability exceeds 1: cheap and exact
    confidences = predictions[:, 4:5] * predictions[:, 5:]
    if multi_label:
        rows, labels = (confidences > conf_thres).nonzero(as_tuple=True)
    else:
        best, labels = confidences.max(1)
        rows = (best > conf_thres).nonzero()[:, 0]
        labels = labels[rows]
    if classes is not None:
        wanted = torch.isin(labels, torch.tensor(classes, dtype=labels.dtype, device=labels.device))
        rows, labels = rows[wanted], labels[wanted]
    scores, order = confidences[rows, labels].sort(descending=True, stable=True)
    scores, order = scores[:MAX_CANDIDATES], order[:MAX_CANDIDATES]
    boxes, labels = to_corners(predictions[rows[order], :4]), labels[order]
    keep = _first_kept(boxes, scores, torch.zeros_like(labels) if agnostic else labels, iou_thres, max_det)
    return torch.cat((boxes[keep], scores[keep, None], labels[keep, None].to(boxes.dtype)), 1)


def _first_kept(boxes: Tensor, scores: Tensor, groups: Tensor, iou_thres: float, max_det: int) -> Tensor:
    """Indices of the first `max_det` boxes that NMS keeps, of candidates sorted by falling score.

    Whether a box is kept depends on better ones only, so the best thousand are tried first: if they yield enough, the
    other candidates (tens of thousands, from an untrained network) need not be compared at all.
    """
    from torchvision.ops import batched_nms  # here, as it takes a second and a half that most scripts can do without

    boxes = boxes.clamp(-COORDINATE_LIMIT, COORDINATE_LIMIT)
    count = 1000
    while True:
        keep = batched_nms(boxes[:count], scores[:count], groups[:count], iou_thres)
        if len(keep) >= max_det or count >= len(boxes):
            return keep[:max_det]
        count *= 4


def unletterbox(boxes: Tensor, info: ImageInfo) -> Tensor:
    """(n, 4) x1 y1 x2 y2 in pixels of the letterboxed input -> pixels of the original image, clipped to it."""
    height, width = info.shape
    x = ((boxes[:, 0::2] - info.pad[0]) / info.ratio[0]).clamp(0, width)
    y = ((boxes[:, 1::2] - info.pad[1]) / info.ratio[1]).clamp(0, height)
    return torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), 1)


def augmented_predictions(model: nn.Module, images: Tensor) -> Tensor:
    """Test-time augmentation: the decoded predictions of the images as they are, mirrored at 0.83 and at 0.67 of
    their size, one after the other: (batch, boxes, 5 + classes) in pixels of `images` (batch, channels, height, width).

    model: a Darknet in eval mode. Sizes are rounded to multiples of its `max_stride`.
    """
    height, width = images.shape[-2:]
    sizes = [(_scaled(height, s, model.max_stride), _scaled(width, s, model.max_stride)) for s, _ in AUGMENTATIONS]
    parts = [predict_at(model, images, *size, mirrored) for size, (_, mirrored) in zip(sizes, AUGMENTATIONS, strict=True)]
    return torch.cat(parts, 1)


def _scaled(side: int, scale: float, stride: int) -> int:
    return side if scale == 1 else max(stride, round(side * scale / stride) * stride)


def predict_at(
    model: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor, height: int, width: int, mirrored: bool = False
) -> Tensor:
    """Predictions on a resized, perhaps mirrored copy, brought back to the pixels of `images`."""
    original = images.shape[-2:]
    if (height, width) != original:
        smaller = F.interpolate(images.float(), (height, width), mode="bilinear", align_corners=False, antialias=True)
        images = smaller.to(images.dtype)  # antialiased resizing exists in float32 only
    predictions = model(images.flip(-1) if mirrored else images)[0]
    factor = predictions.new_tensor([original[1] / width, original[0] / height])
    centres, sides = predictions[..., :2] * factor, predictions[..., 2:4] * factor
    if mirrored:
        centres = torch.stack((original[1] - centres[..., 0], centres[..., 1]), -1)
    return torch.cat((centres, sides, predictions[..., 4:]), -1)
