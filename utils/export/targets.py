"""What each runtime expects of a file, in one place: export.py --target writes by it, and the adapters in utils.runtimes check
what they are given by it.

The last two are written by their owners' documentation and not run here: TensorRT wants symmetric QuantizeLinear and
DequantizeLinear with zero point 0, kernels a filter each, and equal scales at Add and Concat; RKNN maps before any decoding,
one output a branch, in float: rknn-toolkit2 quantizes by itself.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from utils.core.errors import UserError

DECODED, RAW, MAPS = "decoded", "raw", "maps"  # kinds of outputs, see utils.export.onnx.trace.OUTPUTS
THEIRS = ("yolov5", "yolov8")  # what --layout ultralytics gives
FLAGS = {DECODED: "--decode", RAW: "--raw", "nms": "--nms"}  # that ask for them


@dataclass(frozen=True)
class Target:
    """What a runtime needs of a file.

    title: of the runtime; outputs: kinds that it computes, the first unless another is asked for (decoded: inside the graph, in
    float; raw and maps: decoding is left to the caller); fixed: one size of one image; integers: how quantized networks may lie
    in it, "" not at all, "any" or "symmetric"; filters: its kernels are fast where this divides the numbers of filters;
    opset: the newest that it reads; folder: whether it is one, of the runtime's own format, instead of a .onnx; runtime: the
    name by which it runs here, "" where it doesn't.
    """

    title: str
    outputs: tuple[str, ...]
    fixed: bool = False
    integers: str = "any"
    filters: int = 1
    opset: int = 23
    folder: bool = False
    runtime: str = ""

    def check(self, path: object, outputs: str) -> None:
        """UserError for a file whose outputs the runtime can't compute."""
        if outputs not in self.outputs:
            wanted = f"--target {self.runtime}" if self.runtime else self.title
            raise UserError(f"{path}: gives {outputs}, which {self.title} doesn't compute here; export it with {wanted}")

    def check_network(self, name: object, quantization: object) -> None:
        """UserError for a quantized network (quantization: its settings, None for a float one) where files hold none."""
        if quantization is not None and not self.integers:
            raise UserError(f"{name}: is quantized ({quantization}), but files for {self.title} hold float networks, which its "
                            "own tools quantize; name the float weights")  # fmt: skip


TARGETS = {
    "onnxruntime": Target("ONNX Runtime", (DECODED, RAW, MAPS, "nms", *THEIRS), filters=4, runtime="onnxruntime"),
    "openvino": Target("OpenVINO", (DECODED, RAW, MAPS, "nms", *THEIRS), runtime="openvino"),
    "opencv": Target("OpenCV", (DECODED, RAW, MAPS, *THEIRS), fixed=True, runtime="opencv"),
    "ncnn": Target("ncnn", (MAPS,), fixed=True, integers="", filters=4, folder=True, runtime="ncnn"),
    "tensorrt": Target("TensorRT", (DECODED, RAW, MAPS, *THEIRS), fixed=True, integers="symmetric", filters=8),
    "rknn": Target("RKNN", (MAPS,), fixed=True, integers="", opset=19),
}


def settle(args: argparse.Namespace) -> None:
    """Fill in what --target decides; UserError for what contradicts it."""
    if not args.target:
        if args.half:
            raise UserError("--half is about --target ncnn, which is missing")
        return
    target, given = TARGETS[args.target], args.given
    reason = next(_contradictions(args, target, given), "")
    if reason:
        raise UserError(f"{reason}, which contradicts --target {args.target}")
    if "outputs" not in given:
        args.outputs = target.outputs[0]
    if target.fixed:
        args.static, args.batch = True, 1


def _contradictions(args: argparse.Namespace, target: Target, given: frozenset[str]) -> Iterator[str]:
    """What the user asked for and the target can't have."""
    if args.format != "onnx":
        yield f"--format {args.format}: writes a format of its own"
    if target.fixed and "batch" in given and args.batch != 1:
        yield f"--batch {args.batch or 'dynamic'}: {target.title} gets one image at a time"
    if "outputs" in given and args.outputs not in target.outputs:
        yield f"{FLAGS[args.outputs]}: {target.title} gets {' or '.join(target.outputs)}"
    if args.layout != "darknet" and not set(THEIRS) & set(target.outputs):
        yield f"--layout {args.layout}: {target.title} gets {' or '.join(target.outputs)}"
    if args.opset > target.opset:
        yield f"--opset {args.opset}: {target.title} reads at most {target.opset}"
    if args.half and not target.folder:
        yield "--half: is about ncnn's files"
