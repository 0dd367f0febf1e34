"""What is going to be done, before it is: the table that compress.py prints first, and what stops it before anything runs."""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from utils.compression.aim import KINDS, MAX_DROP, asked
from utils.compression.clock import FIRST, SPARSE
from utils.compression.options import CompressOptions
from utils.core.devices import select_device
from utils.core.errors import UserError
from utils.core.options import flags_of
from utils.core.tables import format_table
from utils.data.data_file import DataConfig, read_data
from utils.data.labels import Problems, image_paths
from utils.loading import load_model
from utils.network.cfg import parse_cfg
from utils.network.file_kind import is_checkpoint
from utils.network.foreign import convertible
from utils.recipe import finetuning_epochs
from utils.runtimes.deployment import Deployment

LEAST_PICTURES = 2  # to train on, and to measure on
STRATEGIES = {"slim": 1, "normal": 0, "regular": 0, "shortcut": 1}  # name -> train.py --prune
ONNX = ("onnx", "onnxscript", "onnxruntime")
OF_THIS_CALL = ("out", "device", "workers", "json", "baselines")  # may differ when a command goes on


class Epochs(NamedTuple):
    """Of each training, where no --hours limits them. first: of a network that comes without weights."""

    first: int
    sparse: int
    finetune: int

    @classmethod
    def of(cls, pictures: int, asked: int | None) -> "Epochs":
        """For so many images; as many as asked, if that is given, of each."""
        if asked:
            return cls(asked, asked, asked)
        finetuning = finetuning_epochs(pictures)
        round_ = finetuning / (1 - SPARSE)
        return cls(round(round_ * FIRST / (1 - FIRST)), round(round_ * SPARSE), finetuning)


@dataclass(frozen=True)
class Plan:
    """pictures: {train, valid}: how many. trains: whether the network comes without weights, to be trained first.
    takes_in: whether the weights are first converted to a checkpoint of the suite's own. deployment: where the milliseconds of
    --target-ms are measured."""

    data: DataConfig
    pictures: dict[str, int]
    epochs: Epochs
    trains: bool
    takes_in: bool
    has_onnx: bool
    deployment: Deployment | None

    @classmethod
    def of(cls, options: CompressOptions) -> "Plan":
        """Raises UserError for a command line, a dataset or weights that nothing can be done with."""
        if not options.data:
            raise UserError("name the dataset with --data: its .data file, or its folder")
        deployment = options.deployment()
        select_device(options.device)  # refuses one that isn't there
        data = read_data(options.data)
        pictures = {key: len(image_paths(data.source(key), Problems())) for key in ("train", "valid")}
        for key, number in pictures.items():
            if number < LEAST_PICTURES:
                raise UserError(f"{data.source(key)}: has {number} image to {'train' if key == 'train' else 'measure'} on; "
                                "compressing needs more, a few hundred are usual")  # fmt: skip
        trains, takes_in = not options.weights, False
        if trains:
            parse_cfg(options.network)
        else:
            is_ours = is_checkpoint(options.weights)
            is_foreign = is_ours and convertible(options.weights) is not None
            takes_in = is_foreign or not is_ours
            if options.cfg or not is_foreign:
                check_network(options, data)
        epochs = Epochs.of(pictures["train"], options.epochs)
        has_onnx = all(importlib.util.find_spec(name) is not None for name in ONNX)
        return cls(data, pictures, epochs, trains, takes_in, has_onnx, deployment)

    def table(self, options: CompressOptions) -> str:
        """The stages in their order."""
        kind, target = asked(options.aim)
        drop = MAX_DROP if options.aim.max_drop is None else options.aim.max_drop
        aim = (
            f"at most {target} of its {KINDS[kind].title}" if target else f"the smallest that loses at most {drop:g} of mAP@0.5"
        )
        limit = f", fewer where --hours {options.hours:g} asks for it" if options.hours else ""
        rounds = 1 if target else options.rounds
        rows = [["convert.py", "the network as a checkpoint of this suite"]] if self.takes_in else []
        rows += [["make_cfg.py", f"{Path(options.network).name} for {self.data.classes} classes"]] if self.trains else []
        rows.append(["check.py", f"{self.pictures['train']:,} images to train on, {self.pictures['valid']:,} to measure on"])
        rows += [["train.py", "one epoch, to see how long it takes"]] if options.hours else []
        rows += [["train.py", f"from scratch, {self.epochs.first} epochs{limit}"]] if self.trains else []
        rows.append(["test.py", "the network " + ("that was trained" if self.trains else "as it came")])
        if self.deployment:
            rows.append([f"{options.strategy}_prune.py --dry-run", f"its milliseconds on {self.deployment}, layer by layer"])
        rows += [
            ["train.py --prune", f"sparse training, {self.epochs.sparse} epochs{limit}"],
            [f"{options.strategy}_prune.py", f"{aim}; refitted on {options.refit} images"],
            [
                "train.py --finetune",
                f"{self.epochs.finetune} epochs{limit}" + (", taught by the network that came" * options.teacher),
            ],
            ["test.py", "the small network"],
        ]
        if rounds > 1:
            rows.append(["", f"the last four again with less or more, up to {rounds} rounds, until the aim is enclosed"])
        rows += self._baselines(options)
        rows += [["PTQ.py", "8 bits by calibration"]] if options.bits == 8 else []
        rows.append(["convert.py", "network.cfg, .weights, .pt"])
        rows.append(["export.py", "network.onnx" if self.has_onnx else f"left out: {', '.join(ONNX)} aren't all installed"])
        rows += [["detect.py", "the same images before and after"], ["", "report.html"]]
        width = max(len(step) for step, _ in rows)
        return format_table(["plan"], [[f"{n:2}  {step:<{width}}  {what}"] for n, (step, what) in enumerate(rows, 1)])

    def _baselines(self, options: CompressOptions) -> list[list[str]]:
        """What the comparison with networks that aren't compressed costs."""
        if options.baselines == "none":
            return []
        epochs = (
            f"both baselines for as many epochs as the small network had, {self.epochs.sparse + self.epochs.finetune} a round"
        )
        after = ", where --hours leaves time" if options.hours else ", which takes about as long again"
        rows = [
            ["test.py --img-size", "the network as it came at the two image sizes that take as long as the small one"],
            [f"{options.strategy}_prune.py --importance uniform", "a thinner one, as costly; 3 evaluations"],
        ]
        return rows + ([["train.py --finetune", epochs + after]] if options.trains_baselines else [])


def check_network(options: CompressOptions, data: DataConfig) -> None:
    """UserError for weights that can't be pruned, or aren't for the classes of the data."""
    loaded = load_model(options.cfg, options.weights, None, data)
    if loaded.model.quantization:
        raise UserError(f"{options.weights}: is quantized; name the float network that it was made of")


def command_of(options: CompressOptions) -> dict[str, Any]:
    """What has to be the same for a command to go on where it stood. digest: of the network's content."""
    values = {k: v if v is None or isinstance(v, int | float | str) else str(v) for k, v in flags_of(options).items()}
    values = {k: v for k, v in values.items() if k not in OF_THIS_CALL}
    with open(options.network, "rb") as file:
        return values | {"digest": hashlib.file_digest(file, "sha256").hexdigest()[:16]}
