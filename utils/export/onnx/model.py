"""A .onnx that export.py wrote, in a Darknet's place: what test.py and detect.py need of a network."""

import ast
import contextlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.core.errors import UserError
from utils.core.fields import Fields
from utils.core.preparation import Preparation
from utils.core.ranges import IMG_SIZE
from utils.data.augment import FILL, fitted_size
from utils.data.data_file import DataConfig
from utils.data.images import openable
from utils.detection.boxes import predict_at
from utils.detection.threshold import CONF_THRES
from utils.export.onnx.header import read_header
from utils.loading import Loaded
from utils.network.cfg import parse_cfg
from utils.network.checkpoint import Checkpoint, picture_settings
from utils.network.layers import build_layer
from utils.network.shapes import check_img_size
from utils.network.weights import LoadReport, checkpoint_classes

if TYPE_CHECKING:
    import onnxruntime

WORDS = ("format", "cfg", "cfg_name", "precision", "outputs")  # of the metadata
VALUES = ("heads", "settings", "stride", "img_size", "dynamic_size")  # of the metadata: JSON
# What ONNX Runtime raises for a file that is damaged, or needs what this version hasn't got.
REFUSALS = ("EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")


def need(*packages: str, what: str = "ONNX") -> None:
    """Raise UserError with the command that installs those of the packages that aren't there, which `what` needs."""
    missing = [p for p in packages if importlib.util.find_spec(p) is None]
    if missing:
        raise UserError(f"{what} needs {' and '.join(missing)}, which isn't installed: pip install {' '.join(missing)}")


def open_session(source: str | Path | bytes, device: torch.device | None = None) -> "onnxruntime.InferenceSession":
    """A session on `device` (the CPU unless it is CUDA and ONNX Runtime has it), with as many threads as PyTorch has.

    source: a file, or its content. Raises UserError for a file that ONNX Runtime can't run.
    """
    need("onnxruntime")
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    providers: list[Any] = ["CPUExecutionProvider"]
    if device is not None and _has_cuda(device):
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    try:
        with contextlib.nullcontext(source) if isinstance(source, bytes) else openable(source) as readable:
            return onnxruntime.InferenceSession(readable, options, providers=providers)
    except tuple([UnicodeDecodeError, *(getattr(state, name) for name in REFUSALS)]) as error:  # noqa: C409
        name = "the exported graph" if isinstance(source, bytes) else source
        gist = " ".join(str(error).split())[:160]
        raise UserError(f"{name}: ONNX Runtime {onnxruntime.__version__} can't run this file ({gist})") from None


class Session(Protocol):
    """A graph that a runtime has read and can run."""

    threads: int  # that it computes with, as the runtime says itself
    precisions: ClassVar[
        tuple[str, ...]
    ]  # of numbers that aren't integers, from which --precision chooses; first the usual one

    def place(self, device: torch.device) -> str:
        """What computes when it is asked to on `device`, in words: "ONNX Runtime on the CPU"."""

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """All outputs for float32 images (batch, channels, height, width)."""


class RuntimeSession:
    """ONNX Runtime's."""

    precisions = ("fp32",)

    def __init__(self, path: str | Path, device: torch.device | None = None, precision: str = "fp32") -> None:
        self.session = open_session(path, device)
        self.threads = self.session.get_session_options().intra_op_num_threads
        self.name = self.session.get_inputs()[0].name

    def place(self, device: torch.device) -> str:
        return f"ONNX Runtime on {'CUDA' if _has_cuda(device) else 'the CPU'}"

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        return self.session.run(None, {self.name: images})


Start = Callable[[str | Path, torch.device | None, str], Session]


def _has_cuda(device: torch.device) -> bool:
    import onnxruntime

    return device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _from_json(text: str, name: str, path: str | Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{path}: metadata {name} is no JSON: the file is damaged; export it again") from None


def _names(text: str, path: str | Path) -> Any:
    """The classes' names: a list as JSON, or a dict by numbers as Python writes it, where --layout ultralytics wrote it."""
    if not text.startswith("{"):
        return _from_json(text, "names", path)
    try:
        return list(ast.literal_eval(text).values())
    except (ValueError, SyntaxError, RecursionError, MemoryError, AttributeError):
        raise UserError(f"{path}: metadata names is no dict: the file is damaged; export it again") from None


class OnnxModel:
    """The network of a .onnx file.

    Called with images (batch, channels, height, width) of any size, it gives (decoded, []) as a Darknet in eval mode does;
    a graph for one size and one batch gets its images scaled and padded, a graph with NMS gives what NMS left.
    start: reads the file with the runtime that computes; precision: of what the file doesn't compute in integers.
    Raises UserError for a file that isn't export.py's.
    """

    dtype = torch.float32

    def __init__(
        self,
        path: str | Path,
        device: torch.device | None = None,
        start: Start = RuntimeSession,
        precision: str = "fp32",
    ) -> None:
        self.path, self.start, self.session, self.float_precision = path, start, start(path, device, precision), precision
        header = read_header(path)
        if header.metadata.get("format") != "darkedge":
            raise UserError(f"{path}: this ONNX file lacks the metadata that export.py writes; export it again with export.py")
        self._read(header.metadata)
        self.fixed_batch = header.batch

    def _read(self, facts: dict[str, str]) -> None:
        """Take over the metadata, of which those that aren't words are JSON; UserError where they aren't as written."""
        values = {k: facts[k] for k in WORDS if k in facts}
        values |= {k: _from_json(facts[k], k, self.path) for k in (*VALUES, CONF_THRES, "nms") if k in facts}
        values["names"] = _names(facts.get("names", "null"), self.path)
        told = Fields.of(values, f"{self.path}: metadata").required("what export.py writes", *WORDS, *VALUES, "names")
        try:
            self.defs = parse_cfg(told.text("cfg") + "\n")
        except UserError as error:
            raise UserError(f"{self.path}: its own {error}") from None
        self.defs.name = told.line("cfg_name")
        self.precision, self.outputs = told.line("precision"), told.line("outputs")
        if self.outputs not in self._readings:
            raise told.wrong("outputs", ", ".join(self._readings))
        self.names = told.lines("names")
        self.heads = [build_layer(self.defs, i, 0) for i in self.defs.head_indices()]
        self.prepared = Preparation.of(picture_settings(told.fields("settings")))
        self.conf_thres = told.number(CONF_THRES, None, 0, 1)
        limits = told.fields("nms")
        self.nms = {name: limits.number(name) for name in limits.values}
        self.max_stride = told.whole("stride", least=1)
        sides = told.items("img_size")
        self.size: tuple[int, int] = tuple(sides.whole(key, least=1, most=IMG_SIZE.most) for key in sides.values)
        if len(self.size) != 2:
            raise told.wrong("img_size", "height and width")
        self.fixed_size = None if told.flag("dynamic_size") else self.size
        if len(self.names) != checkpoint_classes(self.defs) or not self._are_own(told.items("heads")):
            raise UserError(f"{self.path}: its names or heads aren't those of its cfg: the file is damaged; export it again")

    def _are_own(self, heads: Fields) -> bool:
        """Whether what the metadata say of the heads is what the cfg says."""
        wanted = [json.loads(json.dumps(head.definition.decoding())) for head in self.heads]
        found = [heads.fields(key).values for key in heads.values]
        return len(found) == len(wanted) and all(w.items() <= f.items() for w, f in zip(wanted, found, strict=True))

    def inference_copy(self, device: torch.device, precision: str = "auto") -> "OnnxModel":
        """Itself, on `device`; UserError for a precision that its runtime doesn't offer."""
        chosen = self._chosen(precision)
        if chosen not in self.session.precisions:
            offered = " or ".join(self.session.precisions)
            raise UserError(f"--precision {precision}: {self.path} computes in {self.precision}, which its export decided, and "
                            f"{self.session.place(device)} in {offered} what isn't integers")  # fmt: skip
        same = device.type == "cpu" and chosen == self.float_precision
        return self if same else OnnxModel(self.path, device, self.start, chosen)

    def _chosen(self, precision: str) -> str:
        return self.session.precisions[0] if precision == "auto" else precision

    @property
    def threads(self) -> int:
        """What it computes with, as its runtime says."""
        return self.session.threads

    def runtime(self, device: torch.device, precision: str = "auto") -> str:
        """What computes when it is asked to on `device` in `precision`, in words."""
        chosen = self._chosen(precision)
        words = {"fp32": chosen, "int8": "int8" if chosen == "fp32" else f"int8 and {chosen}"}
        return f"{self.session.place(device)}, {words.get(self.precision, self.precision)}"

    def __call__(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        shape = tuple(images.shape[-2:])
        if self.fixed_size in (None, shape):
            return self._predict(images), []
        fits = shape[0] <= self.fixed_size[0] and shape[1] <= self.fixed_size[1]
        inner = self.fixed_size if self.prepared.stretch else shape if fits else fitted_size(shape, self.fixed_size)
        return predict_at(lambda x: (self._predict(self._padded(x)),), images, *inner), []

    def _padded(self, images: Tensor) -> Tensor:
        """Gray on the right and below, where it moves no box."""
        height, width = self.fixed_size
        gray = FILL / 127.5 - 1 if self.prepared.maxabs else FILL / 255
        return F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]), value=gray)

    def _predict(self, images: Tensor) -> Tensor:
        """Decoded predictions of images of a size that the graph takes. Raises UserError for a graph that gives something else
        than its metadata say."""
        arrays = images.float().cpu().contiguous().numpy()
        step = self.fixed_batch or len(arrays)
        parts = [self._run(arrays[first : first + step]) for first in range(0, len(arrays), step)]
        outputs = [torch.from_numpy(np.concatenate(part)).to(images.device) for part in zip(*parts, strict=True)]
        try:
            found = self._readings[self.outputs](self, outputs, images)
        except (ValueError, RuntimeError, IndexError):  # other numbers of maps or channels than the heads'
            found = images[:0]
        if found.dim() != 3 or len(found) != len(images) or found.shape[2] != 5 + len(self.names):
            shapes = ", ".join("x".join(map(str, output.shape)) for output in outputs)
            raise UserError(f"{self.path}: gives {shapes}, which isn't what its metadata say: it is another network's, or "
                            "damaged; export it again")  # fmt: skip
        return found

    def _run(self, arrays: np.ndarray) -> list[np.ndarray]:
        """The graph's outputs for at most as many images as it takes."""
        count = len(arrays)
        if self.fixed_batch and count < self.fixed_batch:
            arrays = np.concatenate((arrays, np.zeros((self.fixed_batch - count, *arrays.shape[1:]), arrays.dtype)))
        return [output[:count] for output in self.session(arrays)]

    def _decoded(self, outputs: list[Tensor], images: Tensor) -> Tensor:
        return outputs[0]

    def _from_maps(self, outputs: list[Tensor], images: Tensor) -> Tensor:
        height = images.shape[-2]
        return torch.cat([head.decode(raw, height) for head, raw in zip(self.heads, outputs, strict=True)], 1)

    def _from_convolutions(self, outputs: list[Tensor], images: Tensor) -> Tensor:
        return self._from_maps([head(found) for head, found in zip(self.heads, outputs, strict=True)], images)

    def _from_nms(self, outputs: list[Tensor], images: Tensor) -> Tensor:
        """Rows of NMS as predictions that are sure of their class, so that another NMS leaves them as they are."""
        corners, confidence, label = outputs[0].split((4, 1, 1), 2)
        first, second = corners.split(2, 2)
        classes = F.one_hot(label[..., 0].long(), len(self.names)).to(corners.dtype)
        return torch.cat(((first + second) / 2, second - first, confidence, classes), 2)

    def _from_yolov8(self, outputs: list[Tensor], images: Tensor) -> Tensor:
        """Rows without an objectness, one a column."""
        rows = outputs[0].transpose(1, 2)
        return torch.cat((rows[..., :4], torch.ones_like(rows[..., :1]), rows[..., 4:]), 2)

    _readings: ClassVar[dict[str, Callable[["OnnxModel", list[Tensor], Tensor], Tensor]]] = {
        "decoded": _decoded, "raw": _from_maps, "maps": _from_convolutions, "nms": _from_nms, "yolov5": _decoded,
        "yolov8": _from_yolov8,
    }  # fmt: skip


def load_onnx(
    cfg: str | Path,
    weights: str | Path,
    img_size: int | None = None,
    data: DataConfig | None = None,
    *,
    gray: bool = False,
    start: Start = RuntimeSession,
) -> Loaded[OnnxModel]:
    """load_model for a .onnx, which `start` reads.

    Raises UserError when it has other classes than `data`, another cfg, size or number of channels than asked for.
    """
    model = OnnxModel(weights, start=start)
    if cfg and parse_cfg(cfg) != model.defs:
        raise UserError(f"{weights}: was exported from another cfg than {cfg}; it carries its own, so leave --cfg out")
    if data is not None and data.classes != len(model.names):
        raise UserError(f"{weights}: has {len(model.names)} classes, but {data.path} has {data.classes}")
    if gray and model.defs.net.channels != 1:
        raise UserError(f"--gray-scale: {weights} was exported for {model.defs.net.channels} channels")
    if model.fixed_size and img_size not in (None, max(model.fixed_size)):
        height, width = model.fixed_size
        raise UserError(f"--img-size {img_size}: {weights} was exported for {height}x{width} only; export it without --static")
    size = img_size if img_size is not None else max(model.size)
    check_img_size(size, model.max_stride)
    names = data.names if data else model.names
    fields = Checkpoint(settings=model.prepared.to_settings(), conf_thres=model.conf_thres)
    return Loaded(model, names, size, fields, LoadReport(_limits(model)), model.fixed_size)


def _limits(model: OnnxModel) -> str:
    """What to know before comparing figures: NMS in the graph has thrown away what it was told to."""
    if not model.nms:
        return ""
    kept = f"confidences above {model.nms['conf_thres']:g}, {model.nms['max_det']:g} boxes an image"
    return f"{model.path}: NMS is in the graph and leaves {kept}; for mAP export without --nms, or with --conf-thres 0.001"
