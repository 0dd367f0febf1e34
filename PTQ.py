"""Quantize a trained network without training: measure the ranges of its maps on a few images, and write a checkpoint.

python PTQ.py --data data/bccd/bccd.data --weights weights/best.pt
python PTQ.py --data data/bccd/bccd.data --weights weights/best.pt --FPGA --observer mse --sensitivity
python PTQ.py --data data/bccd/bccd.data --weights weights/best.pt --w-bit 4 --keep-first-last --max-drop 0.02
"""

import argparse
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from utils.core.errors import UserError
from utils.core.files import output_place
from utils.core.options import options_of
from utils.core.preparation import Preparation
from utils.core.ranges import BATCH_SIZE, SHARE, WORKERS, whole
from utils.core.tables import format_table, write_json
from utils.data.batch import normalise
from utils.data.data_file import read_data
from utils.detection.threshold import CONF_THRES, threshold_line
from utils.loading import Loaded, NetworkOptions, load_model
from utils.network.cfg import write_cfg
from utils.network.checkpoint import save_checkpoint
from utils.network.class_term import CLASS_TERM
from utils.network.darknet import Darknet
from utils.quantized import calibrate
from utils.quantized.observers import OBSERVERS
from utils.quantized.settings import QuantizationOptions, Settings, settings_of
from utils.quantized.transform import layer_quantizers, quantize, quantizers, switched
from utils.scripts.cli import Parser, add_device_arguments, add_model_arguments, add_picture_arguments, run
from utils.scripts.evaluator import EvaluationOptions, Evaluator
from utils.scripts.quantization import add_quantization_arguments

GOOGLE = 1  # the strategy whose quantizers PTQ puts in: it needs no training
PROBES = 16  # images on which raw maps are compared
WORST = 5  # layers whose own mAP is measured, and that a refusal names
COLLAPSE = 0.5  # without --max-drop: the share of the float mAP@0.5 below which nothing is written


def get_parser() -> Parser:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help=".data file: train= images calibrate, valid= images judge")
    add_model_arguments(parser)
    parser.add_argument("--calib", type=whole(1, 1_000_000), default=128, metavar="N", help="training images to calibrate on")
    parser.add_argument("--observer", choices=list(OBSERVERS), default="mse",
                        help="range of a map: minmax all of it, moving its average, percentile without the outermost 0.01 %%, "
                        "mse that with the least rounding error")  # fmt: skip
    add_quantization_arguments(parser)
    parser.add_argument("--bias-correction", action=argparse.BooleanOptionalAction, default=None,
                        help="make up in the biases for what rounded kernels take away (Nagel et al. 2019); if not given, "
                        "where it brings the raw maps nearer to the float network's")  # fmt: skip
    parser.add_argument("--sensitivity", action="store_true", help="which layers hurt most: a table")
    parser.add_argument("--max-drop", type=SHARE, metavar="D",
                        help="write nothing if mAP@0.5 falls by more; if not given, if half of it is lost")  # fmt: skip
    parser.add_argument("--out", default="", metavar="FILE", help="checkpoint to write; default: beside --weights, *_ptq.pt")
    parser.add_argument("--batch-size", type=BATCH_SIZE, default=16, help="images a batch")
    add_picture_arguments(parser)
    parser.add_argument("--workers", type=WORKERS, default=2, help="processes that read images")
    add_device_arguments(parser)
    parser.set_defaults(precision="fp32")  # what quantized networks compute in, so that nothing else is compared
    return parser


@dataclass(frozen=True)
class PtqOptions:
    """The command line of PTQ.py."""

    data: str
    network: NetworkOptions
    quantization: QuantizationOptions
    evaluation: EvaluationOptions
    calib: int
    observer: str
    bias_correction: bool | None
    sensitivity: bool
    max_drop: float | None
    out: str
    json: str


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Calibrate, judge, and write the checkpoint; returns the figures that --json writes."""
    options = options_of(PtqOptions, vars(args))
    network = options.network
    if not network.weights:
        raise UserError("name the trained network with --weights FILE")
    settings = settings_of(options.quantization, GOOGLE, options.observer)
    out = target(network.weights, options.out)
    data = read_data(options.data)
    loaded = load_model(network.cfg, network.weights, network.img_size, data, gray=options.evaluation.images.gray)
    if loaded.model.quantization:
        raise UserError(f"{network.weights}: is quantized already ({loaded.model.quantization}); begin with float weights")
    if loaded.report.message:
        print(loaded.report.message)
    evaluator = Evaluator(options.evaluation, data, loaded)
    before = evaluator.accuracy(loaded.model, "float")
    job = Job(copy.deepcopy(loaded.model), settings, evaluator, options)
    job.quantize()
    after = evaluator.accuracy(job.model, "quantized")
    figures = {
        "settings": settings.to_dict(), "calib": job.pictures, "float": before, "quantized": after,
        "drop": before["map50"] - after["map50"], "raw_maps_db": job.db, "bias_correction": job.corrected, "sensitivity": None,
    }  # fmt: skip
    print(f"{settings}; observer {options.observer}, {job.pictures} images{', biases corrected' if job.corrected else ''}")
    report(before, after)
    if options.sensitivity or is_refused(figures, options.max_drop):
        figures["sensitivity"] = job.sensitivity()
    refuse(figures, options)
    save_checkpoint(out, checkpoint(loaded, job.model, options.evaluation.images) | {CONF_THRES: after["conf_thres"]})
    print(threshold_line(after["conf_thres"], str(out)))
    print(f"{out}: as large and as fast as before, since its integers are kept as floats; export.py makes an int8 file of it")
    write_json(options.json, figures | {"weights": str(out)})
    return figures


def target(weights: str, wanted: str) -> Path:
    """The file to write; UserError where it would be the source, and where it can't be written."""
    source = Path(weights)
    out = output_place(wanted, source.with_name(f"{source.stem}_ptq.pt"))
    if out.suffix != ".pt":
        raise UserError(f"--out {out}: a quantized network is a checkpoint, so its name must end in .pt")
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError(f"{out}: would overwrite its own source; name another file with --out")
    return out


@dataclass
class Job:
    """The quantization of one network. pictures: how many calibrated it; db: how near its raw maps are to the float ones;
    corrected: whether its biases were."""

    model: Darknet
    settings: Settings
    evaluator: Evaluator
    options: PtqOptions
    pictures: int = 0
    db: float = 0.0
    corrected: bool = False
    probes: list[Tensor] = field(default_factory=list)
    wanted: list[calibrate.Raws] = field(default_factory=list)

    def quantize(self) -> None:
        """Quantize the model, in place: ranges, then biases."""
        quantize(self.model, self.settings).to(self.evaluator.device)
        loader = self.evaluator.pictures(self.options.calib)
        count = len(loader.dataset)
        self.pictures = calibrate.calibrate(self.model, self._images(loader), count)
        for images in self._images(loader):
            self.probes.append(images)
            if sum(map(len, self.probes)) >= PROBES:
                break
        self.wanted = calibrate.raw_maps(self.model, self.probes, rounding=False)
        if not all(raw.isfinite().all() for raws in self.wanted for raw in raws):
            raise UserError(f"{self.options.network.weights}: its raw maps of training images aren't finite, even in float: "
                            "its training diverged, so begin with other weights")  # fmt: skip
        self.db = self._nearness()
        if self.options.bias_correction is not False:
            self._correct(loader, count)

    def _images(self, loader: DataLoader) -> Iterator[Tensor]:
        for batch in loader:
            yield normalise(batch.images, self.evaluator.device, maxabs=self.evaluator.prepared.maxabs)

    def _nearness(self) -> float:
        return calibrate.signal_to_noise(calibrate.raw_maps(self.model, self.probes, rounding=True), self.wanted)

    def _correct(self, loader: DataLoader, count: int) -> None:
        """Correct the biases; take it back where it wasn't asked for and doesn't help."""
        before = calibrate.biases(self.model)
        calibrate.correct_biases(self.model, self._images(loader), count)
        db = self._nearness()
        self.corrected = bool(self.options.bias_correction) or db > self.db
        if self.corrected:
            self.db = db
        else:
            calibrate.restore_biases(self.model, before)

    def sensitivity(self) -> list[dict[str, Any]]:
        """A row for each layer, the worst first, printed too; the WORST ones with the mAP@0.5 that they alone leave."""
        rows = [
            {"layer": n.index, "kind": n.kind, "db": n.db, "map50": None}
            for n in calibrate.sensitivity(self.model, self.probes, self.wanted)
        ]
        layers = layer_quantizers(self.model)
        for row in rows[:WORST]:
            with switched(quantizers(self.model), False), switched(layers[row["layer"]], True):
                row["map50"] = self.evaluator.accuracy(self.model, f"only layer {row['layer']}")["map50"]
        print("\neach layer alone quantized: raw maps over their error in dB, and mAP@0.5 of the worst")
        print(
            format_table(
                ["layer", "kind", "dB", "mAP@.5"],
                [["image" if r["layer"] < 0 else str(r["layer"]), r["kind"], r["db"], r["map50"]] for r in rows],
            )
        )
        return rows


def report(before: dict[str, Any], after: dict[str, Any]) -> None:
    names = {"map50": "mAP@0.5", "map": "mAP@0.5:0.95"}
    rows = [[title, before[k], after[k], after[k] - before[k]] for k, title in names.items()]
    print(format_table(["", "float", "quantized", "difference"], rows))


def is_refused(figures: dict[str, Any], max_drop: float | None) -> bool:
    """Whether the network lost more than it may."""
    allowed = COLLAPSE * figures["float"]["map50"] if max_drop is None else max_drop
    return figures["drop"] > allowed


def refuse(figures: dict[str, Any], options: PtqOptions) -> None:
    """Raise UserError naming the layers that hurt most if the network lost more than it may."""
    if not is_refused(figures, options.max_drop):
        if not figures["float"]["map50"]:
            print(f"warning: {options.network.weights} detects nothing even in float; is it trained?")
        return
    worst = [f"{'image' if r['layer'] < 0 else r['layer']} ({r['db']:.1f} dB)" for r in figures["sensitivity"][:WORST]]
    limit = "more than half of it" if options.max_drop is None else f"more than --max-drop {options.max_drop:g}"
    write_json(options.json, figures | {"weights": None})
    raise UserError(
        f"{options.network.weights}: not written: mAP@0.5 falls by {figures['drop']:.4f}, {limit}; the layers that hurt most: "
        f"{', '.join(worst)}; try another --observer, more bits, --keep-first-last, or train.py --quantized"
    )


def checkpoint(loaded: Loaded, model: Darknet, asked: Preparation) -> dict[str, Any]:
    """What the .pt holds: the network with its settings, and how images are prepared for it."""
    pictures = {"img_size": loaded.img_size, "gray": loaded.model.defs.net.channels == 1} | loaded.settings
    pictures |= {name: True for name in ("maxabs", "stretch") if getattr(asked, name)}
    return {
        "epoch": -1, "model": model.cpu().state_dict(), "cfg": write_cfg(model.defs), "cfg_name": model.defs.name,
        "names": loaded.names, "settings": pictures, "seen": model.seen, "quantization": model.quantization.to_dict(),
        CLASS_TERM: True,
    }  # fmt: skip


if __name__ == "__main__":
    run(main, get_parser())
