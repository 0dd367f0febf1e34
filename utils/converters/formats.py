"""The table of readers: a format is one entry."""

from utils.converters import bdd100k, oxfordhand, visdrone
from utils.converters.base import Format, as_found
from utils.converters.bdd100k import parse_bdd100k, read_bdd100k
from utils.converters.coco import read_coco
from utils.converters.oxfordhand import parse_oxfordhand, read_oxfordhand
from utils.converters.visdrone import parse_visdrone, read_visdrone
from utils.converters.voc import parse_voc, read_dior, read_voc

FORMATS: dict[str, Format] = {
    "voc": Format(read_voc, parse_voc, difficult=True),
    "coco": Format(read_coco, as_found),
    "visdrone": Format(read_visdrone, parse_visdrone, visdrone.NAME),
    "bdd100k": Format(read_bdd100k, parse_bdd100k, bdd100k.NAME, bdd100k.RENAMED),
    "dior": Format(read_dior, parse_voc, "dior", difficult=True),
    "oxfordhand": Format(read_oxfordhand, parse_oxfordhand, oxfordhand.NAME),
}
