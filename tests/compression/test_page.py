"""report.html as a browser shows it; skipped by name where none is installed."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.compression.page import baselines_table, page

ROOT = Path(__file__).resolve().parents[2]
NAME = "x" * 60 + "<b>.jpg"  # long, and no tag


def network(map50: float, share: float, name: str) -> dict[str, Any]:
    ms = {"median": 40 * share, "least": 38 * share, "most": 45 * share}
    each = {"name": name, "targets": 1234, "map50": map50, "map": map50 / 2}
    sizes = {"params": int(8_670_000 * share), "macs": int(2.7e9 * share), "bytes": int(34e6 * share)}
    return {"map50": map50, "map": map50 / 2, "ms": ms, "latency_ms": ms["median"], "per_class": [each] * 3, **sizes}


def made_up() -> dict[str, Any]:
    """A result of compress.py, with long names."""
    before, after = (network(map50, share, NAME) for map50, share in ((0.88, 1.0), (0.87, 0.3)))
    sizes = {key: after[key] for key in ("params", "macs", "map50", "map", "latency_ms")}
    trials = [{"round": 1, "is_kept": True, **sizes}]
    baselines = [{"title": f"the original at {side} px, {NAME}", "label": f"{side} px", "epochs": epochs, **sizes}
                 for side, epochs in ((160, 0), (160, 20), (192, 0))]  # fmt: skip
    return {
        "title": "a network & its report", "outcome": "70 % is gone", "verdict": "it was worth it",
        "baselines": baselines, "is_kept": True,
        "before": before, "after": after, "int8": None,
        "aim": {"kind": "ms", "limit": 13.0, "max_drop": None, "text": "at most 13 milliseconds"}, "trials": trials,
        "layers": [{"index": i, "before": 512, "after": 100 + i} for i in range(70)], "turns": 7, "measured_on": "a runtime",
        "files": {"pt": f"/{'folder/' * 30}network.pt"}, "commands": [f"python train.py {'--flag value ' * 30}"] * 5,
        "versions": {"Python": "3"}, "seed": 0, "machine": "a computer", "training_seconds": 60.0, "seconds": 90.0,
    }  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    pairs = [(NAME, *rng.integers(0, 255, (2, 300, 200, 3), np.uint8)) for _ in range(6)]
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page(made_up(), pairs))
    return path


def test_milliseconds_of_8_bits_beside_accuracies_of_floats_are_told():
    result = made_up()
    told = "Milliseconds are those of 8 bits, mAP is that of the float networks."
    assert told not in baselines_table(result)
    assert told in baselines_table(result | {"int8": result["after"]})


@pytest.mark.skipif(importlib.util.find_spec("PySide6") is None, reason="needs a browser: pip install pyside6")
@pytest.mark.parametrize("width", [1300, 390])
def test_a_browser_shows_all_of_it_without_scrolling_sideways(written, width):
    words = [sys.executable, "-m", "tests.compression.browser", str(written), str(width)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    shown = json.loads(done.stdout.splitlines()[-1])
    assert shown["title"] == "a network & its report"
    assert shown["sections"] == ["Before and after", "mAP by class", "Without compressing, at the same milliseconds",
                                 "What was tried", "Filters of each layer",
                                 "The same images before and after", "Files", "Commands", "Made with"]  # fmt: skip
    assert (shown["charts"], shown["outside"]) == (2, [])
    assert shown["width"] == width
    assert shown["wanted"] <= width
    assert len(shown["images"]) == 12
    assert all(
        complete and natural == 200 and side > 0.3 * width * min(1, 1000 / width) for complete, natural, side in shown["images"]
    )
    assert all(address.startswith(("file:", "data:image/jpeg")) for address in shown["requests"])
    assert shown["complaints"] == []
    assert shown["pdf"] > 10_000
