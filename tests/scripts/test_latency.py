"""--target-ms: a runtime that takes a known number of milliseconds, which the table of layers knows only in part."""

import importlib
import json
from collections.abc import Iterator

import pytest

from tests.scripts.test_prune import here as here
from tests.scripts.test_prune import prune, write
from tests.tiny import RESIDUAL
from utils.core.errors import UserError
from utils.loading import Loaded
from utils.network.cfg import parse_cfg
from utils.pruning.latency import Geometry, convolutions
from utils.runtimes import deployment as deployments
from utils.runtimes import layer_times, whole
from utils.runtimes.base import Request
from utils.runtimes.deployment import Deployment

STEP = 2
ON = "--runtime torch --threads 1"


def layer_ms(geometry: Geometry, widths: tuple[int, int]) -> float:
    channels, filters = (-(-n // STEP) for n in widths)
    return 1e-4 * geometry.height * geometry.width * channels * filters


class Runtime:
    """Takes what its layers take, half as much again, and an overhead; `slows` with each measurement."""

    def __init__(self) -> None:
        self.overhead, self.factor, self.slows, self.pace = 0.5, 1.5, 1.0, 1.0
        self.written: list[Loaded] = []
        self.measured: list[int] = []

    def whole(self, defs, img_size: int = 64) -> float:
        layers = convolutions(defs, img_size)
        return self.overhead + self.factor * sum(layer_ms(layer.geometry, layer.widths) for layer in layers)

    def write(self, deployment: Deployment, network: Loaded, folder) -> Request:
        self.written.append(network)
        return Request(weights=str(len(self.written) - 1))

    def read(self, deployment: Deployment, requests: list[Request]) -> list[list[float]]:
        self.pace *= self.slows
        numbers = [int(request.weights) for request in requests]
        found = [self.written[n] for n in numbers]
        return [[self.pace * self.whole(n.model.defs, n.img_size) * noise for noise in (0.99, 1.0, 1.01)] for n in found]

    def layers(self, deployment: Deployment, wanted: dict) -> Iterator[tuple[Geometry, dict]]:
        for geometry, points in wanted.items():
            self.measured.append(len(points))
            yield geometry, {widths: layer_ms(geometry, widths) for widths in points}


@pytest.fixture
def runtime(here, monkeypatch) -> Runtime:
    fake = Runtime()
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    monkeypatch.setattr(deployments, "lanes", lambda: STEP)
    monkeypatch.setattr(whole, "written", fake.write)
    monkeypatch.setattr(whole, "read_together", fake.read)
    monkeypatch.setattr(layer_times, "measure_layers", fake.layers)
    return fake


def original_ms(runtime: Runtime) -> float:
    return runtime.whole(parse_cfg(RESIDUAL))


@pytest.mark.parametrize("share", [0.75, 0.5, 0.35])
def test_what_is_asked_for_is_reached(runtime, here, share):
    write(RESIDUAL)
    target = share * original_ms(runtime)
    figures = prune("slim", f"{ON} --target-ms {target} --json f.json")
    truth = runtime.whole(parse_cfg(figures["cfg"]))
    assert figures["after"]["latency_ms"] == pytest.approx(truth)
    near = abs(truth - target) <= 0.03 * target
    others = [n for n in runtime.written if n.model.defs is not runtime.written[0].model.defs]
    assert near or all(not target >= runtime.whole(n.model.defs) > truth for n in others)
    assert truth <= 1.03 * target
    assert figures["before"]["latency_ms"] == pytest.approx(original_ms(runtime))
    for side in ("before", "after"):
        found = json.loads((here / "f.json").read_text())[side]
        assert (found["runtime"], found["threads"], found["bits"]) == ("torch", 1, 32)
        low, high = found["latency_quartiles_ms"]
        assert low <= found["latency_ms"] <= high
    assert figures["goal"] == {"kind": "ms", "value": target}
    assert all(row["after"] % STEP == 0 or row["after"] == row["before"] for row in figures["layers"])


def test_a_machine_that_slows_down_moves_nothing(runtime, here):
    write(RESIDUAL)
    target = 0.5 * original_ms(runtime)
    first = prune("slim", f"{ON} --target-ms {target}")
    runtime.written.clear()
    runtime.slows = 1.2
    runtime.pace = 1 / 1.2
    second = prune("slim", f"{ON} --target-ms {target}")
    assert second["layers"] == first["layers"]
    assert second["after"]["latency_ms"] == pytest.approx(first["after"]["latency_ms"])


def test_layers_are_measured_once(runtime, here):
    write(RESIDUAL)
    target = 0.5 * original_ms(runtime)
    prune("slim", f"{ON} --target-ms {target}")
    assert sum(runtime.measured) > 20
    runtime.measured.clear()
    prune("slim", f"{ON} --target-ms {target}")
    assert runtime.measured == []
    prune("slim", f"{ON.replace('1', '2')} --target-ms {target}")
    assert sum(runtime.measured) > 20


def test_out_of_reach_the_nearest_is_named(runtime, here, capsys):
    write(RESIDUAL)
    with pytest.raises(
        UserError, match=r"--target-ms 0.6: [\d.]+ ms is the nearest that slim pruning comes to it here"
    ) as told:
        prune("slim", f"{ON} --target-ms 0.6")
    assert not (here / "out").exists()
    figures = prune("slim", f"{ON} --target-ms 0.6 --force")
    assert f"{figures['after']['latency_ms']:.3g} ms is the nearest" in str(told.value)
    nearest = f"{figures['after']['latency_ms']:.3g}"
    said = f"--target-ms 0.6: nothing is within 3% of it; nearest to it are {nearest} ms; {nearest} taken"
    assert said in capsys.readouterr().out


def test_milliseconds_are_the_third_cost(runtime, here):
    write(RESIDUAL)
    figures = prune("slim", f"{ON} --target-macs 0.6 --spend ms --importance group-norm")
    assert figures["spend"] == "ms"
    assert figures["after"]["latency_ms"] == pytest.approx(runtime.whole(parse_cfg(figures["cfg"])))


def test_a_sweep_tells_milliseconds(runtime, here, capsys):
    write(RESIDUAL)
    figures = prune("slim", f"{ON} --dry-run --json f.json")
    rows = json.loads((here / "f.json").read_text())["sweep"]
    assert rows == json.loads(json.dumps(figures["sweep"]))
    assert sum(row["ms_measured"] for row in rows) == 3
    assert rows[0]["ms"] == pytest.approx(original_ms(runtime))
    assert [row["ms"] for row in rows] == sorted((row["ms"] for row in rows), reverse=True)
    smallest = min(runtime.whole(network.model.defs) for network in runtime.written)
    assert rows[-1]["ms"] == pytest.approx(smallest)
    assert figures["before"]["latency_ms"] == pytest.approx(original_ms(runtime))
    assert "measured: the original" in capsys.readouterr().out


def test_a_share_of_the_milliseconds(runtime, here):
    write(RESIDUAL)
    figures = prune("slim", f"{ON} --target-ms 60%")
    assert figures["goal"] == {"kind": "ms", "value": pytest.approx(0.6 * original_ms(runtime))}
    assert runtime.whole(parse_cfg(figures["cfg"])) <= 1.03 * 0.6 * original_ms(runtime)


@pytest.mark.parametrize(("options", "said"), [
    (f"{ON} --target-ms 1e6", r"--target-ms 1e6: the network takes .* ms on torch .*, so there is nothing to do; give less"),
    ("--target-ms 3", r"--target-ms: name the runtime of the milliseconds with --runtime \(torch, "),
    ("--spend ms", r"--spend ms: name the runtime"),
    ("--dry-run --threads 2", r"--threads: name the runtime"),
    (ON, "--runtime: is about milliseconds; add --target-ms T, --spend ms or --dry-run"),
    ("--bits 8", "--bits: is about milliseconds"),
    (f"{ON} --target-macs 0.5", "--runtime: is about milliseconds"),
    (f"{ON} --bits 8 --target-ms 3", "--runtime torch --bits 8: it computes no network in 8-bit"),
    (f"{ON} --target-ms 3 --dry-run", "--dry-run shows what every amount leaves"),
])  # fmt: skip
def test_budgets_that_cannot_be(runtime, here, options, said):
    write(RESIDUAL)
    with pytest.raises(UserError, match=said) as told:
        prune("slim", options)
    assert "\n" not in str(told.value)
    assert not (here / "out").exists()


@pytest.mark.parametrize("options", [
    "--target-ms 0", "--target-ms -3", "--target-ms nan", "--target-ms 1e9", "--target-ms fast",
    "--target-ms 3 --percent 0.5", "--target-ms 3 --target-macs 0.5", "--runtime fast",
])  # fmt: skip
def test_budgets_that_are_none(options, capsys):
    parser = importlib.import_module("slim_prune").get_parser()
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--weights", "x.pt", *options.split()])
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
