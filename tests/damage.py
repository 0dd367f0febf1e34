"""Damaged inputs through the real entry points: each ends in a result or in one line, whatever was done to the file.

    make_world(folder) -> every kind of file, tiny -> mutate one, seeded -> run a command that reads it -> outcome

python -m tests.damage --count 2000 --seed 0          # prints what ended in anything else; --only KIND for one kind
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import re
import resource
import shutil
import signal
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from tests.tiny import NET, conv, head, network
from utils.core.errors import UserError, one_line
from utils.network.cfg import write_cfg
from utils.network.checkpoint import load_checkpoint, save_checkpoint
from utils.network.weights import save_weights
from utils.quantized.settings import Settings
from utils.quantized.transform import quantize
from utils.scripts.cli import Remark

CFG = (
    NET.replace("64", "32")
    + conv(4, stride=2)
    + conv(6, stride=2)
    + conv(4, 1)
    + conv(6)
    + "[shortcut]\nfrom=-3\nactivation=linear\n"
    + conv(8, stride=2)
    + head()
)
SECONDS = 60  # that a command may take before it counts as hanging: the slowest takes 3
MEMORY = 16 << 30  # bytes of addresses that a command may use beyond what there is, half of them PyTorch's own
TEXT = [
    "nan",
    "inf",
    "-1",
    "0",
    "1",
    "99999999999999999999",
    "1e9",
    "1e308",
    "-2147483648",
    "0.5",
    "''",
    "...",
    "%",
    ";",
    "#",
    "=",
    "[net]",
    "\x00",
    "é",
]
VALUES: list[Any] = [
    None, True, -1, 0, 3.5, 10**12, float("nan"), float("inf"), "", "text", "a\nb", [], [1], {}, {"a": 1}, [[]], "../../x", "\0"
]  # fmt: skip
TRAIN = (
    "train.py --cfg net.cfg --data o.data --epochs 1 --batch-size 4 --workers 0 --logdir= --weights-dir out --results-dir out"
)
TEST = "test.py --cfg net.cfg --data o.data --workers 0"
DETECT = "detect.py --cfg net.cfg --weights net.weights --output out"
CHECK = "check.py --data o.data --workers 1"
PRUNE = "normal_prune.py --percent 0.5 --save-dir out --workers 0"
PTQ = "PTQ.py --data o.data --calib 4 --workers 0 --out out/q.pt --max-drop 1"


IMAGES = "--source images --output out"


@dataclass(frozen=True)
class Kind:
    """Files of one kind, `path` in the world, and the commands that read them."""

    path: str
    commands: tuple[str, ...]


KINDS = {
    "cfg": Kind("net.cfg", (
        "models.py --cfg net.cfg", f"{CHECK} --cfg net.cfg", TRAIN, f"detect.py --cfg net.cfg {IMAGES}",
        "make_cfg.py --cfg net.cfg --data o.data --out out/x.cfg", f"{PRUNE} --cfg net.cfg",
    )),
    "weights": Kind("net.weights", (
        f"{TEST} --weights net.weights", f"{DETECT} {IMAGES}", "convert.py --cfg net.cfg --weights net.weights --out out/x.pt",
        f"{PRUNE} --cfg net.cfg --weights net.weights", f"{PTQ} --cfg net.cfg --weights net.weights",
    )),
    "checkpoint": Kind("net.pt", (
        "test.py --data o.data --weights net.pt --workers 0", f"{CHECK} --weights net.pt",
        f"detect.py --weights net.pt {IMAGES}", "convert.py --weights net.pt --out out/x.weights", f"{PRUNE} --weights net.pt",
        f"{PTQ} --weights net.pt", f"{TRAIN} --weights net.pt", "export.py --weights net.pt --out out/x.onnx",
        f"{TRAIN} --KDstr 1 --t_weights net.pt",
    )),
    "quantized": Kind("q.pt", (
        "test.py --data o.data --weights q.pt --workers 0", "export.py --weights q.pt --out out/x.onnx",
        f"detect.py --weights q.pt {IMAGES}", "export.py --weights q.pt --format fpga --out out/dump",
    )),
    "run": Kind("run/last.pt", (TRAIN.replace("--weights-dir out", "--weights-dir run --resume --device cpu"),)),
    "labels": Kind("labels/a0.txt", (TRAIN, f"{TEST} --weights net.weights", CHECK)),
    "data": Kind("o.data", (TRAIN, f"{TEST} --weights net.weights", CHECK, f"{DETECT} {IMAGES} --data o.data")),
    "list": Kind("train.txt", (TRAIN, CHECK, f"{DETECT} --source train.txt")),
    "names": Kind("o.names", (f"{TEST} --weights net.weights", CHECK, f"{DETECT} {IMAGES} --names o.names --save-txt")),
    "picture": Kind("images/a0.png", (TRAIN, CHECK, f"{CHECK} --decode", f"{DETECT} {IMAGES}", f"{TEST} --data o.data")),
    "jpeg": Kind("images/a1.jpg", (TRAIN, CHECK, f"{CHECK} --decode", f"{DETECT} --source images/a1.jpg")),
    "xml": Kind("voc/Annotations/a0.xml", ("convert_dataset.py voc --src voc --out out/voc --workers 1",)),
    "json": Kind("coco/annotations/instances_train.json", ("convert_dataset.py coco --src coco --out out/coco --workers 1",)),
    "truth": Kind("truth.json", (f"{TEST} --weights net.weights --data json.data",)),
    "hyp": Kind("hyp.yaml", (f"{TRAIN} --hyp hyp.yaml",)),
    "hyp_json": Kind("hyp.json", (f"{TRAIN} --hyp hyp.json",)),
    "onnx": Kind("net.onnx", (
        "test.py --data o.data --weights net.onnx --workers 0", f"detect.py --weights net.onnx {IMAGES}",
    )),
    "evolve": Kind("evolve/evolve.txt", (TRAIN.replace("--results-dir out", "--results-dir evolve --evolve 2"),)),
}  # fmt: skip
FOLDERS = ("images", "labels", "out", "evolve", "run", "voc/Annotations", "voc/JPEGImages", "coco/annotations", "coco/train")


def make_world(folder: Path) -> None:
    """A file of each kind, all of them right, and what they need."""
    with contextlib.chdir(folder):
        rng = np.random.default_rng(0)
        for name in FOLDERS:
            Path(name).mkdir(parents=True)
        pictures = ["images/a0.png", "images/a1.jpg", "images/a2.png", "images/a3.jpg"]
        for number, path in enumerate(pictures):
            cv2.imwrite(path, rng.integers(0, 255, (24, 32, 3), np.uint8))
            Path(f"labels/a{number}.txt").write_text(f"0 0.5 0.5 0.25 0.5\n{number % 2} 0.25 0.375 0.1 0.2\n")
        for name in ("train", "valid"):
            Path(f"{name}.txt").write_text("".join(f"{p}\n" for p in pictures))
        Path("o.names").write_text("cat\ndog\n")
        Path("o.data").write_text("classes=2\ntrain=train.txt\nvalid=valid.txt\nnames=o.names\n")
        Path("net.cfg").write_text(CFG)
        Path("hyp.yaml").write_text("lr0: 0.01\nmosaic: 0.5  # half\nclose_mosaic: 1\n")
        Path("hyp.json").write_text('{"lr0": 0.01, "mosaic": 0.5}')
        _annotations(pictures)
        _networks()
        for command in (f"{TRAIN} --evolve 1".replace("--results-dir out", "--results-dir evolve"),
                        "export.py --weights net.pt --out net.onnx"):  # fmt: skip
            assert run(command) is None
        with contextlib.suppress(KeyboardInterrupt), cut_short():
            run(TRAIN.replace("--weights-dir out", "--weights-dir run").replace("--epochs 1", "--epochs 2"), stop=())
        shutil.rmtree("out")
        Path("out").mkdir()


def _annotations(pictures: list[str]) -> None:
    names = [Path(p).name for p in pictures]
    for picture in pictures:
        for folder in ("voc/JPEGImages", "coco/train"):
            shutil.copy(picture, folder)
    for name in names:
        box = "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>18</ymax></bndbox>"
        size = "<size><width>32</width><height>24</height><depth>3</depth></size>"
        text = f"<annotation><filename>{name}</filename>{size}<object><name>cat</name><difficult>0</difficult>{box}</object>"
        Path(f"voc/Annotations/{Path(name).stem}.xml").write_text(f"{text}</annotation>")
    content = {
        "images": [{"id": i, "file_name": n, "width": 32, "height": 24} for i, n in enumerate(names)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [2, 3, 10, 12], "area": 120, "iscrowd": 0}
            for i in range(len(names))
        ],
    }
    for path in ("coco/annotations/instances_train.json", "truth.json"):
        Path(path).write_text(json.dumps(content))
    Path("json.data").write_text("classes=2\ntrain=train.txt\nvalid=valid.txt\nnames=o.names\njson=truth.json\n")


def _networks() -> None:
    model = network(CFG, 32)
    save_weights(model, "net.weights", seen=100)
    content = {
        "epoch": 3, "best_fitness": 0.1, "training_results": "", "cfg": write_cfg(model.defs), "cfg_name": "net.cfg",
        "seen": 100, "names": ["cat", "dog"], "settings": {"img_size": 32, "gray": False, "maxabs": False, "stretch": False},
        "hyp": {"lr0": 0.01}, "class_term": True,
    }  # fmt: skip
    save_checkpoint("net.pt", content | {"model": model.state_dict()})
    quantized = quantize(model, Settings()).train()
    quantized(torch.rand(2, 3, 32, 32))
    settings = {"quantization": quantized.quantization.to_dict(), "model": quantized.eval().state_dict()}
    save_checkpoint("q.pt", content | settings)


@contextlib.contextmanager
def cut_short() -> Iterator[None]:
    """Interrupt a training in its second epoch: its last.pt holds a run that can go on."""
    train = importlib.import_module("train")
    real, calls = train.train_one_epoch, []

    def one_epoch(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    train.train_one_epoch = one_epoch
    try:
        yield
    finally:
        train.train_one_epoch = real


def mutate_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Flip, cut, insert, delete or repeat some bytes."""
    data = bytearray(content)
    if not data:
        return bytes(rng.integers(0, 256, 5, np.uint8))
    place = int(rng.integers(len(data)))
    match rng.integers(5):
        case 0:
            for _ in range(int(rng.integers(1, 8))):
                data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        case 1:
            del data[place:]
        case 2:
            data[place:place] = rng.integers(0, 256, int(rng.integers(1, 20)), np.uint8).tobytes()
        case 3:
            del data[place : place + int(rng.integers(1, 40))]
        case _:
            data[place : place + 4] = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\xc0\x7f"])
    return bytes(data)


def mutate_text(content: bytes, rng: np.random.Generator) -> bytes:
    """Replace numbers and words, or repeat, drop, swap or cut lines."""
    text = content.decode("utf-8", "surrogateescape")
    lines = text.splitlines(keepends=True) or [""]
    place, other = (int(i) for i in rng.integers(len(lines), size=2))
    match rng.integers(6):
        case 0 | 1:
            found = list(re.finditer(r"-?\d+(\.\d+)?", text))
            if found:
                start, end = found[int(rng.integers(len(found)))].span()
                text = text[:start] + str(rng.choice(TEXT)) + text[end:]
        case 2:
            text = "".join(lines[: place + 1] + [lines[place]] * int(rng.integers(1, 4)) + lines[place + 1 :])
        case 3:
            text = "".join(lines[:place] + lines[place + 1 :])
        case 4:
            lines[place], lines[other] = lines[other], lines[place]
            text = "".join(lines)
        case _:
            cut = int(rng.integers(len(text) + 1))
            text = text[:cut] + str(rng.choice(TEXT)) + text[cut + int(rng.integers(0, 6)) :]
    return text.encode("utf-8", "surrogateescape")


def mutate_tree(tree: Any, rng: np.random.Generator, values: list[Any]) -> Any:
    """A copy of dicts and lists within each other in which one node became something else, or is gone."""
    items = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    if not items or rng.random() < 0.15:
        return values[int(rng.integers(len(values)))]
    key, value = items[int(rng.integers(len(items)))]
    rest = [(k, v) for k, v in items if k != key]
    if rng.random() >= 0.15:
        rest.append((key, mutate_tree(value, rng, values)))
    return dict(rest) if isinstance(tree, dict) else [v for _, v in sorted(rest, key=lambda pair: pair[0])]


def mutate_file(path: Path, rng: np.random.Generator) -> None:
    """Damage a file in a way that suits its format."""
    content = path.read_bytes()
    choice = rng.random()
    if path.suffix == ".pt" and choice < 0.85:
        odd = [torch.zeros(2), torch.tensor(torch.nan), torch.zeros(3, 3, dtype=torch.complex64), np.float64(2.0)]
        torch.save(mutate_tree(load_checkpoint(path), rng, VALUES + odd), path)
    elif path.suffix == ".json" and choice < 0.7:
        path.write_text(json.dumps(mutate_tree(json.loads(content), rng, VALUES)))
    elif path.suffix in (".cfg", ".txt", ".data", ".names", ".xml", ".yaml", ".json") and choice < 0.8:
        path.write_bytes(mutate_text(content, rng))
    else:
        path.write_bytes(mutate_bytes(content, rng))


def parse(command: str) -> tuple[Callable[[Any], Any], argparse.Namespace]:
    """(main, its arguments) of a command line; `train.py --epochs 1`, as a user types it."""
    script, *words = command.split()
    module = importlib.import_module(Path(script).stem)
    return module.main, module.get_parser().parse_args(words)


def run(command: str, stop: tuple[type[BaseException], ...] = (Exception, SystemExit)) -> str | None:
    """None where the command gave a result; "..." for what a user reads instead, and for all else a traceback, with a line
    `defect` before it. stop: what is caught."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", Remark)
            main, args = parse(command)
            main(args)
    except stop as error:
        told = isinstance(error, UserError) and str(error)
        if told or (isinstance(error, SystemExit) and error.code == 2):
            return one_line(str(error))  # as utils.scripts.cli.run says it
        if isinstance(error, SystemExit) and error.code == 1 and command.startswith("check.py"):
            return None  # its table has errors
        return f"defect\n{traceback.format_exc()}"
    return None


def _out_of_time(*_: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """A command that hangs, or takes all memory, ends in an error inside the block."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGALRM, _out_of_time)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def left_behind(folder: Path, command: str, outcome: str | None) -> list[str]:
    """Files that a command should not have left: temporary ones, and after an error any; but for train.py's, whose last
    whole epoch stays."""
    files = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
    temporary = [f for f in files if ".tmp" in f]
    return temporary or (files if outcome and not command.startswith(("train.py", "detect.py")) else [])


def trial(world: Path, kind: str, seed: int) -> tuple[str, str | None]:
    """(command, its outcome) for one damaged file of a kind in a copy of the world; see `run`."""
    rng = np.random.default_rng((seed, list(KINDS).index(kind)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "w"
        shutil.copytree(world, folder)
        with contextlib.chdir(folder):
            command = KINDS[kind].commands[int(rng.integers(len(KINDS[kind].commands)))]
            for _ in range(int(rng.integers(1, 3))):
                with contextlib.suppress(UserError, ValueError):  # of a tree that the first mutation left nothing of
                    mutate_file(Path(KINDS[kind].path), rng)
            signal.alarm(SECONDS)
            outcome = run(command)
            signal.alarm(0)
        rest = left_behind(folder / "out", command, outcome)
    return command, f"defect\nleft behind: {', '.join(rest)} ({outcome})" if rest else outcome


def fuzz(world: Path, count: int, seed: int = 0, only: str = "") -> Iterator[tuple[int, str, str, str | None]]:
    """(seed, kind, command, outcome) of `count` damaged files, of each kind in turn."""
    kinds = [only] if only else list(KINDS)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with limits():
        for number in range(count):
            kind = kinds[number % len(kinds)]
            yield (seed + number, kind, *trial(world, kind, seed + number))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", choices=["", *KINDS])
    args = parser.parse_args()
    torch.set_num_threads(1)
    totals: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        make_world(Path(name))
        for seed, kind, command, outcome in fuzz(Path(name), args.count, args.seed, args.only):
            totals["a result" if outcome is None else "a defect" if outcome.startswith("defect") else "one line"] += 1
            if (outcome or "").startswith("defect"):
                print(f"--only {kind} --seed {seed}: {command}\n{outcome}", flush=True)
    print(dict(totals))


if __name__ == "__main__":
    main()
