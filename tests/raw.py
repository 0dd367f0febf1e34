"""Miniature raw datasets in their owners' formats, and what a conversion made of them."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from utils.converters import write
from utils.converters.base import Options
from utils.converters.write import Report


def write_image(path: Path, height: int = 100, width: int = 200) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.lower()
    path.write_bytes(cv2.imencode(suffix, np.zeros((height, width, 3), np.uint8))[1].tobytes())


def write_text(path: Path, text: str, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, **how)
    return path


def write_json(path: Path, content: Any, **how: Any) -> Path:
    return write_text(path, json.dumps(content, **how))


def convert(form: str, src: Path, out: Path, copy: bool = False, workers: int = 1, **options: Any) -> Report:
    return write.convert(form, src, out, Options(out=out, **options), copy=copy, workers=workers)


def labels(out: Path, stem: str) -> list[str]:
    return (out / "labels" / f"{stem}.txt").read_text(encoding="utf-8").splitlines()


def stems(out: Path, split: str) -> str:
    """The images of a split, as `a b c`."""
    return " ".join(Path(line).stem for line in (out / f"{split}.txt").read_text(encoding="utf-8").splitlines())


def voc_object(name: str, *corners: float | str, difficult: int = 0) -> str:
    """As VOC's own files have it, with a part that has a name and a box too."""
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    return (
        f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated><difficult>{difficult}</difficult>"
        f"<bndbox>{sides}</bndbox>{part}</object>"
    )


def voc_file(text: str, size: str = "<width>200</width><height>100</height><depth>3</depth>", filename: str = "x.jpg") -> str:
    source = "<source><database>The VOC2007 Database</database></source>"
    return f"<annotation><folder>VOC2007</folder><filename>{filename}</filename>{source}<size>{size}</size>{text}</annotation>"


def make_voc(root: Path, objects: dict[str, str], **lists: str) -> Path:
    for stem, text in objects.items():
        write_image(root / "JPEGImages" / f"{stem}.jpg")
        write_text(root / "Annotations" / f"{stem}.xml", voc_file(text))
    for name, members in lists.items():
        write_text(root / "ImageSets" / "Main" / f"{name}.txt", "\n".join(members.split()))
    return root
