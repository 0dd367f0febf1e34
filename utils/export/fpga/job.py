"""export.py --format fpga: dump a network quantized with --FPGA, try the dump, and only then leave it in its place."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.core.errors import UserError
from utils.core.files import output_place
from utils.core.folders import replacing_folder
from utils.core.preparation import Preparation
from utils.core.tables import format_table
from utils.data.augment import FILL
from utils.data.data_file import DataConfig
from utils.data.datasets import Draw, validation_dataset
from utils.export.fpga import dump as dump
from utils.export.fpga.check import CPU, Agreement, compare
from utils.export.fpga.integer import Network, run
from utils.export.fpga.lower import lower
from utils.export.inputs import input_size
from utils.export.options import ExportOptions
from utils.loading import Loaded
from utils.network.darknet import Darknet
from utils.network.shapes import check_img_size

INT32 = 2**31 - 1
EXACT = 2**24  # up to here float32 holds every whole number
CHECK_SIZE = 96  # pixels
REAL_PICTURES = 4
ARITHMETIC = {
    "value": "integer * 2**-exponent",
    "step": "map = limit(shift(activation(sums))), or table[limit(shift(sums)) - index.low]; limits: low..high",
    "shift": "positive: right, rounded half to even; negative: left",
    "align": "a shift for each input, before it is added or joined",
    "leaky": "sums < 0: sums * factor, else sums << widen",
    "relu6": "0..limit of sums << widen",
    "avgpool": "the sum of all positions, shifted, divided by their number, rounded half to even once",
}
VECTORS = "vectors.npz"
OWN_FILES = {dump.MANIFEST, VECTORS, *dump.FILES.values()}


@dataclass(frozen=True)
class FpgaOptions:
    """Flags of --format fpga; 0: not given."""

    source: ExportOptions
    reorder: bool
    tm: int
    tn: int
    check_size: int
    vectors: bool


def export(options: FpgaOptions, loaded: Loaded, data: DataConfig | None) -> dict[str, Any]:
    """Write the dump's folder, print and return the figures. Raises UserError, with nothing left behind, when the integers
    computed from the files differ from PyTorch's."""
    source = options.source
    out = output_place(source.out, Path(source.weights).with_name(Path(source.weights).stem + "_fpga"), is_folder=True)
    quantized, tiling, size = quantized_model(source.weights, loaded), tiling_of(options), input_size(source.img_size, loaded)
    prepared = loaded.preparation(source.images)
    tried = check_pictures(options.check_size, loaded, data, prepared)
    model = quantized.inference_copy(CPU)
    network = lower(model, *size, prepared.maxabs)
    network.info |= description(loaded, size, prepared)
    with replacing_folder(out, OWN_FILES) as temporary:
        dump.write(temporary, network, tiling)
        written = dump.read(temporary)
        agreement = compare(model, written, tried, prepared.maxabs)
        judge(agreement)
        if options.vectors:
            write_vectors(temporary / VECTORS, written, tried[0][:1])
        figures = {"format": "fpga", "folder": str(out)} | sizes(temporary) | summary(network, agreement, tried)
    print(report(figures, network))
    return figures


def quantized_model(weights: str, loaded: Loaded) -> Darknet:
    """The loaded model; UserError unless all of it can be computed in integers."""
    settings = loaded.model.quantization
    if settings is not None and settings.fpga:
        return loaded.model
    state = f"quantized in another way ({settings})" if settings else "not quantized"
    raise UserError(f"{weights}: is {state}, but an FPGA dump needs scales that are powers of two; with the float weights "
                    "run: python PTQ.py --FPGA --weights ... --data ..., or train.py --quantized 1 --FPGA ...")  # fmt: skip


def tiling_of(options: FpgaOptions) -> dump.Tiling | None:
    """--reorder --tm TM --tn TN; UserError for a part of it."""
    if not options.reorder:
        if options.tm or options.tn:
            raise UserError("--tm and --tn are the tiles of --reorder; add it")
        return None
    if not options.tm or not options.tn:
        raise UserError("--reorder needs --tm N and --tn N: the filters and input channels your accelerator computes at once")
    return dump.Tiling(options.tm, options.tn)


def description(loaded: Loaded, size: tuple[int, int], prepared: Preparation) -> dict[str, Any]:
    """What the manifest says besides the steps: how to prepare images, and what the outputs mean."""
    model = loaded.model
    return {
        "network": model.defs.name, "quantization": model.quantization.to_dict(), "names": loaded.names,
        "arithmetic": ARITHMETIC,
        "picture": {
            "channels": model.defs.net.channels, "height": size[0], "width": size[1],
            "order": "gray" if prepared.gray else "RGB",
            "resized": "stretched" if prepared.stretch else f"letterboxed, centred, filled with {FILL}",
            "value": "byte / 127.5 - 1" if prepared.maxabs else "byte / 255", "integer": "input.pixels[byte]",
        },
        "head": "raw = activation(integer * 2**-exponent), channels as the kind of each head has them, then as it decodes: "
                "yolo (anchor, x y w h objectness classes), dfl (left top right bottom, reg_max each, classes)",
    }  # fmt: skip


def check_pictures(side: int, loaded: Loaded, data: DataConfig | None, prepared: Preparation) -> list[Tensor]:
    """What the dump is tried on, uint8 (batch, channels, side, side) each: fine and coarse noise, and images of --data. side: 0
    for about CHECK_SIZE."""
    stride, channels = loaded.model.max_stride, loaded.model.defs.net.channels
    side = side or math.ceil(CHECK_SIZE / stride) * stride
    check_img_size(side, stride, "--check-size")
    random = torch.Generator().manual_seed(0)
    shapes = [(1, channels, n, n) for n in (side, side // stride)]
    fine, coarse = (torch.randint(256, shape, generator=random, dtype=torch.uint8) for shape in shapes)
    blocks = coarse.repeat_interleave(stride, 2).repeat_interleave(stride, 3)
    found = [torch.cat((fine, blocks))]
    if data is not None:
        pictures = validation_dataset(data, prepared, side)
        chosen = range(min(REAL_PICTURES, len(pictures)))
        images = [pictures[Draw(k, k, 0, False, (side, side))][0] for k in chosen]
        found.append(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
    return found


def judge(agreement: Agreement) -> None:
    """Raise UserError unless all integers are those of PyTorch in float32, or else in float64."""
    best = max(agreement.equal, agreement.equal_float64 or 0)
    if best < agreement.outputs:
        raise UserError(f"not written: {agreement.outputs - best} of {agreement.outputs} integers that the heads read "
                        "differ from PyTorch's; please report this")  # fmt: skip


def write_vectors(path: Path, network: Network, picture: Tensor) -> None:
    """An image and every step's integers for it: `picture` uint8 (1, channels, side, side), `image`, and `0`, `1`, ..."""
    result = run(network, picture.numpy(), keep=True)
    maps = {"image" if number < 0 else str(number): ints.astype(np.int32) for number, ints in result.every.items()}
    np.savez_compressed(path, picture=picture.numpy(), **maps)


def sizes(folder: Path) -> dict[str, Any]:
    """{bytes: of each .bin file}."""
    return {"bytes": {name: (folder / name).stat().st_size for name in dict.fromkeys(dump.FILES.values())}}


def summary(network: Network, agreement: Agreement, tried: list[Tensor]) -> dict[str, Any]:
    """What the check found. peak, bound: the greatest sum that came up, and that could come up, and its step."""
    peak = max(agreement.peaks, key=agreement.peaks.get)
    bound = max(range(len(network.steps)), key=lambda number: network.steps[number].bound)
    return {
        "steps": len(network.steps), "outputs": agreement.outputs, "equal": agreement.equal,
        "equal_float64": agreement.equal_float64,
        "tried": [list(batch.shape) for batch in tried], "peak": agreement.peaks[peak], "peak_step": peak,
        "bound": network.steps[bound].bound, "bound_step": bound,
    }  # fmt: skip


def report(figures: dict[str, Any], network: Network) -> str:
    """What a user reads."""
    rows = [["folder", figures["folder"]]] + [[name, f"{size:,} bytes"] for name, size in figures["bytes"].items()]
    tried = ", ".join("x".join(map(str, shape)) for shape in figures["tried"])
    rows.append(["against PyTorch", f"{verdict(figures)} ({tried})"])
    for key, words in (("peak", "greatest sum seen"), ("bound", "greatest sum possible")):
        number, value = figures[f"{key}_step"], figures[key]
        step = network.steps[number]
        limits = f"{'fits' if value <= INT32 else 'exceeds'} int32, {'below' if value < EXACT else 'above'} float32's 2^24"
        rows.append([words, f"{value:,} (step {number}, layer {step.layer} [{step.kind}]): {limits}"])
    return format_table(["", ""], rows)


def verdict(figures: dict[str, Any]) -> str:
    outputs, equal = figures["outputs"], figures["equal"]
    if equal == outputs:
        return f"{outputs:,} outputs, all equal"
    return (f"{outputs:,} outputs, all equal to float64's; {outputs - equal:,} differ from float32's, which rounds sums "
            "beyond 2^24")  # fmt: skip
