"""Sequences of many small things in two arrays, where a list would be as many objects.

A hundred thousand arrays and strings are as many counts of references, each of which a forked worker writes to when it looks at
its object; the pages that it shares with its parent then become copies of its own, worker by worker.
"""

import os
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class PackedRows(Sequence[np.ndarray]):
    """Arrays (n, columns) of one dtype, read as views of one array.

    >>> rows = PackedRows([np.zeros((2, 5)), np.ones((0, 5)), np.ones((1, 5))])
    >>> len(rows), rows[1].shape, rows[-1].tolist()
    (3, (0, 5), [[1.0, 1.0, 1.0, 1.0, 1.0]])
    """

    def __init__(self, arrays: Sequence[np.ndarray], columns: int = 5) -> None:
        self.ends = np.cumsum([len(array) for array in arrays], dtype=np.int64)
        self.all = np.concatenate(arrays) if len(arrays) else np.zeros((0, columns), np.float32)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start, end = _place(self.ends, index)
        return self.all[start:end]


class PackedPaths(Sequence[str]):
    """Names of files, of any bytes.

    >>> paths = PackedPaths(["a/1.jpg", "b.png"])
    >>> paths[0], paths[-1], list(paths)
    ('a/1.jpg', 'b.png', ['a/1.jpg', 'b.png'])
    """

    def __init__(self, paths: Iterable[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self.ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self.all = b"".join(encoded)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start, end = _place(self.ends, index)
        return os.fsdecode(self.all[start:end])


def _place(ends: np.ndarray, index: int) -> tuple[int, int]:
    """Where element `index` begins and ends; IndexError beyond the ends."""
    end = int(ends[index])
    before = index % len(ends) - 1
    return int(ends[before]) if before >= 0 else 0, end
