"""compress.py's main: plan, job, delivery, report."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from utils.compression.aim import Aim
from utils.compression.baselines import SMALL, compare, verdict
from utils.compression.intake import Intake
from utils.compression.job import Job
from utils.compression.options import CompressOptions
from utils.compression.outcome import filters, machine, some_pictures, versions
from utils.compression.page import page
from utils.compression.plan import Plan, command_of
from utils.compression.search import Trial
from utils.compression.state import State, lock
from utils.compression.times import FIRST, TURNS, Network, Times
from utils.core.commands import typed
from utils.core.files import write_text
from utils.core.tables import write_json
from utils.data.images import read_picture
from utils.loading import load_model
from utils.pruning.spend import MILLISECONDS


def compress(options: CompressOptions) -> dict[str, Any]:
    """Do, or go on with, what the command line asks for; returns the result, which compress.json and --json hold."""
    intake = Intake(options)
    plan = Plan.of(intake.options)
    asked_for = command_of(options)
    options = intake.options
    handle = lock(State(Path(options.out), asked_for).work / "lock")
    try:
        state = State(Path(options.out), asked_for)  # as whoever held the lock left it
        intake.hand_over(state)
        print(plan.table(options))
        job = Job(options, plan, state, handle)
        aim, before, best = job.run()
        result = finish(options, job, aim, before, best)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on where it stood") from None
    finally:
        os.close(handle)
    write_json(options.json, result)
    return result


def finish(options: CompressOptions, job: Job, aim: Aim, before: dict[str, Any], best: Trial | None) -> dict[str, Any]:
    """Write the network and the report; without a trial that is what was asked for, the network stays as it came."""
    state = job.state
    weights = best.weights if best else job.weights
    files = job.deliver(weights)
    pictures = some_pictures(job.plan.data.source("valid"))
    shown = [job.show(name, each, pictures) for name, each in (("pictures-before", job.weights), ("pictures-after", weights))]
    times = Times(state, options.device, job.plan.deployment, job.anchor if aim.kind == MILLISECONDS else None)
    baselines = compare(job, aim, best, times) if best else []
    times.measure({FIRST: Network(job.weights)})
    costs = {when: times.known[name] for when, name in (("before", FIRST), ("after", SMALL if best else FIRST))}
    after = state.stages[best.figures]["figures"] | {"latency_ms": best.latency_ms} if best else before
    int8 = state.stages["int8"]["figures"].get("quantized") if options.bits == 8 else None
    networks = [load_model("", each) for each in (job.weights, weights)]
    models = [network.model for network in networks]
    told = verdict(after | {"latency_ms": costs["after"]["ms"]["median"]}, networks[1].img_size, baselines)
    report = state.folder / "report.html"
    result = {
        "title": f"{Path(options.network).name}, compressed", "outcome": outcome_line(aim, before, after, best),
        "verdict": told, "baselines": [dataclasses.asdict(baseline) for baseline in baselines],
        "aim": dataclasses.asdict(aim) | {"text": str(aim)}, "is_kept": best is not None, "costs": times.known,
        "before": before | costs["before"], "after": after | costs["after"], "int8": int8, "trials": job.record(),
        "layers": filters(*models), "files": files | {"report": str(report)}, "turns": TURNS,
        "measured_on": str(job.plan.deployment or "PyTorch"),
        "commands": [f"python {typed(stage['words'])}" for stage in state.stages.values()],
        "versions": versions(), "machine": machine(options.device), "seed": options.seed, "training_seconds": job.clock.spent,
        "seconds": sum(stage["seconds"] for stage in state.stages.values()),
    }  # fmt: skip
    pairs = [(path.name, read_picture(path), read_picture(other)) for path, other in zip(*shown, strict=True)]
    write_text(report, page(result, pairs))
    state.result = result
    state.save()
    print("\n" + "\n".join(filter(None, (result["outcome"], result["verdict"]))))
    for kind, path in result["files"].items():
        print(f"{kind + ':':12}{path}")
    return result


def outcome_line(aim: Aim, before: dict[str, Any], after: dict[str, Any], best: Trial | None) -> str:
    """What came of it, in a sentence."""
    if best is None:
        return (f"Nothing of what was tried is {aim}, so the network is as it came; allow a larger --max-drop, more --rounds "
                "or more training (--hours, --epochs)")  # fmt: skip
    faster = f"; {before['latency_ms']:.2f} -> {after['latency_ms']:.2f} ms" if aim.kind == MILLISECONDS else ""
    params, macs = (100 * (1 - after[k] / before[k]) for k in ("params", "macs"))
    return (f"{params:.1f} % of the parameters and {macs:.1f} % of the MACs are gone; mAP@0.5 {before['map50']:.4f} -> "
            f"{after['map50']:.4f}{faster} ({aim}: kept)")  # fmt: skip
