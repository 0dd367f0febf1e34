"""Which image of a COCO json is which file, and which of its categories is which class."""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence

from utils.core.errors import UserError
from utils.data.coco import CocoFile, Key, Said
from utils.data.file_names import folded, path_parts, shared_parts
from utils.data.stated_sizes import sizes_differ


def pictures_of(file: CocoFile, paths: Sequence[str]) -> list[list[Key]]:
    """For each image the images that are it: one, or several where the file lists the same file_name again.

    The image whose file_name shares most parts with the path, counted from the end, is meant; so a.jpg is enough where
    there is one such name. Of several images that the same image could be, it is the one that shares most. Raises
    UserError for an image that isn't listed, and where that doesn't decide.
    """
    listed: dict[str, dict[str, list[Key]]] = defaultdict(dict)  # name of the file -> file_name -> images
    for key, image in file.images.items():
        listed[(path_parts(image.name) or [""])[0]].setdefault(image.name, []).append(key)
    chosen = {path: _choice(file, path, listed) for path in dict.fromkeys(paths)}
    _check_shared(file, chosen)
    found = [listed[path_parts(path)[0]][chosen[path]] for path in paths]
    for keys in found:
        _check_sizes(file, keys)
    return found


def _check_sizes(file: CocoFile, keys: list[Key]) -> None:
    """Raise UserError where images of one file_name can't be the same image."""
    first = file.images[keys[0]]
    for key in keys[1:]:
        if sizes_differ(first.size, file.images[key].size):
            raise UserError.at(file.path, f"images {first.id} and {key} are {first.name} both, but of different sizes; "
                            "write the folders into file_name")  # fmt: skip


def _rank(path: str, name: str) -> tuple[int, bool]:
    """How well a file_name fits an image's path; the very name is better than one that is spelled otherwise."""
    parts = path_parts(path)
    return shared_parts(parts, path_parts(name)), os.path.basename(path) == name.rpartition("/")[2]


def _choice(file: CocoFile, path: str, listed: dict[str, dict[str, list[Key]]]) -> str:
    """The file_name that an image's path fits best."""
    names = listed.get(path_parts(path)[0])
    if not names:
        raise _unlisted(file, path)
    if len(names) == 1:
        return next(iter(names))
    ranks = {name: _rank(path, name) for name in names}
    best = [name for name in names if ranks[name] == max(ranks.values())]
    if len(best) > 1:
        raise UserError.at(file.path, f"{path} may be its {best[0]} or its {best[1]}; give the image such a folder")
    return best[0]


def _check_shared(file: CocoFile, chosen: dict[str, str]) -> None:
    """Raise UserError for images that have to share a file_name."""
    wanted: dict[str, list[str]] = defaultdict(list)
    for path, name in chosen.items():
        wanted[name].append(path)
    for name, paths in wanted.items():
        if len(paths) == 1 or len({os.path.realpath(path) for path in paths}) == 1:
            continue
        ranks = [_rank(path, name) for path in paths]
        best = [path for path, rank in zip(paths, ranks, strict=True) if rank == max(ranks)]
        if len(best) > 1:
            raise UserError.at(file.path, f"its {name} may be {best[0]} or {best[1]}; write the folders into file_name")
        raise _unlisted(file, paths[ranks.index(min(ranks))])


def _unlisted(file: CocoFile, path: str) -> UserError:
    return UserError.at(file.path, f"lists no image {path}; use the json that belongs to valid= in the .data file")


def classes_of(file: CocoFile, names: list[str], say: Callable[[Said], None]) -> dict[Key, int]:
    """Category -> class, by name, where case, spaces, `_` and `-` don't matter; categories of other names have none.

    Where categories and classes are as many, but differ in names, the order of the ids counts, unless the names that they
    have in common contradict it. Raises UserError then, and where neither says.
    """
    spelled = _plain if len(set(map(_plain, names))) == len(names) else str
    numbers = {spelled(name): number for number, name in enumerate(names)}
    order = file.sorted_categories()
    found = {key: numbers[spelled(file.categories[key][1])] for key in order if spelled(file.categories[key][1]) in numbers}
    unknown = [key for key in order if key not in found]
    unnamed = sorted(set(range(len(names))) - set(found.values()))
    if order and not (unknown and unnamed) and len(numbers) == len(names):
        return found
    if len(order) == len(names) and all(order[number] == key for key, number in found.items()):
        pairs = ", ".join(f"{file.categories[order[n]][1]} = {names[n]}" for n in unnamed[:3])
        what = "its categories have other names than the .data file's classes, so the order of their ids says which is which"
        say(Said(file.path, f"{what}: {pairs}{', ...' if len(unnamed) > 3 else ''}"))
        return {key: number for number, key in enumerate(order)}
    has = f"{len(order)} categories, {file.categories[unknown[0]][1]!r} among them" if unknown else f"{len(order)} categories"
    lacks = f", among them {names[unnamed[0]]!r}" if unnamed else ""
    raise UserError.at(file.path, f"has {has}, but the .data file has classes={len(names)}{lacks}; make the names agree")


def _plain(name: str) -> str:
    return " ".join(folded(name).replace("_", " ").replace("-", " ").split())
