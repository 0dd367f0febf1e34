"""What each runtime expects of a file, in one place: export.py --target writes by it, and the adapters in utils.runtimes check
what they are given by it.

The last two are written by their owners' documentation and not run here, so files for them are searched for what these ask
(`rules`, of utils.export.onnx.rules). TensorRT reads integers around 0 alone. RKNN gets float networks, which its own tool
quantizes, with maps before any decoding, one output a branch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from utils.core.errors import UserError
from utils.export.options import OnnxOptions
from utils.quantized.settings import Settings

DECODED, RAW, MAPS = "decoded", "raw", "maps"  # kinds of outputs, see utils.export.onnx.trace.OUTPUTS
THEIRS = ("yolov5", "yolov8")  # what --layout ultralytics gives
FLAGS = {DECODED: "--decode", RAW: "--raw", "nms": "--nms"}  # that ask for them


@dataclass(frozen=True)
class Target:
    """What a runtime needs of a file.

    title: of the runtime; outputs: kinds that it computes, the first unless another is asked for (decoded: inside the graph, in
    float; raw and maps: decoding is left to the caller); fixed: one size of one image; integers: whether quantized networks
    may lie in it; symmetric: only those whose integers lie around 0; filters: its kernels are fast where this divides the
    numbers of filters; opset: the newest that it reads; folder: whether it is one, of the runtime's own format, instead of a
    .onnx; rules: what is looked for in a written file, where no runtime does; runtime: the name by which it runs here, "" where
    it doesn't.
    """

    title: str
    outputs: tuple[str, ...]
    fixed: bool = False
    integers: bool = True
    symmetric: bool = False
    filters: int = 1
    opset: int = 23
    folder: bool = False
    rules: tuple[str, ...] = ()
    runtime: str = ""

    def check(self, path: object, outputs: str) -> None:
        """UserError for a file whose outputs the runtime can't compute."""
        if outputs not in self.outputs:
            wanted = f"--target {self.runtime}" if self.runtime else self.title
            raise UserError(f"{path}: gives {outputs}, which {self.title} doesn't compute here; export it with {wanted}")

    def check_network(self, name: object, quantization: Settings | None) -> None:
        """UserError for a quantized network that files don't hold. quantization: its settings, None for a float one."""
        if quantization is None:
            return
        if self.symmetric and not quantization.symmetric:
            raise UserError(f"{name}: is quantized ({quantization}), but {self.title} reads only integers that lie around 0; "
                            "quantize the float weights again, with --symmetric")  # fmt: skip
        if not self.integers:
            raise UserError(f"{name}: is quantized ({quantization}), but files for {self.title} are made of float networks, "
                            "which its own tools quantize; name the float weights")  # fmt: skip


TARGETS = {
    "onnxruntime": Target("ONNX Runtime", (DECODED, RAW, MAPS, "nms", *THEIRS), filters=4, runtime="onnxruntime"),
    "openvino": Target("OpenVINO", (DECODED, RAW, MAPS, "nms", *THEIRS), runtime="openvino"),
    "opencv": Target("OpenCV", (DECODED, RAW, MAPS, *THEIRS), fixed=True, runtime="opencv"),
    "ncnn": Target("ncnn", (MAPS,), fixed=True, integers=False, filters=4, folder=True, runtime="ncnn"),
    "tensorrt": Target(
        "TensorRT",
        (DECODED, RAW, MAPS, *THEIRS),
        fixed=True,
        symmetric=True,
        filters=8,
        rules=("fixed", "zeros", "scales", "pairs", "whole", "biases"),
    ),
    "rknn": Target("RKNN", (MAPS,), fixed=True, integers=False, opset=19, rules=("fixed", "float", "ends")),
}


def settle(options: OnnxOptions, given: frozenset[str]) -> OnnxOptions:
    """With what --target decides; UserError for what contradicts it. given: names of the flags on the command line."""
    if not options.target:
        if options.half:
            raise UserError("--half is about --target ncnn, which is missing")
        return options
    target = TARGETS[options.target]
    reason = next(_contradictions(options, target, given), "")
    if reason:
        raise UserError(f"{reason}, which contradicts --target {options.target}")
    if "outputs" not in given:
        options = replace(options, outputs=target.outputs[0])
    return replace(options, static=True, batch=1) if target.fixed else options


def _contradictions(options: OnnxOptions, target: Target, given: frozenset[str]) -> Iterator[str]:
    """What the user asked for and the target can't have."""
    if options.source.format != "onnx":
        yield f"--format {options.source.format}: writes a format of its own"
    if target.fixed and "batch" in given and options.batch != 1:
        yield f"--batch {options.batch or 'dynamic'}: {target.title} gets one image at a time"
    if "outputs" in given and options.outputs not in target.outputs:
        yield f"{FLAGS[options.outputs]}: {target.title} gets {' or '.join(target.outputs)}"
    if options.layout != "darknet" and not set(THEIRS) & set(target.outputs):
        yield f"--layout {options.layout}: {target.title} gets {' or '.join(target.outputs)}"
    if options.opset > target.opset:
        yield f"--opset {options.opset}: {target.title} reads at most {target.opset}"
    if options.half and not target.folder:
        yield "--half: is about ncnn's files"
