"""Pascal VOC's XML, one file an image; DIOR has the same in other folders.

Everingham et al., "The PASCAL Visual Object Classes Challenge", development kit; Li et al. 2020, "Object detection in
optical remote sensing images: a survey and a new benchmark" (DIOR).
"""

import os
from pathlib import Path
from xml.etree import ElementTree

from utils.converters.base import TRAIN, VALID, Annotations, Entry, Found, Options, published_names
from utils.converters.tree import Match, Pictures, Tree, folded, nearest, note_unused, only, stem_of
from utils.core.errors import UserError
from utils.core.files import read_text
from utils.core.option_list import split_lines

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_LISTS = ("train", "val", "trainval", "test")  # the others of ImageSets/Main list one class each


def read_voc(source: Path, options: Options) -> Annotations:
    """VOC<year>/ with JPEGImages/, Annotations/*.xml, ImageSets/Main/{train,val,trainval,test}.txt, or several of them.

    With a test list, trainval trains and test validates; without one, train and val do. Without lists the folders' names
    say; XML files may then lie anywhere, the images too. Raises UserError when there is no XML.
    """
    return _read(source, options, ("annotations", ""))


def read_dior(source: Path, options: Options) -> Annotations:
    """DIOR: `Annotations/Horizontal Bounding Boxes/*.xml`, JPEGImages-trainval/, JPEGImages-test/, ImageSets/Main/*.txt.

    Splits and errors as of read_voc; the oriented boxes aren't read where the horizontal ones are there.
    """
    result = _read(source, options, ("horizontal bounding boxes", "annotations", ""))
    result.names = published_names("dior")
    return result


def _read(source: Path, options: Options, folders: tuple[str, ...]) -> Annotations:
    """`folders`: where the annotations are, the first that has some; "" is anywhere."""
    tree, result = Tree(source, options), Annotations([])
    files = next(filter(None, (tree.files(".xml", folder) for folder in folders)), [])
    if not files:
        raise tree.missing("annotation (Annotations/*.xml)")
    pictures, members = Pictures(tree.pictures), _listed(tree, files, result)
    for path in files:
        if members is not None and path not in members:
            result.problems.add("annotations that no list of images names, left out", path)
            continue
        match = _picture_of(path, pictures)
        if match is None:
            result.problems.add("annotations without image, left out", path)
            continue
        own = tree.split(os.path.dirname(path)) or tree.split(os.path.dirname(match.path))
        result.entries.append(Entry(match.path, own if members is None else members[path], (path,), match.misfit))
    return note_unused(tree, result)


def _picture_of(path: str, pictures: Pictures) -> Match | None:
    """The image called as its annotation; of several, or where there is none, the one that the annotation names."""
    near = nearest(path)
    found = pictures.matches(stem_of(path), near)
    if len(found) != 1:
        name = (_parsed(path).findtext(".//filename") or "").strip().replace("\\", "/")
        named = [match for match in found if os.path.basename(match.path) == name.rpartition("/")[2]]
        found = named or found or (pictures.matches(name, near) if name else [])
    return only(found, path)


def _listed(tree: Tree, files: list[str], result: Annotations) -> dict[str, tuple[str, ...]] | None:
    """Annotation file -> splits, by the lists of images; None without lists."""
    paths = [path for path in tree.paths if path.lower().endswith(".txt") and _is_list(path)]
    if not paths:
        return None
    lists: dict[str, list[str]] = {kind: [] for kind in _LISTS}
    missing: dict[str, str] = {}
    for path in paths:
        lists[stem_of(path).lower()] += _members(path, files, missing)
    for where in missing.values():
        result.problems.add("listed images without annotation, left out", where)
    trainval = list(dict.fromkeys(lists["trainval"] + lists["train"] + lists["val"]))
    if lists["test"]:  # none of those listed may be annotated: the challenge kept the tests' boxes to itself
        chosen = {TRAIN: trainval, VALID: lists["test"]}
    elif lists["train"] and lists["val"]:
        chosen = {TRAIN: lists["train"], VALID: lists["val"]}
    else:
        return dict.fromkeys(trainval, ())
    members: dict[str, tuple[str, ...]] = {}
    for split, listed in chosen.items():
        for path in dict.fromkeys(listed):
            members[path] = (*members.get(path, ()), split)
    return members


def _is_list(path: str) -> bool:
    return os.path.basename(os.path.dirname(path)).lower() == "main" and stem_of(path).lower() in _LISTS


def _members(path: str, files: list[str], missing: dict[str, str]) -> list[str]:
    """The annotation files of the images that a list (.../Main/*.txt) names; `missing`: name -> where it is listed."""
    above = os.path.dirname(os.path.dirname(path))
    root = os.path.dirname(above) if os.path.basename(above).lower() == "imagesets" else above
    by_stem = {folded(stem_of(file)): file for file in files if file.startswith(root + os.sep)}
    found = []
    for number, line in enumerate(split_lines(read_text(path, "list of images", paths=True)), 1):
        names = _spellings(line.strip())
        known = next((by_stem[name] for name in map(folded, names) if name in by_stem), None)
        if known:
            found.append(known)
        elif names:
            missing.setdefault(names[0], f"{path}:{number}: {names[0]}")
    return found


def _spellings(line: str) -> list[str]:
    """What a line of a list may mean: a name, which may hold spaces, a path, or a name and something else behind it."""
    if not line:
        return []
    name = line.replace("\\", "/").rpartition("/")[2]
    return [name, os.path.splitext(name)[0], line.split()[0]]


def _parsed(path: str) -> ElementTree.Element:
    """The root of an XML file; space before its declaration, which XML forbids, is forgiven."""
    try:
        content = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise UserError(f"{path}: this annotation cannot be read ({error.strerror})") from None
    text = content.lstrip()
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        line = error.position[0] + content[: len(content) - len(text)].count(b"\n")
        raise UserError(f"{path}:{line}: not valid XML ({error.msg}); mend or remove this file") from None
    except (ValueError, LookupError) as error:
        raise UserError(f"{path}: not valid XML ({error}); mend or remove this file") from None


def _annotation(path: str) -> ElementTree.Element:
    """The <annotation> of an XML file, at its root or wrapped into something else; UserError for several."""
    root = _parsed(path)
    found = list(root.iter("annotation"))
    if len(found) > 1:
        raise UserError(f"{path}: holds {len(found)} annotations, but VOC has a file for each image; take them apart")
    if not found and root.find(".//object") is None:
        raise UserError(f"{path}: holds no <annotation>, so it is none of VOC; remove it")
    return found[0] if found else root


def parse_voc(note: str, options: Options) -> Found:
    """The objects of one XML file: [xmin, xmax] with width xmax - xmin, in pixels as they stand.

    VOC counts pixels from 1 and its last one belongs to the box, but most programs that write its format do neither, and
    the difference is one pixel. Corners in the wrong order change places. Raises UserError for XML that cannot be read and
    for numbers that are none.
    """
    root, found = _annotation(note), Found(f"{note}: object ")
    found.size = (_pixels(root, "width", note), _pixels(root, "height", note))
    for number, item in enumerate(root.iter("object"), 1):
        if options.skip_difficult and item.findtext("difficult", "0").strip() == "1":
            found.leave_out("difficult objects, left out", number)
        elif item.find("bndbox") is None:
            found.leave_out("objects without bndbox, left out", number)
        else:
            xmin, ymin, xmax, ymax = _corners(item, found.where(number))
            found.add_corners(" ".join(item.findtext("name", "").split()), number, (xmin, ymin), (xmax, ymax))
    return found


def _pixels(root: ElementTree.Element, side: str, path: str) -> int:
    text = root.findtext(f"size/{side}") or "0"
    try:
        return round(float(text))
    except (ValueError, OverflowError):
        raise UserError(f"{path}: {side} is {text.strip()!r}, which is no number of pixels; mend or remove it") from None


def _corners(item: ElementTree.Element, where: str) -> tuple[float, float, float, float]:
    values = []
    for side in _SIDES:
        text = (item.findtext(f"bndbox/{side}") or "").strip()
        try:
            values.append(float(text))
        except ValueError:
            raise UserError(f"{where}: {side} is {text!r}, which is no number; mend or remove this object") from None
    return values[0], values[1], values[2], values[3]
