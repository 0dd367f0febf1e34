"""The main job in minutes: train, then sparsify, prune, finetune, export and detect by compress.py, on images drawn here.

Every step is a command that you can type yourself; it is printed before it runs. Results lie in output/demo.
"""

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from utils.core.commands import typed
from utils.core.errors import UserError
from utils.core.files import make_folder
from utils.core.ranges import EPOCHS
from utils.core.tables import write_json
from utils.data.draw import image_grid
from utils.data.images import read_picture, write_picture
from utils.scripts.cli import Parser, run

DATA = "data/shapes/shapes.data"
CFG = "cfg/demo/shapes-tiny.cfg"
WEIGHTS = "cfg/demo/shapes-tiny.weights"
RUNTIMES = ("onnxruntime", "torch")  # the first that is installed
DETECTIONS = 12  # images of the grid


def get_parser() -> Parser:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--out", default="output/demo", help="folder of the results")
    parser.add_argument("--epochs", type=EPOCHS, nargs=2, default=[3, 12], metavar="N",
                        help="of the network that is compressed, and of each training of compress.py")  # fmt: skip
    parser.add_argument("--target-ms", default="48%", metavar="T", help="milliseconds of the small network, as for compress.py")
    return parser


def main(args: argparse.Namespace) -> dict[str, Any]:
    start = time.time()
    out = make_folder(args.out)
    figures, baseline, compressed = out / "report.json", out / "last_baseline.pt", out / "compressed"
    forget(compressed)
    epochs = [str(number) for number in args.epochs]
    command("data/make_shapes.py")
    command("train.py", "--data", DATA, "--cfg", CFG, "--weights", WEIGHTS, "-pt", "--finetune", "--epochs", epochs[0],
            "--name", "baseline", "--weights-dir", str(out), "--results-dir", str(out), "--logdir", f"{out}/runs")  # fmt: skip
    command("compress.py", "--data", DATA, "--weights", str(baseline), "--target-ms", args.target_ms, "--runtime", runtime(),
            "--threads", "1", "--epochs", epochs[1], "--baselines", "none",
            "--out", str(compressed), "--json", str(figures))  # fmt: skip
    report = json.loads(figures.read_text())
    small, valid = report["files"]["pt"], Path(DATA).with_name("valid.txt")
    command("detect.py", "--weights", small, "--source", str(valid), "--output", f"{out}/detections")
    draw_detections(out)
    report["seconds"] = time.time() - start
    write_json(str(figures), report)
    print(f"\n{report['outcome']}, in {report['seconds'] / 60:.1f} minutes")
    for what, path in (("detections", out / "detections.png"), ("figures", figures), ("report", report["files"]["report"])):
        print(f"{what + ':':12}{path}")
    return report


def forget(folder: Path) -> None:
    """Remove what an earlier demo's compress.py left, which is of another baseline: trained anew, its file is another one."""
    if (folder / "compress.json").is_file():
        shutil.rmtree(folder)


def runtime() -> str:
    """What the milliseconds of this demo are measured on."""
    return next(name for name in RUNTIMES if importlib.util.find_spec(name))


def command(*words: str) -> None:
    """Print a command of the suite and run it in the same Python; UserError when it fails."""
    print(f"\n$ python {typed(words)}", flush=True)
    status = subprocess.run([sys.executable, *words], check=False).returncode
    if status:
        raise UserError(f"this step failed with status {status}: python {typed(words)}")


def draw_detections(out: Path) -> None:
    """Some of detect.py's images on one."""
    found = sorted(p for p in (out / "detections").rglob("*") if p.suffix.lower() in (".jpg", ".png"))[:DETECTIONS]
    images = [image for image in map(read_picture, found) if image is not None]
    write_picture(out / "detections.png", image_grid(images, 4))


if __name__ == "__main__":
    run(main, get_parser())
