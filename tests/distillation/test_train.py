"""train.py with a teacher: epochs, resuming, presets, several processes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from make_cfg import set_classes
from tests.taught import CFG, ONE_HEAD, pruned, save
from tests.test_train import BASE, ROOT, here, interrupt_at, results, train_in_two_processes, train_with  # noqa: F401
from tests.tiny import network
from utils.core.errors import UserError
from utils.core.hyp import GENTLE
from utils.distillation.distiller import KDSTR
from utils.network.cfg import parse_cfg, write_cfg
from utils.network.checkpoint import load_checkpoint
from utils.network.darknet import Darknet
from utils.network.weights import save_weights


def write_networks(strategy: str = "normal", percent: float = 0.4, shortcuts: int = 0, cfg: str = CFG) -> None:
    """t.pt, the teacher; s.cfg and s.weights, its pruned self."""
    teacher, student = pruned(strategy, cfg, percent, shortcuts)
    save(teacher, Path("t.pt"))
    Path("s.cfg").write_text(write_cfg(student.defs))
    save_weights(student, "s.weights")


STUDENT = BASE.replace("tiny.cfg", "s.cfg") + " --weights s.weights"


@pytest.mark.parametrize("number", KDSTR)
def test_an_epoch_with_a_teacher(here, capsys, number):  # noqa: F811
    write_networks("layer_channel", 0.3, 1)
    more = "--multi-scale --s 0.01 --prune 0" if number == 5 else "--adam" if number == 6 else ""
    train_with(f"--epochs 1 --t_weights t.pt --KDstr {number} --finetune {more}", STUDENT)
    output = capsys.readouterr().out
    assert f"teacher t.pt: {sum(p.numel() for p in network(CFG).parameters()):,} parameters" in output
    assert ("(student<-teacher) 7<-10, 14<-17, 5<-8" in output) == KDSTR[number].maps
    table = results()
    terms = [table[name][0] for name in KDSTR[number].terms]
    assert min(terms) > 0
    assert table["total"][0] == pytest.approx(sum(table[c][0] for c in ("box", "obj", "cls")) + sum(terms), rel=1e-5)
    assert 0 < table["kd_time"][0] < 1
    last = load_checkpoint("weights/last.pt")
    assert last["hyp"]["lrf"] == GENTLE["lrf"]
    assert set(last["model"]) == set(Darknet("s.cfg", 64).state_dict())


def test_a_distilled_run_resumes_exactly(here, monkeypatch):  # noqa: F811
    save(network(CFG), Path("t.pt"))
    Path("s.cfg").write_text(ONE_HEAD)  # its maps need an adapter
    base = BASE.replace("tiny.cfg", "s.cfg")
    flags = "--epochs 3 --t_weights t.pt --KDstr 7"
    train_with(f"{flags} --name whole", base)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 4)
        train_with(f"{flags} --name cut", base)
    train_with("--resume --name cut --device cpu --workers 0", base="")
    whole, cut = (load_checkpoint(f"weights/last_{name}.pt")["model"] for name in ("whole", "cut"))
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())
    np.testing.assert_array_equal(results("results_whole.txt")["kd_feat"], results("results_cut.txt")["kd_feat"])


def test_a_refusal_leaves_nothing_behind(here):  # noqa: F811
    save(network(CFG), Path("t.pt"))
    Path("s.cfg").write_text(ONE_HEAD)
    with pytest.raises(UserError, match="--KDstr 6 and 7"):
        train_with("--epochs 1 --t_weights t.pt --KDstr 1", BASE.replace("tiny.cfg", "s.cfg"))
    assert not Path("weights").exists()
    assert not Path("results.txt").exists()


def test_two_processes_distil_as_one(here):  # noqa: F811
    """With adapters, whose gradients no wrapper averages."""
    save(network(CFG), Path("t.pt"))
    Path("s.cfg").write_text(ONE_HEAD)
    base = BASE.replace("tiny.cfg", "s.cfg") + " --batch-size 8 --epochs 3 --notest --t_weights t.pt --KDstr 7"
    train_with("--name one", base)
    train_in_two_processes("--name two", base)
    one, two = results("results_one.txt"), results("results_two.txt")
    for column in ("total", "kd_feat"):
        np.testing.assert_allclose(two[column], one[column], rtol=1e-4, err_msg=column)


NAMED = [
    ("yolov3tiny/yolov3-tiny", "normal", 0),
    ("yolov3tiny/yolov3-tiny", "slim", 0),
    ("yolov3-mobilenet/yolov3-mobilenet-coco", "regular", 0),
    ("yolov3/yolov3", "layer_channel", 8),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "strategy", "shortcuts"), NAMED)
def test_an_epoch_of_every_strategy_on_real_networks(here, name, strategy, shortcuts):  # noqa: F811
    """Every --KDstr, on networks of cfg/ made for two classes, each pruned as its users would."""
    defs = parse_cfg(ROOT / "cfg" / f"{name}.cfg")
    set_classes(defs, 2)
    defs.net.width = defs.net.height = 64
    write_networks(strategy, 0.5, shortcuts, cfg=write_cfg(defs))
    for number in KDSTR:
        train_with(f"--epochs 1 --t_weights t.pt --KDstr {number} --name k{number}", STUDENT + " --img-size 64")
        table = results(f"results_k{number}.txt")
        assert all(np.isfinite(table[term][0]) and table[term][0] > 0 for term in KDSTR[number].terms)
