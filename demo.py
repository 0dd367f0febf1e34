"""The main job in minutes: train, sparsify, prune, finetune, detect, on images that the project draws itself.

Every step is a command that you can type yourself; it is printed before it runs. Results lie in output/demo.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from utils.core.commands import typed
from utils.core.errors import UserError
from utils.core.files import make_folder
from utils.core.plots import plot_gammas
from utils.core.ranges import EPOCHS, IMG_SIZE, NOT_ALL, POSITIVE
from utils.core.tables import format_table, write_json
from utils.data.draw import image_grid
from utils.data.pictures import read_picture, write_picture
from utils.loading import load_model
from utils.pruning.graph import ChannelGraph
from utils.pruning.sparsity import gamma_values, penalised_channels
from utils.scripts.cli import Parser, run

DATA = "data/shapes/shapes.data"
CFG = "cfg/yolov3tiny/yolov3-tiny.cfg"


def get_parser() -> Parser:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--out", default="output/demo", help="folder of the results")
    parser.add_argument("--img-size", type=IMG_SIZE, default=224, help="side of the network's input in pixels")
    parser.add_argument("--epochs", type=EPOCHS, nargs=3, default=[36, 32, 18], metavar="N", help="baseline, sparse, finetune")
    parser.add_argument("--percent", type=NOT_ALL, default=0.5, help="share of the channels to prune")
    parser.add_argument("--s", type=POSITIVE, default=0.036, help="strength of the sparsity penalty")
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    start = time.time()
    out = make_folder(args.out)
    cfg, size = f"{out}/shapes.cfg", str(args.img_size)
    common = ["--data", DATA, "--img-size", size]
    train = ["train.py", *common, "--batch-size", "16", "--accumulate", "1", "-mpt", "--cache-images"]
    train += ["--weights-dir", str(out), "--results-dir", str(out), "--logdir", f"{out}/runs"]
    command("data/make_shapes.py")
    command("make_cfg.py", "--cfg", CFG, "--data", DATA, "--anchors", "kmeans", "--img-size", size, "--out", cfg)
    epochs = [str(e) for e in args.epochs]
    command(*train, "--cfg", cfg, "--adam", "--epochs", epochs[0], "--name", "baseline")
    command(*train, "--cfg", cfg, "--weights", f"{out}/last_baseline.pt", "-pt", "--epochs", epochs[1], "--s", str(args.s),
            "--prune", "0", "--name", "sparse")  # fmt: skip
    command("normal_prune.py", *common, "--cfg", cfg, "--weights", f"{out}/last_sparse.pt", "--percent", str(args.percent),
            "--save-dir", str(out), "--json", f"{out}/prune.json")  # fmt: skip
    pruned = json.loads(Path(f"{out}/prune.json").read_text())
    command(*train, "--cfg", pruned["cfg"], "--weights", pruned["weights"], "-pt", "--adam", "--epochs", epochs[2],
            "--name", "finetuned")  # fmt: skip
    report = {name: measure(out, name, common) for name in ("baseline", "sparse")}
    report |= {"pruned": pruned["after"], "finetuned": measure(out, "finetuned", common)}
    valid = Path(DATA).with_name("valid.txt")
    command("detect.py", "--weights", f"{out}/last_finetuned.pt", "--source", str(valid), "--output", f"{out}/detections")
    pictures = draw_pictures(out, pruned)
    report["seconds"] = time.time() - start
    write_json(f"{out}/report.json", report)
    summarise(report, out, pictures)
    return report


def command(*words: str) -> None:
    """Print a command of the suite and run it in the same Python; UserError when it fails."""
    print(f"\n$ python {typed(words)}", flush=True)
    status = subprocess.run([sys.executable, *words], check=False).returncode
    if status:
        raise UserError(f"this step failed with status {status}: python {typed(words)}")


def measure(out: Path, name: str, common: list[str]) -> dict[str, Any]:
    """{map50, map, params, macs, bytes, latency_ms} of a trained step, as test.py and the prune scripts measure them."""
    from utils.core.devices import select_device
    from utils.network.cost import costs

    weights, figures = f"{out}/last_{name}.pt", out / f"test_{name}.json"
    command("test.py", *common, "--weights", weights, "--json", str(figures))
    tested = json.loads(figures.read_text())
    loaded = load_model("", weights)
    return {k: tested[k] for k in ("map50", "map")} | costs(loaded.model, loaded.img_size, select_device())


def draw_pictures(out: Path, pruned: dict[str, Any]) -> dict[str, Path]:
    """Gamma histograms and the grid of detections; the other images come from the scripts themselves."""
    models = {name: load_model("", f"{out}/last_{name}.pt").model for name in ("baseline", "sparse")}
    channels = penalised_channels(ChannelGraph(models["sparse"].defs), 0)
    gammas, grid = out / "gammas.png", out / "detections.png"
    plot_gammas({name: gamma_values(model, channels) for name, model in models.items()}, gammas)
    found = sorted(p for p in (out / "detections").rglob("*") if p.suffix.lower() in (".jpg", ".png"))[:12]
    images = [image for image in map(read_picture, found) if image is not None]
    write_picture(grid, image_grid(images, 4))
    return {
        "training curves": out / "results_baseline.png",
        "gammas before and after sparse training": gammas,
        "channels of each layer": Path(pruned["cfg"]).with_suffix(".png"),
        "detections": grid,
    }


def summarise(report: dict[str, Any], out: Path, pictures: dict[str, Path]) -> None:
    keys = ("map50", "map", "params", "macs", "bytes", "latency_ms")
    steps = [name for name in report if name != "seconds"]
    rows = [[step, *(report[step][k] for k in keys)] for step in steps]
    print("\n" + format_table(["step", "mAP@0.5", "mAP", "parameters", "MACs", "bytes", "latency, ms"], rows))
    baseline, last = report["baseline"], report["finetuned"]
    print(f"\n{100 * (1 - last['params'] / baseline['params']):.1f} % of the parameters are gone, "
          f"mAP@0.5 {baseline['map50']:.3f} -> {last['map50']:.3f}, in {report['seconds'] / 60:.1f} minutes")  # fmt: skip
    for name, path in pictures.items():
        print(f"{name + ':':42}{path}")
    print(f"{'report:':42}{out / 'report.json'}")


if __name__ == "__main__":
    run(main, get_parser())
