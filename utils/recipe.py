"""How a training goes where the command line leaves it open: by the number of its pictures.

Summed up to the nominal batch of 64, a few hundred pictures would give a handful of optimizer steps an epoch, too few to
learn from: yolov3-tiny on BCCD's 292 pictures is at 0.657 mAP@0.5 after 24 epochs of SGD's defaults and at 0.87 after 60
epochs of small AdamW steps (EXPERIMENTS.md).
"""

import argparse
from dataclasses import dataclass

from utils.cfg import DataConfig
from utils.labels import Problems, image_paths

FEW = 3000  # pictures; measured were 100 and 292, and SGD's defaults are those of sets like COCO's 118,000


@dataclass(frozen=True)
class Recipe:
    """What the flags of the same names say. accumulate: batches an optimizer step, 0: up to the nominal batch."""

    adam: bool
    batch_size: int
    accumulate: int

    @classmethod
    def of(cls, pictures: int, penalised: bool = False, processes: int = 1) -> "Recipe":
        """The recipe for a set of so many pictures. penalised: with --s or dynamic sparsity, whose strength is a share of
        SGD's gradient; AdamW would divide it out again. Batches are a multiple of the number of processes."""
        few = pictures <= FEW
        batch = 8 if few else 16
        return cls(few and not penalised, -(-batch // processes) * processes, 1 if few else 0)


def settle(args: argparse.Namespace, data: DataConfig, processes: int = 1) -> str:
    """Fill in, in place, what the command line of train.py leaves open; returns a line that says how the training goes."""
    pictures = len(image_paths(data.source("train"), Problems()))
    penalised = args.s > 0 or args.sparse_schedule == "dynamic"
    for name, value in vars(Recipe.of(pictures, penalised, processes)).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    step = f"{args.accumulate} a step" if args.accumulate else "summed up to the nominal batch"
    return f"{pictures:,} pictures: {'AdamW' if args.adam else 'SGD'}, batches of {args.batch_size}, {step}"
