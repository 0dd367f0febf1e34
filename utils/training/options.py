"""What a training is asked to be: train.py's command line, sorted by idea."""

from dataclasses import dataclass, replace
from typing import Self

from utils.core.errors import UserError
from utils.core.preparation import Preparation
from utils.distillation.distiller import check_distillation
from utils.distillation.teacher import DistillationOptions
from utils.loading import NetworkOptions
from utils.pruning.sparsity_options import SparsityOptions
from utils.quantized.settings import QuantizationOptions, Settings, requested
from utils.recipe import RecipeOptions
from utils.training.reparam import check_reparam


@dataclass(frozen=True)
class LoadingOptions:
    """How training images are read."""

    rect: bool
    cache_images: str | None  # see utils.data.image_cache
    workers: int


@dataclass(frozen=True)
class TrainOptions:
    """Everything that decides what is trained, by what and how; where it is written isn't part of it."""

    data: str
    single_cls: bool
    network: NetworkOptions
    pretrained: bool
    images: Preparation
    loading: LoadingOptions
    image_weights: bool
    assign: str
    multi_scale: bool
    epochs: int
    seed: int
    hyp: str
    finetune: bool
    ema: bool
    mixedprecision: bool
    recipe: RecipeOptions
    sparsity: SparsityOptions
    distillation: DistillationOptions
    reparam: str  # a form of utils.network.branches, "" for none
    quantized: int
    observer: str
    quantization: QuantizationOptions
    notest: bool
    nosave: bool
    name: str
    json: str

    def checked(self) -> Self:
        """With what the options say of each other filled in. Raises UserError for those that can't be used together or at
        all."""
        if not self.data:
            raise UserError("name the dataset with --data FILE.data")
        if "/" in self.name:
            raise UserError(f"--name {self.name}: goes into file names; choose folders with --weights-dir and --results-dir")
        settled = replace(self, sparsity=self.sparsity.settled())
        check_distillation(self.distillation)
        if self.reparam:
            check_reparam(self.sparsity, self.quantized)
        self.settings()
        return settled

    def settings(self) -> Settings | None:
        """Of the quantization that is asked for, None for a float network."""
        return requested(self.quantization, self.quantized, self.observer)
