"""The prune scripts: amounts, limits, goals, what they write, and what they refuse."""

import importlib
import json

import pytest

from tests.test_train import write_set
from tests.tiny import CSP, DEPTHWISE, DFL, NET, RESIDUAL, SPP, conv, head, network
from utils.core.errors import UserError
from utils.network.cfg import parse_cfg
from utils.network.checkpoint import save_checkpoint
from utils.network.darknet import Darknet
from utils.network.definitions import Convolutional
from utils.network.weights import load_weights, save_weights
from utils.pruning import amounts as search
from utils.pruning.graph import ChannelGraph
from utils.pruning.pruner import STRATEGIES
from utils.quantized.settings import Settings
from utils.quantized.transform import quantize
from utils.scripts.evaluator import Evaluator

GROUPED = NET + conv(8) + conv(16) + conv(16, groups=2) + conv(8) + conv(8) + head()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with the dataset of test_train."""
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path)
    return tmp_path


def write(cfg: str, name: str = "net") -> Darknet:
    model = network(cfg)
    with open(f"{name}.cfg", "w") as file:
        file.write(cfg)
    save_weights(model, f"{name}.weights")
    return model


def prune(strategy: str, options: str = "", name: str = "net") -> dict:
    script = importlib.import_module(f"{strategy}_prune")
    words = f"--cfg {name}.cfg --weights {name}.weights --device cpu --workers 0 --save-dir out {options}".split()
    return script.main(script.get_parser().parse_args(words))


def filters(figures: dict) -> list[int]:
    return [d.filters for d in parse_cfg(figures["cfg"]) if isinstance(d, Convolutional)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_script_writes_a_smaller_network_that_its_weights_fit(here, strategy):
    model = write(RESIDUAL)
    options = {"layer": "--shortcut 1", "layer_channel": "--shortcut 1 --min-channels 2", "regular": "--round-to 2"}
    figures = prune(strategy, f"--json figures.json {options.get(strategy, '')}")
    assert json.loads((here / "figures.json").read_text()) == json.loads(json.dumps(figures, default=float))
    small = Darknet(figures["cfg"], 64)
    load_weights(small, figures["weights"], prefix=False)
    assert figures["after"]["params"] == sum(p.numel() for p in small.parameters()) < figures["before"]["params"]
    assert figures["before"]["params"] == sum(p.numel() for p in model.parameters())
    assert figures["after"]["macs"] < figures["before"]["macs"]
    assert (here / "out").joinpath(figures["cfg"].split("/")[-1].replace(".cfg", ".png")).stat().st_size > 1000
    assert "\n" + "filters=" in (here / figures["cfg"]).read_text()
    assert " =" not in (here / figures["cfg"]).read_text()
    assert len(small.module_list) == len(model.module_list) - (3 if "layer" in strategy else 0)
    assert figures["achieved"] == pytest.approx(1 if strategy == "layer" else 0.5, abs=0.1)
    assert filters(figures) == [row["after"] for row in figures["layers"] if row["after"]]


def test_names_tell_strategy_and_amount(here):
    write(RESIDUAL)
    folders = [prune(*case)["weights"] for case in (("slim", "--percent 0.25"), ("layer", "--shortcuts 2"),
                                                    ("layer_channel", "--shortcuts 1 --percent 0.3"))]  # fmt: skip
    assert folders == [f"out/{name}_net.weights" for name in ("slim_0.25", "layer_2", "layer_channel_0.3_1")]
    figures = importlib.import_module("slim_prune")
    args = figures.get_parser().parse_args(["--cfg", "net.cfg", "--weights", "net.weights", "--device", "cpu"])
    assert figures.main(args)["cfg"] == f"cfg/slim_0.5_{here.name}/slim_0.5_net.cfg"


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        ("layer", "--shortcuts 3", "net.cfg: --shortcuts 3: there are 2 residual blocks; --force drops them all"),
        ("layer", "--shortcuts 0", "--shortcuts 0: give the number of residual blocks to drop, 1 to 2"),
        ("slim", "--max-drop 0.1", "--max-drop needs --data"),
        ("slim", "--bn-recal 4", "--bn-recal needs --data"),
        ("slim", "--target-params 10", "--target-params 10: slim pruning leaves at least"),
    ],
)
def test_what_cannot_be_had_is_refused_and_nothing_is_written(here, strategy, options, message):
    write(RESIDUAL)
    with pytest.raises(UserError) as error:
        prune(strategy, options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (here / "out").exists()


@pytest.mark.parametrize("strategy", ["layer", "layer_channel"])
def test_layer_pruning_without_blocks_is_refused_before_data_is_loaded(here, strategy, monkeypatch):
    write(CSP)
    monkeypatch.setattr(Evaluator, "_loader", lambda *_: pytest.fail("data were loaded"))
    with pytest.raises(UserError, match=r"net.cfg: has no residual blocks that could be dropped; use normal"):
        prune(strategy, "--data d.data")


def test_a_quantized_network_is_refused(here):
    model, settings = write(RESIDUAL), Settings(1)
    content = {"model": quantize(model, settings).state_dict(), "cfg": RESIDUAL, "quantization": settings.to_dict()}
    save_checkpoint("net.weights", content)
    with pytest.raises(UserError, match=r"net.weights: is quantized; prune the float network first"):
        prune("slim")
    assert not (here / "out").exists()


def test_an_output_path_that_is_a_folder_is_refused(here):
    write(RESIDUAL)
    (here / "out/slim_0.5_net.weights").mkdir(parents=True)
    with pytest.raises(UserError, match=r"out/slim_0.5_net.weights: is a folder"):
        prune("slim")
    assert not (here / "out/slim_0.5_net.cfg").exists()


def test_force_takes_the_nearest_that_can_be_had(here):
    write(RESIDUAL)
    assert prune("layer", "--shortcuts 9 --force")["shortcuts"]["achieved"] == 2
    least = prune("slim", "--target-params 10 --force")["after"]["params"]
    assert least == prune("slim", "--percent 0.999")["after"]["params"]


def test_percent_0_changes_nothing(here):
    model = write(RESIDUAL)
    figures = prune("normal", "--percent 0")
    assert parse_cfg(figures["cfg"]) == model.defs
    assert (here / figures["weights"]).read_bytes() == (here / "net.weights").read_bytes()
    assert figures["achieved"] == 0


@pytest.mark.parametrize("strategy", ["normal", "regular", "shortcut", "slim"])
def test_above_the_limit_every_layer_keeps_something(here, strategy, capsys):
    write(SPP)
    figures = prune(strategy, "--percent 0.95 --min-channels 2 --round-to 1")
    assert min(filters(figures)) == 2
    assert figures["achieved"] < 0.95
    said = capsys.readouterr().out
    assert f"requested 0.95, achieved {figures['achieved']:.3f}" in said
    assert f"warning: above {figures['limit']:.3f} whole layers would be empty" in said


@pytest.mark.parametrize("strategy", ["normal", "regular", "shortcut", "slim"])
def test_round_to_holds_for_shared_and_frozen_channels_too(here, strategy):
    write(RESIDUAL)
    counts = filters(prune(strategy, "--percent 0.6 --round-to 4"))
    original = [row["before"] for row in prune(strategy, "--percent 0")["layers"]]
    assert all(n % 4 == 0 or n == before for n, before in zip(counts, original, strict=True))
    assert sum(counts) < sum(original)


def test_layer_keep(here):
    write(CSP)
    counts = [(row["before"], row["after"]) for row in prune("slim", "--percent 0.9 --layer-keep 0.5")["layers"]]
    assert all(2 * after >= before for before, after in counts)


def test_a_depthwise_convolution_keeps_in_out_and_groups_equal(here):
    write(DEPTHWISE)
    defs = parse_cfg(prune("normal", "--percent 0.1")["cfg"])
    assert 1 < defs[1].filters == defs[2].filters == defs[2].groups == defs[5].filters < 16


def test_grouped_convolutions_are_left_whole_and_said_so(here, capsys):
    write(GROUPED)
    assert filters(prune("slim", "--percent 0.5"))[1:3] == [16, 16]
    assert "left whole, being grouped convolutions: layers 2" in capsys.readouterr().out


@pytest.mark.parametrize(("strategy", "goal"), [("slim", "0.4"), ("slim", "1.1k"), ("normal", "0.7"), ("layer", "0.7")])
def test_targets_are_reached_by_the_smallest_amount(here, strategy, goal):
    write(RESIDUAL)
    figures = prune(strategy, f"--target-params {goal}")
    most = search.Target(goal).of(figures["before"]["params"])
    assert figures["after"]["params"] <= most
    less = f"--shortcuts {figures['requested'] - 1}" if strategy == "layer" else f"--percent {figures['requested'] - 0.001}"
    assert less == "--shortcuts 0" or prune(strategy, less)["after"]["params"] > most
    macs = prune(strategy, "--target-macs 0.8")
    assert macs["after"]["macs"] <= 0.8 * macs["before"]["macs"]


@pytest.mark.parametrize(("text", "value"), [("0.25", 25.0), ("2.5k", 2500.0), ("3M", 3e6), ("1.2G", 1.2e9), ("7", 7.0)])
def test_what_targets_mean(text, value):
    assert search.Target(text).of(100) == value


def test_first_true_is_found_by_few_questions():
    asked = []

    def holds(n: int) -> bool:
        asked.append(n)
        return n >= 700

    assert search.first_true(range(1000), holds) == 700
    assert len(asked) <= 10
    assert search.first_true([1, 2], lambda n: False) is None


@pytest.mark.parametrize(("strategy", "expected"), [("slim", 0.37), ("layer", 1)])
def test_max_drop_takes_the_largest_amount_that_keeps_the_accuracy(here, strategy, expected, monkeypatch):
    """The accuracy is made up: 0.9 up to 37.5 percent or one block, 0.5 beyond."""
    write(RESIDUAL)

    def accuracy(self, model, what):
        amount = dict(zip(what.split()[::2], map(float, what.split()[1::2]), strict=True)) if "--" in what else {}
        fallen = amount.get("--percent", 0) > 0.375 or amount.get("--shortcuts", 0) > 1
        return {"map50": 0.5 if fallen else 0.9, "map": 0.4}

    monkeypatch.setattr(Evaluator, "accuracy", accuracy)
    assert prune(strategy, "--data d.data --max-drop 0.01")["requested"] == expected


def test_max_drop_that_the_smallest_amount_exceeds(here, monkeypatch):
    write(RESIDUAL)
    monkeypatch.setattr(Evaluator, "accuracy", lambda self, model, what: {"map50": 0.1 if "--" in what else 0.9, "map": 0.4})
    with pytest.raises(UserError, match=r"--percent 0.01 already leaves an mAP@0.5 under 0.890; train sparse"):
        prune("slim", "--data d.data --max-drop 0.01")
    assert prune("slim", "--data d.data --max-drop 0.01 --force")["requested"] == 0.01


def test_a_dead_network_is_called_out_before_it_is_written(here, monkeypatch, capsys):
    write(RESIDUAL)
    maps = {"original": 0.9}
    monkeypatch.setattr(Evaluator, "accuracy", lambda self, model, what: {"map50": maps.get(what, 0.01), "map": 0.1})
    monkeypatch.setattr("utils.scripts.prune.save", lambda *_: print("SAVED"))
    prune("slim", "--data d.data")
    said = capsys.readouterr().out
    assert 0 < said.index("warning: with --percent 0.5 mAP@0.5 falls from 0.900 to 0.010") < said.index("SAVED")


def test_the_sparsity_warning_follows_the_documented_rule(here, capsys):
    model = write(RESIDUAL)
    prune("normal", "--percent 0.5 --importance gamma")
    assert "warning: the gammas aren't sparse: those of removed channels reach" in capsys.readouterr().out
    graph = ChannelGraph(model.defs)
    for index in (0, 2, 5):
        gamma = model.module_list[index].BatchNorm2d.weight.data
        gamma[: len(gamma) // 2] = 0.05  # the rest stays at 0.2 or more
    save_weights(model, "net.weights")
    figures = prune("normal", "--percent 0.5 --importance gamma")
    assert "aren't sparse" not in capsys.readouterr().out
    assert figures["achieved"] == 0.5
    assert not graph.grouped


@pytest.mark.parametrize(("strategy", "column", "rows"), [("slim", "percent", 14), ("layer", "shortcuts", 2)])
@pytest.mark.parametrize("data", ["", "--data d.data"])
def test_dry_run_sweeps_and_writes_a_picture_only(here, strategy, column, rows, data, capsys):
    write(RESIDUAL)
    figures = prune(strategy, f"--dry-run {data}")
    assert [p.name for p in (here / "out").iterdir()] == [f"{strategy}_sweep_net.png"]
    sweep = figures["sweep"]
    assert len(sweep) == rows
    assert [row["params"] for row in sweep] == sorted((row["params"] for row in sweep), reverse=True)
    assert all((row["map50"] is None) != bool(data) for row in sweep)
    chosen = sweep[rows // 2]
    amount = f"--{column} {chosen[column]}"
    after = prune(strategy, f"{amount} {data}")["after"]  # with images the choice is another
    assert (after["params"], after["macs"]) == (chosen["params"], chosen["macs"])
    assert f"{chosen['params']:,}" in capsys.readouterr().out


def test_a_network_that_detects_nothing_has_map_0_and_bn_recal_is_reported(here, capsys):
    model = write(RESIDUAL)
    head_bias = model.module_list[8].conv.bias.data
    head_bias.view(2, 7)[:, 4] = -50  # no objectness anywhere
    save_weights(model, "net.weights")
    figures = prune("slim", "--data d.data --bn-recal 4")
    assert figures["before"]["map50"] == figures["masked"]["map50"] == figures["after"]["map50"] == 0
    assert figures["bn_recal"] == {"images": 4, "before": {"map50": 0.0, "map": 0.0}, "after": {"map50": 0.0, "map": 0.0}}
    assert "BN from 4 images" in capsys.readouterr().out


def test_a_coco_json_judges_here_too(here):
    write(RESIDUAL)
    (here / "truth.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    with open("d.data", "a") as file:
        file.write("coco_json=truth.json\n")
    with pytest.raises(UserError, match=r"truth.json: lists no image valid/0.png"):
        prune("normal", "--data d.data")


def test_the_next_command_has_the_settings_that_weights_do_not_carry(here, capsys):
    model = write(RESIDUAL)
    settings = {"img_size": 96, "gray": False, "maxabs": True, "stretch": True}
    save_checkpoint("net.weights", {"model": model.state_dict(), "cfg": RESIDUAL, "settings": settings})
    prune("slim")
    assert ".weights -pt --finetune --maxabsscaler --stretch --img-size 96 --epochs ..." in capsys.readouterr().out
    prune("slim", "--data d.data")
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("next:     python train.py --data d.data --cfg out/slim_0.")
    assert said.endswith(".weights -pt --finetune --maxabsscaler --stretch --img-size 96 --epochs 100")


def test_help_states_the_rule_of_the_warning(capsys):
    for strategy in STRATEGIES:
        parser = importlib.import_module(f"{strategy}_prune").get_parser()
        text = " ".join(parser.format_help().split())
        assert "not sparse" in text
        assert "above 0.1 and above a tenth of the median" in text


@pytest.mark.parametrize(("flag", "divided"), [("", [1]), ("--split-halves", [1]), ("--no-split-halves", [])])
def test_halves_are_written_apart_where_that_spares_channels(here, capsys, flag, divided):
    """The first half of a C2f block's convolution is weak, the second isn't."""
    model = write(DFL)
    model.module_list[1].BatchNorm2d.weight.data[:8] *= 1e-3
    save_weights(model, "net.weights")
    figures = prune("slim", f"--percent 0.15 --importance gamma {flag}")
    assert figures["divided"] == divided
    assert ("written in parts, which keep different numbers of channels: layers 1\n" in capsys.readouterr().out) == bool(
        divided
    )
    assert figures["layers"][1]["after"] < 16 if divided else figures["layers"][1]["after"] == 16
    small = Darknet(figures["cfg"], 64)
    load_weights(small, figures["weights"], prefix=False)
    assert figures["after"]["params"] == sum(p.numel() for p in small.parameters())
    assert len(small.defs) == len(model.defs) + 2 * len(divided)
