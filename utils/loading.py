"""From a cfg and weights, or a checkpoint that carries its own, to a network that is ready to use."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from utils.core.commands import command
from utils.core.errors import UserError
from utils.core.preparation import Preparation
from utils.data.data_file import DataConfig
from utils.network.cfg import parse_cfg
from utils.network.checkpoint import Checkpoint, read_checkpoint
from utils.network.darknet import Darknet
from utils.network.definitions import Defs
from utils.network.detection_model import DetectionModel
from utils.network.file_kind import NoCfgError, is_checkpoint, is_onnx
from utils.network.weights import LoadReport, checkpoint_classes, load_state, load_weights, refuse_broken
from utils.quantized.settings import Settings
from utils.quantized.transform import quantize

SETTING_FLAGS = {"maxabs": "--maxabsscaler", "stretch": "--stretch"}  # settings of a checkpoint -> how to say them


Network = TypeVar("Network", bound=DetectionModel)


@dataclass(frozen=True)
class NetworkOptions:
    """Which network is used: the flags of utils.scripts.cli.add_model_arguments. img_size: None for its own."""

    cfg: str = ""
    weights: str = ""
    img_size: int | None = None


@dataclass
class Loaded(Generic[Network]):
    """A model ready to use, and what came with it: a Darknet, where it is to be changed, or any other that detects."""

    model: Network
    names: list[str]
    img_size: int
    checkpoint: Checkpoint | None
    report: LoadReport
    fixed_size: tuple[int, int] | None = None  # (height, width) of a .onnx that takes no other

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) that an image is letterboxed into."""
        return self.fixed_size or (self.img_size, self.img_size)

    @property
    def settings(self) -> dict[str, Any]:
        """What the checkpoint was trained with: gray, maxabs, stretch, img_size; empty for other weights."""
        return self.checkpoint.settings if self.checkpoint else {}

    @property
    def conf_thres(self) -> float | None:
        """The confidence threshold that the evaluation of these weights recommended, None without one."""
        return self.checkpoint.conf_thres if self.checkpoint else None

    def preparation(self, asked: Preparation) -> Preparation:
        """How images are prepared for this network: as it was trained, and as the command line asks for besides. Raises
        UserError for a network that reads neither gray nor colour."""
        trained = Preparation.of(self.settings)
        return Preparation(sees_gray(self.model), asked.maxabs or trained.maxabs, asked.stretch or trained.stretch)

    @property
    def flags(self) -> list[str]:
        """The settings as command line options, for those who go on with a cfg and .weights, which don't carry them."""
        size = ["--img-size", str(self.img_size)] if self.img_size != self.model.defs.net.width else []
        return [flag for key, flag in SETTING_FLAGS.items() if self.settings.get(key)] + size


def load_model(
    cfg: str | Path,
    weights: str | Path,
    img_size: int | None = None,
    data: DataConfig | None = None,
    *,
    pretrained: bool = False,
    prefix: bool = False,
    gray: bool = False,
    unchecked: bool = False,
) -> Loaded[Darknet]:
    """Build the network of `cfg` (or of the checkpoint's own cfg) in eval mode on the CPU, and load `weights` if given.

    img_size: None takes the size it was trained at, else the cfg's width. `pretrained` and `prefix`: see load_weights.
    gray: build it for one channel whatever the cfg says, as is done for a checkpoint trained with --gray-scale.
    Raises UserError, before anything is loaded, when classes of cfg and data differ; and for NaN or infinite
    weights, unless they are to be taken `unchecked`.
    """
    if weights and is_onnx(weights):
        raise UserError.at(weights, "an ONNX file can be run (test.py, detect.py), but not changed; "
                        "name the .pt or .weights that it was exported from")  # fmt: skip
    checkpoint = read_checkpoint(weights) if weights and is_checkpoint(weights) else None
    settings = checkpoint.settings if checkpoint else {}
    defs = choose_cfg(cfg, weights, checkpoint)
    if gray or Preparation.of(settings).gray:
        defs.net.channels = 1
    classes = checkpoint_classes(defs)
    if data is not None and data.classes != classes:
        ours = f"its {defs.heads_named()} layers have classes={classes}"
        remedy = command("make_cfg.py", cfg=defs.name, data=data.path)
        raise UserError.at(defs.name, f"{ours}, but {data.path} has {data.classes}", command=remedy)
    size = img_size if img_size is not None else settings.get("img_size") or defs.net.width
    model = Darknet(defs, size)
    if checkpoint is not None and checkpoint.quantization:
        quantize(model, Settings.from_dict(checkpoint.quantization, checkpoint.path))
    report = LoadReport()
    if checkpoint is not None:
        report = load_state(model, checkpoint, pretrained=pretrained)
    elif weights:
        report = load_weights(model, weights, pretrained=pretrained, prefix=prefix)
    if not unchecked:
        refuse_broken(model, weights)
    if size == defs.net.width != defs.net.height:
        square = f"{defs.name} is made for {defs.net.width}x{defs.net.height}; here its input is {size}x{size}"
        report.message = "; ".join(filter(None, (report.message, square)))
    names = data.names if data else checkpoint.names if checkpoint else []
    if len(names) != classes:  # those of another number of classes are another network's
        names = [str(i) for i in range(classes)]
    return Loaded(model.eval(), names, size, checkpoint, report)


def sees_gray(model: DetectionModel) -> bool:
    """Whether a network reads one-channel images; UserError if it reads neither those nor colour."""
    channels = model.defs.net.channels
    if channels not in (1, 3):
        raise UserError.at(model.defs.name, f"channels={channels}, but images have 3, or 1 with --gray-scale; change [net]")
    return channels == 1


def choose_cfg(cfg: str | Path, weights: str | Path, checkpoint: Checkpoint | None) -> Defs:
    """The cfg that was given, else the checkpoint's own."""
    if cfg:
        return parse_cfg(cfg)
    if checkpoint and checkpoint.cfg:
        return own_cfg(checkpoint)
    if weights:
        raise NoCfgError(weights)
    raise UserError("name the network with --cfg FILE, or a checkpoint with --weights FILE.pt")


def own_cfg(checkpoint: Checkpoint) -> Defs:
    """The network that a checkpoint says it is; UserError where its text is no cfg."""
    try:
        defs = parse_cfg(checkpoint.cfg + "\n")  # what has no line break would be a path
    except UserError as error:
        raise UserError.at(checkpoint.path, f"its own {error}") from None
    defs.name = checkpoint.cfg_name or checkpoint.path
    return defs
