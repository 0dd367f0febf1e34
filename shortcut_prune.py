"""Prune the weakest channels, those that shortcuts add included: each group of them is judged by its first layer.

Removes more from residual networks than normal_prune; train with --prune 1 first.
"""

import argparse
from typing import Any

from utils.core.options import options_of
from utils.scripts.cli import Parser, run
from utils.scripts.prune import PruneOptions, prune, prune_parser


def get_parser() -> Parser:
    return prune_parser("shortcut", __doc__)


def main(args: argparse.Namespace) -> dict[str, Any]:
    return prune(options_of(PruneOptions, vars(args)))


if __name__ == "__main__":
    run(main, get_parser())
