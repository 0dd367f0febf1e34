"""Prune channels as slim_prune does, then drop the weakest residual blocks of what is left.

The smallest and fastest residual networks; train with --prune 1 first and finetune long.
"""

import argparse
from typing import Any

from utils.core.options import options_of
from utils.scripts.cli import Parser, run
from utils.scripts.prune import PruneOptions, prune, prune_parser


def get_parser() -> Parser:
    return prune_parser("layer_channel", __doc__)


def main(args: argparse.Namespace) -> dict[str, Any]:
    return prune(options_of(PruneOptions, vars(args)))


if __name__ == "__main__":
    run(main, get_parser())
