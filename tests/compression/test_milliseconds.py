"""compress.py --target-ms, on a runtime that takes a known number of milliseconds."""

import json
from pathlib import Path

import pytest

import compress
import test
from tests.compression.test_compress import Page, run
from tests.compression.test_compress import calls as calls
from tests.compression.test_compress import trained as trained
from tests.scripts.test_latency import STEP, Runtime
from utils.compression import times
from utils.compression.aim import Aim
from utils.compression.share import share_by_sweep
from utils.core.errors import UserError
from utils.core.options import options_of
from utils.loading import load_model
from utils.runtimes import deployment as deployments
from utils.runtimes import layer_times, whole

COMMAND = "--data d.data --weights base.pt --workers 0 --epochs 1 --refit 0 --device cpu"
ROWS = [{"percent": p, "ms": ms} for p, ms in ((0.0, 20.0), (0.2, 16.0), (0.5, 8.0), (0.95, 4.0))]


def test_to_the_report(calls, trained, monkeypatch, tmp_path):
    fake = Runtime()

    def read(deployment, requests, turns=9) -> list[list[float]]:
        return [times * 3 for times in fake.read(deployment, requests)]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(deployments, "lanes", lambda: STEP)
    monkeypatch.setattr(layer_times, "measure_layers", fake.layers)
    for module in (whole, times):
        monkeypatch.setattr(module, "written", fake.write)
        monkeypatch.setattr(module, "read_together", read)
    before = fake.whole(load_model("", "base.pt").model.defs)
    result = run(f"{COMMAND} --out {tmp_path}/out --target-ms {0.6 * before:.3f} --runtime torch --threads 1")
    assert [words[0] for words in calls.words if "--runtime" in words] == ["slim_prune.py"] * 3
    assert result["is_kept"]
    assert result["before"]["latency_ms"] == pytest.approx(before)
    after = fake.whole(load_model("", f"{tmp_path}/out/network.pt").model.defs)
    assert result["after"]["latency_ms"] == result["trials"][0]["latency_ms"] == pytest.approx(after)
    assert after <= 1.03 * 0.6 * before
    assert result["after"]["ms"]["median"] == pytest.approx(after)
    assert f"{before:.2f} -> {after:.2f} ms" in result["outcome"]
    text = (Path(tmp_path) / "out" / "report.html").read_text()
    assert "one image, torch" in text
    assert "1 thread, 32 bits" in text
    assert 'class="budget"' in text
    assert f"{after:.2f}" in Page(text).cells
    check_baselines(result, fake, Page(text))


def check_baselines(result: dict, fake: Runtime, page: Page) -> None:
    """The network that came, of 64 px and a stride of 8, at the sizes that enclose the small one's milliseconds, and a thin
    one: their milliseconds by the runtime, their accuracy by test.py."""
    ms, original = result["after"]["ms"]["median"], load_model("", "base.pt").model.defs
    fast, slow, thin = result["baselines"]
    sizes = {size: fake.whole(original, size) for size in range(8, 65, 8)}
    below = max(size for size in sizes if sizes[size] <= 1.03 * ms)
    assert [fast["label"], slow["label"], thin["label"]] == [f"{below} px", f"{below + 8} px", "thinner"]
    assert below + 8 < 64
    for found, size in ((fast, below), (slow, below + 8)):
        assert found["latency_ms"] == pytest.approx(sizes[size])
        words = f"--data d.data --weights base.pt --img-size {size} --workers 0 --device cpu --json by-hand.json"
        test.main(test.get_parser().parse_args(words.split()))
        by_hand = json.loads(Path("by-hand.json").read_text())
        for key in ("params", "macs", "map50", "map"):
            assert found[key] == by_hand[key]
    assert thin["latency_ms"] <= 1.03 * ms
    assert thin["params"] < result["before"]["params"]
    assert all(found["epochs"] == 0 for found in result["baselines"])
    assert result["verdict"] in page.text
    for found in result["baselines"]:
        place = page.cells.index(found["title"])
        assert page.cells[place + 1 : place + 3] == ["no", f"{found['latency_ms']:.2f}"]
        assert page.cells[place + 5] == f"{found['map50']:.4f}"


@pytest.mark.parametrize(("target", "share"), [(20.0, 0.0), (16.0, 0.2), (12.0, 0.35), (4.0, 0.95)])
def test_how_much_has_to_go(target, share):
    assert share_by_sweep(ROWS, "slim", target) == pytest.approx(share)


def test_out_of_reach():
    with pytest.raises(UserError, match="--target-ms 3: slim pruning leaves about 4 milliseconds of this network"):
        share_by_sweep(ROWS, "slim", 3.0)


@pytest.mark.parametrize(("words", "said"), [
    ("--target-ms 3", "--target-ms: name the runtime of the milliseconds with --runtime"),
    ("--runtime torch", "--runtime: is about milliseconds; add --target-ms T, or leave it out"),
    ("--threads 2 --target-macs 0.5", "--threads: is about milliseconds"),
    ("--target-ms 3 --runtime torch --bits 8", "--runtime torch --bits 8: it computes no network in 8-bit"),
])  # fmt: skip
def test_budgets_that_cannot_be(words, said):
    args = compress.get_parser().parse_args(words.split())
    with pytest.raises(UserError, match=said):
        options_of(compress.CompressOptions, vars(args)).deployment()


def test_a_budget_is_kept_to_three_percent():
    aim = Aim("ms", 10.0, None)
    assert str(aim) == "about 10.00 milliseconds, to 3%"
    assert [aim.is_kept({}, {"latency_ms": ms}) for ms in (9.0, 10.29, 10.31)] == [True, True, False]
