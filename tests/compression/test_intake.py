"""compress.py from a dataset's folder, and from a network that nobody has trained."""

import json
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

import compress
from tests.compression.test_compress import Calls, run
from tests.test_train import CFG, draw, write_set
from utils.compression import job, stages
from utils.compression.options import NETWORK
from utils.compression.plan import Epochs
from utils.converters.formats import recognise
from utils.core.errors import UserError

CLASSES = ("red", "green")
FLAGS = "--cfg tiny.cfg --workers 0 --epochs 2 --refit 4 --target-macs 0.6 --out out"


def write_voc(folder: Path, images: int) -> None:
    """The images that `draw` draws, with VOC's annotations instead of labels; no lists, so nothing is held out."""
    folder.mkdir()
    draw(folder / "JPEGImages", images, np.random.default_rng(0))
    (folder / "Annotations").mkdir()
    for label in sorted(folder.rglob("*.txt")):
        height, width = cv2.imread(str(next(folder.rglob(f"{label.stem}.png")))).shape[:2]
        root = ElementTree.Element("annotation")
        for row in label.read_text().splitlines():
            number, *box = row.split()
            cx, cy, w, h = np.array(box, float) * (width, height, width, height)
            item = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(item, "name").text = CLASSES[int(number)]
            bounds = ElementTree.SubElement(item, "bndbox")
            for side, value in zip(
                ("xmin", "ymin", "xmax", "ymax"), (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), strict=True
            ):
                ElementTree.SubElement(bounds, side).text = f"{value:.3f}"
        ElementTree.ElementTree(root).write(folder / "Annotations" / f"{label.stem}.xml")
        label.unlink()


@pytest.fixture
def calls(tmp_path, monkeypatch) -> Calls:
    monkeypatch.chdir(tmp_path)
    Path("tiny.cfg").write_text(CFG)
    recorded = Calls()
    monkeypatch.setattr(stages, "launch", recorded)
    monkeypatch.setattr("utils.compression.intake.launch", recorded)
    monkeypatch.setattr(job, "LEAST_MAP50", 0.0)  # two epochs teach nothing
    return recorded


def scripts(calls: Calls) -> list[str]:
    return [words[0].removesuffix(".py") for words in calls.words]


def test_from_a_folder_to_the_report(calls):
    write_voc(Path("theirs"), 30)
    calls.die_at = "make_cfg.py"
    with pytest.raises(SystemError):
        run(f"--data theirs {FLAGS}")
    calls.die_at = ""
    result = run(f"--data theirs {FLAGS}")
    expected = ["convert_dataset", "make_cfg", "check", "train", "test", "train", "slim_prune", "train", "test", "convert"]
    assert scripts(calls)[:10] == expected  # converted once
    data = Path("out/dataset/dataset.data").read_text()
    assert "classes=2" in data.replace(" ", "")
    parts = {part: len(Path(f"out/dataset/{part}.txt").read_text().splitlines()) for part in ("train", "valid")}
    assert sum(parts.values()) == 30
    assert 2 <= parts["valid"] <= 12  # a fifth by their names
    assert result["after"]["macs"] <= 0.6 * result["before"]["macs"]
    assert result["title"] == "tiny.cfg, compressed"
    assert result["commands"][0].startswith("python convert_dataset.py voc --src theirs")
    assert result["commands"][0] in Path("out/report.html").read_text()
    first = json.loads(Path("out/compress.json").read_text())["stages"]["original"]["words"]
    assert first[first.index("--cfg") + 1] == "out/work/original.cfg"
    assert "--weights" not in first


def test_another_folder_needs_another_out(calls):
    write_voc(Path("theirs"), 12)
    write_voc(Path("others"), 12)
    calls.die_at = "make_cfg.py"
    with pytest.raises(SystemError):
        run(f"--data theirs {FLAGS}")
    with pytest.raises(UserError, match="out/dataset: was made of theirs; name another folder with --out"):
        run(f"--data others {FLAGS}")


def test_hours_too_short_for_an_epoch(calls):
    write_voc(Path("theirs"), 12)
    with pytest.raises(UserError, match="--hours 1e-07: is too short for one epoch of training"):
        run(f"--data theirs {FLAGS} --hours 1e-7")


def test_without_a_cfg_a_yolov3_tiny_is_trained(calls):
    write_voc(Path("theirs"), 12)
    calls.die_at = "check.py"
    with pytest.raises(SystemError):
        run("--data theirs --out out")
    assert calls.words[-1][calls.words[-1].index("--cfg") + 1] == str(NETWORK)
    assert NETWORK.name == "yolov3-tiny.cfg"


def test_epochs_by_the_number_of_images_and_as_asked():
    assert Epochs.of(292, None) == (56, 37, 28)  # BCCD: 1,000 steps of eight images in 28 epochs; 60, 40 and 30 in proportion
    assert Epochs.of(292, 5) == (5, 5, 5)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"Annotations/Horizontal Bounding Boxes/1.xml": "<annotation/>", "Annotations/1.xml": "<annotation/>"}, "dior"),
        ({"a/1.xml": "<annotation/>", "notes.json": "{}"}, "voc"),
        ({"instances_val2017.json": '{"images": [], "annotations": [], "categories": []}'}, "coco"),
    ],
)
def test_a_format_is_known_by_its_files(files, found, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert recognise(tmp_path, tmp_path / "out") == (found, False)


def test_a_yolo_folder_is_taken_as_its_yaml_says(calls):
    write_set(Path())
    Path("data.yaml").write_text("train: train\nval: valid\nnames: [red, green]\n")
    calls.die_at = "train.py"
    with pytest.raises(SystemError):
        run(f"--data . {FLAGS}")
    assert scripts(calls) == ["make_cfg", "check"]
    assert "data.yaml" in calls.words[-1]


@pytest.mark.parametrize("words", ["--data theirs", "--data theirs --weights base.pt"])
def test_a_folder_that_nothing_can_be_made_of(words, calls):
    Path("theirs/images").mkdir(parents=True)
    with pytest.raises(
        UserError, match="theirs: holds neither VOC's .xml nor COCO's .json, nor a .yaml that names a dataset; name a"
    ):
        compress.main(compress.get_parser().parse_args(words.split()))
    assert not Path("output").exists()
