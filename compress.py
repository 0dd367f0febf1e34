"""Make a detector smaller by one command: sparse training, pruning, finetuning, ONNX, and a report.

python compress.py --data <your VOC, COCO or YOLO folder>                # trains a yolov3-tiny first; another network: --cfg
python compress.py --data my.data --weights my.pt                        # as far as 0.01 of mAP@0.5 allows
python compress.py --data my.data --weights my.pt --target-macs 0.3      # to 30 % of the multiply-accumulates
python compress.py --data my.data --weights my.pt --target-ms 12 --runtime onnxruntime --threads 1 --bits 8
python compress.py --data my.data --weights my.pt --max-drop 0.02 --hours 2 --bits 8
"""

import argparse
from typing import Any

from utils.compression.aim import KINDS, MAX_DROP
from utils.compression.compress import compress
from utils.compression.options import NETWORK, CompressOptions
from utils.compression.plan import STRATEGIES
from utils.core.options import options_of
from utils.core.ranges import EPOCHS, SEED, SHARE, WORKERS, Range, whole
from utils.runtimes.registry import RUNTIMES
from utils.scripts.cli import Parser, add_device_arguments, add_threads_argument, run


def get_parser() -> Parser:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help=".data file: train= images teach, valid= images judge; or the folder of a "
                        "dataset: VOC, COCO, or YOLO with its .yaml")  # fmt: skip
    parser.add_argument(
        "--weights",
        default="",
        help="the trained network: .pt, .weights with --cfg, a YOLOv5 or YOLOv8 checkpoint; without, one is trained first",
    )
    parser.add_argument("--cfg", default="", help=f"Darknet .cfg file: of .weights, which carry none; or what is trained first "
                        f"({NETWORK.name})")  # fmt: skip
    _add_aim_arguments(parser)
    parser.add_argument("--hours", type=Range(0, 10_000, above=True), metavar="H", help="that all training together may take")
    parser.add_argument("--rounds", type=whole(1, 20), default=3, metavar="N",
                        help="trials at most, where accuracy limits how small the network gets")  # fmt: skip
    parser.add_argument("--epochs", type=EPOCHS, metavar="N",
                        help="of each training; if not given, by the number of images")  # fmt: skip
    parser.add_argument("--strategy", choices=list(STRATEGIES), default="slim", help="which channels may go, see README")
    parser.add_argument("--refit", type=whole(0, 1_000_000), default=64, metavar="N",
                        help="training images on which what the cut broke is mended; 0: none")  # fmt: skip
    parser.add_argument("--teacher", action="store_true", help="finetuning is taught by the network that came (--KDstr 7)")
    parser.add_argument("--baselines", choices=["train", "test", "none"], default=None,
                        help="what the small network is compared with, the network that came at smaller images and a thinner "
                        "one: finetuned as long (default with --hours, where they leave time), or as they are")  # fmt: skip
    parser.add_argument("--bits", type=int, choices=[8, 32], default=32, help="8: an integer network besides, by PTQ.py")
    parser.add_argument("--out", default="output/compress", metavar="DIR", help="folder of the results")
    parser.add_argument("--workers", type=WORKERS, default=2, help="processes that read images")
    parser.add_argument("--seed", type=SEED, default=0, help="of the trainings")
    add_device_arguments(parser)
    return parser


def _add_aim_arguments(parser: Parser) -> None:
    group = parser.add_argument_group("the budget").add_mutually_exclusive_group()
    for key, kind in KINDS.items():
        group.add_argument(f"--target-{key}", type=kind.target, metavar="F", help=kind.help)
    parser.add_argument("--runtime", choices=list(RUNTIMES), default="", help="what --target-ms is measured on")
    add_threads_argument(parser)
    group.add_argument("--max-drop", type=SHARE, metavar="D",
                       help=f"as small as costs at most D of mAP@0.5; without any budget {MAX_DROP:g}")  # fmt: skip


def main(args: argparse.Namespace) -> dict[str, Any]:
    return compress(options_of(CompressOptions, vars(args)))


if __name__ == "__main__":
    run(main, get_parser())
