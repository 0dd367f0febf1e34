"""Which criterion prunes: --importance, --spend, --refit and --dry-run as a user types them."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.scripts.test_prune import here, prune, write  # noqa: F401 - a fixture
from tests.tiny import RESIDUAL, network
from utils.core.errors import UserError
from utils.network.weights import save_weights
from utils.pruning.graph import ChannelGraph
from utils.pruning.importance import CRITERIA, Evidence
from utils.pruning.masks import Limits
from utils.pruning.pruner import Amount, Pruner
from utils.pruning.residual_blocks import residual_blocks

pytestmark = pytest.mark.usefixtures("here")
BLIND = [name for name, criterion in CRITERIA.items() if not criterion.needs]


def sparse() -> None:
    """Half of the prunable gammas next to nothing."""
    model = write(RESIDUAL)
    for index in (0, 2, 5):
        gamma = model.module_list[index].BatchNorm2d.weight.data
        gamma[: len(gamma) // 2] = 0.001
    save_weights(model, "net.weights")


@pytest.mark.parametrize(
    ("make_sparse", "options", "name", "reason"),
    [
        (True, "--percent 0.5", "gamma", "the gammas are sparse enough for --percent 0.5"),
        (True, "--percent 0.7", "group-norm", "aren't sparse enough for --percent 0.7, and without --data"),
        (False, "--percent 0.5 --data d.data", "taylor", "the gammas aren't sparse enough for --percent 0.5"),
        (False, "--percent 0.5 --data d.data --refit 2", "obs", "for --percent 0.5, and --refit makes up for what goes"),
        (False, "--target-params 0.7", "group-norm", "aren't sparse enough for --percent 0."),
        (True, "--percent 0.5 --importance lamp", "lamp", None),
    ],
)
def test_auto_takes_the_gammas_where_they_are_sparse_and_says_why(make_sparse, options, name, reason, capsys):
    sparse() if make_sparse else write(RESIDUAL)
    figures = prune("normal", f"{options} --importance-images 3")
    assert figures["importance"] == {"name": name, "images": 3 if name in ("taylor", "obs") else 0}
    said = capsys.readouterr().out
    assert (f"importance: {name}, as " in said) == (reason is not None)
    assert reason is None or reason in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--importance taylor", "--importance taylor needs --data FILE.data"),
        ("--importance gamma,lamp", "--importance gamma,lamp: several can be compared with --dry-run; name one"),
        ("--importance all", "several can be compared with --dry-run"),
        ("--dry-run --importance all", "--importance taylor needs --data"),
        ("--refit 4", "--refit needs --data"),
    ],
)
def test_what_cannot_be_had_is_refused(options, message):
    write(RESIDUAL)
    with pytest.raises(UserError) as error:
        prune("slim", options)
    assert message in str(error.value)


def test_an_unknown_name_ends_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        prune("slim", "--importance magic")
    assert (
        "magic: choose from auto, gamma, taylor, fisher, obd, obs, group-norm, fpgm, lamp, uniform" in capsys.readouterr().err
    )


def test_dry_run_compares_all_and_json_tells_them_apart(here, capsys):  # noqa: F811
    write(RESIDUAL)
    figures = prune("slim", "--data d.data --dry-run --importance all --importance-images 2 --json f.json")
    rows = json.loads((here / "f.json").read_text())["sweep"]
    assert len(rows) == len(figures["sweep"]) == 14 * len(CRITERIA)
    assert list(dict.fromkeys(row["importance"] for row in rows)) == list(CRITERIA)
    assert (here / "out/slim_sweep_net.png").stat().st_size > 1000
    assert capsys.readouterr().out.count("group-norm") >= 14


def test_every_stage_is_measured_and_reported(capsys):
    write(RESIDUAL)
    figures = prune("slim", "--data d.data --importance fisher --spend macs --importance-images 2 --refit 4 --bn-recal 4")
    assert figures["importance"] == {"name": "fisher", "images": 2}
    assert figures["spend"] == "macs"
    assert figures["refit"]["images"] == figures["bn_recal"]["images"] == 4
    assert figures["refit"]["layers"] > 3
    assert figures["refit"]["after"] == figures["bn_recal"]["before"]
    assert {k: figures["after"][k] for k in ("map50", "map")} == figures["bn_recal"]["after"]
    said = capsys.readouterr().out
    assert "refitted to 4 images" in said
    assert "BN from 4 images" in said


@pytest.mark.parametrize(
    ("options", "spend"),
    [
        ("--importance obs --target-macs 0.7", "macs"),
        ("--importance obs --target-params 0.7", "params"),
        ("--importance obs --target-params 0.7 --spend macs", "macs"),
        ("--importance obs --target-macs 0.7 --spend none", "none"),
        ("--importance obs --percent 0.3", "none"),
        ("--importance fisher --target-macs 0.7", "none"),
    ],
)
def test_obs_weighs_against_what_the_target_limits(options, spend, capsys):
    write(RESIDUAL)
    figures = prune("slim", f"--data d.data --importance-images 2 {options}")
    assert figures["spend"] == spend
    assert figures["importance"]["images"] == 2
    said = f"spend: {spend}, as --target-{spend} limits them"
    assert (said in capsys.readouterr().out) == (spend != "none" and "--spend" not in options)


def test_refit_changes_the_weights_only():
    write(RESIDUAL)
    plain = prune("slim", "--data d.data --importance gamma")
    cfg, weights = Path(plain["cfg"]).read_text(), Path(plain["weights"]).read_bytes()
    again = prune("slim", "--data d.data --importance gamma --refit 4")
    assert Path(again["cfg"]).read_text() == cfg
    assert Path(again["weights"]).read_bytes() != weights
    assert again["max_abs_diff"] == plain["max_abs_diff"]


@pytest.mark.parametrize("name", BLIND)
def test_a_criterion_of_kernels_leaves_blocks_to_the_gammas(name):
    model = network(RESIDUAL)
    keep = np.ones(ChannelGraph(model.defs).count, dtype=bool)
    scores = Pruner(model, "layer", Limits(), name).block_scores(keep)
    np.testing.assert_array_equal(scores, Pruner(model, "layer", Limits()).block_scores(keep))


def test_a_block_is_worth_what_the_loss_says_of_its_end():
    model = network(RESIDUAL)
    graph = ChannelGraph(model.defs)
    terms = np.random.default_rng(0).normal(size=(3, len(graph.label)))
    pruner = Pruner(model, "layer", Limits(), "taylor", Evidence(terms=terms))
    expected = [np.abs(terms[:, graph.raw_out[b.ends[0]]].sum(1)).sum() for b in residual_blocks(graph)]
    np.testing.assert_allclose(pruner.block_scores(np.ones(graph.count, dtype=bool)), expected)
    assert pruner.choose(Amount(0.0, 1)).dropped == [residual_blocks(graph)[int(np.argmin(expected))]]
