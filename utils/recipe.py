"""How a training goes where the command line leaves it open: by the number of its images.

Summed up to the nominal batch of 64, a few hundred images would give a handful of optimizer steps an epoch, too few to
learn from: yolov3-tiny on BCCD's 292 images is at 0.657 mAP@0.5 after 24 epochs of SGD's defaults and at 0.87 after 60
epochs of small AdamW steps (EXPERIMENTS.md).
"""

import math
from dataclasses import dataclass

from utils.core.hyp import GENTLE, LONG, Hyp
from utils.data.data_file import DataConfig
from utils.data.labels import Problems, image_paths

EPOCHS = range(20, 101)  # of a finetuning that nobody is waiting for
FEW = 3000  # images; measured were 100 and 292, and SGD's defaults are those of sets like COCO's 118,000


@dataclass(frozen=True)
class Recipe:
    """What the flags of the same names say. accumulate: batches an optimizer step, 0: up to the nominal batch."""

    adam: bool
    batch_size: int
    accumulate: int

    @classmethod
    def of(cls, pictures: int, penalised: bool = False, processes: int = 1) -> "Recipe":
        """The recipe for a set of so many images. penalised: with --s or dynamic sparsity, whose strength is a share of
        SGD's gradient; AdamW would divide it out again. Batches are a multiple of the number of processes."""
        few = pictures <= FEW
        batch = 8 if few else 16
        return cls(few and not penalised, -(-batch // processes) * processes, 1 if few else 0)


@dataclass(frozen=True)
class RecipeOptions:
    """The flags of the same names, None where the number of images decides."""

    adam: bool | None = None
    batch_size: int | None = None
    accumulate: int | None = None


@dataclass(frozen=True)
class Course:
    """How a training goes. steps: about how many the optimizer takes in all of it."""

    pictures: int
    epochs: int
    adam: bool
    batch_size: int
    accumulate: int

    @property
    def recipe(self) -> RecipeOptions:
        """What is settled by now."""
        return RecipeOptions(self.adam, self.batch_size, self.accumulate)

    @property
    def steps(self) -> int:
        """Where it isn't said how many batches make a step: those of the nominal batch, or of utils.core.hyp.GENTLE's."""
        batches = self.epochs * -(-self.pictures // self.batch_size)
        if self.accumulate:
            return max(1, batches // self.accumulate)
        nominal = batches * self.batch_size // Hyp.nominal_batch
        return max(1, nominal, min(batches, GENTLE["least_steps"]))

    def __str__(self) -> str:
        step = f"{self.accumulate} a step" if self.accumulate else "summed up to the nominal batch"
        return f"{self.pictures:,} images: {'AdamW' if self.adam else 'SGD'}, batches of {self.batch_size}, {step}"


def count(data: DataConfig) -> int:
    """How many images there are to train on."""
    return len(image_paths(data.source("train"), Problems()))


def settle(asked: RecipeOptions, epochs: int, data: DataConfig, penalised: bool, processes: int = 1) -> Course:
    """How a training goes of which this is asked; what that leaves open is filled in. penalised: see Recipe.of."""
    pictures = count(data)
    given = {name: value for name, value in vars(asked).items() if value is not None}
    return Course(pictures, epochs, **vars(Recipe.of(pictures, penalised, processes)) | given)


def finetuning_epochs(pictures: int) -> int:
    """Enough for the whole rate, which ends highest: LONG optimizer steps, in what is usual of epochs."""
    once = Course(pictures, 1, **vars(Recipe.of(pictures)))
    return min(max(EPOCHS[0], math.ceil(LONG / once.steps)), EPOCHS[-1])


def describe_finetuning(hyp: Hyp, course: Course) -> str:
    """What --finetune does, and why."""
    usual, name = Hyp(), "lr0_adam" if course.adam else "lr0"
    rate = f"rate {getattr(hyp, name):.2g} ({getattr(usual, name):g} from {LONG:,} steps on)"
    pictures = "mosaics (none in up to" if hyp.mosaic else "no mosaics (as in all of up to"
    return f"finetuning in {course.steps:,} steps: {rate}, {pictures} {usual.close_mosaic} epochs)"
