"""Run a detector on images, folders, videos, cameras and streams; results, with boxes drawn, go to the output folder."""

import argparse
import contextlib
import itertools
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

from utils.core.devices import select_device
from utils.core.errors import UserError
from utils.core.files import make_folder, replacing, write_text
from utils.core.options import options_of
from utils.core.preparation import Preparation
from utils.core.ranges import SHARE, whole
from utils.core.tables import format_table, write_json
from utils.core.timing import Stopwatch
from utils.data.augment import letterbox
from utils.data.batch import ImageInfo, normalise
from utils.data.data_file import read_data, read_names
from utils.data.draw import draw_boxes
from utils.data.images import write_picture
from utils.data.labels import label_path
from utils.data.outputs import plan_outputs
from utils.data.sources import Frame, Frames, Item, find_items, open_writer, shown
from utils.detection.boxes import augmented_predictions, nms, unletterbox
from utils.detection.threshold import USUAL, choose_threshold
from utils.export.onnx.model import OnnxModel
from utils.loading import Loaded, NetworkOptions
from utils.network.detection_model import DetectionModel
from utils.runtimes.base import Request
from utils.runtimes.registry import choose, load
from utils.scripts.cli import (
    Parser,
    add_device_arguments,
    add_inference_arguments,
    add_model_arguments,
    add_runtime_arguments,
    run,
)

TRAINED = Path("weights/best.pt")  # what train.py leaves


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--data", default="", help=".data file, for the class names; a checkpoint carries its own")
    add_model_arguments(parser)
    parser.add_argument("--source", required=True, help="image, folder, pattern, list, video, camera number or stream address")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder of the results")
    parser.add_argument("--names", default="", help=".names file; default: those of --data or of the checkpoint")
    parser.add_argument("--conf-thres", type=SHARE, default=None,
                        help="least objectness x class probability of a box; default: what the evaluation of a checkpoint "
                        f"recommended, which it carries, else {USUAL}")  # fmt: skip
    parser.add_argument("--iou-thres", type=SHARE, default=0.6, help="overlap above which the less confident box goes")
    parser.add_argument("--classes", type=whole(0, 65535), nargs="+", help="show only these classes, given by number")
    parser.add_argument("--agnostic-nms", action="store_true", help="boxes of different classes suppress each other, too")
    parser.add_argument("--augment", action="store_true", help="also look at mirrored and smaller copies")
    parser.add_argument("--fourcc", default="mp4v", help="codec of written videos")
    parser.add_argument("--view-img", action="store_true", help="show results in a window; q or Esc ends")
    parser.add_argument("--save-txt", action="store_true", help="write a line `class cx cy w h confidence` a box, 0..1, too")
    add_inference_arguments(parser)
    add_runtime_arguments(parser)
    add_device_arguments(parser)
    return parser


@dataclass(frozen=True)
class DetectOptions:
    """The command line of detect.py."""

    data: str
    network: NetworkOptions
    images: Preparation
    runtime: str
    threads: int | None
    device: str
    precision: str
    source: str
    output: Path
    names: str
    conf_thres: float | None
    iou_thres: float
    classes: list[int] | None
    agnostic_nms: bool
    augment: bool
    fourcc: str
    view_img: bool
    save_txt: bool
    json: str


def main(args: argparse.Namespace) -> dict[str, Any]:
    options = checked(options_of(DetectOptions, vars(args)))
    items, network = find_items(options.source, exclude=options.output), options.network
    data = read_data(options.data) if options.data else None
    request = Request(network.cfg, network.weights, network.img_size, data, options.images.gray)
    loaded = load(choose(options.runtime, network.weights), options.threads, request)
    if loaded.report.message:
        print(loaded.report.message)
    origin = "ONNX file" if isinstance(loaded.model, OnnxModel) else "checkpoint"
    conf_thres = choose_threshold(options.conf_thres, loaded.conf_thres, origin)
    detector = Detector(loaded, class_names(loaded, options), conf_thres, options)
    with contextlib.ExitStack() as stack:
        results = stack.enter_context(Results(options.output, items, options))
        frames = Frames(items)
        with contextlib.suppress(_Quit):
            detect_all(frames, detector, results)
    figures = summarise(frames, detector, results)
    write_json(options.json, figures)
    return figures


def checked(options: DetectOptions) -> DetectOptions:
    """With the weights that train.py leaves where none are named. Raises UserError for options that can't be used."""
    if len(options.fourcc) != 4:
        raise UserError(f"--fourcc {options.fourcc}: a codec's code has four characters, such as mp4v or MJPG")
    if options.network.weights:
        return options
    if not TRAINED.is_file():
        raise UserError(f"name the detector with --weights FILE; without it {TRAINED} is used, which isn't there")
    print(f"no --weights: using {TRAINED}")
    return replace(options, network=replace(options.network, weights=str(TRAINED)))


def class_names(loaded: Loaded, options: DetectOptions) -> list[str]:
    """Names of the network's classes; UserError when --names has another number of them, or --classes none such."""
    names = read_names(options.names) if options.names else loaded.names
    count = len(loaded.names)
    if len(names) != count:
        raise UserError(f"{options.names}: lists {len(names)} names, but the network has {count} classes")
    unknown = [c for c in options.classes or () if not 0 <= c < count]
    if unknown:
        raise UserError(f"--classes {unknown[0]}: the network has the classes 0..{count - 1}")
    return [f"class {n}" if n.isdigit() else n for n in names]


class Detector:
    """A network with all that lies between an image and its boxes: the inference copy, letterbox, NMS."""

    def __init__(self, loaded: Loaded, names: list[str], conf_thres: float, options: DetectOptions) -> None:
        self.names, self.conf_thres, self.options, self.shape = names, conf_thres, options, loaded.shape
        self.device = select_device(options.device)
        self.network: DetectionModel = loaded.model.inference_copy(self.device, options.precision)
        self.prepared = loaded.preparation(options.images)
        self.watch = Stopwatch(self.device)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(height, width, 3) BGR uint8 -> (n, 6): x1 y1 x2 y2 in its pixels, confidence, class; most confident first."""
        self.watch.warm_up(lambda: self._detect(image))
        boxes = self._detect(image)
        self.watch.images.append(1)
        return boxes

    def _detect(self, image: np.ndarray) -> np.ndarray:
        with self.watch.stage("preprocess"):
            small, info = self.prepare(image)
            batch = normalise(small, self.device, self.network.dtype, self.prepared.maxabs)
        with self.watch.stage("inference"):
            predictions = augmented_predictions(self.network, batch) if self.options.augment else self.network(batch)[0]
        with self.watch.stage("nms"):
            found = nms(
                predictions, self.conf_thres, self.options.iou_thres, agnostic=self.options.agnostic_nms, multi_label=False,
                classes=self.options.classes,
            )[0]  # fmt: skip
            return torch.cat((unletterbox(found[:, :4], info), found[:, 4:]), 1).float().cpu().numpy()

    def prepare(self, image: np.ndarray) -> tuple[torch.Tensor, ImageInfo]:
        """The image as the network sees it: (1, channels, height, width) uint8, RGB or gray, and how it got there."""
        colours = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY if self.prepared.gray else cv2.COLOR_BGR2RGB)
        small, ratio, pad = letterbox(colours, self.shape, self.prepared.stretch)
        small = small.reshape(*self.shape, -1)
        return torch.from_numpy(small).permute(2, 0, 1)[None], ImageInfo(Path(), 0, image.shape[:2], ratio, pad)

    def milliseconds(self) -> float:
        """Of the image seen last, all stages together."""
        return 1000 * sum(times[-1] for times in self.watch.seconds.values())


class _Quit(Exception):
    """The user wants no more frames."""


@dataclass
class Results:
    """Where results go: images, videos, label files and the window. Use as a context manager; closing moves the video
    that is being written into place."""

    folder: Path
    items: list[Item]
    options: DetectOptions
    counts: Counter[str] = field(default_factory=Counter)
    frames: int = 0

    def __enter__(self) -> "Results":
        make_folder(self.folder)
        self.outputs = plan_outputs(self.folder, self.items, self.options.fourcc, self._other_inputs())
        self.window = self.options.view_img and _has_display()
        self.video = contextlib.ExitStack()
        self.writer: cv2.VideoWriter | None = None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.video.__exit__(kind, error, trace)
        if self.window:
            cv2.destroyAllWindows()

    def add(self, frame: Frame, boxes: np.ndarray, names: list[str]) -> None:
        """Write one frame's boxes wherever they are wanted."""
        self.frames += 1
        self.counts.update(names[int(c)] for c in boxes[:, 5])
        picture = draw_boxes(frame.image, boxes, names)
        output = self.outputs[frame.item.name]
        if frame.item.kind == "image":
            write_picture(output.path, picture)
        else:
            self._write_frame(output.path, frame, picture)
        if self.options.save_txt:
            write_text(output.labels(frame.number), label_lines(boxes, frame.image.shape[:2]))
        if self.window:
            cv2.imshow("detect", picture)
            if cv2.waitKey(1) & 0xFF in (ord("q"), 27):
                raise _Quit

    def _other_inputs(self) -> list[Path]:
        """What texts must not take the place of: the list that names the images, and labels that they have already."""
        labels = [label_path(item.name) for item in self.items if item.kind == "image"]
        return [path for path in (Path(self.options.source), *labels) if path.exists()] if self.options.save_txt else []

    def _write_frame(self, path: Path, frame: Frame, picture: np.ndarray) -> None:
        """The first frame of a video opens its file and closes the one before."""
        if frame.number == 1:
            self.video.close()
            temporary = self.video.enter_context(replacing(path))
            size = (picture.shape[1], picture.shape[0])
            self.writer = open_writer(temporary, self.options.fourcc, frame.fps, size)
            self.video.callback(self.writer.release)
            if not self.writer.isOpened():
                raise UserError(f"--fourcc {self.options.fourcc}: OpenCV cannot write {path.suffix} with it; try mp4v or MJPG")
        self.writer.write(picture)


def label_lines(boxes: np.ndarray, shape: tuple[int, int]) -> str:
    """A line `class cx cy w h confidence` a box, normalised to the image (height, width)."""
    height, width = shape
    lines = []
    for x1, y1, x2, y2, confidence, label in boxes.tolist():
        centre_x, centre_y = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height
        box = f"{centre_x:.6f} {centre_y:.6f} {(x2 - x1) / width:.6f} {(y2 - y1) / height:.6f}"
        lines.append(f"{int(label)} {box} {confidence:.4f}\n")
    return "".join(lines)


def detect_all(frames: Frames, detector: Detector, results: Results) -> None:
    """Detect on every frame. Ctrl-C ends a camera or stream, whose recording is kept."""
    for number, item in enumerate(frames.items, 1):
        found: Counter[str] = Counter()
        position = f"{item.kind} {number}/{len(frames.items)} {shown(item.name)}"
        stream = contextlib.suppress(KeyboardInterrupt) if item.kind == "stream" else contextlib.nullcontext()
        with stream:
            for frame in _with_bar(frames.read(item), item):
                boxes = detector(frame.image)
                results.add(frame, boxes, detector.names)
                found.update(detector.names[int(c)] for c in boxes[:, 5])
                if item.kind == "image":
                    tqdm.write(f"{position}: {describe(found)} ({detector.milliseconds():.0f} ms)")
        if item.kind != "image" and item.name not in frames.skipped:
            tqdm.write(f"{position}: {describe(found)} in all frames")


def _with_bar(frames: Iterator[Frame], item: Item) -> Iterator[Frame]:
    """The frames; on a terminal with a progress bar for a video or a stream, once its first frame is there."""
    first = list(itertools.islice(frames, 1))
    if item.kind == "image" or not first:
        yield from first
        return
    with tqdm(desc=shown(item.name), unit="frame", leave=False, disable=None) as bar:
        for frame in itertools.chain(first, frames):
            bar.total = frame.total
            yield frame
            bar.update()


def describe(found: Counter[str]) -> str:
    """`4 RBC, 1 WBC`, the most frequent first."""
    ordered = sorted(found.items(), key=lambda entry: (-entry[1], entry[0]))
    return ", ".join(f"{n} {name}" for name, n in ordered) or "nothing found"


def _has_display() -> bool:
    """Whether windows can be shown; says so when not. Tried in another process: OpenCV's Qt aborts without a display."""
    wanted = sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    probe = [sys.executable, "-c", "import cv2; cv2.namedWindow('probe'); cv2.waitKey(1)"]
    if wanted and subprocess.run(probe, capture_output=True, check=False).returncode == 0:
        return True
    tqdm.write("--view-img: there is no display to show a window on; going on without", file=sys.stderr)
    return False


def summarise(frames: Frames, detector: Detector, results: Results) -> dict[str, Any]:
    """Print and return what was found and how long it took."""
    speed = detector.watch.milliseconds()
    if results.counts:
        print(format_table(["class", "boxes"], [[n, results.counts[n]] for n in detector.names if results.counts[n]]))
    stages = ", ".join(f"{name} {value:.1f}" for name, value in speed.items())
    skipped = f"; {len(frames.skipped)} skipped" if frames.skipped else ""
    print(f"{results.frames} images, results in {results.folder}{skipped}; ms a picture: {stages}")
    figures = {
        "images": results.frames, "skipped": [shown(name) for name in frames.skipped],
        "conf_thres": detector.conf_thres, "detections": sum(results.counts.values()), "per_class": dict(results.counts),
        "speed_ms": speed, "output": str(results.folder),
    }  # fmt: skip
    return figures


if __name__ == "__main__":
    run(main, get_parser())
