"""From a command line to what the code reads: frozen dataclasses, each of the flags that belong to one idea.

A script's `main` makes them of all its flags, once, and passes each to the functions that need it:

    >>> @dataclass(frozen=True)
    ... class Mending:
    ...     refit: int
    ...     bn_recal: int
    >>> options_of(Mending, {"refit": 64, "bn_recal": 0, "data": "my.data"})
    Mending(refit=64, bn_recal=0)

So that a function may know one flag more, the parser gets the argument and the dataclass a field of its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass as dataclass  # for the example
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, Protocol, TypeVar, get_type_hints

_FLAG = "flag"


class DataclassInstance(Protocol):
    """What every dataclass has."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Options = TypeVar("Options", bound=DataclassInstance)


def flag(name: str) -> dict[str, str]:
    """metadata of a dataclass's field that is called otherwise than the flag it holds."""
    return {_FLAG: name}


def options_of(kind: type[Options], flags: Mapping[str, Any]) -> Options:
    """The dataclass `kind` with the values that the flags of its fields' names have, `vars()` of a parsed command line. A field
    whose type is a dataclass itself is made of the same flags.

    Raises KeyError for a field that is no flag, even where it has a default: that is for those who make one by hand.
    """
    hints = get_type_hints(kind)
    values = {}
    for field in fields(kind):
        hint, name = hints[field.name], field.metadata.get(_FLAG, field.name)
        if _is_group(hint):
            values[field.name] = options_of(hint, flags)
        elif name in flags:
            values[field.name] = flags[name]
        else:
            raise KeyError(f"{kind.__name__}.{field.name}: the command line has no argument {name}")
    return kind(**values)


def flags_of(options: DataclassInstance) -> dict[str, Any]:
    """The flags that `options_of` would make these options of.

    >>> @dataclass(frozen=True)
    ... class Mending:
    ...     refit: int
    >>> flags_of(Mending(64))
    {'refit': 64}
    """
    hints = get_type_hints(type(options))
    flags: dict[str, Any] = {}
    for field in fields(options):
        value = getattr(options, field.name)
        flags |= flags_of(value) if _is_group(hints[field.name]) else {field.metadata.get(_FLAG, field.name): value}
    return flags


def _is_group(hint: Any) -> bool:
    return isinstance(hint, type) and is_dataclass(hint)
