"""train.py --evolve and utils.training.evolve."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import train
from tests.test_train import BASE, ROOT, here, train_with  # noqa: F401
from utils.core.errors import UserError
from utils.core.hyp import LIMITS, Hyp
from utils.core.options import options_of
from utils.detection.losses import LOSSES
from utils.training import evolve as evolution
from utils.training.evolve import GENES, Generation, genes, next_hyp
from utils.training.options import TrainOptions
from utils.training.run import DivergedError, fitness

BASE_HYP = dict(vars(Hyp()))


def arguments(text: str = "") -> dict:
    return vars(train.get_parser().parse_args([*BASE.split(), *text.split()]))


def options(flags: str = "") -> TrainOptions:
    return options_of(TrainOptions, arguments(flags))


def evolve(flags: dict, trainer: Callable[[dict], dict]) -> dict:
    return evolution.evolve(options_of(TrainOptions, flags), flags, trainer)


def peak(hyp: dict[str, float]) -> dict[str, float]:
    """A landscape instead of a training: best at lr0 0.002 and fliplr 0.2."""
    value = np.exp(-((np.log(hyp["lr0"] / 0.002)) ** 2)) * np.exp(-((hyp["fliplr"] - 0.2) ** 2) * 4)
    return {"epoch": 1, "map50": float(value), "map": float(value)}


class Trainer:
    """Stands in for train.main and remembers what it was called with."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.calls: list[dict] = []
        self.hyps: list[dict[str, float]] = []
        self.dies_at = dies_at

    def __call__(self, flags: dict) -> dict:
        if len(self.calls) == self.dies_at:
            raise SystemExit(137)
        self.calls.append(flags)
        self.hyps.append(vars(Hyp.load(flags["hyp"])))
        return {"best": peak(self.hyps[-1])}


def test_evolution_climbs_and_writes_the_best(here):  # noqa: F811
    trainer = Trainer()
    results = evolve(arguments("--evolve 60 --json e.json"), trainer)
    assert len(trainer.calls) == 60
    assert trainer.hyps[0] == BASE_HYP
    fits = [fitness(peak(hyp)) for hyp in trainer.hyps]
    assert results["best"]["fitness"] == pytest.approx(max(fits), abs=1e-5)
    assert max(fits) > 2 * fits[0]
    best = trainer.hyps[int(np.argmax(fits))]
    assert vars(Hyp.load("hyp_evolved.txt")) == pytest.approx(best)
    assert json.loads(Path("e.json").read_text())["hyp"] == pytest.approx(best)
    rows = [line.split() for line in Path("evolve.txt").read_text().splitlines()[1:]]
    assert rows[0] == ["fitness", "map50", "map", *BASE_HYP]
    assert [float(row[0]) for row in rows[1:]] == pytest.approx(fits, abs=1e-5)
    assert [float(row[3]) for row in rows[1:]] == pytest.approx([hyp["lr0"] for hyp in trainer.hyps])


def test_every_training_is_short_lived(here):  # noqa: F811
    trainer = Trainer()
    evolve(arguments("--evolve 2 --epochs 3 --adam --name n --results-dir r --logdir runs"), trainer)
    call = trainer.calls[1]
    own = {"evolve": None, "name": "", "logdir": "", "json": "", "nosave": True, "epochs": 3}
    assert {name: call[name] for name in own} == own
    assert call["weights_dir"] == call["results_dir"] == "r/.evolve_n"
    assert sorted(p.name for p in Path("r").iterdir()) == ["evolve_n.txt", "hyp_evolved_n.txt"]


def test_it_goes_on_where_it_was_killed(here):  # noqa: F811
    evolve(arguments("--evolve 8 --name whole"), Trainer())
    with pytest.raises(SystemExit):
        evolve(arguments("--evolve 8 --name cut"), Trainer(dies_at=5))
    assert len(Path("evolve_cut.txt").read_text().splitlines()) == 2 + 5
    again = Trainer()
    evolve(arguments("--evolve 8 --name cut"), again)
    assert len(again.calls) == 3
    for kind in ("evolve", "hyp_evolved"):
        assert Path(f"{kind}_cut.txt").read_text() == Path(f"{kind}_whole.txt").read_text()
    finished = Trainer()
    evolve(arguments("--evolve 8 --name cut"), finished)
    assert finished.calls == []
    evolve(arguments("--evolve 9 --name cut"), finished)  # more of it
    assert len(finished.calls) == 1


def test_the_seed_decides(here):  # noqa: F811
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        evolve(arguments(f"--evolve 4 --name {name} --seed {seed}"), Trainer())
    a, b, c = (Path(f"evolve_{name}.txt").read_text().splitlines()[1:] for name in "abc")
    assert a == b
    assert a[2:] != c[2:]  # the header and the starting point are the same
    assert a[:2] == c[:2]


OF_DFL = set(LOSSES["dfl"].own_hyp)


@pytest.mark.parametrize(
    ("flags", "idle"),
    [
        ("", {"lr0_adam"}),
        ("--adam", {"lr0", "warmup_bias_lr"}),
        ("--rect", {"lr0_adam", "mosaic"}),
        ("--gray-scale", {"lr0_adam", "hsv_h", "hsv_s"}),
    ],
)
def test_only_numbers_that_matter_mutate(flags, idle):
    active = genes(options(flags), 2, "yolo")
    assert set(GENES) - set(active) == idle | OF_DFL
    assert set(GENES) - set(genes(options(flags), 1, "yolo")) == idle | OF_DFL | {"cls_weights"}
    past = [Generation({"fitness": 0.5, "map50": 0.5, "map": 0.5}, BASE_HYP)]
    changed = set()
    for seed in range(200):
        child = next_hyp(past, active, BASE_HYP, seed)
        changed |= {name for name, value in child.items() if value != BASE_HYP[name]}
    assert changed == set(active)


def test_the_kind_of_heads_decides_which_weights_mutate():
    active = genes(options(), 2, "dfl")
    assert set(active) >= OF_DFL
    assert not set(active) & {"box", "obj", "cls", "anchor_t"}


def test_mutants_stay_within_the_limits():
    past = [Generation({"fitness": 0.5, "map50": 0.5, "map": 0.5}, BASE_HYP)]
    active = genes(options(), 2, "yolo")
    seen = {name: [] for name in active}
    for number in range(300):  # a random walk: each child has the only parent, its predecessor
        child = next_hyp(past, active, BASE_HYP, number)
        past = [Generation(past[0].figures, child)]
        for name in active:
            seen[name].append(child[name])
    for name, values in seen.items():
        least, most = LIMITS[name].least, LIMITS[name].most
        assert least <= min(values) < max(values) <= most, name
        assert GENES[name].low * (1 - 1e-4) <= min(values), name
        assert max(values) <= GENES[name].high * (1 + 1e-4), name
        assert max(values) - min(values) > 0.2 * (GENES[name].high - GENES[name].low) or GENES[name].log, name


def test_the_fittest_have_most_children():
    marks = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]
    past = [Generation({"fitness": f}, BASE_HYP | {"clip_grad": f}) for f in marks]  # clip_grad never mutates: a mark
    parents = [next_hyp(past, genes(options(), 2, "yolo"), BASE_HYP, seed)["clip_grad"] for seed in range(600)]
    counts = [parents.count(mark) for mark in marks]
    assert counts[0] == 0  # only the best five
    assert counts[1] > 0
    assert counts[1] < counts[3] < counts[5]


def test_a_training_that_diverges_has_fitness_0(here, capsys):  # noqa: F811
    calls = []

    def diverging(flags: dict) -> dict:
        calls.append(flags)
        if len(calls) == 2:
            raise DivergedError("epoch 1, step 3: the loss is not finite (box=nan)")
        if len(calls) == 4:
            raise UserError("the disk is full")
        return {"best": {"map50": 0.5, "map": 0.25}}

    with pytest.raises(UserError, match="the disk is full"):
        evolve(arguments("--evolve 5"), diverging)
    rows = [float(line.split()[0]) for line in Path("evolve.txt").read_text().splitlines()[2:]]
    assert rows == [0.275, 0, 0.275]
    assert "this generation dies: epoch 1, step 3: the loss is not finite" in capsys.readouterr().out


def test_the_starting_point_must_train(here):  # noqa: F811
    def broken(flags: dict) -> dict:
        raise DivergedError("epoch 1, step 3: the loss is not finite (box=nan)")

    with pytest.raises(UserError, match="not finite"):
        evolve(arguments("--evolve 3"), broken)
    assert not Path("evolve.txt").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--evolve 4 --epochs 7", r"evolve.txt: its trainings had --epochs 100, not 7; .* another --name"),
        ("--evolve 4 --hyp h.txt", r"evolve.txt: began with lr0=0.01, but --hyp says 0.03"),
        ("--evolve 4 --seed 3", "its trainings had --seed 0, not 3"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(here, flags, message):  # noqa: F811
    (here / "h.txt").write_text("lr0: 0.03\n")
    evolve(arguments("--evolve 2"), Trainer())
    before = Path("evolve.txt").read_text()
    with pytest.raises(UserError, match=message):
        evolve(arguments(flags), Trainer())
    assert Path("evolve.txt").read_text() == before


def in_row(text: str, column: str, value: str) -> str:
    """An evolve.txt with another value in its last row."""
    names, last = (text.splitlines()[i].split() for i in (1, -1))
    last[names.index(column)] = value
    return "\n".join([*text.splitlines()[:-1], " ".join(last)]) + "\n"


def without_columns(text: str, names: set[str]) -> str:
    """An evolve.txt of a version that didn't know these hyper-parameters."""
    note, *table = text.splitlines()
    rows = [line.split() for line in table]
    places = [i for i, name in enumerate(rows[0]) if name not in names]
    return "\n".join([note, *(" ".join(row[i] for i in places) for row in rows)]) + "\n"


def test_numbers_that_are_newer_than_the_file_had_their_defaults(here):  # noqa: F811
    evolve(arguments("--evolve 3 --name whole"), Trainer())
    whole, new = Path("evolve_whole.txt").read_text(), {"dfl_box", "dfl_cls", "dfl", "close_mosaic"}
    old = without_columns(whole, new)
    assert set(whole.splitlines()[1].split()) - set(old.splitlines()[1].split()) == new
    Path("evolve.txt").write_text(old)
    trainer = Trainer()
    evolve(arguments("--evolve 3"), trainer)
    assert not trainer.calls
    evolve(arguments("--evolve 4"), trainer)
    assert len(trainer.calls) == 1
    evolve(arguments("--evolve 4 --name whole"), Trainer())
    assert Path("evolve.txt").read_text() == Path("evolve_whole.txt").read_text()
    Path("evolve.txt").write_text(old)
    Path("h.txt").write_text("dfl: 2\n")
    with pytest.raises(UserError, match=r"began with dfl=1.5, but --hyp says 2"):
        evolve(arguments("--evolve 4 --hyp h.txt"), Trainer())


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "something else\n",
        lambda text: text.replace("{", '["epochs", {', 1).replace("}", "}]", 1),
        lambda text: "# " + "[" * 100_000 + "\n" + text,
        lambda text: in_row(text, "lr0", "nan"),
        lambda text: in_row(text, "lr0", "-1"),
        lambda text: in_row(text, "close_mosaic", "inf"),
        lambda text: in_row(text, "close_mosaic", "1.5"),
        lambda text: in_row(text, "fitness", "nan"),
        lambda text: in_row(text, "map50", "1e9"),
        lambda text: without_columns(text, {"map50"}),
        lambda text: without_columns(text, set(BASE_HYP)),
    ],
)
def test_what_is_no_evolve_txt_is_refused(here, damage):  # noqa: F811
    evolve(arguments("--evolve 2"), Trainer())
    Path("evolve.txt").write_text(damage(Path("evolve.txt").read_text()))
    with pytest.raises(UserError, match=r"evolve.txt: not an evolve.txt"):
        evolve(arguments("--evolve 3"), Trainer())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--evolve 3 --resume", "leave out --resume"),
        ("--evolve 3 --s 0.1", "needs --prune"),
        ("--evolve 3 --data half.data", "needs a line `valid="),
        ("--evolve 3 --hyp none.txt", "none.txt"),
        ("--evolve 3 --cfg none.cfg", "none.cfg"),
    ],
)
def test_nonsense_is_refused(here, flags, message):  # noqa: F811
    (here / "half.data").write_text("classes=2\nnames=d.names\ntrain=train\n")
    with pytest.raises(UserError, match=message):
        train_with(flags)
    assert not Path("evolve.txt").exists()


def test_several_processes_are_refused(here, monkeypatch):  # noqa: F811
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="not with torchrun"):
        train_with("--evolve 2")


def test_evolve_alone_means_a_hundred():
    assert tuple(arguments(text)["evolve"] for text in ("--evolve", "--evolve 7", "")) == (100, 7, None)


def test_real_trainings_evolve(here, capsys):  # noqa: F811
    (here / "tiny.cfg").write_text((here / "tiny.cfg").read_text().replace("8,10, 20,16", "1,1, 2,2"))
    (here / "h.txt").write_text("lr0_adam: 0.02\nmosaic: 0\n")
    flags = "--epochs 2 --adam --notest --evolve 3 --hyp h.txt"
    results = train_with(flags)
    output = capsys.readouterr().out
    assert results["trainings"] == 3
    assert output.count("warning: anchors with best possible recall") == 1
    assert "next: --hyp hyp_evolved.txt" in output
    assert not Path("weights").exists()
    assert not Path(".evolve").exists()
    rows = Path("evolve.txt").read_text().splitlines()
    number = results["best"]["number"]
    figures = train_with("--epochs 2 --adam --notest --hyp hyp_evolved.txt --name again")
    assert f"{fitness(figures['best']):.6f}" == f"{float(rows[1 + number].split()[0]):.6f}"


@pytest.mark.slow
def test_kill_9_and_again(here):  # noqa: F811
    command = [sys.executable, str(ROOT / "train.py"), *BASE.split(), "--epochs", "2", "--adam", "--notest", "--evolve", "6"]
    subprocess.run([*command, "--name", "whole"], check=True, capture_output=True)
    process = subprocess.Popen([*command, "--name", "cut"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = Path("evolve_cut.txt")
    while not rows.exists() or len(rows.read_text().splitlines()) < 4:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert len(rows.read_text().splitlines()) < 8
    subprocess.run([*command, "--name", "cut"], check=True, capture_output=True)
    assert rows.read_text() == Path("evolve_whole.txt").read_text()


def test_an_interrupt_says_how_to_go_on(here):  # noqa: F811
    def interrupted(flags: dict) -> dict:
        raise KeyboardInterrupt("no epoch was saved yet")

    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        evolve(arguments("--evolve 2"), interrupted)
    assert not evolution.EvolutionFiles.of(Path(), "").scratch.exists()
