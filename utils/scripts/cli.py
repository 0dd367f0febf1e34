"""What every script's command line shares: arguments, loading a model, tables, and one line for a user's mistake."""

import argparse
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from utils.core.errors import Remark, UserError, one_line
from utils.core.files import check_writable
from utils.core.memory import reuse_memory
from utils.core.ranges import IMG_SIZE, THREADS, Range
from utils.core.workers import explained_ends


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
        _end(f"{self.prog}: {one_line(message)} (see {self.prog} --help)", 2)


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
        _end(f"{parser.prog}: {one_line(str(error))}", 2)
    except KeyboardInterrupt as interrupt:
        _end(f"\n{parser.prog}: interrupted{f'; {interrupt}' if str(interrupt) else ''}", 130)
    except Exception:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        _end(traceback.format_exc(), 1)


def _end(text: str, status: int) -> NoReturn:
    """Print why the program ends, once if torchrun started several processes, and end it."""

    def say() -> None:
        print(text, file=sys.stderr, flush=True)

    if os.environ.get("WORLD_SIZE", "1") == "1":
        say()
    else:
        from utils.core.torchrun import fail_once  # with PyTorch, which not every script needs

        fail_once(say)
    sys.exit(status)


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
    from utils.core.devices import PRECISIONS  # with PyTorch, which not every script needs

    parser.add_argument("--precision", choices=["auto", *PRECISIONS], default="auto",
                        help="auto: fp16 on CUDA, bf16 on a CPU that has it, else fp32")  # fmt: skip
    add_picture_arguments(parser)


def add_runtime_arguments(parser: argparse.ArgumentParser) -> None:
    from utils.runtimes.registry import RUNTIMES

    parser.add_argument("--runtime", choices=list(RUNTIMES), default="",
                        help="what computes the network; default: onnxruntime for a .onnx, else torch")  # fmt: skip
    add_threads_argument(parser)


def add_threads_argument(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument("--threads", type=THREADS, default=None, metavar="N",
                        help="threads that a network is computed with on a CPU; default: as many as PyTorch takes")  # fmt: skip


def add_picture_arguments(parser: argparse.ArgumentParser) -> None:
    """How images become the network's input; checkpoints know what they were trained with."""
    parser.add_argument("--stretch", action="store_true", help="resize as Darknet does, without keeping the aspect ratio; "
                        "a checkpoint knows by itself")  # fmt: skip
    parser.add_argument("--gray-scale", action="store_true", help="one-channel images; a checkpoint knows by itself")
    parser.add_argument("--maxabsscaler", "-mas", action="store_true", help="images in -1..1; a checkpoint knows by itself")
