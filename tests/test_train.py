"""train.py on a tiny network and generated images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import test as test_script
import train
from tests.tiny import NET, conv, head
from utils.core.errors import UserError
from utils.network.checkpoint import load_checkpoint, save_checkpoint
from utils.scripts.cli import run as run_script
from utils.training import epoch as train_epoch
from utils.training.log import read_results

ROOT = Path(__file__).resolve().parents[1]
SIZE = 64
CFG = (
    NET + conv(8, stride=2) + conv(16, stride=2) + conv(8, 1) + conv(16) + "[shortcut]\nfrom=-3\nactivation=linear\n"
    + conv(16, stride=2) + conv(24) + head()
)  # fmt: skip


def draw(folder: Path, count: int, rng: np.random.Generator) -> None:
    """Images of one red and one green box each, and their labels."""
    folder.mkdir()
    for number in range(count):
        image, lines = rng.integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8), []
        for kind, colour in enumerate([(0, 0, 255), (0, 255, 0)]):
            w, h = rng.integers(12, 28, 2)
            x, y = rng.integers(0, SIZE - w), rng.integers(0, SIZE - h)
            image[y : y + h, x : x + w] = colour
            lines.append(f"{kind} {(x + w / 2) / SIZE} {(y + h / 2) / SIZE} {w / SIZE} {h / SIZE}\n")
        cv2.imwrite(str(folder / f"{number}.png"), image)
        (folder / f"{number}.txt").write_text("".join(lines))


def write_set(folder: Path) -> None:
    """tiny.cfg and d.data, a dataset of 8 + 4 images."""
    rng = np.random.default_rng(0)
    draw(folder / "train", 8, rng)
    draw(folder / "valid", 4, rng)
    (folder / "d.names").write_text("red\ngreen\n")
    (folder / "d.data").write_text("classes=2\nnames=d.names\ntrain=train\nvalid=valid\n")
    (folder / "tiny.cfg").write_text(CFG)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working directory with what write_set writes."""
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path)
    return tmp_path


PLAIN = "--no-adam --no-mixedprecision --no-cache-images"  # what the recipe for few images would change
BASE = f"--data d.data --cfg tiny.cfg --batch-size 4 --accumulate 1 {PLAIN} --workers 0 --device cpu --logdir="


def train_with(text: str, base: str = BASE) -> dict:
    return train.main(train.get_parser().parse_args([*base.split(), *text.split()]))


def train_in_two_processes(text: str, base: str = BASE) -> str:
    """As torchrun starts them; what they print."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(ROOT / "train.py")]
    command += [*base.split(), *text.split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def interrupt_at(monkeypatch, step: int, error: type[BaseException] = KeyboardInterrupt) -> None:
    """Raise when the `step`-th batch of the process, counted from 1, is about to be trained on."""
    real, calls = train_epoch._forward, []

    def forward(run, batch):
        calls.append(1)
        if len(calls) == step:
            raise error
        return real(run, batch)

    monkeypatch.setattr(train_epoch, "_forward", forward)


def results(name: str = "results.txt") -> dict[str, np.ndarray]:
    return read_results(Path(name).read_text())


def test_a_training_leaves_what_it_promises(here, capsys):
    (here / "h.yaml").write_text("lr0_adam: 0.02  # tiny networks like it fast\nmosaic: 0\nscale: 0.1\nhsv_h: 0\n")
    figures = train_with("--epochs 40 --adam --hyp h.yaml --seed 3 --json figures.json --name a --weights-dir w")
    output = capsys.readouterr().out
    assert sorted(p.name for p in (here / "w").iterdir()) == ["best_a.pt", "last_a.pt"]
    table = results("results_a.txt")
    assert table["epoch"].tolist() == list(range(1, 41))
    assert table["total"][-1] < 0.7 * table["total"][0]
    assert (here / "results_a.png").stat().st_size > 1000
    last = load_checkpoint("w/last_a.pt")
    assert (last["epoch"], last["finished"], last["names"]) == (39, True, ["red", "green"])
    assert last["settings"] == {"img_size": 64, "gray": False, "maxabs": False, "stretch": False}
    assert (last["hyp"]["lr0_adam"], last["training_results"]) == (0.02, Path("results_a.txt").read_text())
    assert last["seen"] == 320
    assert all(t.dtype in (torch.float32, torch.int64) for t in last["model"].values())
    assert json.loads((here / "figures.json").read_text())["last"]["map50"] == figures["last"]["map50"]
    assert figures["best"]["map"] == pytest.approx(max(table["mAP"]), abs=1e-5)
    assert "next: python test.py --data d.data --weights w/best_a.pt" in output
    # the cfg travels in the checkpoint, and test.py measures what train.py printed
    arguments = ["--data", "d.data", "--weights", "w/last_a.pt", "--device", "cpu", "--workers", "0"]
    measured = test_script.main(test_script.get_parser().parse_args(arguments))
    assert measured.map50 > 0.3
    assert (measured.map50, measured.map) == pytest.approx((table["mAP50"][-1], table["mAP"][-1]), abs=1e-3)
    # so is the confidence threshold that it recommends; best.pt has that of its own epoch
    assert measured.conf_thres == last["conf_thres"]
    assert load_checkpoint("w/best_a.pt")["conf_thres"] == figures["best"]["conf_thres"]
    assert f"threshold {figures['best']['conf_thres']:g}: F1 is best there, kept in w/best_a.pt" in output


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--adam --multi-scale --no-ema --s 0.01 --prune 1",
        "--prune 0 --sparse-schedule dynamic",
        "--prune 0 --adam --epochs 6",
        "--finetune",
        "--reparam --adam --multi-scale",
        "--reparam qarepvgg --no-ema",
    ],
)
def test_an_interrupted_run_resumes_exactly(here, monkeypatch, flags):
    flags = f"--epochs 4 {flags} --json x.json"
    train_with(f"{flags} --name whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="--resume"):
        interrupt_at(patch, 6)  # two batches an epoch: in the middle of the third
        train_with(f"{flags} --name cut")
    assert load_checkpoint("weights/last_cut.pt")["epoch"] == 1
    torch.manual_seed(123)
    train_with("--resume --name cut --device cpu --workers 0", base="")
    whole, cut = load_checkpoint("weights/last_whole.pt"), load_checkpoint("weights/last_cut.pt")
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, cut["model"][name]), name
    before, after = results("results_whole.txt"), results("results_cut.txt")
    for column in set(before) - {"seconds"}:
        np.testing.assert_array_equal(before[column], after[column], err_msg=column)


def test_resume_says_what_it_does(here, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"weights/last.pt: does not exist"):
        train_with("--resume")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="no epoch was saved"):
        interrupt_at(patch, 2)
        train_with("--epochs 3")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 4)
        train_with("--epochs 3")
    capsys.readouterr()
    train_with("--resume --epochs 50")
    assert "as the run began: --epochs 3" in capsys.readouterr().out
    assert results()["epoch"].tolist() == [1, 2, 3]
    assert train_with("--resume") == {}
    assert "weights/last.pt: this run of 3 epochs is finished" in capsys.readouterr().out
    torch.save({"model": {"a": torch.zeros(1)}}, "weights/last.pt")
    with pytest.raises(UserError, match="no run to --resume"):
        train_with("--resume")


def test_a_resumed_run_keeps_its_cfg_and_how_it_saw_pictures(here, monkeypatch):
    train_with("--epochs 1 -mas --stretch --name first")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 4)
        train_with("--epochs 2 --weights weights/last_first.pt")
    train_with("--resume")
    last = load_checkpoint("weights/last.pt")
    assert last["settings"] == {"img_size": 64, "gray": False, "maxabs": True, "stretch": True}
    assert last["cfg_name"] == "tiny.cfg"


def test_ctrl_c_is_one_line_and_130(here, monkeypatch, capsys):
    interrupt_at(monkeypatch, 4)
    monkeypatch.setattr(sys, "argv", ["train.py", *BASE.split(), "--epochs", "2"])
    with pytest.raises(SystemExit) as end:
        run_script(train.main, train.get_parser())
    assert end.value.code == 130
    assert capsys.readouterr().err.rstrip().splitlines()[-1].endswith("interrupted; go on with --resume")


def test_a_write_cut_short_leaves_the_last_checkpoint_whole(here, monkeypatch):
    real = torch.save

    def killed(data, path):
        if data["epoch"] == 1:
            Path(path).write_bytes(b"half a file")
            raise SystemExit(137)
        real(data, path)

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(SystemExit):
        train_with("--epochs 3")
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert load_checkpoint("weights/last.pt")["epoch"] == 0
    train_with("--resume")
    assert results()["epoch"].tolist() == [1, 2, 3]


def test_a_non_finite_loss_names_epoch_and_step(here, monkeypatch):
    real, calls = train_epoch._forward, []

    def forward(run, batch):
        calls.append(1)
        loss, parts, size = real(run, batch)
        return loss, parts * (torch.tensor([1.0, torch.nan, 1.0]) if len(calls) == 4 else 1.0), size

    monkeypatch.setattr(train_epoch, "_forward", forward)
    with pytest.raises(UserError, match=r"epoch 2, step 2: the loss is not finite \(box=0.*, obj=nan, cls="):
        train_with("--epochs 3")
    assert load_checkpoint("weights/last.pt")["epoch"] == 0


def test_weights_begin_at_epoch_0_with_the_checkpoints_cfg_and_pictures(here):
    train_with("--epochs 1 --name a --gray-scale -mas --stretch --notest")
    first = load_checkpoint("weights/last_a.pt")
    assert first["model"]["module_list.0.Conv2d.weight"].shape[1] == 1
    base = BASE.replace("--cfg tiny.cfg ", "")
    train_with("--epochs 2 --weights weights/last_a.pt --notest", base)
    second = load_checkpoint("weights/last.pt")
    assert second["epoch"] == 1
    assert second["settings"] == first["settings"] == {"img_size": 64, "gray": True, "maxabs": True, "stretch": True}
    assert results()["epoch"].tolist() == [1, 2]
    assert np.isnan(results()["mAP"]).tolist() == [True, False]  # --notest: only after the last epoch


def test_pretrained_heads_of_other_classes_start_anew(here, capsys):
    train_with("--epochs 1 --name two")
    (here / "one.cfg").write_text(CFG.replace("classes=2", "classes=1").replace("filters=14", "filters=12"))
    (here / "one.names").write_text("box\n")
    (here / "one.data").write_text("classes=1\nnames=one.names\ntrain=train\nvalid=valid\n")
    for label in here.glob("*/*.txt"):
        label.write_text("".join("0" + line[1:] for line in label.read_text().splitlines(keepends=True)))
    base = BASE.replace("d.data", "one.data").replace("tiny.cfg", "one.cfg")
    with pytest.raises(UserError, match="use -pt"):
        train_with("--epochs 1 --weights weights/last_two.pt", base)
    train_with("--epochs 1 --weights weights/last_two.pt -pt", base)
    assert "start anew" in capsys.readouterr().out


def test_nosave_writes_only_the_end(here, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="no epoch was saved"):
        interrupt_at(patch, 4)
        train_with("--epochs 2 --nosave")
    assert not Path("weights").exists()
    figures = train_with("--epochs 2 --nosave")
    assert [p.name for p in Path("weights").iterdir()] == ["last.pt"]
    assert figures["weights"] == {"last": "weights/last.pt", "best": "weights/last.pt"}


def test_sparse_training_pushes_the_penalised_gammas(here, capsys):
    train_with("--epochs 3 --s 1 --prune 0 --notest --hyp=")
    output = capsys.readouterr().out
    assert "under 0.01; quantiles" in output
    assert "next: python normal_prune.py --data d.data --weights weights/last.pt --percent" in output
    medians = results()["g50"]
    assert medians[0] > medians[1] > medians[2]
    train_with("--epochs 40 --prune 0 --sparse-schedule dynamic --name dynamic --notest")
    assert results("results_dynamic.txt")["near_zero"][-1] > 0.5
    train_with("--epochs 8 --prune 0 --s 0.0001 --name weak")
    assert "warning: s too small: the share under 0.01 moved by" in capsys.readouterr().out
    train_with("--epochs 3 --notest --name dense")
    assert np.isnan(results("results_dense.txt")["g50"]).all()
    assert [path.name for path in sorted(here.glob("gammas*"))] == ["gammas.png", "gammas_dynamic.png", "gammas_weak.png"]


def test_histograms_of_gammas_before_and_after(here, monkeypatch):
    drawn = []
    monkeypatch.setattr(train, "plot_gammas", lambda gammas, path: drawn.append((gammas, path.name)))
    train_with("--epochs 3 --s 1 --prune 0 --notest --hyp=")
    ((gammas, name),) = drawn
    assert (list(gammas), name) == (["before", "after 3 epochs"], "gammas.png")
    assert np.all(gammas["before"] == 1)
    assert np.median(gammas["after 3 epochs"]) < 0.99


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--s 0.01", "needs --prune"),
        ("--prune 0 --sparse-schedule constant", "needs --s"),
        ("--prune 0 --s 0.1 --sparse-schedule directed", "leave out --s"),
        ("--prune 2 --spend macs", "--spend macs weighs channels, and --prune 2 takes whole blocks; leave it out"),
        ("--prune 0 --s 0.1 --spend macs", "--spend only means something with --sparse-schedule directed"),
        ("--prune 0 --s 0.1 --max-drop 0.1", "--max-drop only means something with --sparse-schedule directed"),
        ("--sparse-schedule dynamic", "needs --prune"),
        ("--prune 0 --s 0.1 --sparse-keep 0.5", "--sparse-keep only means something with --sparse-schedule local-decay"),
        ("--prune 0 --s 0.1 --sparse-target 0.5", "--sparse-target only means .* directed or dynamic; add that"),
        ("--data none.data", "none.data"),
        ("--cfg none.cfg", "none.cfg"),
        ("--img-size 33", "--img-size 33"),
        ("--name a/b", "--name a/b: goes into file names"),
        ("--weights-dir d.data", "last.pt: cannot be written, since .*d.data is no folder"),
        ("--results-dir d.data/x", "results.txt: cannot be written, since .*d.data is no folder"),
        ("--hyp none.yaml", "none.yaml"),
        ("--weights none.pt", "none.pt"),
    ],
)
def test_mistakes_are_named(here, flags, message):
    with pytest.raises(UserError, match=message):
        train_with(flags)
    assert not Path("weights").exists()
    assert not Path("results.txt").exists()


def test_a_data_file_needs_what_training_reads(here, capsys):
    (here / "half.data").write_text("classes=2\nnames=d.names\ntrain=train\n")
    with pytest.raises(UserError, match=r"half.data: needs a line `valid="):
        train_with("--epochs 1 --data half.data")
    figures = train_with("--epochs 1 --data half.data --notest")
    assert figures["last"] is None
    assert "next: python detect.py --weights weights/last.pt" in capsys.readouterr().out
    train_with("--epochs 1 --data half.data --notest --s 0.1 --prune 0")
    assert "next: python normal_prune.py --weights weights/last.pt" in capsys.readouterr().out


def test_a_run_that_went_wrong_is_not_resumed(here, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 4)
        train_with("--epochs 2")
    checkpoint = load_checkpoint("weights/last.pt")
    next(v for k, v in checkpoint["model"].items() if k.endswith("BatchNorm2d.weight"))[1] = np.nan
    save_checkpoint("weights/last.pt", checkpoint)
    with pytest.raises(
        UserError, match="weights/last.pt: tensors with NaN or infinite values: 1, the first is module_list.0.Batch"
    ):
        train_with("--epochs 2 --resume")


def test_two_processes_train_as_one(here):
    """One step an epoch, so that results.txt holds the loss of each of the first steps. Validation leaves one of them idle.
    A small rate keeps rounding, which differs with the order of sums, from growing from step to step."""
    (here / "slow.yaml").write_text("lr0: 0.002\nwarmup_bias_lr: 0\n")
    flags = "--batch-size 8 --epochs 3 --notest --hyp slow.yaml"
    train_with(f"{flags} --name one")
    output = train_in_two_processes(f"{flags} --name two")
    assert output.count("next: ") == 1  # one process talks
    one, two = results("results_one.txt"), results("results_two.txt")
    for column in ("box", "obj", "cls", "total"):
        np.testing.assert_allclose(two[column], one[column], rtol=1e-4, err_msg=column)
    np.testing.assert_allclose(two["mAP50"], one["mAP50"], atol=1e-3)
    a, b = load_checkpoint("weights/last_one.pt")["model"], load_checkpoint("weights/last_two.pt")["model"]
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
