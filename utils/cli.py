"""What every script's command line shares: arguments, loading a model, tables, and one line for a user's mistake."""

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from models import Darknet
from utils.cfg import DataConfig, parse_cfg
from utils.checkpoint import Checkpoint, read_checkpoint
from utils.commands import command
from utils.definitions import Defs
from utils.devices import PRECISIONS, reuse_memory
from utils.errors import Remark, UserError, one_line
from utils.filekinds import is_checkpoint, is_onnx
from utils.files import check_writable, write_text
from utils.loader import explained_ends
from utils.quantized.settings import Settings
from utils.quantized.transform import quantize
from utils.ranges import IMG_SIZE, Range
from utils.weights import LoadReport, checkpoint_classes, load_state, load_weights, refuse_broken


class Arguments(argparse.Namespace):
    """A command line. `given`: names of the arguments that stand on it, even where they say what is the default; it is no
    argument itself, so vars() leaves it out."""

    __slots__ = ("given",)

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.given: frozenset[str] = frozenset()


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help that tells the range of a number, too, and no default where there is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help if action.default is None else super()._get_help_string(action)
        return f"{text} [{action.type}]" if isinstance(action.type, Range) else text


class Parser(argparse.ArgumentParser):
    """argparse with `-` and `_` interchangeable in long flags, and errors of one line; what it returns is Arguments."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description, formatter_class=_Help, allow_abbrev=False)

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        spelled = [self._spelled(a) for a in (sys.argv[1:] if args is None else args)]
        found, rest = super().parse_known_args(spelled, Arguments() if namespace is None else namespace)
        if isinstance(found, Arguments):
            found.given = self._given(spelled)
        return found, rest

    def _given(self, arguments: list[str]) -> frozenset[str]:
        """Names of the arguments that stand on a command line which could be parsed."""
        defaults = {action: action.default for action in self._actions}
        try:
            for action in defaults:
                action.default = argparse.SUPPRESS
            found, _ = super().parse_known_args(arguments, argparse.Namespace())
        finally:
            for action, default in defaults.items():
                action.default = default
        return frozenset(vars(found)) & {action.dest for action in defaults}

    def accepts(self, name: str, value: Any) -> bool:
        """Whether parsing some command line could have set the argument `name` to `value`."""
        action = next((a for a in self._actions if a.dest == name), None)
        if action is None or type(value) not in (str, int, float, bool, type(None)):
            return False
        if type(value) is type(action.default) and value == action.default:
            return True
        if value is None or action.nargs == 0:
            return isinstance(value, bool)
        try:
            read = self._get_value(action, str(value))
            self._check_value(action, read)
        except argparse.ArgumentError:
            return False
        return type(read) is type(value) and read == value

    def _spelled(self, argument: str) -> str:
        """The flag as it was declared: --img_size -> --img-size, --layer-keep -> --layer_keep."""
        if not argument.startswith("--") or argument == "--":
            return argument
        flag, equals, value = argument.partition("=")
        declared = {f.replace("_", "-"): f for f in self._option_string_actions}
        return declared.get(flag.replace("_", "-"), flag) + equals + value

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {one_line(message)} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def run(main: Callable[[argparse.Namespace], Any], parser: argparse.ArgumentParser) -> None:
    """Parse the command line and run `main`; a UserError ends in one line on stderr and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter, and names of files that are no text
            stream.reconfigure(errors="backslashreplace")
    args = parser.parse_args()
    reuse_memory()
    _print_remarks(parser.prog)
    try:
        if getattr(args, "json", ""):
            check_writable(args.json)
        with explained_ends():
            main(args)
    except UserError as error:
        print(f"{parser.prog}: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        print(f"\n{parser.prog}: interrupted{f'; {interrupt}' if str(interrupt) else ''}", file=sys.stderr)
        sys.exit(130)


def _print_remarks(prog: str) -> None:
    """Show each Remark once, as one line, from now on; of several training processes, the first one's."""
    shown: set[str] = set()
    show_other = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if not issubclass(category, Remark):
            show_other(message, category, *place, **more)
        elif str(message) not in shown and os.environ.get("RANK", "0") == "0":
            shown.add(str(message))
            print(f"{prog}: warning: {one_line(str(message))}", file=sys.stderr)

    warnings.showwarning = show


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cfg", default="", help="Darknet .cfg file; not needed with a .pt checkpoint, which carries its own")
    parser.add_argument("--weights", default="", help=".weights or .pt file")
    parser.add_argument("--img-size", type=IMG_SIZE, default=None,
                        help="side of the network's input in pixels; default: the checkpoint's, else the cfg's")  # fmt: skip


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="", help="cpu, 0, cuda:1; default: CUDA if there is one, else the CPU")
    parser.add_argument("--json", default="", metavar="FILE", help="write the printed figures to this file")


def add_inference_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--precision", choices=["auto", *PRECISIONS], default="auto",
                        help="auto: fp16 on CUDA, bf16 on a CPU that has it, else fp32")  # fmt: skip
    add_picture_arguments(parser)


def add_picture_arguments(parser: argparse.ArgumentParser) -> None:
    """How pictures become the network's input; checkpoints know what they were trained with."""
    parser.add_argument("--stretch", action="store_true", help="resize as Darknet does, without keeping the aspect ratio; "
                        "a checkpoint knows by itself")  # fmt: skip
    parser.add_argument("--gray-scale", action="store_true", help="one-channel pictures; a checkpoint knows by itself")
    parser.add_argument("--maxabsscaler", "-mas", action="store_true", help="pictures in -1..1; a checkpoint knows by itself")


SETTING_FLAGS = {"maxabs": "--maxabsscaler", "stretch": "--stretch"}  # settings of a checkpoint -> how to say them


@dataclass
class Loaded:
    """A model ready to use, and what came with it."""

    model: Darknet
    names: list[str]
    img_size: int
    checkpoint: Checkpoint | None
    report: LoadReport
    fixed_size: tuple[int, int] | None = None  # (height, width) of a .onnx that takes no other

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) that a picture is letterboxed into."""
        return self.fixed_size or (self.img_size, self.img_size)

    @property
    def settings(self) -> dict[str, Any]:
        """What the checkpoint was trained with: gray, maxabs, stretch, img_size; empty for other weights."""
        return self.checkpoint.settings if self.checkpoint else {}

    @property
    def conf_thres(self) -> float | None:
        """The confidence threshold that the evaluation of these weights recommended, None without one."""
        return self.checkpoint.conf_thres if self.checkpoint else None

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
) -> Loaded:
    """Build the network of `cfg` (or of the checkpoint's own cfg) in eval mode on the CPU, and load `weights` if given.

    img_size: None takes the size it was trained at, else the cfg's width. `pretrained` and `prefix`: see load_weights.
    gray: build it for one channel whatever the cfg says, as is done for a checkpoint trained with --gray-scale.
    Raises UserError, before anything is loaded, when classes of cfg and data differ; and for NaN or infinite
    weights, unless they are to be taken `unchecked`.
    """
    if weights and is_onnx(weights):
        raise UserError(f"{weights}: an ONNX file can be run (test.py, detect.py), but not changed; "
                        "name the .pt or .weights that it was exported from")  # fmt: skip
    checkpoint = read_checkpoint(weights) if weights and is_checkpoint(weights) else None
    settings = checkpoint.settings if checkpoint else {}
    defs = choose_cfg(cfg, weights, checkpoint)
    if gray or settings.get("gray"):
        defs.net.channels = 1
    classes = checkpoint_classes(defs)
    if data is not None and data.classes != classes:
        ours = f"{defs.name}: its {defs.heads_named()} layers have classes={classes}"
        remedy = command("make_cfg.py", cfg=defs.name, data=data.path)
        raise UserError(f"{ours}, but {data.path} has {data.classes}; run: {remedy}")
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


def sees_gray(model: Darknet) -> bool:
    """Whether a network reads one-channel pictures; UserError if it reads neither those nor colour."""
    channels = model.defs.net.channels
    if channels not in (1, 3):
        raise UserError(f"{model.defs.name}: channels={channels}, but pictures have 3, or 1 with --gray-scale; change [net]")
    return channels == 1


def choose_cfg(cfg: str | Path, weights: str | Path, checkpoint: Checkpoint | None) -> Defs:
    """The cfg that was given, else the checkpoint's own."""
    if cfg:
        return parse_cfg(cfg)
    if checkpoint and checkpoint.cfg:
        return own_cfg(checkpoint)
    if weights:
        raise UserError(f"{weights}: carries no cfg; name the one it belongs to with --cfg")
    raise UserError("name the network with --cfg FILE, or a checkpoint with --weights FILE.pt")


def own_cfg(checkpoint: Checkpoint) -> Defs:
    """The network that a checkpoint says it is; UserError where its text is no cfg."""
    try:
        defs = parse_cfg(checkpoint.cfg + "\n")  # what has no line break would be a path
    except UserError as error:
        raise UserError(f"{checkpoint.path}: its own {error}") from None
    defs.name = checkpoint.cfg_name or checkpoint.path
    return defs


def format_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A plain text table; the first column is left-aligned, floats get four digits."""
    cells = [[_cell(v) for v in row] for row in (header, *rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(header))]
    lines = [
        "  ".join(v.ljust(w) if k == 0 else v.rjust(w) for k, (v, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def write_json(path: str | Path, figures: dict[str, Any]) -> None:
    """Write figures to `path` unless it is empty."""
    if path:
        write_text(path, json.dumps(figures, indent=2, default=float) + "\n")
