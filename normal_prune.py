"""Prune the weakest channels of the whole network, but never those that a shortcut adds to others."""

import argparse
from typing import Any

from utils.cli import Parser, run
from utils.pruning import prune_channels, prune_parser


def get_parser() -> Parser:
    return prune_parser("normal", __doc__)


def main(args: argparse.Namespace) -> dict[str, Any]:
    return prune_channels(args)


if __name__ == "__main__":
    run(main, get_parser())
