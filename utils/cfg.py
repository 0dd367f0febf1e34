"""Darknet .cfg text <-> typed layer definitions; .data and .names files.

The text is checked here, once: kinds, keys' types, references between layers. What depends on the sizes of maps
(channel counts, strides) is checked by `utils.shapes`.

    >>> defs = parse_cfg('''
    ... [net]
    ... width=32
    ... height=32
    ... [convolutional]
    ... filters=8
    ... size=3
    ... pad=1
    ... activation=leaky
    ... [shortcut]
    ... from=-1''')
    >>> defs.layers[0].filters, defs.layers[1].sources(1)
    (8, [0, 0])
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.definitions import SECTIONS, Convolutional, Defs, LayerDef, Net, Route, ScaleChannels, Shortcut, Yolo, absolute
from utils.errors import UserError
from utils.files import read_text

LEAST = dict.fromkeys(("filters", "size", "stride", "stride_x", "stride_y", "groups", "dilation", "out_channels"), 1)
LEAST |= dict.fromkeys(("reduction", "hidden", "classes", "num"), 1) | {"padding": 0, "group_id": 0}
UNSUPPORTED = ("binary", "xnor", "share_index", "deform", "rotate", "stretch", "stretch_sway", "sway")  # of a convolution


def parse_cfg(source: str | Path) -> Defs:
    """Parse a .cfg, given as a path or as its text.

    Raises UserError naming file, line and layer for: no such file, text that is no cfg, an unknown kind of layer, a
    value of the wrong type, a reference to a layer that isn't there (or not yet).
    """
    is_text = isinstance(source, str) and "\n" in source
    text, name = (source, "cfg") if is_text else (read_text(source, "cfg", comments="#;"), str(source))
    sections = [_parse_section(*s, name) for s in _split_sections(text, name)]
    if not sections or not isinstance(sections[0], Net):
        raise UserError(f"{name}: a cfg begins with a [net] section; this file doesn't")
    defs = Defs(sections[0], sections[1:], name)
    if any(isinstance(d, Net) for d in defs):
        raise UserError(f"{name}: [net] occurs twice")
    for key in ("width", "height", "channels"):
        if getattr(defs.net, key) < 1:
            raise UserError(f"{name}:{defs.net.line}: [net]: {key}={getattr(defs.net, key)}: must be at least 1")
    for index in range(len(defs)):
        _check_layer(defs, index)
    return defs


def _split_sections(text: str, name: str) -> Iterator[tuple[str, int, int, dict[str, tuple[str, int]]]]:
    """Yield (kind, layer index, line of the header, {key: (value, line)})."""
    kind, start, index, options = "", 0, -2, {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = re.split(r"[#;]", raw, maxsplit=1)[0].strip()
        if not line:
            continue
        if line.startswith("[") and line.endswith("]"):
            if kind:
                yield kind, index, start, options
            kind, start, index, options = line[1:-1].strip(), number, index + 1, {}
            continue
        key, equals, value = line.partition("=")
        if not equals or not kind:
            raise UserError(f"{name}:{number}: expected `[section]` or `key=value`, found: {line[:60]}")
        options[key.strip()] = (value.strip(), number)
    if kind:
        yield kind, index, start, options


def _parse_section(kind: str, index: int, line: int, options: dict[str, tuple[str, int]], name: str) -> LayerDef:
    where = f"{name}:{line}: layer {index} [{kind}]"
    kind = kind.lower()
    if kind not in SECTIONS:
        raise UserError(f"{where}: this kind of layer is not supported; supported: {', '.join(sorted(SECTIONS))}")
    known, values, extra = _fields(SECTIONS[kind]), {}, {}
    for key, (text, number) in options.items():
        attribute = _attribute(key)
        if attribute not in known:
            extra[key] = text
            continue
        try:
            values[attribute] = _convert(text, known[attribute])
        except ValueError:
            expected = getattr(known[attribute], "__name__", str(known[attribute]))
            raise UserError(f"{name}:{number}: layer {index} [{kind}]: {key}={text}: not a value of type {expected}") from None
    try:
        return SECTIONS[kind](**values, extra=extra, given=tuple(options), line=line)
    except TypeError:
        missing = ", ".join(k.rstrip("_") for k in ("layers", "from_") if k in known and k not in values)
        raise UserError(f"{where}: the key `{missing}` is missing") from None


def _fields(cls: type[LayerDef]) -> dict[str, Any]:
    """Attribute name -> type of the keys that a section knows."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.name not in ("extra", "given", "line")}


def _attribute(key: str) -> str:
    return "from_" if key == "from" else key


def _convert(text: str, kind: Any) -> Any:
    if isinstance(kind, types.UnionType):
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        return tuple(item(t) for t in re.split(r"[,\s]+", text.strip(", \t")) if t)
    if kind is str:
        return text.lower()
    return kind(text)


def _check_layer(defs: Defs, index: int) -> None:
    d = defs[index]
    if isinstance(d, Route | Shortcut | ScaleChannels) and not d.references():
        raise UserError(f"{defs.where(index)}: names no layer to read")
    for reference in d.references():
        if not 0 <= absolute(reference, index) < index:
            raise UserError(f"{defs.where(index)}: refers to layer {reference}, but only layers before it can be read")
    for key, least in LEAST.items():
        value = getattr(d, key, None)
        if value is not None and value < least:
            raise UserError(f"{defs.where(index)}: {key}={value}: must be at least {least}")
    for key in (k for k in UNSUPPORTED if isinstance(d, Convolutional) and d.extra.get(k, "0") not in ("0", "")):
        raise UserError(f"{defs.where(index)}: {key}={d.extra[key]} is not supported")
    if isinstance(d, Yolo):
        _check_yolo(defs, index, d)


def _check_yolo(defs: Defs, index: int, d: Yolo) -> None:
    if not d.mask:
        d.mask = tuple(range(d.num))
    if len(d.anchors) % 2 or max(d.mask) * 2 + 1 >= len(d.anchors) or min(d.mask) < 0:
        raise UserError(f"{defs.where(index)}: mask {d.mask} needs anchors that aren't there ({len(d.anchors)} numbers)")
    if not all(0 < side < math.inf for side in d.anchors):
        raise UserError(f"{defs.where(index)}: anchors are widths and heights in pixels, so each must be above 0")


def write_cfg(defs: Defs) -> str:
    """The .cfg text of a network, without spaces around `=`: parse_cfg(write_cfg(d)) == d."""
    return "\n".join(_write_section(d) for d in (defs.net, *defs.layers))


def _write_section(d: LayerDef) -> str:
    known = _fields(type(d))
    defaults = {f.name: f.default for f in dataclasses.fields(d)}
    given = [_attribute(k) for k in d.given if _attribute(k) in known or k in d.extra]
    changed = [k for k in known if k not in given and getattr(d, k) != defaults[k]]
    lines = [f"[{d.kind}]"]
    for key in (*given, *changed, *(k for k in d.extra if k not in given)):
        value = getattr(d, key) if key in known else d.extra[key]
        if value is not None:
            lines.append(f"{key.rstrip('_')}={_format(value, key)}")
    return "\n".join(lines) + "\n"


def _format(value: Any, key: str) -> str:
    if not isinstance(value, tuple):
        return f"{value:.9g}" if isinstance(value, float) else str(value)
    numbers = [_format(v, "") for v in value]
    if key == "anchors":  # width,height pairs, as Darknet's own files have them
        return ", ".join(f"{w},{h}" for w, h in zip(numbers[::2], numbers[1::2], strict=True))
    return ",".join(numbers)


@dataclass
class DataConfig:
    """A .data file: `key=value` lines. Relative paths are looked up from the working directory, then beside the file.

    `train` and `valid` are text files of image paths, one a line, or folders of images. folded: how many classes the
    label files have where all of them count as one, else 0.
    """

    path: Path
    classes: int
    names: list[str]
    train: Path | None
    valid: Path | None
    extra: dict[str, str]
    folded: int = 0

    @property
    def label_classes(self) -> int:
        return self.folded or self.classes

    def as_one_class(self) -> "DataConfig":
        """The same pictures with all classes as one, called `object`. A coco_json, which has the classes, no longer fits."""
        extra = {key: value for key, value in self.extra.items() if key != "coco_json"}
        return dataclasses.replace(self, classes=1, names=["object"], extra=extra, folded=self.classes)

    def source(self, key: str) -> Path:
        """The pictures of `train` or `valid`; UserError when the file doesn't name them."""
        found = {"train": self.train, "valid": self.valid}[key]
        if found is None:
            raise UserError(f"{self.path}: needs a line `{key}=` with a list or a folder of pictures")
        return found


def read_data(path: str | Path) -> DataConfig:
    """Read a .data file and the .names file it mentions.

    Raises UserError for a missing file or key and for a count of names that isn't `classes`.
    """
    options = data_options(path)
    if not options.get("classes", "").isdecimal() or int(options["classes"]) < 1:
        raise UserError(f"{path}: needs a line `classes=N` with the number of classes")
    classes = int(options.pop("classes"))
    base = Path(path).parent
    listed = options.pop("names", "")
    names = read_names(find_file(listed, base)) if listed else [str(i) for i in range(classes)]
    if len(names) != classes:
        raise UserError(f"{path}: classes={classes}, but its names file lists {len(names)} names; make them agree")
    train, valid = (find_file(name, base) if name else None for name in (options.pop(k, "") for k in ("train", "valid")))
    return DataConfig(Path(path), classes, names, train, valid, options)


def data_options(path: str | Path) -> dict[str, str]:
    """The `key=value` lines of a .data file; UserError for a missing file and for a line that is none."""
    options: dict[str, str] = {}
    for number, raw in enumerate(read_text(path, ".data file", comments="#", paths=True).splitlines(), 1):
        line = raw.split("#", 1)[0].strip()
        if not line:
            continue
        key, equals, value = line.partition("=")
        if not equals:
            raise UserError(f"{path}:{number}: expected `key=value`, found: {line[:60]}")
        options[key.strip()] = value.strip()
    return options


def read_names(path: str | Path) -> list[str]:
    """Class names, one a line, in the order of their ids."""
    return [line.strip() for line in read_text(path, ".names file").splitlines() if line.strip()]


def find_file(name: str, base: Path) -> Path:
    """`name` as it stands if it exists, else beside the file that mentions it; the first spelling if neither does."""
    return Path(name) if Path(name).exists() or not (base / name).exists() else base / name
