"""Say what is wrong with a dataset, a cfg and weights before training finds out.

python check.py --data data/bccd/bccd.data
python check.py --data data/bccd/bccd.data --cfg cfg/yolov3tiny/yolov3-tiny-bccd.cfg --weights weights/last.pt
python check.py --data data/bccd/bccd.data --fix --out data/bccd-clean

Exit status: 0 if training can begin, 1 if something would break it or make its figures wrong, 2 for a command line that
can't be used.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

from utils.checking.checks import findings_table, run_checks
from utils.checking.clean_copy import Fix, check_folder, write_clean
from utils.checking.findings import ERROR, SEVERITIES, Finding, Subject
from utils.checking.network import anchor_figures
from utils.checking.read import read_subject
from utils.core.errors import UserError
from utils.core.files import output_place
from utils.core.ranges import PROCESSES
from utils.core.tables import format_table, write_json
from utils.core.workers import usable_cores
from utils.network.file_kind import is_checkpoint, is_onnx
from utils.scripts.cli import Parser, add_model_arguments, run


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help=".data file: classes, names, train, valid")
    add_model_arguments(parser)
    parser.add_argument("--stretch", action="store_true", help="anchors against boxes of pictures that are stretched")
    parser.add_argument("--decode", action="store_true", help="decode every picture: finds damage inside, takes longer")
    parser.add_argument("--fix", action="store_true", help="write a cleaned copy: labels, links to the pictures, a new .data")
    parser.add_argument("--out", default="", metavar="DIR", help="folder of --fix, a new one; default: <data>-clean beside it")
    parser.add_argument("--workers", type=PROCESSES, default=usable_cores(), help="processes; 1: none besides this one")
    parser.add_argument("--json", default="", metavar="FILE", help="write the printed figures to this file")
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Check, print the findings, with --fix write the cleaned copy and check that, too; exits with 1 if errors are left."""
    check_arguments(args)
    if args.fix:
        out = output_place(args.out, Path(args.data).with_name(f"{Path(args.data).stem}-clean"), is_folder=True)
        check_folder(out)
    subject, findings = check(args, args.data)
    report = summarise(subject, findings)
    print(describe(subject, findings))
    if args.fix:
        fix = write_clean(subject, out)
        print(f"\n{fix_line(fix)}")
        subject, findings = check(args, str(fix.data))
        report["fixed"] = {"data": str(fix.data)} | summarise(subject, findings)
        print(f"\n{describe(subject, findings)}")
    write_json(args.json, report)
    if any(f.severity == ERROR for f in findings):
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
        raise UserError(f"{args.weights}: carries no cfg; name the one it belongs to with --cfg")
    if args.out and not args.fix:
        raise UserError(f"--out {args.out} is where --fix writes; add --fix")


def check(args: argparse.Namespace, data: str) -> tuple[Subject, list[Finding]]:
    options = {"img_size": args.img_size, "stretch": args.stretch, "workers": args.workers, "decode": args.decode}
    subject = read_subject(data, args.cfg, args.weights, **options)
    return subject, run_checks(subject)


def summarise(subject: Subject, findings: list[Finding]) -> dict[str, Any]:
    """What --json writes: findings, how many of each severity, what the splits hold, and how well the anchors fit them."""
    splits = {
        s.name: {"pictures": len(s.paths), "background": sum(not len(rows) for rows in s.labels), "boxes": len(s.rows())}
        for s in subject.splits
    }
    for split in subject.splits:
        if subject.data and subject.data.classes:
            counts = split.class_counts(subject.data.classes).tolist()
            splits[split.name]["classes"] = [[n, c] for n, c in zip(subject.data.names, counts, strict=True)]
    severities = {severity: sum(f.severity == severity for f in findings) for severity in SEVERITIES}
    anchors = anchor_figures(subject)
    return {
        "counts": severities,
        "splits": splits,
        "anchors": dataclasses.asdict(anchors) if anchors else None,
        "findings": [dataclasses.asdict(f) for f in findings],
    }


def describe(subject: Subject, findings: list[Finding]) -> str:
    """What the splits hold, the findings, and what follows from them, as text."""
    path = subject.data.path if subject.data else "the .data file"
    report = summarise(subject, findings)
    parts = [_splits_table(report["splits"])] if subject.splits else []
    if report["anchors"]:
        fit = "best possible recall {recall:.4f}, mean best IoU {mean_iou:.4f}".format(**report["anchors"])
        parts.append(f"anchors for train's boxes at {subject.img_size}x{subject.img_size}: {fit}")
    if findings:
        parts.append(findings_table(findings))
    errors = sum(f.severity == ERROR for f in findings)
    if errors:
        parts.append(f"{path}: {errors} of {len(findings)} findings would break training or make its figures wrong")
    else:
        parts.append(f"{path}: " + (f"{len(findings)} findings, none of which stops training" if findings else "nothing found"))
    return "\n\n".join(parts)


def _splits_table(splits: dict[str, dict[str, Any]]) -> str:
    rows = [[key, *(split[key] for split in splits.values())] for key in ("pictures", "background", "boxes")]
    counts = zip(*(split.get("classes", []) for split in splits.values()), strict=True)
    rows += [[f"  {pairs[0][0]}", *(count for _, count in pairs)] for pairs in counts]
    return format_table(["", *splits], rows)


def fix_line(fix: Fix) -> str:
    left_out = f"{fix.repeated} repeated pictures and {fix.overlapping} of valid's in train left out"
    return f"Written: {fix.data} ({fix.pictures:,} pictures, {left_out}); what a check says of it:"


if __name__ == "__main__":
    run(main, get_parser())
