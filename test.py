"""Measure a network on a dataset: mAP by pycocotools, precision, recall and F1, per class and overall, and its speed.

python test.py --data data/bccd/bccd.data --weights weights/best.pt
python test.py --data data/coco.data --cfg cfg/yolov3/yolov3.cfg --weights yolov3.weights --save-json
python test.py --data data/bccd/bccd.data --weights weights/best.pt --task benchmark
python test.py --data data/bccd/bccd.data --weights weights/best.onnx --runtime openvino --threads 1
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.core.devices import select_device
from utils.core.errors import UserError
from utils.core.files import write_text
from utils.core.options import options_of
from utils.core.ranges import BATCH_SIZE, SHARE, WORKERS
from utils.core.tables import format_table, write_json
from utils.data.data_file import DataConfig, read_data
from utils.data.datasets import DetectionDataset, evaluation_loader
from utils.detection.evaluate import evaluate
from utils.detection.ground_truth import GroundTruth, dataset_ground_truth, json_ground_truth
from utils.detection.metrics import COCO_IDS, Evaluation, coco_results
from utils.detection.threshold import threshold_line
from utils.loading import Loaded, NetworkOptions
from utils.network.cost import network_size
from utils.network.darknet import Darknet
from utils.runtimes.base import Request
from utils.runtimes.registry import RUNTIMES, choose, load
from utils.scripts.cli import (
    Parser,
    add_device_arguments,
    add_inference_arguments,
    add_model_arguments,
    add_runtime_arguments,
    run,
)
from utils.scripts.evaluator import EvaluationOptions

BENCHMARK_SIZES = (320, 416, 512, 608)  # rounded to the network's stride
DETECTIONS = Path("output/detections.json")
FIGURES = ("precision", "recall", "map50", "f1", "map")


def get_parser() -> Parser:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help=".data file; its valid= images are evaluated")
    add_model_arguments(parser)
    parser.add_argument("--batch-size", type=BATCH_SIZE, default=16, help="images a batch")
    parser.add_argument("--conf-thres", type=SHARE, default=0.001, help="detections below this confidence don't count")
    parser.add_argument("--iou-thres", type=SHARE, default=0.6, help="NMS drops boxes that overlap a better one by more")
    parser.add_argument("--square", action="store_true",
                        help="letterbox images into squares instead of rectangles that suit them: what a file of one size gets "
                        "in any case, so compare with it by this")  # fmt: skip
    parser.add_argument("--task", choices=["test", "benchmark"], default="test", help="benchmark: over several image sizes")
    parser.add_argument("--augment", action="store_true", help="test-time augmentation: mirrored and at two smaller scales")
    parser.add_argument("--save-json", action="store_true", help=f"write detections in COCO's format to {DETECTIONS}")
    parser.add_argument("--workers", type=WORKERS, default=2, help="processes that read images")
    add_inference_arguments(parser)
    add_runtime_arguments(parser)
    add_device_arguments(parser)
    return parser


@dataclass(frozen=True)
class TestOptions:
    """The command line of test.py."""

    data: str
    network: NetworkOptions
    runtime: str
    threads: int | None
    evaluation: EvaluationOptions
    conf_thres: float
    iou_thres: float
    task: str
    augment: bool
    square: bool
    save_json: bool
    json: str


def main(args: argparse.Namespace) -> Evaluation | list[Evaluation]:
    """Print and return the evaluation, or with --task benchmark one for each image size."""
    options = options_of(TestOptions, vars(args))
    network = options.network
    options = replace(options, runtime=choose(options.runtime, network.weights))
    data = read_data(options.data)
    request = Request(network.cfg, network.weights, network.img_size, data, options.evaluation.images.gray)
    loaded = load(options.runtime, options.threads, request)
    if loaded.report.message:
        print(loaded.report.message)
    if not options.network.weights:
        print("no --weights: this network is untrained")
    if options.task == "benchmark":
        return benchmark(options, loaded, data)
    result = measure(options, loaded, data, loaded.img_size)
    print(format_table(["class", "images", "targets", "P", "R", "mAP@.5", "F1", "mAP@.5:.95"], table_rows(result)))
    print(threshold_line(result.conf_thres, ""))
    print(speed_line(result, options, loaded.img_size, loaded))
    write_json(options.json, result.to_dict())
    return result


def measure(options: TestOptions, loaded: Loaded, data: DataConfig, img_size: int) -> Evaluation:
    """Evaluate at one image size; with --save-json also write the detections."""
    asked = options.evaluation
    prepared = loaded.preparation(asked.images)
    loader = evaluation_loader(
        data, prepared, img_size=img_size, batch_size=asked.batch_size, stride=loaded.model.max_stride, workers=asked.workers,
        shape=loaded.fixed_size or ((img_size, img_size) if options.square else None),
    )  # fmt: skip
    truth = json_ground_truth(data, loader.dataset)
    result = evaluate(
        loaded.model, loader, loaded.names, device=select_device(asked.device), precision=asked.precision,
        conf_thres=options.conf_thres, iou_thres=options.iou_thres, augment=options.augment,
        maxabs=prepared.maxabs, desc=f"Evaluating at {img_size}", truth=truth,
    )  # fmt: skip
    size = network_size(Darknet, loaded.model.defs, img_size)
    result.params, result.macs = size["params"], size["macs"]
    if options.save_json:
        save_detections(result, truth, loader.dataset, len(loaded.names))
    return result


def save_detections(result: Evaluation, truth: GroundTruth | None, dataset: DetectionDataset, classes: int) -> None:
    """COCO's result format. Without a COCO json, image ids are the numbers that the file names are (as COCO's are), or
    else count the images, and category ids are COCO's for 80 classes, or else count from 1."""
    if truth is None:
        truth = dataset_ground_truth(dataset.labels, dataset.shapes, classes)
        stems = [Path(p).stem for p in dataset.paths]
        numbers = {int(s) for s in stems if s.isdecimal()}
        truth.image_ids = [int(s) for s in stems] if len(numbers) == len(stems) else truth.image_ids
        truth.category_ids = COCO_IDS if classes == len(COCO_IDS) else truth.category_ids
    write_text(DETECTIONS, json.dumps(coco_results(result.detections, truth)))
    print(f"detections: {DETECTIONS}")


def table_rows(result: Evaluation) -> list[list[Any]]:
    """The row of all classes, then one for each."""
    everything = {"name": "all", "images": result.images, "targets": result.targets} | {k: getattr(result, k) for k in FIGURES}
    rows = [everything, *result.per_class] if len(result.per_class) > 1 else [everything]
    return [[row[k] for k in ("name", "images", "targets", *FIGURES)] for row in rows]


def speed_line(result: Evaluation, options: TestOptions, img_size: int, loaded: Loaded) -> str:
    asked = options.evaluation
    runtime = RUNTIMES[options.runtime].place(loaded.model, select_device(asked.device), asked.precision)
    parts = ", ".join(f"{name} {value:.1f} ms" for name, value in result.speed_ms.items())
    return f"speed an image: {parts} (size {img_size}, batch {asked.batch_size}, {runtime})"


def benchmark(options: TestOptions, loaded: Loaded, data: DataConfig) -> list[Evaluation]:
    """Evaluate at several image sizes, print the table and write it to --json as {sizes: [{img_size, ...}]}."""
    if loaded.fixed_size:
        raise UserError(f"--task benchmark: {options.network.weights} takes one size only; export it without --static")
    stride = loaded.model.max_stride
    sizes = sorted({round(s / stride) * stride for s in BENCHMARK_SIZES})
    results = [measure(options, loaded, data, size) for size in sizes]
    header = ["img_size", "P", "R", "mAP@.5", "F1", "mAP@.5:.95", "GMACs", "inference ms", "NMS ms"]
    rows = [
        [str(size), *(getattr(r, k) for k in FIGURES), r.macs / 1e9, r.speed_ms["inference"], r.speed_ms["nms"]]
        for size, r in zip(sizes, results, strict=True)
    ]
    print(format_table(header, rows))
    print(speed_line(results[-1], options, sizes[-1], loaded))
    write_json(options.json, {"sizes": [{"img_size": s} | r.to_dict() for s, r in zip(sizes, results, strict=True)]})
    return results


if __name__ == "__main__":
    run(main, get_parser())
