""".data and .names files: which images, which classes."""

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path

from utils.core.errors import UserError
from utils.core.files import read_text
from utils.core.option_list import OptionList, lines_of, remark_repeated, split_lines, split_option
from utils.data.data_yaml import YamlDataset, is_yaml

MOST_CLASSES = 1_000_000  # of a .data file: more is a slip of the keyboard, and their names alone would fill the memory


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
        """The same images with all classes as one, called `object`. A coco_json, which has the classes, no longer fits."""
        extra = {key: value for key, value in self.extra.items() if key != "coco_json"}
        return dataclasses.replace(self, classes=1, names=["object"], extra=extra, folded=self.classes)

    def source(self, key: str) -> Path:
        """The images of `train` or `valid`; UserError when the file doesn't name them."""
        found = {"train": self.train, "valid": self.valid}[key]
        if found is None:
            line = f"{'val' if key == 'valid' else key}:" if is_yaml(self.path) else f"{key}="
            raise UserError.at(self.path, f"needs a line `{line}` with a list or a folder of images")
        return found


def read_data(path: str | Path) -> DataConfig:
    """Read a .data file and the .names file it mentions, or a .yaml file (see YamlDataset).

    Raises UserError for a missing file or key and for a count of names that isn't `classes`.
    """
    if is_yaml(path):
        found = YamlDataset(path)
        return DataConfig(found.path, len(found.names), found.names, found.train, found.valid, {})
    options = data_options(path)
    stated = options.pop("classes", "")
    classes = class_count(stated)
    if not classes:
        found = f", but has classes={stated[:40]}" if stated else ""
        raise UserError.at(path, f"needs a line `classes=N` with the number of classes, at most {MOST_CLASSES:,}{found}")
    base = Path(path).parent
    listed = options.pop("names", "")
    names = read_names(find_file(listed, base)) if listed else [str(i) for i in range(classes)]
    if len(names) != classes:
        raise UserError.at(path, f"classes={classes}, but its names file lists {len(names)} names; make them agree")
    train, valid = (find_file(name, base) if name else None for name in (options.pop(k, "") for k in ("train", "valid")))
    return DataConfig(Path(path), classes, names, train, valid, options)


def class_count(text: str) -> int:
    """The number that `classes=` of a .data file states; 0 where it can't be one."""
    count = int(text) if text.isdecimal() and len(text) < 20 else 0
    return count if count <= MOST_CLASSES else 0


def data_options(path: str | Path) -> dict[str, str]:
    """The `key=value` lines of a .data file; UserError for a missing file and for a line that is none."""
    options = OptionList()
    for number, line in lines_of(read_text(path, ".data file", comments="#;", paths=True)):
        key, value = split_option(line, f"{path}:{number}")
        options.add(key, _without_comment(value, Path(path).parent), number)
    remark_repeated(str(path), options.repeated)
    return {key: value for key, (value, _) in options.items()}


def _without_comment(value: str, base: Path) -> str:
    """A value without the ` # comment` behind it: a file's name may hold a #, so the longest part that is there is one."""
    ends = [len(value), *(m.start() for m in reversed(list(re.finditer(r"\s[#;]", value))))]
    parts = [value[:end].strip() for end in ends]
    return next((part for part in parts if part and os.path.exists(find_file(part, base))), parts[-1])


def read_names(path: str | Path) -> list[str]:
    """Class names, one a line, in the order of their ids."""
    return [line.strip() for line in split_lines(read_text(path, ".names file")) if line.strip()]


def find_file(name: str, base: Path) -> Path:
    """`name` as it stands if it exists, else beside the file that mentions it; the first spelling if neither does."""
    beside = base / name
    return Path(name) if os.path.exists(name) or not os.path.exists(beside) else beside  # False, too, for what is no path
