"""The cfgs of known datasets: byte for byte what make_cfg.py writes, with the anchors that were published."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from cfg import make_variants
from cfg.make_variants import ROOT, VARIANTS, write_variant
from utils.data.data_file import read_data
from utils.network.cfg import parse_cfg
from utils.network.shapes import output_shapes


@pytest.mark.parametrize("name", VARIANTS)
def test_is_what_make_cfg_writes(name: str, tmp_path: Path) -> None:
    assert write_variant(name, tmp_path).read_bytes() == (ROOT / "cfg" / f"{name}.cfg").read_bytes()


@pytest.mark.parametrize("name", VARIANTS)
def test_differs_from_its_base_where_it_must(name: str) -> None:
    variant = VARIANTS[name]
    defs, base = parse_cfg(ROOT / "cfg" / f"{name}.cfg"), parse_cfg(ROOT / "cfg" / f"{variant.base}.cfg")
    classes = read_data(ROOT / "data" / f"{variant.data}.data").classes
    heads = defs.yolo_indices()
    assert heads == base.yolo_indices()
    for index, (own, stock) in enumerate(zip(defs, base, strict=True)):
        if index in heads:
            assert (own.classes, own.mask) == (classes, stock.mask)
            own.classes, own.anchors = stock.classes, stock.anchors
        elif index + 1 in heads:
            assert own.filters == 3 * (5 + classes)
            own.filters = stock.filters
        assert own == stock
    assert defs.net == base.net
    texts = [(ROOT / "cfg" / f"{n}.cfg").read_text().splitlines() for n in (name, variant.base)]
    changed = {a.partition("=")[0] for a, b in zip(*texts, strict=True) if a != b}
    assert {"filters", "classes"} <= changed <= {"filters", "classes", "anchors"}


@pytest.mark.parametrize("name", VARIANTS)
def test_larger_anchors_for_coarser_maps(name: str) -> None:
    defs = parse_cfg(ROOT / "cfg" / f"{name}.cfg")
    shapes = output_shapes(defs)
    heads = sorted(defs.yolo_indices(), key=lambda i: -shapes[i][1])
    areas = [np.prod(defs[i].anchor_sizes(), 1).mean() for i in heads]
    assert all(a < b for a, b in itertools.pairwise(areas))


def published(text: str) -> dict[str, list[tuple[float, float]] | None]:
    """Network -> its anchors in reference/datasets.md; None: the stock network's own."""
    found = {}
    for entry in re.split(r"[·\n]", text[text.index("Anchors found") : text.index(".data:")]):
        names, colon, anchors = entry.partition(":")
        if colon and "yolo" in names:
            pairs = [tuple(map(float, pair.split(","))) for pair in re.findall(r"\d+,\d+", anchors)]
            found |= dict.fromkeys(re.findall(r"yolo[\w-]+-\w+|yolo[\w-]+_\w+", names), pairs or None)
    return found


def test_all_of_those_that_were_published(shared: Path) -> None:
    """In their order; a side of 0 pixels, with which no box can be learned, is 1."""
    table = published((shared / "reference" / "datasets.md").read_text())
    assert {name.partition("/")[2] for name in VARIANTS} == table.keys()
    for name, variant in VARIANTS.items():
        pairs = table[Path(name).name]
        expected = parse_cfg(ROOT / "cfg" / f"{variant.base}.cfg") if pairs is None else None
        own = parse_cfg(ROOT / "cfg" / f"{name}.cfg")
        for index in own.yolo_indices():
            wanted = expected[index].anchors if expected else tuple(max(side, 1) for pair in pairs for side in pair)
            assert own[index].anchors == wanted


def test_the_script_writes_them_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(make_variants, "write_variant", lambda name, folder: written.append((name, folder)))
    make_variants.main(make_variants.get_parser().parse_args(["--out", str(tmp_path)]))
    assert written == [(name, tmp_path) for name in VARIANTS]
