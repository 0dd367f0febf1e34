"""check.py --fix: what it writes, what it leaves alone."""

from pathlib import Path

import pytest

from tests.planted import FAULTS, TRAIN
from utils.checking import clean_copy as check_fix
from utils.converters.write import place_image
from utils.core.errors import UserError
from utils.data.data_file import read_data

MENDABLE = [
    "a listed image that isn't there", "an image cut short", "an image that is none", "an image without label file",
    "a label file without image", "a row of four numbers", "a value that is nan", "a class out of range", "a box in pixels",
    "a box without area", "a box that reaches outside", "boxes given twice", "a name given twice",
    "an image of valid in train", "an image of train again", "an empty line in the names", "more names than classes",
]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", MENDABLE)
def test_fix_mends(copy, name):
    FAULTS[name].plant(copy)
    before = contents(copy.folder)
    status, report = copy.check("--fix", "--out", "clean")
    assert {k: v for k, v in contents(copy.folder).items() if not k.startswith(("clean", "report"))} == before
    assert status == 0
    left = [f["severity"] for f in report["fixed"]["findings"]]
    assert set(left) <= {"note"}
    assert report["fixed"]["data"] == "clean/clean.data"


def test_fix_writes_the_same_boxes(copy):
    copy.add_row(0, "1 320 240 64 48")
    copy.add_row(0, "1 0.95 0.5 0.2 0.1")
    copy.add_row(0, "nonsense")
    mended = ["1 0.500000 0.500000 0.100000 0.100000", "1 0.925000 0.500000 0.150000 0.100000"]
    wanted = [*copy.label(0).read_text().splitlines()[:-3], *mended]
    status, _ = copy.check("--fix")
    assert status == 0
    clean = copy.folder / "bccd-clean"
    assert (clean / "labels" / copy.label(0).name).read_text().splitlines() == wanted
    assert (clean / "labels" / copy.label(1).name).read_text() == copy.label(1).read_text()
    assert (clean / "images" / copy.image(1).name).read_bytes() == copy.image(1).read_bytes()
    listed = (copy.folder / "train.txt").read_text().split()
    assert (clean / "train.txt").read_text().split() == [str(clean / line) for line in listed]
    with pytest.raises(UserError, match=r"bccd-clean: is there already and not empty; .* --out"):
        copy.check("--fix")
    with pytest.raises(UserError, match=r"can't hold a line break"):
        check_fix.check_folder(Path("clean\n2"))


def test_a_fix_in_a_folder_whose_name_has_signs_of_comments(copy):
    copy.check("--fix", "--out", "clean#2;new")
    data = read_data("clean#2;new/clean#2;new.data")
    assert str(data.train) == str((copy.folder / "clean#2;new" / "train.txt").resolve())
    assert data.train.is_file()


def test_an_interrupted_fix_leaves_nothing_and_can_be_run_again(copy, monkeypatch):
    placed = []

    def stopped(source, target, copy):
        placed.append(target)
        if len(placed) == 3:
            raise KeyboardInterrupt
        place_image(source, target, copy)

    (copy.folder / ".clean.tmp").mkdir()
    (copy.folder / ".clean.tmp" / "of a killed process").touch()
    before = contents(copy.folder)
    with monkeypatch.context() as patch:
        patch.setattr(check_fix, "place_image", stopped)
        with pytest.raises(KeyboardInterrupt):
            copy.check("--fix", "--out", "clean")
    assert contents(copy.folder) == {name: data for name, data in before.items() if not name.startswith(".clean.tmp")}
    status, _ = copy.check("--fix", "--out", "clean")
    assert status == 0
    assert not (copy.folder / "clean" / "of a killed process").exists()


def test_a_place_that_cannot_be_written_is_named_before_the_work(copy, monkeypatch):
    monkeypatch.setattr("utils.checking.report.read_subject", lambda *_, **__: pytest.fail("the work has begun"))
    with pytest.raises(UserError, match=r"bccd.data is no folder; choose another"):
        copy.check("--fix", "--out", "bccd.data/clean")


def test_a_set_that_validates_on_what_it_trains_on_stays_an_error(copy):
    copy.replace("bccd.data", "valid=valid.txt", "valid=train.txt")
    status, report = copy.check("--fix", "--out", "clean")
    assert status == 1
    assert report["findings"][0]["count"] == report["fixed"]["findings"][0]["count"] == TRAIN
