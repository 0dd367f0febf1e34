"""All checks, what runs when, and how the findings are said."""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from utils.checking import data as check_data
from utils.checking import network as check_network
from utils.checking.findings import NOTE, SEVERITIES, CheckFunction, Finding, Split, Subject
from utils.checking.read import same_path
from utils.data.datasets import DetectionDataset

HEADER = ("severity", "count", "finding", "first", "what to do")
WRAP = 44  # characters of a line of the column `finding`


@dataclass(frozen=True)
class Check:
    """A check; `quick`: train.py makes it by itself, as it needs only what training has read anyway."""

    function: CheckFunction
    quick: bool = False


CHECKS = (
    Check(check_data.unreadable),
    Check(check_data.files),
    Check(check_data.boxes),
    Check(check_data.corners, quick=True),
    Check(check_data.coco_annotations),
    Check(check_data.overlap, quick=True),
    Check(check_data.repeated, quick=True),
    Check(check_data.shared_labels, quick=True),
    Check(check_data.orphans),
    Check(check_data.sizes, quick=True),
    Check(check_data.classes, quick=True),
    Check(check_network.heads),
    Check(check_network.geometry),
    Check(check_network.anchor_order, quick=True),
    Check(check_network.anchor_fit, quick=True),
    Check(check_network.tiny_boxes, quick=True),
    Check(check_network.weights),
)


def run_checks(subject: Subject) -> list[Finding]:
    """Everything that all checks find, the worst first."""
    found = [finding for check in CHECKS for finding in check.function(subject)]
    return sorted(found, key=lambda f: SEVERITIES.index(f.severity))


def quick_warnings(subject: Subject, datasets: Mapping[str, DetectionDataset]) -> list[str]:
    """A line for everything of weight that the quick checks find in datasets that training has read already.

    subject: data, defs, img_size and stretch; its splits are filled in here. datasets: `train`, and `valid` if there is one.
    Images are compared by their paths only.
    """
    subject.splits = [
        Split(name, d.source, list(d.paths), list(d.labels), d.shapes, d.problems) for name, d in datasets.items()
    ]
    subject.twins = same_path(subject.splits)
    found = [finding for check in CHECKS if check.quick for finding in check.function(subject)]
    return [finding.line for finding in found if finding.severity != NOTE]


def findings_table(findings: Sequence[Finding]) -> str:
    """The findings as text, a row each; places and remedies, which are there to be copied, stay on one line."""
    rows = [[[cell] for cell in HEADER]]
    for f in findings:
        what = textwrap.wrap(f.what, WRAP, break_on_hyphens=False)
        rows.append([[f.severity], [f"{f.count:,}"], what, [f.first], [f.remedy]])
    widths = [max(len(line) for row in rows for line in row[k]) for k in range(len(HEADER))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for row in rows
        for cells in itertools.zip_longest(*row, fillvalue="")
    ]
    return "\n".join([lines[0], "-" * min(max(map(len, lines)), 128), *lines[1:]])
