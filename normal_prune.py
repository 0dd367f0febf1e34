"""Prune the weakest channels of the whole network, but never those that a shortcut adds to others.

The safest choice, and the first to try; networks without shortcuts have nothing that it couldn't remove.
"""

import argparse
from typing import Any

from utils.core.options import options_of
from utils.scripts.cli import Parser, run
from utils.scripts.prune import PruneOptions, prune, prune_parser


def get_parser() -> Parser:
    return prune_parser("normal", __doc__)


def main(args: argparse.Namespace) -> dict[str, Any]:
    return prune(options_of(PruneOptions, vars(args)))


if __name__ == "__main__":
    run(main, get_parser())
