"""compress.py from a trained network to the report: each stage in this process, since starting PyTorch ten times takes long."""

import base64
import importlib
import json
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

import compress
import train
from tests.test_train import CFG, draw
from utils.compression import stages
from utils.core.errors import UserError

COMMAND = "--data d.data --weights base.pt --workers 0 --epochs 1 --refit 4 --out out --target-macs 0.6"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a small dataset, d.data, and a network that has learned a little of it, base.pt."""
    folder = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(0)
    draw(folder / "train", 24, rng)
    draw(folder / "valid", 7, rng)
    (folder / "d.names").write_text("<red>\ngreen\n")
    (folder / "d.data").write_text("classes=2\nnames=d.names\ntrain=train\nvalid=valid\n")
    (folder / "tiny.cfg").write_text(CFG)
    words = f"--data {folder}/d.data --cfg {folder}/tiny.cfg --epochs 60 --workers 0 --notest --nosave --logdir= "
    words += f"--weights-dir {folder} --results-dir {folder}"
    train.main(train.get_parser().parse_args(words.split()))
    (folder / "last.pt").rename(folder / "base.pt")
    return folder


class Calls:
    """Runs the scripts in this process; `die_at`: the script at whose start the whole command is killed."""

    def __init__(self) -> None:
        self.words: list[list[str]] = []
        self.die_at = ""

    def __call__(self, words: list[str], limit: float | None, handle: int) -> tuple[int, str]:
        if words[0] == self.die_at:
            raise SystemError("killed")
        self.words.append(words)
        script = importlib.import_module(words[0].removesuffix(".py"))
        try:
            script.main(script.get_parser().parse_args(words[1:]))
        except SystemExit as end:
            return int(end.code), ""
        except UserError as error:
            return 2, f"{words[0]}: {error}"
        return 0, ""


@pytest.fixture
def calls(trained, monkeypatch) -> Calls:
    monkeypatch.chdir(trained)
    recorded = Calls()
    monkeypatch.setattr(stages, "launch", recorded)
    return recorded


def run(text: str) -> dict:
    return compress.main(compress.get_parser().parse_args(text.split()))


class Page(HTMLParser):
    """The cells of all tables, the images, and every address of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.pictures: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.addresses += [found[name] for name in ("src", "href", "srcset", "data") if found.get(name)]
        if tag == "img":
            self.pictures.append(found["src"])
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cells and self.get_starttag_text().startswith(("<td", "<th")):
            self.cells[-1] += data


def test_killed_and_gone_on_with_to_the_report(calls, trained):
    calls.die_at = "slim_prune.py"
    with pytest.raises(SystemError):
        run(COMMAND)
    assert [words[0] for words in calls.words] == ["check.py", "test.py", "train.py"]
    calls.die_at, calls.words = "", []
    result = run(COMMAND)
    assert [words[0] for words in calls.words][:3] == ["slim_prune.py", "train.py", "test.py"]
    assert result["is_kept"]
    assert result["after"]["macs"] <= 0.6 * result["before"]["macs"]
    assert json.loads(Path("out/compress.json").read_text())["result"] == json.loads(json.dumps(result, default=float))
    for kind in ("pt", "weights", "cfg"):
        assert Path(f"out/network.{kind}").stat().st_size > 0
    check_page(Path("out/report.html").read_text(), result)
    calls.words = []
    run(COMMAND)
    assert calls.words == []


def check_page(text: str, result: dict) -> None:
    page = Page(text)
    assert "script" not in page.tags
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert len(page.pictures) == 12
    for address in page.pictures:
        encoded = np.frombuffer(base64.b64decode(address.partition(",")[2]), np.uint8)
        assert cv2.imdecode(encoded, cv2.IMREAD_COLOR).shape == (64, 64, 3)
    cells = page.cells
    for title, key in (("parameters", "params"), ("MACs", "macs")):
        place = cells.index(title, cells.index("change"))
        assert cells[place + 1 : place + 3] == [f"{result[when][key]:,}" for when in ("before", "after")]
    place = cells.index("mAP@0.5", cells.index("change"))
    assert cells[place + 1 : place + 3] == [f"{result[when]['map50']:.4f}" for when in ("before", "after")]
    for old, new in zip(result["before"]["per_class"], result["after"]["per_class"], strict=True):
        place = cells.index(old["name"])  # <red> is a name here and no tag
        assert cells[place + 2 : place + 4] == [f"{old['map50']:.4f}", f"{new['map50']:.4f}"]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("--data nowhere.data --weights base.pt", "nowhere.data: this .data file does not exist"),
        ("--weights base.pt", "name the dataset with --data: its .data file, or its folder"),
        ("--data d.data --cfg none.cfg", "none.cfg: this cfg does not exist"),
        ("--data d.data --weights none.pt", "none.pt: these weights do not exist"),
        ("--data d.data --weights d.data --out new", "d.data: carries no cfg; name the one it belongs to with --cfg"),
        ("--data d.data --weights base.pt --out new --device 63", "--device 63: this machine has"),
        ("--data novalid.data --weights base.pt", "novalid.data: needs a line `valid=`"),
        ("--data one.data --weights base.pt", "one.txt: has 1 image to train on"),
        ("--data three.data --weights base.pt", "layers have classes=2, but three.data has 3"),
        ("--data d.data --weights base.pt --out d.names/x", "d.names is no folder; choose another"),
        (
            "--data d.data --weights base.pt --out big --target-params 9M",
            "--target-params 9M: the network has 8,934 parameters",
        ),
        ("--data d.data --weights base.pt --out small --target-macs 1", "slim pruning leaves at least"),
    ],
)
def test_what_can_not_be_done_is_told_in_a_line(command, told, calls, trained):
    Path("novalid.data").write_text("classes=2\ntrain=train\n")
    Path("one.txt").write_text("train/0.png\n")
    Path("one.data").write_text("classes=2\ntrain=one.txt\nvalid=valid\n")
    Path("three.data").write_text("classes=3\ntrain=train\nvalid=valid\n")
    with pytest.raises(UserError) as error:
        run(f"{command} --workers 0")
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert not [words for words in calls.words if words[0] not in ("check.py", "test.py")]
    assert not Path("new").exists()


@pytest.mark.parametrize(
    "words", ["--target-macs 0", "--target-macs 0.5 --max-drop 0.1", "--target-macs 0.5 --target-params 0.5"]
)
def test_budgets_that_the_command_line_refuses(words, capsys):
    with pytest.raises(SystemExit) as end:
        compress.get_parser().parse_args(words.split())
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
