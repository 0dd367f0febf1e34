"""Convert a dataset as its owners publish it into labels, lists, .names and .data.

python convert_dataset.py voc --src BCCD_Dataset/BCCD --out data/bccd
python convert_dataset.py coco --src coco128 --out data/coco128
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from utils.converters.base import Options
from utils.converters.formats import FORMATS
from utils.converters.report import describe, figures
from utils.converters.write import Report, convert
from utils.core.errors import UserError
from utils.core.ranges import NOT_ALL, PROCESSES
from utils.core.tables import write_json
from utils.core.workers import usable_cores
from utils.data.data_file import read_names
from utils.scripts.cli import Parser, run


def get_parser() -> ArgumentParser:
    """The command line."""
    parser = Parser(description="Convert a dataset into labels, lists, .names and .data, and draw what is in it")
    parser.add_argument("format", choices=sorted(FORMATS), help="how the source is annotated")
    parser.add_argument("--src", type=Path, required=True, help="folder of the dataset as its owners publish it")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; its name becomes that of .data and .names")
    parser.add_argument("--names", type=Path, help="class names, one a line: their order, and which classes to keep")
    parser.add_argument("--copy", action="store_true", help="copy images instead of hard-linking them")
    parser.add_argument("--skip-difficult", action="store_true", help="voc, dior: leave out objects marked as difficult")
    parser.add_argument("--only", default="", metavar="PART", help="use only annotation files with PART in their path (2017)")
    parser.add_argument("--valid-share", type=NOT_ALL, default=0.0, help="part of the images to hold out for validation, "
                        "where the source has no validation set")  # fmt: skip
    parser.add_argument("--workers", type=PROCESSES, default=usable_cores(), help="processes; 1: none besides this one")
    parser.add_argument("--json", default="", metavar="FILE", help="write the printed figures to this file")
    return parser


def main(args: Namespace) -> Report:
    """Convert, print what was written, and draw it beside the .data."""
    from utils.converters.image import draw_report  # with Matplotlib, which --help and mistakes need not wait for

    _check_folders(args.src, args.out)
    if args.skip_difficult and not FORMATS[args.format].difficult:
        known = ", ".join(name for name, form in FORMATS.items() if form.difficult)
        raise UserError(f"--skip-difficult: {args.format} knows no difficult objects, only {known} do; leave it away")
    names = class_names(args.names) if args.names else None
    options = Options(names, args.skip_difficult, args.only, args.valid_share, args.out)
    report = convert(args.format, args.src, args.out, options, copy=args.copy, workers=args.workers)
    draw_report(report, report.data.with_suffix(".png"))
    print(describe(report))
    write_json(args.json, {"format": args.format, "src": str(args.src), **figures(report)})
    return report


def class_names(path: Path) -> tuple[str, ...]:
    """The names of --names; UserError for a file without any, or with one that is given twice."""
    names = tuple(read_names(path))
    if not names:
        raise UserError(f"{path}: holds no class name; write one a line, or leave --names out")
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise UserError(f"{path}: names {twice} twice; a class has one line")
    return names


def _check_folders(source: Path, out: Path) -> None:
    """Is there something to read, and does writing leave it as it is?"""
    if not source.is_dir():
        raise UserError(f"{source}: this folder does not exist; check --src")
    own, target = source.resolve(), out.resolve()
    if not target.name:
        raise UserError(f"--out {out}: has no name that the .data could have; choose a folder in it")
    if own == target or any(folder == own or folder in own.parents for folder in (target / "images", target / "labels")):
        raise UserError(f"--out {out}: is the dataset itself; choose another folder, to keep that as it was published")


if __name__ == "__main__":
    run(main, get_parser())
