"""The files of an FPGA dump: a manifest and four .bin files, written and read back without torch.

manifest.json   the steps in the order of computation (see utils.export.fpga.integer), what they read, their shapes, shifts and
                integer constants, where their arrays lie, the input, the heads, and each .bin file's size and SHA-256
weights.bin     kernels. One file for all layers, as for biases and tables: it is copied to the accelerator's memory as it
                is, and a layer's address is the file's address there plus the manifest's offset
biases.bin      int32, one a filter, in units of its layer's sums, in the order of the filters
tables.bin      `pixels`: the image's integer for each byte of an image; and a table for each layer whose activation is one
exponents.bin   int16, for each step: the exponents of its inputs, weights, sums and output, its shift, its aligning shifts:
                the same numbers as in the manifest, for those who'd rather not read JSON; what a step lacks is 0

Every array begins at a multiple of 64 bytes; numbers are little-endian. Kernels of at most 4 bits are stored as `int4`:
two a byte, the first in the lower half.

    network = read("weights/best_fpga")
    maps = utils.export.fpga.integer.run(network, images).maps

Kernels lie as (filters, channels a group, rows, columns), the last index fastest, or, reordered, in tiles: see `tile`.
"""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.core.errors import UserError
from utils.core.files import read_text, write_text
from utils.export.fpga.integer import MOVES, SUMS, Grid, Network, Step

FORMAT, VERSION = "darkedge integer network", 1
MANIFEST = "manifest.json"
FILES = {"weights": "weights.bin", "biases": "biases.bin", "table": "tables.bin", "pixels": "tables.bin",
         "exponents": "exponents.bin"}  # fmt: skip
ALIGNMENT = 64  # bytes: 512 bits, the width of a wide memory bus
ORDER = "group, tile of filters, tile of channels, row, column, filter in the tile, channel in the tile"


@dataclass(frozen=True)
class Tiling:
    """tm: filters, tn: input channels that an accelerator computes with at once."""

    tm: int
    tn: int

    def of(self, step: Step) -> tuple[int, int, int]:
        """(groups, tm, tn) to tile a step's kernel with. Depthwise filters have one channel each, so they go side by side."""
        return (1, self.tm, 1) if step.kind == "depthwise" else (step.options["groups"], self.tm, self.tn)


def tile(kernel: np.ndarray, groups: int, tm: int, tn: int) -> np.ndarray:
    """A kernel (filters, channels a group, rows, columns) in the order in which an accelerator reads it that multiplies tn
    input channels with tm filters at once: (groups, tiles of filters, tiles of channels, rows, columns, tm, tn).

    It makes tm output maps at a time: for those it goes through the input, tn channels at a time; for those through the
    positions of the kernel; and for each it needs tm x tn weights together. Tiles at the ends are filled up with zeros, so
    that all are equally long.

    Three filters of two channels, one row and two columns; the weight of filter f, channel c, column x is fcx:

    >>> kernel = np.array([[[[110, 111]], [[120, 121]]], [[[210, 211]], [[220, 221]]], [[[310, 311]], [[320, 321]]]])
    >>> tile(kernel, 1, 2, 2).ravel().tolist()
    [110, 120, 210, 220, 111, 121, 211, 221, 310, 320, 0, 0, 311, 321, 0, 0]
    """
    filters, depth, rows, columns = kernel.shape
    kernel = kernel.reshape(groups, filters // groups, depth, rows, columns)
    ends = [(0, -length % size) for length, size in ((filters // groups, tm), (depth, tn))]
    kernel = np.pad(kernel, ((0, 0), *ends, (0, 0), (0, 0)))
    kernel = kernel.reshape(groups, kernel.shape[1] // tm, tm, kernel.shape[2] // tn, tn, rows, columns)
    return kernel.transpose(0, 1, 3, 5, 6, 2, 4)


def untile(tiles: np.ndarray, shape: tuple[int, int, int, int]) -> np.ndarray:
    """The kernel of `shape` that `tile` made `tiles` of."""
    groups, over, under, rows, columns, tm, tn = tiles.shape
    kernel = tiles.transpose(0, 1, 5, 2, 6, 3, 4).reshape(groups, over * tm, under * tn, rows, columns)
    return kernel[:, : shape[0] // groups, : shape[1]].reshape(shape)


def pack(values: np.ndarray) -> bytes:
    """Integers -8..7, two a byte, the first in the lower half; an odd one at the end is followed by 0.

    >>> pack(np.array([1, -1, 7])).hex()
    'f107'
    """
    halves = np.append(values.ravel(), [0] * (values.size % 2)).astype(np.uint8) & 15
    return (halves[::2] | halves[1::2] << 4).tobytes()


def unpack(data: bytes, count: int) -> np.ndarray:
    """The first `count` integers that `pack` made `data` of."""
    both = np.frombuffer(data, np.uint8)
    halves = np.stack([both & 15, both >> 4], 1).ravel()[:count].astype(np.int8)
    return np.where(halves > 7, halves - 16, halves).astype(np.int8)


def dtype_for(bits: int) -> str:
    """The name of the narrowest type for signed integers of so many bits."""
    return next(f"int{size}" for size in (4, 8, 16, 32) if bits <= size)


@dataclass
class _Bins:
    """The .bin files while they grow."""

    tiling: Tiling | None
    contents: dict[str, bytearray] = field(default_factory=lambda: {name: bytearray() for name in FILES.values()})

    def add(self, name: str, values: np.ndarray, dtype: str, tiles: tuple[int, int, int] | None = None) -> dict[str, Any]:
        """Append an array; returns what the manifest says of it."""
        stored = values if tiles is None else tile(values, *tiles)
        data = pack(stored) if dtype == "int4" else stored.astype(f"<i{int(dtype[3:]) // 8}").tobytes()
        content = self.contents[FILES[name]]
        content.extend(bytes(-len(content) % ALIGNMENT))
        place = {"file": FILES[name], "offset": len(content), "bytes": len(data), "dtype": dtype, "shape": list(values.shape)}
        content.extend(data)
        return place if tiles is None else place | {"tiles": list(stored.shape)}

    def step(self, step: Step) -> dict[str, Any]:
        """A step's entry in the manifest."""
        entry = {key: value for key, value in asdict(step).items() if key != "arrays"}
        places = {}
        for name, values in step.arrays.items():
            tiles = self.tiling.of(step) if name == "weights" and self.tiling else None
            bits = step.options["bits"] if name == "weights" else 8 * values.itemsize
            places[name] = self.add(name, values, dtype_for(bits), tiles)
        places["exponents"] = self.add("exponents", exponent_row(step), "int16")
        return entry | {"arrays": places}


def exponent_row(step: Step) -> np.ndarray:
    """A step's line in exponents.bin."""
    known = [step.exponents.get(key, 0) for key in ("weights", "sums")]
    return np.array([*step.exponents["inputs"], *known, step.output.exponent, step.shift, *step.align], np.int16)


def write(folder: Path, network: Network, tiling: Tiling | None = None) -> None:
    """Write a network's files into an existing folder."""
    bins = _Bins(tiling)
    pixels = bins.add("pixels", network.pixels, dtype_for(8 * network.pixels.itemsize))
    steps = [{"number": number} | bins.step(step) for number, step in enumerate(network.steps)]
    files = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in bins.contents.items()}
    manifest = {
        "format": FORMAT, "version": VERSION, "info": network.info,
        "tiling": tiling and asdict(tiling) | {"order": ORDER},
        "input": asdict(network.input) | {"pixels": pixels}, "outputs": network.outputs, "files": files, "steps": steps,
    }  # fmt: skip
    for name, data in bins.contents.items():
        (folder / name).write_bytes(data)
    text = re.sub(r"\[[^][{}]*\]", lambda row: re.sub(r"\n *", " ", row[0]), json.dumps(manifest, indent=1))
    write_text(folder / MANIFEST, text + "\n")  # a list of numbers fills one line


def read(folder: str | Path) -> Network:
    """The network of a dump, its kernels in (filters, channels a group, rows, columns) whatever the order in the file.

    Raises UserError for a folder that holds none, for files that don't belong together and for damaged ones.
    """
    path = Path(folder) / MANIFEST
    text = read_text(path, "manifest of an FPGA dump")
    try:
        manifest = json.loads(text)
        found = f"{manifest['format']}, version {manifest['version']}"
        if found != (known := f"{FORMAT}, version {VERSION}"):
            raise UserError(f"{path}: is a {found[:80]}; only {known} can be read here")
        contents = {name: _checked(Path(folder) / name, **file) for name, file in manifest["files"].items()}
        image = manifest["input"]
        pixels = _array(contents, image.pop("pixels"))
        steps = [_step(contents, entry, path) for entry in manifest["steps"]]
        return Network(Grid(**image), pixels, steps, manifest["outputs"], manifest["info"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged, or not a manifest ({type(error).__name__}: {error}); export it again") from None


def _checked(path: Path, bytes: int, sha256: str) -> bytes:
    """The content of a .bin file; UserError unless it is what the manifest says."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}), but {MANIFEST} lists it") from None
    if len(data) != bytes:
        raise UserError(f"{path}: has {len(data)} bytes, but {bytes} in {MANIFEST}: copied in part, or of another export")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(f"{path}: differs from what was exported (SHA-256): damaged, or of another export")
    return data


def _array(contents: dict[str, bytes], place: dict[str, Any]) -> np.ndarray:
    data = contents[place["file"]][place["offset"] : place["offset"] + place["bytes"]]
    shape = tuple(place["shape"])
    stored = tuple(place.get("tiles", shape))
    if place["dtype"] == "int4":
        values = unpack(data, math.prod(stored)).reshape(stored)
    else:
        values = np.frombuffer(data, f"<i{int(place['dtype'][3:]) // 8}").reshape(stored)
    return untile(values, shape) if "tiles" in place else values


def _step(contents: dict[str, bytes], entry: dict[str, Any], path: Path) -> Step:
    number, arrays = entry.pop("number"), {name: _array(contents, place) for name, place in entry.pop("arrays").items()}
    grids = {key: Grid(**entry.pop(key)) for key in ("output", "index") if entry[key]}
    step = Step(**{"index": None} | entry | grids, arrays=arrays)
    if step.kind not in SUMS | MOVES:
        raise KeyError(f"{step.kind} is no kind of step")
    if exponent_row(step).tolist() != arrays.pop("exponents").tolist():
        raise UserError(f"{path}: step {number} has other exponents than {FILES['exponents']}; export it again")
    return step
