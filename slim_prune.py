"""Prune the weakest channels, those that shortcuts add included: one goes only if it is weak in all layers that make it.

The gentlest way to thin a residual network throughout; train with --prune 1 first.
"""

import argparse
from typing import Any

from utils.core.options import options_of
from utils.scripts.cli import Parser, run
from utils.scripts.prune import PruneOptions, prune, prune_parser


def get_parser() -> Parser:
    return prune_parser("slim", __doc__)


def main(args: argparse.Namespace) -> dict[str, Any]:
    return prune(options_of(PruneOptions, vars(args)))


if __name__ == "__main__":
    run(main, get_parser())
