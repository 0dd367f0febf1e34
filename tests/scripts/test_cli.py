"""utils.scripts.cli: flags in both spellings, tables, loading, and users' mistakes in one line with exit status 2."""

import argparse
import json
import os
import subprocess
import sys

import pytest

from tests.tiny import CSP, NET, RESIDUAL, conv, head, network
from utils.core.devices import select_device
from utils.core.errors import UserError
from utils.core.tables import format_table, write_json
from utils.data.data_file import read_data
from utils.loading import load_model
from utils.network.checkpoint import save_checkpoint
from utils.network.weights import save_weights
from utils.scripts.cli import Parser, run

SCRIPTS = (
    "train", "test", "detect", "convert", "fetch_weights", "make_cfg", "convert_dataset", "benchmark", "normal_prune", "demo",
    "check", "PTQ", "export", "benchmark_data",
    "data/make_shapes", "cfg/make_variants",
)  # fmt: skip


def parser() -> Parser:
    found = Parser("about")
    found.add_argument("--layer_keep", type=float, default=0.01)
    found.add_argument("--img-size", type=int)
    found.add_argument("--multi-scale", action="store_true")
    return found


@pytest.mark.parametrize("words", [["--layer-keep", "0.5", "--img_size=64", "--multi_scale"],
                                   ["--layer_keep=0.5", "--img-size", "64", "--multi-scale"]])  # fmt: skip
def test_dashes_and_underscores_are_the_same(words):
    args = parser().parse_args(words)
    assert (args.layer_keep, args.img_size, args.multi_scale) == (0.5, 64, True)


@pytest.mark.parametrize("device", ["²", "cuda:²", "9" * 5000, "-1", "gpu"])
def test_devices_that_are_none(device):
    with pytest.raises(UserError, match="this machine has .* CUDA devices; use --device"):
        select_device(device)


def test_values_that_look_like_flags_are_left_alone():
    assert Parser("x")._spelled("a_b-c") == "a_b-c"
    assert parser().parse_args(["--layer_keep", "-1"]).layer_keep == -1


def test_unknown_flags_end_in_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(["--quantum"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("raised", "status"), [(UserError("x.cfg:3: wrong"), 2), (KeyboardInterrupt(), 130)])
def test_run_turns_mistakes_into_one_line(raised, status, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tool.py"])

    def main(args: argparse.Namespace) -> None:
        raise raised

    with pytest.raises(SystemExit) as stop:
        run(main, Parser("x"))
    assert stop.value.code == status
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\u2028b", "a\x1b[2Kb"])
def test_a_name_with_ends_of_lines_stays_on_one(name, capsys, monkeypatch):
    def main(args: argparse.Namespace) -> None:
        raise UserError(f"红/{name}.jpg: wrong")

    monkeypatch.setattr(sys, "argv", ["tool.py"])
    with pytest.raises(SystemExit):
        run(main, Parser("x"))
    assert capsys.readouterr().err == f"tool.py: 红/{repr(name)[1:-1]}.jpg: wrong\n"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "gbk", "utf-8"])
def test_every_terminal_shows_what_it_can(encoding):
    """Letters that it lacks, and bytes of names that are no text, come as escapes on both streams and from tqdm."""
    code = ("from utils.scripts.cli import Parser, run; from utils.core.errors import UserError; from tqdm import tqdm\n"
            "def main(args):\n    print('é行\\udcff'); tqdm.write('é行\\udcff'); raise UserError('é行\\udcff')\n"
            "run(main, Parser('x'))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding})
    expected = "é行\udcff".encode(encoding, "backslashreplace")
    assert done.stdout == (expected + b"\n") * 2
    assert done.stderr == b"-c: " + expected + b"\n"
    assert done.returncode == 2


def test_a_json_that_cannot_be_written_is_named_before_the_work(tmp_path, capsys, monkeypatch):
    found = Parser("x")
    found.add_argument("--json", default="")
    monkeypatch.setattr(sys, "argv", ["tool.py", "--json", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        run(lambda args: pytest.fail("the work has begun"), found)
    assert stop.value.code == 2
    assert "is a folder, but a file is to be written there" in capsys.readouterr().err


def test_table():
    text = format_table(["name", "mAP", "n"], [["a", 0.123456, 1234567], ["bcd", None, 8]])
    rows = ["name     mAP          n", "-----------------------", "a     0.1235  1,234,567", "bcd        -          8"]
    assert text.splitlines() == rows


def test_a_checkpoint_brings_its_cfg_names_and_size(tmp_path):
    model = network(RESIDUAL)
    data = {"model": model.state_dict(), "cfg": RESIDUAL, "names": ["cat", "dog"], "settings": {"img_size": 96, "gray": False}}
    save_checkpoint(tmp_path / "a.pt", data)
    loaded = load_model("", tmp_path / "a.pt")
    assert (loaded.names, loaded.img_size, loaded.settings["gray"]) == (["cat", "dog"], 96, False)
    with pytest.raises(UserError, match=r"is \(8, 3, 3, 3\) there, but this cfg makes it \(6, 3, 3, 3\)"):
        load_model(write(tmp_path / "other.cfg", RESIDUAL.replace("filters=8", "filters=6")), tmp_path / "a.pt")


def test_names_of_another_number_of_classes_are_not_the_networks(tmp_path):
    save_checkpoint(tmp_path / "a.pt", {"model": network(RESIDUAL).state_dict(), "cfg": RESIDUAL, "names": ["cat"]})
    assert load_model("", tmp_path / "a.pt").names == ["0", "1"]


def test_weights_that_are_nan_or_infinite_are_refused(tmp_path):
    model = network(RESIDUAL)
    model.module_list[1].BatchNorm2d.weight.data[2] = float("nan")
    model.module_list[2].BatchNorm2d.running_var[1] = float("nan")
    model.module_list[3].conv.weight.data[0, 0, 0, 0] = float("inf")
    save_weights(model, tmp_path / "a.weights")
    cfg = write(tmp_path / "a.cfg", RESIDUAL)
    with pytest.raises(UserError, match=r"a.weights: tensors with NaN or infinite values: 3, the first is module_list.1.Ba"):
        load_model(cfg, tmp_path / "a.weights")
    assert not load_model(cfg, tmp_path / "a.weights", unchecked=True).model.training


def test_weights_without_their_cfg_ask_for_it(tmp_path):
    save_weights(network(CSP), tmp_path / "a.weights")
    with pytest.raises(UserError, match="name the one it belongs to with --cfg"):
        load_model("", tmp_path / "a.weights")
    with pytest.raises(UserError, match="--cfg FILE, or a checkpoint"):
        load_model("", "")


def test_classes_of_cfg_and_data_must_agree(tmp_path):
    write(tmp_path / "x.data", "classes=3\n")
    with pytest.raises(UserError, match="classes=2, but .* has 3; run: python make_cfg.py"):
        load_model(write(tmp_path / "x.cfg", RESIDUAL), "", data=read_data(tmp_path / "x.data"))


def test_two_numbers_of_classes_in_one_network_are_refused(tmp_path):
    body = NET + conv(8) + head("0", 2) + "[route]\nlayers=0\n" + head("1", 3)
    with pytest.raises(UserError, match=r"one number of classes, has \[2, 3\]"):
        load_model(write(tmp_path / "x.cfg", body), "")


def test_a_cfg_that_is_not_square_is_said(tmp_path):
    path = write(tmp_path / "x.cfg", RESIDUAL.replace("height=64", "height=32"))
    assert load_model(path, "").report.message.endswith("is made for 64x32; here its input is 64x64")
    assert load_model(path, "", 96).report.message == ""


def test_write_json(tmp_path):
    write_json(tmp_path / "deep" / "x.json", {"a": 1.5})
    assert json.loads((tmp_path / "deep" / "x.json").read_text()) == {"a": 1.5}
    write_json("", {})


def test_every_script_explains_itself(pytestconfig):
    """One process for all: importing torch takes seconds."""
    code = f"""
import importlib, sys
sys.path[:0] = ["data", "cfg"]
for name in {SCRIPTS!r}:
    module = importlib.import_module(name.split("/")[-1])
    try:
        module.get_parser().parse_args(["--help"])
    except SystemExit as stop:
        print("status", name, stop.code)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=pytestconfig.rootpath, capture_output=True, text=True, check=True)
    assert [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("status")] == [[s, "0"] for s in SCRIPTS]


@pytest.mark.parametrize("script", ["check", "convert_dataset"])
def test_tools_for_data_explain_themselves_without_pytorch(script, pytestconfig):
    """PyTorch alone takes seconds to import."""
    code = f"""
import sys, {script}
try:
    {script}.get_parser().parse_args(["--help"])
finally:
    print("loaded", *({{"torch", "matplotlib"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=pytestconfig.rootpath, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["loaded"]


def write(path, text: str):
    path.write_text(text)
    return path
