"""The command line of quantization, which train.py and PTQ.py share."""

import argparse
from typing import Any

from utils.quantized.config import OFF
from utils.quantized.settings import BITS


def add_quantization_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that train.py and PTQ.py share."""
    bits: dict[str, Any] = {"type": int, "choices": BITS, "metavar": "N", "default": None}
    parser.add_argument("--a-bit", **bits, help=f"quantized: bits of maps: 2 to 8, 16, or {OFF} for float; 8 if not given")
    parser.add_argument("--w-bit", **bits, help=f"quantized: bits of kernels: 2 to 8, 16, or {OFF} for float; 8 if not given")
    parser.add_argument("--FPGA", action="store_true", help="quantized: all scales powers of two, one a tensor: integers and "
                        "shifts only")  # fmt: skip
    parser.add_argument("--keep-first-last", action="store_true",
                        help="quantized: the first convolution and those before heads have at least 8 bits")  # fmt: skip
    parser.add_argument("--shortcut_way", type=int, choices=[1, 2], default=None,
                        help="quantized: maps that a shortcut adds share the smaller (1) or the larger (2) of their scales; "
                        "if not given each keeps its own, with --FPGA 1")  # fmt: skip
    parser.add_argument("--symmetric", action="store_true",
                        help="quantized: maps have 0 at the integer 0, too, as TensorRT asks; so with --FPGA")  # fmt: skip
