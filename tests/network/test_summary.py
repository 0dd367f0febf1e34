"""utils.network.summary and `python models.py`: MACs of every layer against the formula."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from models import get_parser, main
from tests.tiny import DIALECT, TOPOLOGIES
from utils.core.errors import UserError
from utils.network.cfg import parse_cfg
from utils.network.darknet import Darknet
from utils.network.definitions import Convolutional, Depthwise, SqueezeExcite
from utils.network.shapes import input_channels, output_shapes
from utils.network.summary import summarise, totals

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_macs_layer_by_layer(name):
    """k * k * in / groups * out * height * width for a convolution, 2 * channels * hidden for an [se]."""
    defs = parse_cfg(TOPOLOGIES[name])
    shapes = output_shapes(defs, 64, 96)
    layers, sum_of_macs = summarise(defs, 64, 96), 0
    for i, d in enumerate(defs):
        channels, (filters, height, width) = input_channels(defs, shapes, i)[0], shapes[i]
        macs = 0
        if isinstance(d, Convolutional):
            groups = channels if isinstance(d, Depthwise) else d.groups
            macs = d.size**2 * channels // groups * filters * height * width
        elif isinstance(d, SqueezeExcite):
            macs = 2 * channels * (channels // d.reduction)
        sum_of_macs += macs
        assert (layers[i].index, layers[i].kind, layers[i].macs) == (i, d.kind, macs)
        assert layers[i].shape == shapes[i]
        assert layers[i].sources == defs.sources(i)
    model = Darknet(defs, (64, 96))
    total = totals(layers)
    assert total["macs"] == sum_of_macs
    assert total["params"] == sum(p.numel() for p in model.parameters())
    assert total["bflops"] == 2 * total["macs"] / 1e9


def test_table_and_figures(tmp_path, capsys):
    (tmp_path / "net.cfg").write_text(DIALECT)
    figures = main(get_parser().parse_args(["--cfg", str(tmp_path / "net.cfg"), "--json", str(tmp_path / "a.json")]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "kind", "from", "output", "WxHxC", "parameters", "MACs"]
    assert lines[2].split() == ["0", "convolutional", "image", "32x32x8", "232", "221,184"]  # 3*3*3*8 weights and 2*8; *32*32
    assert lines[7].split() == ["5", "shortcut", "4,1", "32x32x8", "0", "0"]
    assert lines[-1].startswith(f"{tmp_path}/net.cfg at 64x64x3: 8 layers, {figures['params']:,} parameters, ")
    written = json.loads((tmp_path / "a.json").read_text())
    assert written == json.loads(json.dumps(figures))
    assert written["macs"] == sum(row["macs"] for row in written["layers"])
    with pytest.raises(UserError, match="--img-size 63"):
        main(get_parser().parse_args(["--cfg", str(tmp_path / "net.cfg"), "--img-size", "63"]))


def test_models_is_a_script_too(tmp_path):
    (tmp_path / "net.cfg").write_text(DIALECT)
    command = [sys.executable, str(ROOT / "models.py"), "--cfg", str(tmp_path / "net.cfg"), "--img_size", "32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "16x16x8" in done.stdout
