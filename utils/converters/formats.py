"""The table of readers: a format is one entry."""

from pathlib import Path

from utils.converters import bdd100k, oxfordhand, visdrone
from utils.converters.base import TEST, VALID, Format, Options, as_found
from utils.converters.bdd100k import parse_bdd100k, read_bdd100k
from utils.converters.coco import read_coco
from utils.converters.oxfordhand import parse_oxfordhand, read_oxfordhand
from utils.converters.tree import Tree
from utils.converters.visdrone import parse_visdrone, read_visdrone
from utils.converters.voc import parse_voc, read_dior, read_voc
from utils.core.errors import UserError

FORMATS: dict[str, Format] = {
    "voc": Format(read_voc, parse_voc, difficult=True),
    "coco": Format(read_coco, as_found),
    "visdrone": Format(read_visdrone, parse_visdrone, visdrone.NAME),
    "bdd100k": Format(read_bdd100k, parse_bdd100k, bdd100k.NAME, bdd100k.RENAMED),
    "dior": Format(read_dior, parse_voc, "dior", difficult=True),
    "oxfordhand": Format(read_oxfordhand, parse_oxfordhand, oxfordhand.NAME),
}

# format -> suffix and folder (anywhere: "") of the annotations by which it is known; the others are asked for by name
MARKS = {"dior": (".xml", "horizontal bounding boxes"), "voc": (".xml", ""), "coco": (".json", "")}


def recognise(source: Path, out: Path) -> tuple[str, bool]:
    """The format of a folder by what lies in it (but in `out`, which may be there), and whether it holds images out to validate
    or test on. Raises UserError where nothing tells."""
    options = Options(out=out)
    tree = Tree(source, options)
    found = next((name for name, (suffix, folder) in MARKS.items() if tree.files(suffix, folder)), None)
    if found is None:
        named = ", ".join(name for name in FORMATS if name not in MARKS)
        raise UserError(f"{source}: holds neither VOC's .xml nor COCO's .json, nor a .yaml that names a dataset; name a .data "
                        f"file (docs/data.md), or what convert_dataset.py makes of another format ({named})")  # fmt: skip
    entries = FORMATS[found].read(source, options).entries
    return found, any(split in entry.splits for entry in entries for split in (VALID, TEST))
