"""Say what is wrong with a dataset, a cfg and weights before training finds out.

python check.py --data data/bccd/bccd.data
python check.py --data data/bccd/bccd.data --cfg cfg/yolov3tiny/yolov3-tiny-bccd.cfg --weights weights/last.pt
python check.py --data data/bccd/bccd.data --fix --out data/bccd-clean

Exit status: 0 if training can begin, 1 if something would break it or make its figures wrong, 2 for a command line that
can't be used.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from utils.core.errors import UserError
from utils.core.files import output_place
from utils.core.options import options_of
from utils.core.ranges import PROCESSES
from utils.core.tables import write_json
from utils.core.workers import usable_cores
from utils.network.file_kind import NoCfgError, is_checkpoint, is_onnx
from utils.scripts.cli import Parser, add_model_arguments, run


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help=".data file: classes, names, train, valid")
    add_model_arguments(parser)
    parser.add_argument("--stretch", action="store_true", help="anchors against boxes of images that are stretched")
    parser.add_argument("--decode", action="store_true", help="decode every picture: finds damage inside, takes longer")
    parser.add_argument("--fix", action="store_true", help="write a cleaned copy: labels, links to the images, a new .data")
    parser.add_argument("--out", default="", metavar="DIR", help="folder of --fix, a new one; default: <data>-clean beside it")
    parser.add_argument("--workers", type=PROCESSES, default=usable_cores(), help="processes; 1: none besides this one")
    parser.add_argument("--json", default="", metavar="FILE", help="write the printed figures to this file")
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Check, print the findings, with --fix write the cleaned copy and check that, too; exits with 1 if errors are left."""
    check_arguments(args)
    # with PyTorch, which --help and mistakes of the command line need not wait for
    from utils.checking.clean_copy import check_folder, write_clean
    from utils.checking.report import CheckOptions, check, describe, fix_line, has_errors, summarise

    if args.fix:
        out = output_place(args.out, Path(args.data).with_name(f"{Path(args.data).stem}-clean"), is_folder=True)
        check_folder(out)
    options = options_of(CheckOptions, vars(args))
    subject, findings = check(options, args.data)
    report = summarise(subject, findings)
    print(describe(subject, findings))
    if args.fix:
        fix = write_clean(subject, out)
        print(f"\n{fix_line(fix)}")
        subject, findings = check(options, str(fix.data))
        report["fixed"] = {"data": str(fix.data)} | summarise(subject, findings)
        print(f"\n{describe(subject, findings)}")
    write_json(args.json, report)
    if has_errors(findings):
        sys.exit(1)
    return report


def check_arguments(args: argparse.Namespace) -> None:
    """Raises UserError for arguments that can't be used."""
    for flag in ("data", "cfg", "weights"):
        path = getattr(args, flag)
        if path and not os.path.isfile(path):
            raise UserError(f"--{flag} {path}: there is no such file; check the path")
    if args.weights and is_onnx(args.weights):
        raise UserError(f"{args.weights}: an ONNX file isn't checked; name the .pt or .weights that it was exported from")
    if args.weights and not args.cfg and not is_checkpoint(args.weights):
        raise NoCfgError(args.weights)
    if args.out and not args.fix:
        raise UserError(f"--out {args.out} is where --fix writes; add --fix")


if __name__ == "__main__":
    run(main, get_parser())
