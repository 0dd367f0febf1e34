"""Darknet .cfg text <-> typed layer definitions; .data and .names files.

The text is checked here, once: kinds, keys' types, references between layers. What depends on the sizes of maps
(channel counts, strides) is checked by `utils.network.shapes`.

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
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.core.errors import UserError, remark
from utils.core.files import read_text
from utils.core.option_list import OptionList, lines_of, remark_repeated, split_option
from utils.network.cfg_values import convert
from utils.network.definitions import (
    SECTIONS,
    Convolutional,
    Defs,
    Head,
    LayerDef,
    Net,
    Route,
    ScaleChannels,
    Shortcut,
    Yolo,
    absolute,
)

LEAST = dict.fromkeys(("filters", "size", "stride", "stride_x", "stride_y", "groups", "dilation", "out_channels"), 1)
LEAST |= dict.fromkeys(("reduction", "hidden", "classes", "num"), 1) | {"padding": 0, "group_id": 0, "reg_max": 2}
UNSUPPORTED: dict[type[LayerDef], tuple[str, ...]] = {
    Convolutional: ("binary", "xnor", "share_index", "deform", "rotate", "stretch", "stretch_sway", "sway"),
    Yolo: ("share_index", "from"),
}


def parse_cfg(source: str | Path) -> Defs:
    """Parse a .cfg, given as a path or as its text.

    Raises UserError naming file, line and layer for: no such file, text that is no cfg, an unknown kind of layer, a
    value of the wrong type, a reference to a layer that isn't there (or not yet).
    """
    is_text = isinstance(source, str) and "\n" in source
    text, name = (str(source), "cfg") if is_text else (read_text(source, "cfg", comments="#;"), str(source))
    repeated: list[tuple[int, str]] = []
    sections = [_parse_section(*s, name) for s in _split_sections(text, name, repeated)]
    remark_repeated(name, repeated)
    if not sections or not isinstance(sections[0], Net):
        raise UserError.at(name, "a cfg begins with a [net] section; this file doesn't")
    defs = Defs(sections[0], sections[1:], name)
    if any(isinstance(d, Net) for d in defs):
        raise UserError.at(name, "[net] occurs twice")
    for key in ("width", "height", "channels"):
        if getattr(defs.net, key) < 1:
            raise UserError.at(f"{name}:{defs.net.line}", f"[net]: {key}={getattr(defs.net, key)}: must be at least 1")
    for index in range(len(defs)):
        _check_layer(defs, index)
    return defs


def _split_sections(text: str, name: str, repeated: list[tuple[int, str]]) -> Iterator[tuple[str, int, int, OptionList]]:
    """Yield (kind, layer index, line of the header, options); `repeated`: see OptionList."""
    kind, start, index, options = "", 0, -2, OptionList(repeated)
    for number, raw in lines_of(text):
        line = re.split(r"[#;]", raw, maxsplit=1)[0].strip()
        if line.startswith("[") and line.endswith("]"):
            if kind:
                yield kind, index, start, options
            kind, start, index, options = "".join(line[1:-1].split()), number, index + 1, OptionList(repeated)
            continue
        if line.startswith("[") or not kind:
            raise UserError.at(f"{name}:{number}", f"expected a [section], found: {line[:60]}")
        key, value = split_option(line, f"{name}:{number}")
        if not value.strip():
            remark(f"{key}= has no value, so it counts as not given, as in Darknet", f"{name}:{number}")
        options.add(key, value.strip(), number)
    if kind:
        yield kind, index, start, options


def _parse_section(kind: str, index: int, line: int, options: OptionList, name: str) -> LayerDef:
    where = f"{name}:{line}: layer {index} [{kind}]"
    kind = kind.lower()
    if kind not in SECTIONS:
        raise UserError.at(where, f"this kind of layer is not supported; supported: {', '.join(sorted(SECTIONS))}")
    known, values, extra = _fields(SECTIONS[kind]), {}, {}
    for key, (text, number) in options.items():
        if key not in known:
            extra[key] = text
            continue
        attribute, wanted = known[key]
        place = f"{name}:{number}: layer {index} [{kind}]: {key}={text[:60]}"
        try:
            values[attribute] = convert(key, text, wanted, place)
        except ValueError as error:
            raise UserError.at(place, str(error)) from None
    try:
        return SECTIONS[kind](**values, extra=extra, given=tuple(options), line=line)
    except TypeError:
        missing = ", ".join(k for k in ("layers", "from") if k in known and known[k][0] not in values)
        raise UserError.at(where, f"the key `{missing}` is missing") from None


def _fields(cls: type[LayerDef]) -> dict[str, tuple[str, Any]]:
    """Key in a .cfg -> (attribute, type) of those that a section knows; Python keeps `from` for itself."""
    hints = typing.get_type_hints(cls)
    names = (f.name for f in dataclasses.fields(cls) if f.name not in ("extra", "given", "line"))
    return {name.rstrip("_"): (name, hints[name]) for name in names}


def _check_layer(defs: Defs, index: int) -> None:
    d = defs[index]
    if isinstance(d, Route | Shortcut | ScaleChannels) and not d.references():
        raise UserError.at(defs.where(index), "names no layer to read")
    for reference in d.references():
        if not 0 <= absolute(reference, index) < index:
            raise UserError.at(defs.where(index), f"refers to layer {reference}, but only layers before it can be read")
    for key, least in LEAST.items():
        value = getattr(d, key, None)
        if value is not None and value < least:
            raise UserError.at(defs.where(index), f"{key}={value}: must be at least {least}")
    for key in (k for kind, keys in UNSUPPORTED.items() if isinstance(d, kind) for k in keys):
        if d.extra.get(key, "0") != "0":
            raise UserError.at(defs.where(index), f"{key}={d.extra[key]} is not supported")
    for source in (s for s in defs.sources(index) if s >= 0 and isinstance(defs[s], Head)):
        what = f"reads layer {source}, a [{defs[source].kind}], whose output is boxes"
        raise UserError.at(defs.where(index), f"{what}; put a [route] before it")
    if isinstance(d, Yolo):
        _check_yolo(defs, index, d)


def _check_yolo(defs: Defs, index: int, d: Yolo) -> None:
    if not d.mask and 2 * d.num <= len(d.anchors):
        d.mask = tuple(range(d.num))
    if not d.mask or len(d.anchors) % 2 or max(d.mask) * 2 + 1 >= len(d.anchors) or min(d.mask) < 0:
        mask = f"mask {d.mask}" if d.mask else f"num={d.num}"
        raise UserError.at(defs.where(index), f"{mask} needs anchors that aren't there ({len(d.anchors)} numbers)")
    if not all(side >= 0 for side in d.anchors):
        raise UserError.at(defs.where(index), "anchors are widths and heights in pixels, so each must be above 0")
    if 0 in d.anchors:
        remark("an anchor's side of 0 pixels, with which no box can be learned, is read as 1", defs.where(index))
        d.anchors = tuple(side or 1.0 for side in d.anchors)


def write_cfg(defs: Defs) -> str:
    """The .cfg text of a network, without spaces around `=`: parse_cfg(write_cfg(d)) == d."""
    return "\n".join(_write_section(d) for d in (defs.net, *defs.layers))


def _write_section(d: LayerDef) -> str:
    known = {key: attribute for key, (attribute, _) in _fields(type(d)).items()}
    defaults = {f.name: f.default for f in dataclasses.fields(d)}
    given = [k for k in d.given if k in known or k in d.extra]
    changed = [k for k, attribute in known.items() if k not in given and getattr(d, attribute) != defaults[attribute]]
    lines = [f"[{d.kind}]"]
    for key in (*given, *changed, *(k for k in d.extra if k not in given)):
        value = getattr(d, known[key]) if key in known else d.extra[key]
        if value is not None:
            lines.append(f"{key}={_format(value, key)}")
    return "\n".join(lines) + "\n"


def _format(value: Any, key: str) -> str:
    if isinstance(value, float):
        short = f"{value:.9g}"
        return short if float(short) == value else repr(value)
    if not isinstance(value, tuple):
        return str(value)
    numbers = [_format(v, "") for v in value]
    if key == "anchors":  # width,height pairs, as Darknet's own files have them
        return ", ".join(f"{w},{h}" for w, h in zip(numbers[::2], numbers[1::2], strict=True))
    return ",".join(numbers)
