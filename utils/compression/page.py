"""report.html: one page that needs nothing else. Whatever comes from files, names of classes and of images, is escaped."""

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

import cv2
import numpy as np

from utils.compression.aim import KINDS
from utils.compression.charts import RIVAL, Point, bars, curve
from utils.pruning.spend import MILLISECONDS

SIDE = 480  # pixels of an image's longer side
QUALITY = 85  # of JPEG

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff;
  max-width: 1000px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.7em; margin: .4em 0 .1em; } h2 { font-size: 1.2em; margin: 1.8em 0 .5em; }
.lead { font-size: 1.15em; } .small { color: #57606a; font-size: .88em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; text-align: right; border-bottom: 1px solid #d8dee4; overflow-wrap: anywhere; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #8c959f; }
svg { width: 100%; max-width: 760px; height: auto; display: block; } svg text { font-size: 12px; fill: #424a53; }
.grid { stroke: #e4e8ec; } .joined { fill: none; stroke: #8c959f; stroke-width: 1.5; }
.budget { stroke: #cf222e; stroke-width: 1.5; stroke-dasharray: 6 4; }
.came { fill: #57606a; } .kept { fill: #1a7f37; } .rival { fill: #bf8700; }
.broken { fill: #fff; stroke: #cf222e; stroke-width: 2; }
rect.before { fill: #d0d7de; } rect.after { fill: #0969da; }
.pairs { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; }
figure { margin: 0; break-inside: avoid; } figure img { width: 100%; display: block; }
figcaption { font-size: .85em; color: #57606a; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f3f5f7; padding: 10px; font-size: .85em; }
.columns { columns: 9em; font-size: .88em; font-variant-numeric: tabular-nums; }
@media (max-width: 560px) { body { padding: 8px; } th, td { padding: 3px 5px; font-size: .88em; } }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; } h2 { break-after: avoid; } svg, tr, pre { break-inside: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } .scroll { overflow: visible; }
}
"""


def page(result: dict[str, Any], pictures: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> str:
    """The whole page. result: what compress.json holds under that key; pictures: (name, before, after), BGR with boxes."""
    sections = [
        ("Before and after", figures_table(result)),
        ("mAP by class", classes_table(result)),
        ("Without compressing, at the same milliseconds", baselines_table(result)),
        ("What was tried", _tried(result)),
        ("Filters of each layer", _layers(result["layers"])),
        ("The same images before and after", _pairs(pictures)),
        ("Files", table(["file", "what"], [[path, kind] for kind, path in result["files"].items()])),
        ("Commands", f"<pre>{escape(chr(10).join(result['commands']))}</pre>"),
        ("Made with", _made_with(result)),
    ]
    lead = "".join(f'<p class="lead">{escape(line)}</p>' for line in (result["outcome"], result["verdict"]) if line)
    body = "".join(f"<section><h2>{escape(title)}</h2>{content}</section>" for title, content in sections if content)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(result['title'])}</title><style>{STYLE}</style></head>"
        f"<body><h1>{escape(result['title'])}</h1>{lead}{body}</body></html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def figures_table(result: dict[str, Any]) -> str:
    before, after = result["before"], result["after"]
    rows = [[title, f"{before[k]:.4f}", f"{after[k]:.4f}", f"{after[k] - before[k]:+.4f}"] for title, k in _ACCURACIES]
    for title, key, unit, digits in _COSTS:
        old, new = before[key] / unit, after[key] / unit
        rows.append([title, f"{old:,.{digits}f}", f"{new:,.{digits}f}", _change(old, new)])
    old, new = before["ms"], after["ms"]
    rows.append(["milliseconds an image", _spread(old), _spread(new), _change(old["median"], new["median"])])
    header = ["", "before", "after", "change"]
    if result["int8"]:
        header.append("after, 8 bits")
        extra = {"mAP@0.5": f"{result['int8']['map50']:.4f}", "mAP@0.5:0.95": f"{result['int8']['map']:.4f}"}
        rows = [[*row, extra.get(row[0], "")] for row in rows]
    note = (
        f"Milliseconds: median (least to most) of {result['turns']} turns of all networks, one image, {result['measured_on']}."
    )
    if result["aim"]["kind"] == MILLISECONDS and result["is_kept"]:
        note += (" Told in those of the network that came as they were when it was pruned. Pruning went by "
                 f"{after['latency_ms']:.2f} of the small network; here it is measured again, beside the others.")  # fmt: skip
    return table(header, rows) + f'<p class="small">{escape(note)}</p>'


def classes_table(result: dict[str, Any]) -> str:
    pairs = zip(result["before"]["per_class"], result["after"]["per_class"], strict=True)
    rows = [
        [old["name"], f"{old['targets']:,}", *(f"{v:.4f}" for v in (old["map50"], new["map50"], old["map"], new["map"]))]
        for old, new in pairs
    ]
    return table(["class", "boxes", "mAP@0.5 before", "after", "mAP@0.5:0.95 before", "after"], rows)


def baselines_table(result: dict[str, Any]) -> str:
    """The small network beside what is as fast without having been compressed; "" where nothing was compared."""
    if not result["baselines"]:
        return ""
    after = result["after"] | {"latency_ms": result["after"]["ms"]["median"], "title": "compressed"}
    rows = [
        [b["title"], {None: "", 0: "no"}.get(b.get("epochs"), f"{b.get('epochs')} epochs"), f"{b['latency_ms']:.2f}",
         f"{b['params']:,}", f"{b['macs']:,}", f"{b['map50']:.4f}", f"{b['map']:.4f}"]
        for b in (after, *result["baselines"])
    ]  # fmt: skip
    header = ["", "finetuned as it is", "milliseconds", "parameters", "MACs", "mAP@0.5", "mAP@0.5:0.95"]
    note = (
        "Milliseconds are measured by turns with the others' above. A baseline that wasn't finetuned may become better by it: "
        "--baselines train finetunes each for as many epochs as the compressed network was trained."
    )
    if result["int8"] and result["aim"]["kind"] == MILLISECONDS:
        note += " Milliseconds are those of 8 bits, mAP is that of the float networks."
    return table(header, rows) + f'<p class="small">{escape(note)}</p>'


def _change(old: float, new: float) -> str:
    return f"{100 * (new / old - 1):+.1f} %" if old else ""


def _spread(ms: dict[str, float]) -> str:
    return f"{ms['median']:.2f} ({ms['least']:.2f} to {ms['most']:.2f})"


def _tried(result: dict[str, Any]) -> str:
    aim, before = result["aim"], result["before"]
    title, figure = KINDS[aim["kind"]].title, KINDS[aim["kind"]].figure
    points = [Point(1.0, before["map50"], "as it came", "came")]
    points += [Point(t[figure] / before[figure], t["map50"], f"round {t['round']}", "kept" if t["is_kept"] else "broken")
               for t in result["trials"]]  # fmt: skip
    points += [
        Point(b[figure] / before[figure], b["map50"], b["label"] + ", finetuned" * bool(b["epochs"]), RIVAL)
        for b in result["baselines"]
    ]
    limit_x = aim["limit"] / before[figure] if aim["limit"] is not None else None
    limit_y = before["map50"] - aim["max_drop"] if aim["max_drop"] is not None else None
    timed = aim["kind"] == MILLISECONDS
    rows = [[f"round {t['round']}", f"{t['params']:,}", f"{t['macs']:,}", *([f"{t['latency_ms']:.2f}"] if timed else []),
             f"{t['map50']:.4f}", f"{t['map']:.4f}", "yes" if t["is_kept"] else "no"] for t in result["trials"]]  # fmt: skip
    header = ["", "parameters", "MACs", *(["ms"] if timed else []), "mAP@0.5", "mAP@0.5:0.95", aim["text"]]
    return curve(points, (f"{title} left", "mAP@0.5"), limit_x, limit_y) + table(header, rows)


def _layers(layers: list[dict[str, int]]) -> str:
    lines = "".join(f"<div>{row['index']}: {row['before']} &rarr; {row['after']}</div>" for row in layers)
    return f'{bars(layers)}<div class="columns">{lines}</div>'


def _pairs(pictures: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> str:
    figures = [
        f'<figure><img alt="{escape(name)} {when}" src="{data_uri(image)}">'
        f"<figcaption>{escape(name)}, {when}</figcaption></figure>"
        for name, *both in pictures
        for when, image in zip(("before", "after"), both, strict=True)
    ]
    return f'<div class="pairs">{"".join(figures)}</div>'


def data_uri(image: np.ndarray) -> str:
    """A BGR image as a JPEG in an address, at most SIDE pixels long."""
    scale = min(SIDE / max(image.shape[:2]), 1.0)
    size = tuple(max(round(s * scale), 1) for s in image.shape[1::-1])
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
    encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(encoded).decode()}"


def _made_with(result: dict[str, Any]) -> str:
    rows = [*result["versions"].items(), ("seed", str(result["seed"])), ("machine", result["machine"]),
            ("training", f"{result['training_seconds'] / 60:.1f} minutes"),
            ("all stages", f"{result['seconds'] / 60:.1f} minutes")]  # fmt: skip
    return table(["", ""], rows)


_ACCURACIES = (("mAP@0.5", "map50"), ("mAP@0.5:0.95", "map"))
_COSTS = (("parameters", "params", 1, 0), ("MACs", "macs", 1, 0), ("MB of .weights", "bytes", 1e6, 3))
