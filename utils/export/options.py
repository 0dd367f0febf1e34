"""What an export is asked to be: export.py's command line."""

from dataclasses import dataclass
from pathlib import Path

from utils.core.preparation import Preparation

MAX_DROP = 0.02  # of mAP@0.5, where --max-drop isn't given


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and where to. img_size: groups of one or two sides in pixels, as --img-size may have them."""

    weights: str
    cfg: str
    data: str
    format: str
    out: Path | None
    img_size: list[list[int]] | None
    images: Preparation


@dataclass(frozen=True)
class OnnxOptions:
    """Flags of --format onnx, and of what --target makes of it. None: not given; of `batch`: any number of images."""

    source: ExportOptions
    target: str
    half: bool
    static: bool
    batch: int | None
    opset: int
    layout: str
    outputs: str
    conf_thres: float | None
    iou_thres: float | None
    max_det: int | None
    max_drop: float | None
    workers: int

    @property
    def allowed_drop(self) -> float:
        """How much of mAP@0.5 may be lost."""
        return MAX_DROP if self.max_drop is None else self.max_drop
