"""Every way to train, against a referee: what test.py measures is what OpenCV and ONNX Runtime find in the files.

A network is trained on a few drawn images; its .weights, read by OpenCV with OpenCV's own preprocessing and judged by
pycocotools (tests.referee), must reach what test.py says with the same cut, and its .onnx the same without a cut.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest

import convert
import export
import normal_prune
import test as test_script
import train
from tests.referee import CUT, Preparation, class_certainty, draw, judge, onnx_runtime, opencv, opencv_rows
from tests.tiny import NET, conv, head

TOLERANCE = 0.01
LEAST = 0.3  # a figure near 0 would agree with anything
CFG = (
    NET + conv(8, stride=2) + conv(16, stride=2) + conv(24) + conv(24, stride=2) + conv(32)
    + head().replace("8,10, 20,16", "14,14, 20,20")
)  # fmt: skip
HYP = "lr0_adam: 0.02\nmosaic: 0\nscale: 0.1\nhsv_h: 0\nhsv_s: 0.1\nwarmup_epochs: 1\n"
COMMON = "--device cpu --workers 0"
TRAINING = f"--data d.data --batch-size 8 --accumulate 1 --adam --hyp h.yaml --seed 1 --notest --logdir= {COMMON}"
CERTAIN = 0.9  # mean class probability of one class: each object is of it
LEAST_SCORE = 0.001  # test.py's own


COLOUR = Preparation()


@dataclass(frozen=True)
class Way:
    """flags of train.py; classes: 2, or 1: the labels' own, or all as one where the flags say --single-cls."""

    flags: str
    classes: int
    prepare: Preparation = COLOUR


WAYS = {
    "several classes": Way("", 2),
    "one class, rect": Way("--rect", 1),
    "single-cls, stretch": Way("--single-cls --stretch", 1, Preparation(stretch=True)),
    "one class, gray": Way("--gray-scale", 1, Preparation(gray=True)),
    "several classes, maxabsscaler": Way("--maxabsscaler", 2, Preparation(maxabs=True)),
}


def call(script, text: str):
    return script.main(script.get_parser().parse_args(text.split()))


def measured(cut: float, network: str = "--weights weights/last.pt") -> float:
    """What test.py says, each image in a batch of its own: how much one is padded depends on the others of its batch."""
    text = f"--data test.data {network} --precision fp32 --batch-size 1 --conf-thres {cut} {COMMON}"
    return call(test_script, text).map50


@pytest.fixture(scope="module")
def way(request, tmp_path_factory):
    """A network trained in one of WAYS, in the folder that is the working directory."""
    way = WAYS[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("referee"))
        write_set(Path.cwd(), way)
        call(train, f"--cfg net.cfg --epochs 30 {TRAINING} {way.flags}")
        yield way


def each_way(*quick: str) -> pytest.MarkDecorator:
    """Every way; those that aren't `quick` are slow tests."""
    ways = [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in WAYS]
    return pytest.mark.parametrize("way", ways, indirect=True)


def write_set(folder: Path, way: Way) -> None:
    """d.data to train with, test.data to judge with: of one class where the way has one, also where it folds two into it."""
    folded = "--single-cls" in way.flags
    for split, count, seed in (("train", 24, 0), ("valid", 64, 1)):
        draw(folder / split, count, seed, classes=2 if folded and split == "train" else way.classes)
    for name, classes in (("d", 2 if folded else way.classes), ("test", way.classes)):
        (folder / f"{name}.names").write_text("\n".join("ab"[:classes]))
        (folder / f"{name}.data").write_text(f"classes={classes}\nnames={name}.names\ntrain=train\nvalid=valid\n")
    one = CFG.replace("filters=14", "filters=12").replace("classes=2", "classes=1")
    (folder / "net.cfg").write_text(CFG if way.classes == 2 else one)
    (folder / "h.yaml").write_text(HYP)


def opencv_agrees(cfg: str, weights: str, ours: float, way: Way) -> None:
    theirs = judge(opencv(Path(cfg), Path(weights)), way.prepare, Path("valid"), way.classes, CUT)
    assert ours > LEAST
    assert theirs == pytest.approx(ours, abs=TOLERANCE)
    if way.classes == 1:  # noise in all scores need not harm their order, which is all that mAP sees
        assert class_certainty(opencv_rows(Path(cfg), Path(weights)), way.prepare, Path("valid")) > CERTAIN


@each_way(*WAYS)
def test_opencv_finds_what_test_py_measures(way):
    call(convert, "--weights weights/last.pt --out last.weights")
    opencv_agrees("last.cfg", "last.weights", measured(CUT), way)


@each_way("several classes", "one class, gray")
def test_opencv_finds_what_test_py_measures_after_pruning_and_finetuning(way):
    done = call(normal_prune, f"--weights weights/last.pt --percent 0.2 --save-dir pruned {COMMON}")
    small = f"--cfg {done['cfg']} --weights {done['weights']}"
    call(train, f"{small} --epochs 15 --finetune --name small {TRAINING} {way.flags}")
    call(convert, "--weights weights/last_small.pt --out small.weights")
    assert done["after"]["params"] < 0.9 * done["before"]["params"]
    opencv_agrees("small.cfg", "small.weights", measured(CUT, "--weights weights/last_small.pt"), way)


@each_way("one class, rect", "several classes, maxabsscaler")
def test_onnx_runtime_finds_what_test_py_measures(way):
    call(export, "--weights weights/last.pt --out last.onnx")
    theirs = judge(onnx_runtime(Path("last.onnx")), way.prepare, Path("valid"), way.classes, LEAST_SCORE)
    ours = measured(LEAST_SCORE)
    assert ours > LEAST
    assert theirs == pytest.approx(ours, abs=TOLERANCE)
