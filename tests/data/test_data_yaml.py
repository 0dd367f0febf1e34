"""The .yaml files in which YOLOv5's and YOLOv8's users name a dataset."""

import os
from pathlib import Path

import pytest

import check
from tests.test_train import write_set
from utils.core.errors import UserError
from utils.data.data_file import read_data
from utils.data.data_yaml import dataset_yaml


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A dataset `set` with images/train and images/val, seen from a working directory beside it."""
    for part in ("train", "val"):
        (tmp_path / "set/images" / part).mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "set"


def same(found: Path | None, wanted: Path) -> bool:
    return found is not None and os.path.samefile(found, wanted)


@pytest.mark.parametrize(
    "text",
    [
        "path: ../set\ntrain: images/train\nval: images/val\n",  # from the working directory
        "path: .\ntrain: images/train\nval: images/val\n",  # the file's folder
        "path: nowhere/set\ntrain: images/train\nval: images/val\n",  # of another machine, but all is beside the file
        "train: images/train\nval: images/val\n",
        "train: ../images/train\nval: ../images/val\n",  # as Roboflow exports it
        "path: {folder}\ntrain: [images/train]\nvalid: images/val\ntest:\n",
        "train: {folder}/images/train\nval: {folder}/images/val\ndownload: |\n  import os\n",
    ],
)
def test_where_images_are_looked_for(text, folder):
    path = folder / "data.yaml"
    path.write_text(text.format(folder=folder) + "nc: 2\nnames:\n  0: cat\n  1: dog\n")
    data = read_data(path)
    assert same(data.train, folder / "images/train")
    assert same(data.valid, folder / "images/val")
    assert (data.classes, data.names) == (2, ["cat", "dog"])


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: [no, 1, 'on', 1.50]", ["no", "1", "on", "1.50"]),  # YAML's booleans and numbers are names here
        ("names: {1: b, 0: a}", ["a", "b"]),
        ("names:\n- \u732b\n- caf\u00e9", ["\u732b", "caf\u00e9"]),
        ("nc: 2", ["0", "1"]),
        ("names:\n" + "".join(f"  {i}: c{i}\n" for i in range(12)), [f"c{i}" for i in range(12)]),
    ],
)
def test_names(text, names, folder):
    path = folder / "data.yml"
    path.write_text(f"val: images/val\n{text}\n", encoding="utf-8")
    data = read_data(path)
    assert data.names == names
    with pytest.raises(UserError, match=r"data.yml: needs a line `train:`"):
        data.source("train")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("names: [a\ntrain: x", r"data.yaml:2: not valid YAML"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nnames: *b\ntrain: images/train", "needs `names:`"),
        ("[" * 5000, "too deep|not valid YAML"),
        ("lr0: 0.01\nmomentum: 0.9", "names no dataset; it needs `train:`, `val:` and `names:`"),
        ("", "names no dataset"),
        ("train: images/train", "needs `names:`"),
        ("train: images/train\nnames: []", "needs `names:`"),
        ("train: images/train\nnames: {1: a, 2: b}", "numbers its classes otherwise than 0 to 1"),
        ("train: images/train\nnames: [a, b]\nnc: 3", "nc: is 3, but there are 2 names"),
        ("train: images/nowhere\nnames: [a]", "train: images/nowhere does not exist; set `path:`|nowhere does not exist"),
        ("train: [images/train, images/val]\nnames: [a]", "train: names several sources"),
        ("path: [a]\ntrain: images/train\nnames: [a]", "path: isn't a folder's name"),
    ],
)
def test_what_is_no_dataset_is_told_in_a_line(text, told, folder):
    (folder / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=told) as error:
        read_data(folder / "data.yaml")
    assert "\n" not in str(error.value)


def test_check_reads_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path)
    (tmp_path / "d.yaml").write_text("train: train\nval: valid\nnames: [red, green]\n")
    found = check.main(check.get_parser().parse_args(["--data", "d.yaml", "--workers", "1"]))
    assert found["splits"]["train"]["classes"] == [["red", 8], ["green", 8]]
    assert "d.yaml: nothing found" in capsys.readouterr().out


def test_the_one_that_names_a_dataset(folder):
    assert dataset_yaml(folder) is None
    (folder / "hyp.yaml").write_text("lr0: 0.01\n")
    (folder / "data.yaml").write_text("train: images/train\nnames: [a]\n")
    assert dataset_yaml(folder) == folder / "data.yaml"
    (folder / "more.yml").write_text("train: images/train\nnames: [a]\n")
    assert dataset_yaml(folder) is None
