"""The whole job: plan, measure, then rounds of sparse training, pruning and finetuning until the aim is kept."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.compression.aim import Aim, aim_of
from utils.compression.clock import FIRST, SPARSE, Clock
from utils.compression.options import CompressOptions
from utils.compression.plan import ONNX, STRATEGIES, Plan
from utils.compression.search import Trial, best_of, next_target
from utils.compression.share import share_by_sweep, share_to_go
from utils.compression.stages import Stage, Stages
from utils.compression.state import State
from utils.core.commands import command
from utils.core.errors import UserError
from utils.core.files import replacing
from utils.core.tables import format_table
from utils.export.targets import TARGETS
from utils.loading import load_model
from utils.pruning.spend import MILLISECONDS

SWEEP = "milliseconds"  # the stage that measures what amounts of pruning leave
LEAST_MAP50 = 0.01  # of a network that is worth pruning


class Job:
    """One compression. `weights`: the network that came, as a checkpoint."""

    def __init__(self, options: CompressOptions, plan: Plan, state: State, handle: int) -> None:
        self.options, self.plan, self.state = options, plan, state
        self.stages = Stages(state, handle)
        self.clock = Clock(3600 * options.hours if options.hours else None)
        self.weights = options.weights
        self.trials: list[Trial] = []

    @property
    def work(self) -> Path:
        return self.state.work

    def run(self) -> tuple[Aim, dict[str, Any], Trial | None]:
        """All rounds: (the aim, what test.py says of the network that came, the best trial)."""
        if self.plan.trains:
            self.learn()
        else:
            self.take_in()
            self.check(["--weights", self.weights])
            self.measure_pace(["--weights", self.weights, "--finetune"])
        before = self.test("baseline", self.weights)
        if before["map50"] < LEAST_MAP50:
            raise UserError(f"{self.options.network}: detects next to nothing here (mAP@0.5 {before['map50']:.4f}); "
                            "train it for this data first (train.py)")  # fmt: skip
        before = before | self.milliseconds()
        aim = aim_of(self.options.aim, before)
        if aim.limit is not None:
            self.share(self.weights, aim, aim.limit)  # refuses a limit that can't be reached
        while (target := next_target(aim, before, self.trials, self.options.rounds)) is not None:
            if self.trials and self.clock.epochs(2, 1.0) < 2:
                print("no time is left for another round")
                break
            self.trials.append(self.round(aim, before, target))
            before, aim = before | {"latency_ms": self.anchor}, self.measured(aim, self.anchor)
            print(f"\n{trials_table(before, self.trials, aim)}")
        return aim, before, best_of(aim, self.trials)

    @property
    def anchor(self) -> float:
        """Milliseconds of the network that came as they were when it was pruned: those that all others are told in."""
        return self.state.stages["round1-prune"]["figures"]["before"]["latency_ms"]

    def measured(self, aim: Aim, ms: float) -> Aim:
        """The aim for a network that came with so many milliseconds: of which a budget may be a share."""
        target = self.options.aim.target_ms
        return dataclasses.replace(aim, limit=target.of(ms)) if target else aim

    def take_in(self) -> None:
        """Weights from elsewhere, and Darknet's, become a checkpoint, which carries its own cfg."""
        if self.plan.takes_in:
            self.weights = str(self.work / "original.pt")
            words = ["convert.py", "--weights", self.options.weights, "--out", self.weights]
            self.stages.run(Stage("convert", words + (["--cfg", self.options.cfg] if self.options.cfg else []), measures=False))
            load_model("", self.weights, None, self.plan.data)  # other classes than the data's end here

    def learn(self) -> None:
        """The network for the classes of the data, trained."""
        cfg = str(self.work / "original.cfg")
        words = ["make_cfg.py", "--cfg", self.options.network, "--data", self.options.data, "--out", cfg]
        self.stages.run(Stage("make_cfg", words, measures=False))
        self.check(["--cfg", cfg])
        self.measure_pace(["--cfg", cfg])
        found = self.train("original", ["--cfg", cfg], self.plan.epochs.first, FIRST, "best")
        if found is None:
            raise UserError(f"--hours {self.options.hours:g}: is too short for one epoch of training; allow more")
        self.weights = found

    def check(self, network: list[str]) -> None:
        words = ["check.py", "--data", self.options.data, *network]
        found = self.stages.run(Stage("check", words, accepts=(0, 1)))["counts"]
        if found["error"]:
            self.state.stages.pop("check")  # to be run again once they are mended
            self.state.save()
            data = self.options.data
            raise UserError(f"{data}: {found['error']} findings of check.py would break training or make its figures wrong; "
                            f"{command('check.py', '--fix', data=data)} mends what can be")  # fmt: skip

    def test(self, name: str, weights: str, more: Sequence[str] = ()) -> dict[str, Any]:
        words = ["test.py", "--data", self.options.data, "--weights", weights, *more, *self.machine()]
        return self.stages.run(Stage(name, words))

    def milliseconds(self) -> dict[str, Any]:
        """With --target-ms, {latency_ms} of the network that came; the sweep is kept for `share`."""
        if self.options.aim.target_ms is None:
            return {}
        words = [f"{self.options.strategy}_prune.py", "--weights", self.weights, "--dry-run", *self.options.place(),
                 "--save-dir", str(self.work / SWEEP), "--device", "cpu"]  # fmt: skip
        return {"latency_ms": self.stages.run(Stage(SWEEP, words))["before"]["latency_ms"]}

    def share(self, weights: str, aim: Aim, target: float) -> float:
        """The share of the channels that has to go; UserError for a limit that can't be reached."""
        if aim.kind == MILLISECONDS:
            return share_by_sweep(self.state.stages[SWEEP]["figures"]["sweep"], self.options.strategy, target)
        return share_to_go(weights, self.options.strategy, aim, target)

    def machine(self) -> list[str]:
        device = ["--device", self.options.device] if self.options.device else []
        return [*device, "--workers", str(self.options.workers)]

    def measure_pace(self, network: list[str]) -> None:
        """With --hours: how long an epoch takes, evaluation included."""
        if self.clock.seconds is not None:
            self.run_training(Stage("pace", self.training("pace", network, 1)))

    def training(self, name: str, network: list[str], epochs: int) -> list[str]:
        """network: flags that name it, and how it is trained."""
        work = str(self.work)
        return ["train.py", "--data", self.options.data, *network, "--epochs", str(epochs), "--name", name,
                "--weights-dir", work, "--results-dir", work, "--logdir", "", "--seed", str(self.options.seed),
                *self.machine()]  # fmt: skip

    def run_training(self, stage: Stage) -> None:
        """Run it and take its time; one that was ended at its limit has no figures."""
        figures = self.stages.run(stage)
        self.clock.note(self.state.stages[stage.name]["seconds"], figures)

    def train(self, name: str, network: list[str], wanted: int, share: float, kind: str) -> str | None:
        """Train for as many epochs as there is time for; the checkpoint, `last` or `best`, or None if there is no time."""
        epochs = self.clock.epochs(wanted, share)
        if epochs or self.is_known(name):
            limit = self.clock.allowed(share)
            words = self.training(name, network, epochs)
            self.run_training(Stage(name, words, limit=limit))
        found = [path for k in (kind, "last") if (path := self.work / f"{k}_{name}.pt").exists()]
        return str(found[0]) if found else None

    def is_known(self, name: str) -> bool:
        """Whether a stage was begun before, with as many epochs as there was time for then."""
        return name in self.state.stages or (self.state.running is not None and self.state.running["name"] == name)

    def round(self, aim: Aim, before: dict[str, Any], target: float) -> Trial:
        """Sparse training of the smallest network that was kept (or the one that came), pruning to the target, finetuning."""
        number = len(self.trials) + 1
        kept = best_of(aim, self.trials)
        start, title = (kept.weights if kept else self.weights), f"round{number}"
        part = 1 / (self.options.rounds - number + 1) if aim.limit is None else 1.0
        strategy, flags = self.options.strategy, load_model("", start).flags
        share = self.share(start, aim, target)
        sparse = None
        if share:
            more = ["--weights", start, "--prune", str(STRATEGIES[strategy]), "--sparse-target", f"{share:g}"]
            more += ["--max-drop", f"{aim.max_drop:g}"] if aim.max_drop and aim.max_drop > 0.02 else []
            sparse = self.train(f"{title}-sparse", more, self.plan.epochs.sparse, SPARSE * part, "last")
        pruned = self.prune(f"{title}-prune", sparse or start, aim, self.amount(target))
        aim = self.measured(aim, pruned["before"]["latency_ms"])
        more = ["--weights", pruned["weights"], "--cfg", pruned["cfg"], "-pt", "--finetune", *flags]
        more += ["--t_weights", self.weights, "--KDstr", "7"] if self.options.teacher else []
        part = part if sparse is None else part * (1 - SPARSE) / (1 - SPARSE * part)
        tuned = self.train(f"{title}-finetune", more, self.plan.epochs.finetune, part, "best")
        tuned = tuned or self.as_checkpoint(f"{title}-convert", pruned)
        after = self.test(f"{title}-test", tuned)
        after["latency_ms"] = pruned["after"]["latency_ms"]  # finetuning doesn't change it
        sizes = {k: after[k] for k in ("params", "macs", "latency_ms", "map50", "map")}
        return Trial(number, target, **sizes, is_kept=aim.is_kept(before, after), weights=tuned, figures=f"{title}-test",
                     epochs=self.epochs_of(title) + (kept.epochs if kept else 0))  # fmt: skip

    def epochs_of(self, title: str) -> int:
        """Those of a round's trainings."""
        stages = (self.state.stages.get(f"{title}-{part}") for part in ("sparse", "finetune"))
        return sum(int(stage["words"][stage["words"].index("--epochs") + 1]) for stage in stages if stage)

    def amount(self, target: float) -> str:
        """What is to be left, for a prune script: milliseconds as the user asked for them, as it measures them itself."""
        return str(self.options.aim.target_ms or f"{target:.0f}")

    def prune(self, name: str, weights: str, aim: Aim, amount: str, more: Sequence[str] = ()) -> dict[str, Any]:
        script = f"{self.options.strategy}_prune.py"
        words = [script, "--data", self.options.data, "--weights", weights, f"--target-{aim.kind}", amount, "--refit",
                 str(self.options.refit), *more, "--save-dir", str(self.work / name), *self.machine()]  # fmt: skip
        words += self.options.place() if aim.kind == MILLISECONDS else []
        return self.stages.run(Stage(name, words + (["--force"] if more or aim.limit is None else [])))

    def train_baseline(self, name: str, weights: str, epochs: int, share: float, more: Sequence[str]) -> str | None:
        """What the compressed network is compared with, finetuned for as many epochs; None where there is no time for all."""
        if not self.options.trains_baselines or not epochs:
            return None
        if self.clock.epochs(epochs, share) < epochs and not self.is_known(name):
            return None
        return self.train(name, ["--weights", weights, "--finetune", *more], epochs, share, "best")

    def as_checkpoint(self, name: str, pruned: dict[str, Any]) -> str:
        """A pruned network that there was no time to finetune."""
        out = str(self.work / f"{name}.pt")
        words = ["convert.py", "--cfg", pruned["cfg"], "--weights", pruned["weights"], "--like", self.weights, "--out", out]
        self.stages.run(Stage(name, words, measures=False))
        return out

    def deliver(self, weights: str) -> dict[str, str]:
        """network.pt, .weights, .cfg, .onnx in the folder: {kind: path}."""
        folder = self.state.folder
        files = {kind: folder / f"network.{kind}" for kind in ("pt", "weights", "cfg")}
        with replacing(files["pt"]) as temporary:
            shutil.copyfile(weights, temporary)
        if "deliver" not in self.state.stages:
            files["cfg"].unlink(missing_ok=True)  # convert.py leaves one that is there as it is
        words = ["convert.py", "--weights", str(files["pt"]), "--out", str(files["weights"])]
        self.stages.run(Stage("deliver", words, measures=False))
        files |= self.export("onnx", files["pt"])
        if self.options.bits == 8:
            files["int8.pt"] = folder / "network_int8.pt"
            words = ["PTQ.py", "--data", self.options.data, "--weights", str(files["pt"]), "--out", str(files["int8.pt"])]
            self.stages.run(Stage("int8", words + self.machine()))
            files |= self.export("int8.onnx", files["int8.pt"])
        return {kind: str(path) for kind, path in files.items()}

    def export(self, kind: str, weights: Path) -> dict[str, Path]:
        if not self.plan.has_onnx:
            print(f"no ONNX file, which needs: pip install {' '.join(ONNX)}")
            return {}
        out = weights.with_suffix(".onnx")
        words = ["export.py", "--data", self.options.data, "--weights", str(weights), "--out", str(out)]
        words += ["--target", self.options.runtime] if self.options.runtime in TARGETS else []
        self.stages.run(Stage(f"export-{kind}", [*words, "--workers", str(self.options.workers)]))
        return {kind: out}

    def show(self, name: str, weights: str, pictures: list[str]) -> list[Path]:
        """The images with the boxes that a network finds, in their order."""
        listed, out = self.work / "pictures.txt", self.work / name
        with contextlib.suppress(FileExistsError):
            os.makedirs(out)
        listed.write_text("".join(f"{os.path.abspath(p)}\n" for p in pictures), encoding="utf-8", errors="surrogateescape")
        words = ["detect.py", "--weights", weights, "--source", str(listed), "--output", str(out)]
        self.stages.run(Stage(name, words + (["--device", self.options.device] if self.options.device else [])))
        return sorted(path for path in out.rglob("*") if path.is_file())

    def record(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(trial) for trial in self.trials]


def trials_table(before: dict[str, Any], trials: list[Trial], aim: Aim) -> str:
    """What was tried so far."""
    names = {"params": "parameters", "macs": "MACs"} | ({aim.figure: "ms"} if aim.kind == MILLISECONDS else {})
    names |= {"map50": "mAP@0.5", "map": "mAP@0.5:0.95"}
    rows = [["as it came", *(before[name] for name in names), ""]]
    rows += [[f"round {t.round}", *(getattr(t, name) for name in names), "yes" if t.is_kept else "no"] for t in trials]
    return format_table(["", *names.values(), str(aim)], rows)
