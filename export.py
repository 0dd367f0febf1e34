"""Export a trained network for other runtimes, and check the result before saying that it is done.

python export.py --weights weights/best.pt                                     # weights/best.onnx, boxes decoded
python export.py --weights weights/best.pt --data data/bccd/bccd.data --nms    # NMS inside, checked on real images too
python export.py --weights weights/best.pt --img-size 320x416 --static --batch 1
python export.py --weights weights/best.pt --layout ultralytics                # for YOLO("best.onnx") and programs like it
python export.py --weights weights/best.pt --target opencv                     # as that runtime expects it, and tried in it
python export.py --weights weights/best.pt --format fpga --reorder --tm 32 --tn 4      # of train.py --quantized ... --FPGA
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.core.errors import UserError
from utils.core.options import flags_of, options_of
from utils.core.ranges import BATCH_SIZE, IMG_SIZE, SHARE, WORKERS, whole
from utils.core.tables import write_json
from utils.data.data_file import DataConfig, read_data
from utils.detection.threshold import USUAL
from utils.export.options import MAX_DROP, OnnxOptions
from utils.export.targets import TARGETS, settle
from utils.loading import Loaded, load_model
from utils.scripts.cli import Arguments, Parser, add_picture_arguments, run

NMS_FLAGS = {"conf_thres": (USUAL, SHARE), "iou_thres": (0.6, SHARE), "max_det": (300, whole(1, 1_000_000))}
TILE = whole(1, 65536)


def onnx(args: argparse.Namespace, loaded: Loaded, data: DataConfig | None) -> dict[str, Any]:
    """--format onnx: float networks as fp32, quantized ones as int8 with QuantizeLinear and DequantizeLinear; with --target
    what that runtime expects, also in a format of its own."""
    from utils.export.onnx.model import need

    options = options_of(OnnxOptions, vars(args))
    need("onnx", "onnxscript", "onnxruntime")
    if not options.target:
        from utils.export.onnx.job import export

        return export(options, loaded, data)
    from utils.export.onnx.verdict import Goal
    from utils.runtimes.registry import opener

    target = TARGETS[options.target]
    target.check_network(options.source.weights, loaded.model.quantization)
    goal = Goal(target, opener(target.runtime))
    if target.folder:
        need("pnnx", what=f"--target {options.target}")
        from utils.export.ncnn.job import export as convert

        return convert(options, loaded, data, goal)
    from utils.export.onnx.job import export

    return export(options, loaded, data, goal)


def fpga(args: argparse.Namespace, loaded: Loaded, data: DataConfig | None) -> dict[str, Any]:
    """--format fpga: a folder of integers, shifts and tables, for networks quantized with --FPGA."""
    from utils.export.fpga.job import FpgaOptions, export

    return export(options_of(FpgaOptions, vars(args)), loaded, data)


Exporter = Callable[[argparse.Namespace, Loaded, DataConfig | None], dict[str, Any]]
FORMATS: dict[str, Exporter] = {"onnx": onnx, "fpga": fpga}  # --format -> what writes it and returns the figures
FLAGS = {  # of one format alone
    "onnx": ("target", "half", "static", "batch", "opset", "layout", "outputs", *NMS_FLAGS, "max_drop", "workers"),
    "fpga": ("reorder", "tm", "tn", "check_size", "vectors"),
}


def get_parser() -> Parser:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help=".pt or .weights file; a quantized checkpoint becomes an int8 file")
    parser.add_argument("--cfg", default="", help="Darknet .cfg file; not needed with a .pt checkpoint, which carries its own")
    parser.add_argument("--data", default="", help=".data file: its valid= images are tried, its names= go aboard")
    parser.add_argument("--format", choices=list(FORMATS), default="onnx", help="what to write")
    parser.add_argument("--target", choices=list(TARGETS), default="",
                        help="onnx: the runtime that the file is for: outputs, size and batch as it expects them, tried in it "
                        "if it is installed; ncnn: a folder of its own format")  # fmt: skip
    parser.add_argument("--half", action="store_true", help="onnx --target ncnn: weights in 16 bits, half as large")
    parser.add_argument("--out", type=Path, default=None,
                        help="file (fpga, ncnn: folder) to write; default: the weights' name with another suffix")  # fmt: skip
    parser.add_argument("--img-size", type=pixels, nargs="+", default=None, metavar="N",
                        help="416, 320x416 or 320 416 (height, width); default: the checkpoint's, else the cfg's")  # fmt: skip
    parser.add_argument("--static", action="store_true", help="onnx: inputs of this size only, as many accelerators want it")
    parser.add_argument("--batch", type=batch, default="dynamic", help="onnx: images an input holds: a number, or dynamic")
    parser.add_argument("--opset", type=whole(1, 99), default=18, help="onnx: version of the operators")
    parser.add_argument("--layout", choices=["darknet", "ultralytics"], default="darknet",
                        help="onnx: how decoded boxes lie in the output; ultralytics: as in YOLOv8's own files, or YOLOv5's if "
                        "the network has [yolo] layers, with the metadata that their programs look for")  # fmt: skip
    outputs = parser.add_mutually_exclusive_group()
    for name, text in (("decode", "boxes in pixels with probabilities, as PyTorch's network gives them (the default)"),
                       ("raw", "the heads' maps, before any sigmoid"),
                       ("nms", "boxes that are left after non-maximum suppression in the graph")):  # fmt: skip
        constant = {"dest": "outputs", "action": "store_const", "default": "decoded"}
        outputs.add_argument(f"--{name}", **constant, const={"decode": "decoded"}.get(name, name), help=f"onnx: {text}")
    for flag, text in (
        ("conf_thres", "least confidence of a box; the checkpoint's recommended one, else"),
        ("iou_thres", "overlap above which a box goes;"),
        ("max_det", "boxes an image;"),
    ):
        usual, limits = NMS_FLAGS[flag]
        parser.add_argument(f"--{flag.replace('_', '-')}", type=limits, default=None,
                            help=f"onnx --nms: {text} {usual} if not given")  # fmt: skip
    parser.add_argument("--max-drop", type=SHARE, default=None,
                        help=f"onnx --data: how much mAP@0.5 may be lost against PyTorch's float network; {MAX_DROP} if not "
                        "given")  # fmt: skip
    parser.add_argument("--reorder", action="store_true",
                        help="fpga: kernels in the order in which an accelerator reads them that computes --tm filters and "
                        "--tn input channels at once")  # fmt: skip
    parser.add_argument("--tm", type=TILE, default=0, metavar="N", help="fpga --reorder: filters in a tile")
    parser.add_argument("--tn", type=TILE, default=0, metavar="N", help="fpga --reorder: input channels in a tile")
    parser.add_argument("--check-size", type=IMG_SIZE, default=0, metavar="N",
                        help="fpga: side of the images that the dump is tried on; about 96 if not given")  # fmt: skip
    parser.add_argument("--vectors", action="store_true",
                        help="fpga: also vectors.npz: an image and every step's integers, to test hardware with")  # fmt: skip
    add_picture_arguments(parser)
    parser.add_argument("--workers", type=WORKERS, default=2, help="onnx --data: processes that read images")
    parser.add_argument("--json", default="", metavar="FILE", help="write the printed figures to this file")
    return parser


def pixels(text: str) -> list[int]:
    """argparse type: `416` or `320x416`."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.isdecimal() for p in parts):
        raise argparse.ArgumentTypeError(f"{text} is neither a side in pixels nor HEIGHTxWIDTH")
    return [IMG_SIZE(p) for p in parts]


def batch(text: str) -> int | None:
    """argparse type: a number of images, None for `dynamic`."""
    if text == "dynamic":
        return None
    return BATCH_SIZE(text)


def refuse_foreign(args: argparse.Namespace) -> None:
    """Raise UserError for a flag of another format than the one that is asked for."""
    usual = get_parser().parse_args(["--weights", args.weights])
    for name, flags in FLAGS.items():
        given = [flag for flag in flags if getattr(args, flag) != getattr(usual, flag)]
        if given and name != args.format:
            flag = args.outputs if given[0] == "outputs" else given[0].replace("_", "-")
            raise UserError(f"--{flag}: means something with --format {name} only, not with {args.format}")


def check_max_drop(args: argparse.Namespace) -> None:
    """UserError for --max-drop where nothing measures it."""
    if args.max_drop is not None and not args.data:
        raise UserError("--max-drop is about mAP@0.5 on the valid= images of --data; add that")


def main(args: Arguments) -> dict[str, Any]:
    refuse_foreign(args)
    check_max_drop(args)
    settled = settle(options_of(OnnxOptions, vars(args)), args.given)
    args = argparse.Namespace(**vars(args) | flags_of(settled))
    data = read_data(args.data) if args.data else None
    loaded = load_model(args.cfg, args.weights, None, data, gray=args.gray_scale)
    if loaded.report.message:
        print(loaded.report.message)
    figures = FORMATS[args.format](args, loaded, data)
    write_json(args.json, figures)
    return figures


if __name__ == "__main__":
    run(main, get_parser())
