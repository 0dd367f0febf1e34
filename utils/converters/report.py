"""What a conversion did, as tables and as figures."""

from typing import Any

from utils.converters.write import Report
from utils.core.tables import format_table


def describe(report: Report) -> str:
    """Images and boxes by class and split, what was mended or left out, and what was decided, as text."""
    splits = list(report.images)
    rows = [["images", *report.images.values(), report.total_images]]
    for name in report.names:
        rows.append([name, *(report.boxes[name, split] for split in splits), report.class_boxes[name]])
    rows.append(["all boxes", *_sums(report).values(), report.class_boxes.total()])
    text = format_table(["", *splits, "in all"], rows)
    problems = report.problems
    if problems.counts:
        dropped = [[kind, count, problems.first[kind]] for kind, count in sorted(problems.counts.items())]
        text += "\n\n" + format_table(["mended or left out", "count", "first"], dropped)
    return "\n\n".join([text, *(f"Note: {remark}" for remark in report.remarks), f"Written: {report.data}"])


def figures(report: Report) -> dict[str, Any]:
    """The same for --json: {data, images{split, all}, boxes{split, all}, classes{name: {split, all}}, problems[{what, count,
    first}], remarks[]}."""
    splits, problems = list(report.images), report.problems
    classes = {n: {s: report.boxes[n, s] for s in splits} | {"all": report.class_boxes[n]} for n in report.names}
    return {
        "data": str(report.data),
        "images": report.images | {"all": report.total_images},
        "boxes": _sums(report) | {"all": report.class_boxes.total()},
        "classes": classes,
        "problems": [{"what": k, "count": n, "first": problems.first[k]} for k, n in sorted(problems.counts.items())],
        "remarks": report.remarks,
    }


def _sums(report: Report) -> dict[str, int]:
    """All boxes of each split."""
    return {split: sum(report.boxes[name, split] for name in report.names) for split in report.images}
