"""The .yaml files in which YOLOv5's and YOLOv8's users name a dataset (docs.ultralytics.com/datasets/detect: path, train, val,
names, nc)."""

import os
from pathlib import Path
from typing import Any

import yaml

from utils.core.errors import UserError
from utils.core.files import read_text

SUFFIXES = (".yaml", ".yml")
VALID_KEYS = ("val", "valid")
UP = "../"


def is_yaml(path: str | Path) -> bool:
    return Path(path).suffix.lower() in SUFFIXES


class YamlDataset:
    """names: of the classes, in their order; train, valid: a list or a folder of images, None where the file names none.

    A relative folder is looked up below `path`, which itself may be relative to the working directory or to the file; then
    beside the file, at last without a leading `../`, as files that were exported for another folder have it.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises UserError for a file that doesn't name a dataset in this way."""
        self.path = Path(path)
        values = self._read()
        self.names = self._names(values.get("names"), values.get("nc"))
        root = values.get("path") or ""
        if not isinstance(root, str):
            raise self._wrong("path: isn't a folder's name")
        beside = self.path.parent
        self.roots = list(dict.fromkeys([Path(root), beside / root, beside] if root else [beside, Path()]))
        self.train = self._images(values, ("train",))
        self.valid = self._images(values, VALID_KEYS)

    def _read(self) -> dict[str, Any]:
        text = read_text(self.path, "dataset's .yaml file", paths=True)
        try:
            values = yaml.load(text, yaml.BaseLoader)  # everything as it is written: a class may be called `no`
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f":{mark.line + 1}" if mark else ""
            raise UserError(f"{self.path}{line}: not valid YAML ({getattr(error, 'problem', None) or 'unreadable'})") from None
        except (RecursionError, ValueError):
            raise self._wrong("holds no dataset: it is too deep") from None
        if not isinstance(values, dict) or not {"names", "train", *VALID_KEYS} & values.keys():
            raise self._wrong("names no dataset; it needs `train:`, `val:` and `names:`")
        return values

    def _names(self, found: Any, count: Any) -> list[str]:
        """Of a list, or of a mapping of numbers 0, 1, ... to names; where there is only `nc`, the numbers."""
        if isinstance(found, dict):
            expected = [str(number) for number in range(len(found))]
            if sorted(found, key=lambda key: (len(str(key)), str(key))) != expected:
                raise self._wrong(f"names: numbers its classes otherwise than 0 to {len(found) - 1}")
            found = [found[number] for number in expected]
        elif found is None and isinstance(count, str) and count.isdecimal() and len(count) < 7:
            found = [str(number) for number in range(int(count))]
        if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
            raise self._wrong("needs `names:` with the classes' names, a list or numbered from 0")
        if count is not None and count != str(len(found)):
            raise self._wrong(f"nc: is {str(count)[:40]}, but there are {len(found)} names; make them agree")
        return [" ".join(name.split()) for name in found]

    def _images(self, values: dict[str, Any], keys: tuple[str, ...]) -> Path | None:
        key = next((key for key in keys if values.get(key)), None)
        if key is None:
            return None
        name = values[key]
        if isinstance(name, list) and len(name) == 1:
            name = name[0]
        if not isinstance(name, str):
            raise self._wrong(f"{key}: names several sources; write the paths of their images into one .txt and name that")
        spellings = [name, name.removeprefix(UP)]
        candidates = [root / spelling for spelling in spellings for root in self.roots]
        found = next((path for path in candidates if os.path.exists(path)), None)
        if found is None:
            raise self._wrong(f"{key}: {candidates[0]} does not exist; set `path:` to the dataset's folder")
        return found

    def _wrong(self, what: str) -> UserError:
        return UserError.at(self.path, what)


def dataset_yaml(folder: str | Path) -> Path | None:
    """The one .yaml file in a folder that names a dataset, None where there is none, or where several do."""
    found = []
    for path in sorted(path for path in Path(folder).iterdir() if is_yaml(path) and path.is_file()):
        try:
            YamlDataset(path)
        except UserError:
            continue
        found.append(path)
    return found[0] if len(found) == 1 else None
