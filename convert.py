"""Convert weights between Darknet's .weights and .pt checkpoints, and prove that nothing changed; take in YOLOv5 and YOLOv8.

python convert.py --cfg cfg/yolov3/yolov3.cfg --weights weights/yolov3.weights             # writes weights/yolov3.pt
python convert.py --weights weights/best.pt --out best.weights
python convert.py --cfg pruned.cfg --weights pruned.weights --like best.pt --out pruned.pt  # what only checkpoints carry
python convert.py --weights yolov5n.pt              # its owners' checkpoint: yolov5n_darknet.cfg, .pt and .weights
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from utils.converters.ultralytics import convert
from utils.core.errors import UserError
from utils.core.files import output_place, replacing, write_text
from utils.detection.threshold import CONF_THRES
from utils.loading import Loaded, load_model
from utils.network.cfg import write_cfg
from utils.network.checkpoint import Checkpoint, save_checkpoint
from utils.network.class_term import CLASS_TERM
from utils.network.darknet import Darknet
from utils.network.definitions import is_darknets
from utils.network.file_kind import is_checkpoint
from utils.network.foreign import Foreign, convertible
from utils.network.weights import LoadReport, darknet_tensors, load_weights, refuse_broken, save_weights
from utils.scripts.cli import Parser, run

SUFFIXES = (".weights", ".pt")


def get_parser() -> Parser:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--cfg", default="", help="Darknet .cfg file; not needed with a .pt checkpoint that carries its own")
    parser.add_argument("--weights", required=True, help="file to convert; its content tells its format")
    parser.add_argument("--like", default="", metavar="FILE.pt",
                        help="take image size, preparation of images and class names from this checkpoint")  # fmt: skip
    parser.add_argument("--out", default="", help="file to write: NAME.weights or NAME.pt; default: the other format beside it")
    return parser


def main(args: argparse.Namespace) -> Path:
    """Convert, read the result back, compare; return the written path.

    Raises UserError for weights that don't fit the cfg, and with nothing written if the round trip should fail.
    """
    found = convertible(args.weights) if is_checkpoint(args.weights) else None
    out = target(args.weights, args.out, is_foreign=found is not None)
    if found is not None:
        return take_in(found, args.cfg, out)
    loaded = like(args.like, args.cfg, args.weights) if args.like else load_model(args.cfg, args.weights)
    if loaded.report.message:
        print(loaded.report.message)
    if loaded.model.quantization:
        raise UserError(f"{args.weights}: is quantized ({loaded.model.quantization}), which a .weights file can't hold; "
                        "export.py makes an int8 ONNX file of it, or an FPGA dump")  # fmt: skip
    write(loaded, args.weights, out)
    if out.suffix == ".weights":
        say_what_is_left(loaded, args.cfg, out)
    return out


def write(loaded: Loaded, source: str, out: Path) -> None:
    """Write the network to `out`, whose suffix says how, and compare what can be read back before it stays there."""
    with replacing(out) as temporary:
        if out.suffix == ".pt":
            save_checkpoint(temporary, checkpoint(loaded))
        else:
            save_weights(loaded.model, temporary)
        compared = verify(loaded.model, temporary, out)
    print(f"{source} -> {out}: {compared}, read back identical, and so are the outputs on a random image")


def take_in(found: Foreign, cfg: str, out: Path) -> Path:
    """Write another program's checkpoint as a cfg and `out`, and as .weights, too, if that is a .pt and Darknet can read them.

    Raises UserError for a network that isn't the architecture that it looks like, with nothing written.
    """
    source = found.file.path
    if cfg:
        raise UserError(f"--cfg {cfg}: {source} brings its own architecture, so leave --cfg out")
    converted = convert(found)
    defs = converted.network.defs
    defs.name = str(out.with_suffix(".cfg"))
    model = Darknet(defs, converted.img_size)
    for tensor, value in zip((t for _, t in darknet_tensors(model)), converted.values(), strict=True):
        tensor.data.copy_(value)
    refuse_broken(model, source)
    carried = Checkpoint(names=converted.names, settings={"img_size": converted.img_size, "gray": defs.net.channels == 1})
    loaded = Loaded(model.eval(), converted.names, converted.img_size, carried, LoadReport())
    for path in (out, out.with_suffix(".weights")) if out.suffix == ".pt" and is_darknets(defs) else (out,):
        write(loaded, source, path)
    write_text(defs.name, converted.network.text(f"YOLO{found.family[4:]} for {len(converted.names)} classes"))
    print(f"its cfg: {defs.name}, for {model.img_size}x{model.img_size} pixels; classes: {', '.join(converted.names)}")
    for assumption in converted.assumed:
        print(f"assumed: {assumption}")
    return out


def say_what_is_left(loaded: Loaded, cfg: str, out: Path) -> None:
    """A .weights file holds values only: write the checkpoint's own cfg beside it, and name the settings to give by hand."""
    beside = out.with_suffix(".cfg")
    if not cfg and not beside.exists():
        write_text(beside, write_cfg(loaded.model.defs))
        print(f"its cfg: {beside}")
    if loaded.conf_thres is not None:
        print(f"recommended confidence threshold, which a .weights doesn't carry: detect.py --conf-thres {loaded.conf_thres:g}")
    if loaded.flags:
        print(f"trained with {' '.join(loaded.flags)}, which a .weights file doesn't carry: give it to test.py and detect.py")


def like(path: str, cfg: str, weights: str) -> Loaded[Darknet]:
    """The network, with the image size, the preparation of images and the class names of the checkpoint `path`."""
    if not is_checkpoint(path):
        raise UserError(f"--like {path}: is no checkpoint (.pt), and nothing else carries settings")
    other = load_model("", path)
    loaded = load_model(cfg, weights, other.img_size)
    if not loaded.checkpoint:
        loaded.checkpoint = Checkpoint(names=other.checkpoint.names, settings=other.settings)
    return loaded


def target(weights: str, out: str, *, is_foreign: bool) -> Path:
    """The file to write; UserError for a suffix that names no format. is_foreign: `weights` are another program's."""
    source = Path(weights)
    other = source.with_suffix(".weights" if is_checkpoint(source) else ".pt")
    path = output_place(out, source.with_name(f"{source.stem}_darknet.pt") if is_foreign else other)
    if path.suffix not in SUFFIXES:
        raise UserError(f"--out {path}: the suffix decides the format, so it must be {' or '.join(SUFFIXES)}")
    if path.exists() and path.resolve() == source.resolve():
        raise UserError(f"{path}: would overwrite its own source; name another file with --out")
    return path


def checkpoint(loaded: Loaded) -> dict[str, Any]:
    """What a .pt holds that isn't a run's: weights with their cfg, names and settings, in the dialect's layout."""
    before = loaded.checkpoint or Checkpoint()
    return {
        "epoch": before.epoch,
        "best_fitness": before.best_fitness,
        "training_results": before.training_results or None,
        "hyp": before.hyp or None,
        "names": before.names or None,
        CONF_THRES: before.conf_thres,
        "model": loaded.model.state_dict(),
        "optimizer": None,
        "cfg": write_cfg(loaded.model.defs),
        "cfg_name": loaded.model.defs.name,
        "settings": {"img_size": loaded.img_size} | loaded.settings,
        "seen": loaded.model.seen,
        CLASS_TERM: True,
    }  # fmt: skip


@torch.inference_mode()
def verify(model: Darknet, path: Path, name: Path) -> str:
    """Load `path` into a fresh network and compare every tensor and the outputs of both; return what was compared."""
    again = Darknet(model.defs, model.img_size)
    load_weights(again, path, prefix=False)
    pairs = list(zip(darknet_tensors(model), darknet_tensors(again), strict=True))
    for (index, ours), (_, read) in pairs:
        if not torch.equal(ours.view(torch.int32), read.view(torch.int32)):  # bit by bit, NaN included
            raise UserError(f"{name}: not written: layer {index} came back with other values; please report this")
    image = torch.rand(1, model.defs.net.channels, model.img_size, model.img_size)
    outputs = (network.eval()(image)[0] for network in (model, again))
    if not torch.allclose(*outputs, rtol=0, atol=0, equal_nan=True):
        raise UserError(f"{name}: not written: the outputs changed; please report this")
    return f"{len(pairs)} tensors, {sum(t.numel() for (_, t), _ in pairs):,} values"


if __name__ == "__main__":
    run(main, get_parser())
