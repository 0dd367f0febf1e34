"""Convert annotations of other programs into labels, lists, .names and .data.

python convert_dataset.py voc --src ../shared/data/bccd --out data/bccd
python convert_dataset.py coco --src ../shared/data/coco128 --out data/coco128
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from utils.cfg import read_names
from utils.cli import Parser, format_table, run
from utils.convert import BOTH, FORMATS, Options, Report, write_dataset
from utils.errors import UserError


def get_parser() -> ArgumentParser:
    """The command line."""
    parser = Parser(description="Convert a dataset into labels, lists, .names and .data")
    parser.add_argument("format", choices=sorted(FORMATS), help="how the source is annotated")
    parser.add_argument("--src", type=Path, required=True, help="folder of the dataset as its owners publish it")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; its name becomes that of .data and .names")
    parser.add_argument("--names", type=Path, help="class names, one a line: their order, and which classes to keep")
    parser.add_argument("--copy", action="store_true", help="copy images instead of hard-linking them")
    parser.add_argument("--skip-difficult", action="store_true", help="voc: leave out objects marked as difficult")
    return parser


def main(args: Namespace) -> Report:
    """Convert and print what was written."""
    if not args.src.is_dir():
        raise UserError(f"{args.src}: this folder does not exist; check --src")
    names = read_names(args.names) if args.names else None
    annotations = FORMATS[args.format](args.src, Options(skip_difficult=args.skip_difficult))
    report = write_dataset(annotations, args.out, names, args.copy)
    print(describe(report))
    return report


def describe(report: Report) -> str:
    """Images and boxes by class and split, and what was left out, as text."""
    rows = [["images", *(report.images[s] for s in BOTH), report.total_images]]
    for name in report.names:
        counts = [report.boxes[name, split] for split in BOTH]
        rows.append([name, *counts, report.class_boxes[name]])
    rows.append(["all boxes", *(sum(report.boxes[n, s] for n in report.names) for s in BOTH), report.class_boxes.total()])
    text = format_table(["", *BOTH, "in all"], rows)
    if report.problems.counts:
        dropped = [[kind, count, report.problems.first[kind]] for kind, count in report.problems.counts.items()]
        text += "\n\n" + format_table(["mended or left out", "count", "first"], dropped)
    return f"{text}\n\nWritten: {report.data}"


if __name__ == "__main__":
    run(main, get_parser())
