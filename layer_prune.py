"""Drop the weakest residual blocks: shortcuts and everything between them and their `from`.

Fewer layers save more time than as many fewer MACs; train with --prune 2 first. With --percent channels go, too.
"""

import argparse
from typing import Any

from utils.core.options import options_of
from utils.scripts.cli import Parser, run
from utils.scripts.prune import PruneOptions, prune, prune_parser


def get_parser() -> Parser:
    return prune_parser("layer", __doc__)


def main(args: argparse.Namespace) -> dict[str, Any]:
    return prune(options_of(PruneOptions, vars(args)))


if __name__ == "__main__":
    run(main, get_parser())
