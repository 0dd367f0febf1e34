"""A whole check of a dataset, a cfg and weights, and what is said of it: as text, and as figures for --json."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from utils.checking.checks import findings_table, run_checks
from utils.checking.clean_copy import Fix
from utils.checking.findings import ERROR, SEVERITIES, Finding, Subject
from utils.checking.network import anchor_figures
from utils.checking.read import read_subject
from utils.core.tables import format_table
from utils.loading import NetworkOptions


@dataclass(frozen=True)
class CheckOptions:
    """What is checked besides a .data file, and how closely."""

    network: NetworkOptions
    stretch: bool
    workers: int
    decode: bool


def check(options: CheckOptions, data: str) -> tuple[Subject, list[Finding]]:
    """What was read of the .data file `data` and of the network, and everything found in them."""
    network = options.network
    subject = read_subject(
        data, network.cfg, network.weights, img_size=network.img_size, stretch=options.stretch, workers=options.workers,
        decode=options.decode,
    )  # fmt: skip
    return subject, run_checks(subject)


def has_errors(findings: list[Finding]) -> bool:
    """Whether something was found that would break training or make its figures wrong."""
    return any(f.severity == ERROR for f in findings)


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
    left_out = f"{fix.repeated} repeated images and {fix.overlapping} of valid's in train left out"
    return f"Written: {fix.data} ({fix.pictures:,} images, {left_out}); what a check says of it:"
