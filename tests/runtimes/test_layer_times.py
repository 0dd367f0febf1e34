"""Milliseconds of layers: measured once for a deployment, kept, and of graphs that compute what the layer does."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import RESIDUAL, SPP
from utils.core.errors import Remark, UserError
from utils.network.cfg import parse_cfg
from utils.pruning.latency import Geometry, wanted_points
from utils.runtimes import deployment as deployments
from utils.runtimes import layer_times as module
from utils.runtimes.deployment import Deployment
from utils.runtimes.layer_times import layer_times, least_milliseconds, measure_layers
from utils.runtimes.registry import RUNTIMES
from utils.runtimes.times_cache import TimesCache, cache_folder

HERE = Deployment("torch", 1)
PLAIN = Geometry(3, (1, 1), 1, 1, 1, 0, "leaky", 8, 10)


class Measured:
    """Stands for the process that measures; every layer takes as many milliseconds as it has channels and filters."""

    def __init__(self) -> None:
        self.asked: list[tuple[Geometry, list]] = []
        self.dies_after = 10**9

    def __call__(self, deployment: Deployment, wanted: dict) -> Iterator[tuple[Geometry, dict]]:
        for number, (geometry, widths) in enumerate(wanted.items()):
            if number == self.dies_after:
                raise KeyboardInterrupt
            self.asked.append((geometry, list(widths)))
            yield geometry, {w: float(sum(w)) for w in widths}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    fake = Measured()
    monkeypatch.setattr(module, "measure_layers", fake)
    monkeypatch.setattr(deployments, "lanes", lambda: 4)
    return fake


def test_measured_once(measured: Measured, tmp_path: Path) -> None:
    defs = parse_cfg(RESIDUAL)
    first = layer_times(HERE, defs, 64, TimesCache(HERE, tmp_path))
    assert dict(measured.asked) == wanted_points(defs, 64, 4)
    assert first.total(defs, 64) == (3 + 8) + (8 + 12) + 2 * ((12 + 6) + (6 + 12)) + (12 + 14)
    measured.asked.clear()
    again = layer_times(HERE, defs, 64, TimesCache(HERE, tmp_path))
    assert measured.asked == []
    assert again.points == first.points


def test_only_what_is_missing_is_measured(measured: Measured, tmp_path: Path) -> None:
    cache = TimesCache(HERE, tmp_path)
    wanted = wanted_points(parse_cfg(RESIDUAL), 64, 4)
    geometry, points = next((g, p) for g, p in wanted.items() if len(p) > 2)
    cache.add(geometry, {points[0]: 1.0})
    cache.add(geometry, {points[1]: 2.0})
    times = layer_times(HERE, parse_cfg(RESIDUAL), 64, cache)
    assert dict(measured.asked)[geometry] == points[2:]
    assert times.points[geometry][points[0]] == 1.0


def test_a_killed_run_leaves_what_it_had_measured(measured: Measured, tmp_path: Path) -> None:
    measured.dies_after = 2
    with pytest.raises(KeyboardInterrupt):
        layer_times(HERE, parse_cfg(SPP), 64, TimesCache(HERE, tmp_path))
    done = [geometry for geometry, _ in measured.asked]
    measured.dies_after, measured.asked = 10**9, []
    layer_times(HERE, parse_cfg(SPP), 64, TimesCache(HERE, tmp_path))
    assert len(done) == 2
    assert not set(done) & {geometry for geometry, _ in measured.asked}


def test_another_deployment_has_another_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [HERE, Deployment("onnxruntime", 1), Deployment("torch", 2), Deployment("torch", 1, 8),
              Deployment("torch", 1, precision="fp32"), Deployment("torch", 1, precision="bf16")]  # fmt: skip
    caches = [TimesCache(other, tmp_path) for other in others]
    monkeypatch.setattr(deployments, "version", lambda packages: "99.0")
    caches.append(TimesCache(HERE, tmp_path))
    monkeypatch.setattr(deployments, "processor", lambda: "another CPU")
    caches.append(TimesCache(HERE, tmp_path))
    for number, cache in enumerate(caches):
        cache.add(PLAIN, {(4, 4): float(number + 1)})
    found = [cache.read(PLAIN)[4, 4] for cache in caches]
    native = str(HERE.key["float"])
    same = 4 if native == "float32" else 5  # --precision that is what `auto` takes here is the same deployment
    assert found[0] == found[same] == same + 1
    assert [found[k] for k in range(1, len(found)) if k != same] == [k + 1.0 for k in range(1, len(found)) if k != same]


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"format": 99}', "points", "number", "widths"])
def test_a_damaged_file_is_measured_again(damage: str, tmp_path: Path) -> None:
    cache = TimesCache(HERE, tmp_path)
    cache.add(PLAIN, {(4, 4): 1.0})
    (file,) = cache.folder.iterdir()
    content = json.loads(file.read_text())
    changed = {"points": 5, "number": [[4, 4, "1"]], "widths": [[4, 1.0]]}
    file.write_text(json.dumps(content | {"points": changed[damage]}) if damage in changed else damage)
    assert cache.read(PLAIN) == {}
    cache.add(PLAIN, {(4, 8): 2.0})
    assert cache.read(PLAIN) == {(4, 8): 2.0}


def test_a_folder_that_cannot_be_written_stops_nothing(measured: Measured, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(Remark, match="what was measured isn't kept"):
        times = layer_times(HERE, parse_cfg(RESIDUAL), 64, TimesCache(HERE, tmp_path / "file"))
    assert times.total(parse_cfg(RESIDUAL), 64) > 0


def test_the_cache_lies_where_caches_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "darkedge" / "layer-times"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "darkedge" / "layer-times"


def test_the_least_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that says how long each call took: 5 s, 3 s, 4 s, 9 s for the ones that count."""
    monkeypatch.setattr(module, "SECONDS", 0)
    seconds = iter([0.0, 5.0, 10.0, 13.0, 20.0, 24.0, 30.0, 39.0])
    calls: list[int] = []
    assert least_milliseconds([lambda: calls.append(1)], torch.device("cpu"), lambda: next(seconds)) == [3000.0]
    assert len(calls) == 8


@pytest.mark.parametrize(("runtime", "bits", "said"), [
    ("torch", 8, r"--runtime torch --bits 8: it computes no network in 8-bit integers here; leave --bits out.*onnxruntime"),
    ("ncnn", 8, r"--runtime ncnn --bits 8: it computes no network in 8-bit integers here; .* that does: onnxruntime, .*opencv"),
])  # fmt: skip
def test_deployments_that_say_nothing(runtime: str, bits: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Deployment.of(runtime, 1, bits, "cpu", "auto")


def test_runtimes_that_are_missing_or_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNTIMES["ncnn"].packages, "no_such_module", "no-such-package")
    with pytest.raises(UserError, match="--runtime ncnn needs .*no-such-package.*, which isn't installed"):
        Deployment.of("ncnn", 1, 32, "cpu", "auto")
    monkeypatch.setattr(type(RUNTIMES["torch"]), "writing", {"no_converter": "no-converter"})
    with pytest.raises(UserError, match="--runtime torch needs no-converter, which isn't installed"):
        Deployment.of("torch", 1, 32, "cpu", "auto")
    monkeypatch.setattr(type(RUNTIMES["ncnn"]), "bits", ())
    with pytest.raises(UserError, match="--runtime ncnn: its layers can't be timed"):
        Deployment.of("ncnn", 1, 32, "cpu", "auto")


def test_another_process_times_layers() -> None:
    wanted = {PLAIN: [(4, 4), (4, 8)], Geometry(1, (1, 1), 0, 1, 1, 0, "linear", 4, 4): [(2, 2)]}
    found = dict(measure_layers(HERE, wanted))
    assert {geometry: list(points) for geometry, points in found.items()} == wanted
    assert all(0 < ms < 1e4 for points in found.values() for ms in points.values())


@pytest.mark.parametrize("groups", [1, 0])
def test_graphs_compute_the_layer_at_any_width_and_size(groups: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    import onnx_ir as ir

    from utils.export.onnx.model import RuntimeSession
    from utils.runtimes.single_layer import LayerGraphs

    geometry = Geometry(3, (2, 2), 1, 1, groups, 0, "relu6", 12, 20)
    graphs = LayerGraphs(32)
    for widths in ((6, 9), (64, 48)) if groups else ((7, 7), (64, 64)):
        path = tmp_path / "layer.onnx"
        noise = graphs.write(geometry, widths, path)
        (found,) = RuntimeSession(path)(noise)
        kernel, bias = (torch.from_numpy(ir.load(path).graph.initializers[f"model.module_list.0.Conv2d.{name}"]
                                         .const_value.numpy().copy()) for name in ("weight", "bias"))  # fmt: skip
        assert tuple(kernel.shape) == (widths[1], widths[0] if groups else 1, 3, 3)
        wanted = torch.nn.functional.conv2d(torch.from_numpy(noise), kernel, bias, 2, 1, 1, 1 if groups else widths[0])
        np.testing.assert_allclose(found, wanted.clamp(0, 6).numpy(), atol=1e-4)
        assert found.shape == (1, widths[1], 6, 10)
    assert len(graphs.traced) == 1


def test_graphs_in_integers(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from utils.export.onnx.model import RuntimeSession
    from utils.runtimes.single_layer import LayerGraphs

    graphs = LayerGraphs(8)
    noise = graphs.write(PLAIN, (24, 16), tmp_path / "layer.onnx")
    (found,) = RuntimeSession(tmp_path / "layer.onnx")(noise)
    assert (noise.dtype, found.dtype, found.shape) == (np.uint8, np.uint8, (1, 16, 8, 10))
    assert len(np.unique(found)) > 10
    assert graphs.write(PLAIN, (3, 16), tmp_path / "layer.onnx").dtype == np.float32  # an image
