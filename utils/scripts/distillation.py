"""The command line of distillation."""

import argparse

from utils.core.ranges import POSITIVE
from utils.distillation.distiller import KD_CHOICES
from utils.distillation.losses import KDSTR


def add_distillation_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--t_cfg", default="", help="teacher's .cfg; not needed with a .pt checkpoint, which carries its own")
    parser.add_argument("--t_weights", default="", help="teacher's .weights or .pt: distil from it")
    parser.add_argument("--KDstr", type=int, choices=list(KDSTR), help=f"what to distil: {KD_CHOICES}")
    parser.add_argument("--kd-weight", type=POSITIVE, default=1.0, help="what the distillation terms are multiplied with")
    parser.add_argument("--kd-temperature", type=POSITIVE, help="of the softened distributions; default: 3, for --KDstr 6: 1")
    parser.add_argument("--kd-small", type=POSITIVE, default=1.0, metavar="W",
                        help="--KDstr 6: how much more the positions of small objects (less than 32 x 32 pixels of the input) "
                        "count; those of medium ones (96 x 96) count sqrt(W) times")  # fmt: skip
