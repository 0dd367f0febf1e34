"""Single convolutions as ncnn's two files, with which it is asked how long a layer takes in it.

pnnx takes seconds for a file, so each kind of convolution is converted once, in few channels, and its text then gets the
numbers of other widths. A line of it is a layer: kind, name, how many maps it reads and makes, their names, and arguments
`number=value`, of which a convolution's are documented by ncnn (docs/developer-guide/operators.md). Sizes of maps aren't among
them.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from utils.export.ncnn.convert import HEAD, run_pnnx
from utils.export.ncnn.files import BIN, PARAM
from utils.pruning.latency import Geometry, Widths
from utils.runtimes.single_layer import LayerGraphs, traced_as

FILTERS, WITH_BIAS, VALUES, GROUPS = 0, 5, 6, 7  # arguments of a convolution; values: of its kernel
AS_THEY_ARE = bytes(4)  # says that the kernel that follows is float32
NOT_PACKED_BACK = 1  # a map is given as the layer left it
PACKS = (16, 8, 4)  # channels that lie side by side in ncnn's maps, the first that divides their number


class LayerFiles:
    """ncnn's files of single convolutions."""

    def __init__(self) -> None:
        self.graphs = LayerGraphs(32)
        self.converted: dict[tuple[Geometry, Widths], str] = {}

    def write(self, geometry: Geometry, widths: Widths, folder: Path) -> None:
        """Write both files. Raises UserError where pnnx can't convert such a layer."""
        key = traced_as(geometry, widths)
        if key not in self.converted:
            self.converted[key] = self._convert(*key)
        text, counts = widened(self.converted[key], key[1], widths)
        (folder / PARAM).write_text(text, encoding="utf-8")
        generator = np.random.default_rng(0)
        with (folder / BIN).open("wb") as file:
            for count in counts:
                file.write(AS_THEY_ARE + generator.standard_normal(count, np.float32).tobytes())

    def _convert(self, geometry: Geometry, widths: Widths) -> str:
        """The text of a layer as pnnx writes it."""
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            noise = self.graphs.write(geometry, widths, folder / "graph.onnx")
            run_pnnx(folder / "graph.onnx", folder, list(noise.shape), half=False)
            return (folder / PARAM).read_text(encoding="utf-8")


def widened(text: str, old: Widths, new: Widths) -> tuple[str, list[int]]:
    """The text of a file for other widths, and how many numbers each of its convolutions has, biases included."""
    lines, counts = text.splitlines(), []
    for at, line in enumerate(lines[HEAD:], HEAD):
        words = line.split()
        if not words[0].startswith("Convolution"):
            continue
        first = 4 + int(words[2]) + int(words[3])
        arguments = dict(word.split("=", 1) for word in words[first:])
        filters, values, groups = (int(arguments.get(str(k), 1)) for k in (FILTERS, VALUES, GROUPS))
        reads = (old[0], new[0]) if groups == 1 else (1, 1)  # of groups each filter reads as many channels as before
        wanted = {
            FILTERS: filters * new[1] // old[1], VALUES: values * reads[1] * new[1] // (reads[0] * old[1]),
            GROUPS: new[1] if groups == old[1] else groups,
        }  # fmt: skip
        arguments |= {str(k): str(v) for k, v in wanted.items() if str(k) in arguments}
        lines[at] = " ".join([*words[:first], *(f"{k}={v}" for k, v in arguments.items())])
        counts.append(wanted[VALUES] + (wanted[FILTERS] if arguments.get(str(WITH_BIAS)) == "1" else 0))
    return "\n".join(lines) + "\n", counts


def between_layers(ncnn: Any, net: Any, noise: np.ndarray) -> Callable[[], object]:
    """What computes a layer as it stands within a network: its map comes packed as the layer before left it, and goes the same
    way. noise: (channels, height, width)."""
    pack = next((pack for pack in PACKS if len(noise) % pack == 0), 1)
    image = ncnn.convert_packing(ncnn.Mat(noise).clone(), pack, net.opt)
    read, made = net.input_names()[0], net.output_names()[0]

    def compute() -> object:
        extractor = net.create_extractor()
        extractor.input(read, image)
        return extractor.extract(made, NOT_PACKED_BACK)

    return compute
