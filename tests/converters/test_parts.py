"""What conversions are made of: names of files, splits in paths, samples, processes, the data files of known datasets."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.converters.test_convert import BOX, snapshot
from tests.raw import convert, make_voc, voc_file, voc_object, write_image, write_text
from utils.converters.formats import FORMATS
from utils.converters.image import box_sides, choose_samples
from utils.converters.tree import Pictures, nearest, split_of
from utils.converters.write import Item, target_names
from utils.core import workers as pool
from utils.core.errors import UserError
from utils.core.workers import WorkerPool
from utils.data.data_file import read_data, read_names

ROOT = Path(__file__).resolve().parents[2]


def test_no_two_pictures_share_a_label_file():
    paths = ["a/x.jpg", "a/x.png", "b/a/X.jpg", "c/y.jpg", "d/a_x.jpg"]
    names = target_names(paths)
    assert list(names) == paths
    assert (names[paths[0]], names[paths[3]]) == ("a_x.jpg", "y.jpg")
    assert len({Path(name).stem.lower() for name in names.values()}) == len(paths)


def test_masks_are_no_pictures(tmp_path):
    """As in Oxford's pets; where there are no others, images beside the annotations are."""
    write_text(tmp_path / "src" / "annotations" / "xmls" / "a.xml", voc_file(BOX))
    for folder in ("images", "annotations/trimaps"):
        write_image(tmp_path / "src" / folder / f"a.{'png' if 'trimaps' in folder else 'jpg'}")
    report = convert("voc", tmp_path / "src", tmp_path / "out")
    assert (tmp_path / "out" / "train.txt").read_text() == "images/a.jpg\n"
    assert report.problems.counts == {}
    assert convert("voc", tmp_path / "src" / "annotations", tmp_path / "other").total_images == 1


def test_which_of_several_pictures_is_meant():
    pictures = Pictures(["/s/b/x.png", "/s/a/x.jpg", "/s/a/X.png", "/s/y.tar.jpg"])

    def found(name: str, annotation: str) -> list[str]:
        return [match.path for match in pictures.matches(name, nearest(annotation))]

    assert found("x.jpg", "/s/b/x.xml") == ["/s/a/x.jpg"]  # the very name
    assert found("x", "/s/b/x.xml") == ["/s/b/x.png"]
    assert found("x", "/s/a/x.xml") == ["/s/a/x.jpg"]
    assert found("elsewhere\\B\\X.jpg", "/s/a/x.xml") == ["/s/b/x.png"]  # its folder says more than its spelling
    assert found("Y.TAR.png", "/s/b") == ["/s/y.tar.jpg"]
    assert found("y", "/s/b") == []
    assert found("x", "/s/x.xml") == ["/s/b/x.png", "/s/a/x.jpg"]
    assert "x.bmp" in pictures
    assert "z" not in pictures


def test_splits_in_paths():
    assert split_of("hand_dataset/test_dataset/test_data/annotations") == ("test",)
    assert split_of("Training Set/x") == ("train",)
    assert split_of("JPEGImages-trainval") == ("train",)
    assert split_of("bdd100k_labels_images_VAL.json") == ("valid",)
    assert split_of("labels/retrained/latest/validated") == ()


def test_samples_show_every_class():
    def item(name: str, *classes: int) -> Item:
        return Item(name, name, (), np.array(classes, int), np.full((len(classes), 4), 0.5), (100, 400))

    items = [item("none"), item("a", 0), item("b", 0, 1), item("c", 2), item("d", 0), item("e", 0, 0)]
    assert [i.image for i in choose_samples(items, 2)] == ["b", "c"]
    assert sorted(i.image for i in choose_samples(items)) == ["a", "b", "c", "d", "e"]
    assert box_sides(items[:2]) == pytest.approx([100])  # 200 x 50


def double(number: int) -> int:
    return 2 * number


def fall(number: int) -> int:
    os.kill(os.getpid(), 9)
    return number


def test_many_processes_do_what_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_FEW", 2)
    src = make_voc(tmp_path / "src", {"a": BOX, "b": voc_object("y", 5, 5, 5, 5), "c": BOX * 2}, train="a b", val="c")
    reports = [convert("voc", src, tmp_path / str(n) / "out", workers=n) for n in (1, 2)]
    assert snapshot(tmp_path / "1" / "out") == snapshot(tmp_path / "2" / "out")
    assert reports[0].problems == reports[1].problems
    with WorkerPool(2) as both:
        assert list(both.each(double, range(500), "x")) == list(range(0, 1000, 2))


def test_a_killed_worker_is_named(monkeypatch):
    with (
        pytest.raises(UserError, match="a worker process was killed, perhaps for want of memory; try --workers 1"),
        WorkerPool(2) as two,
    ):
        list(two.each(fall, range(500), "x"))


WORKERS = """
import os, sys, time
from utils.core.workers import WorkerPool
def tell(n):
    open(f"{sys.argv[1]}/{os.getpid()}", "w").close()
    time.sleep(60)
with WorkerPool(2) as pool:
    list(pool.each(tell, range(300), "x"))
"""


def test_workers_leave_with_their_parent(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", WORKERS, str(tmp_path)], cwd=ROOT)
    deadline = time.monotonic() + 30
    while len(os.listdir(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    pids = [int(name) for name in os.listdir(tmp_path)]
    assert len(pids) == 2
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in pids)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_data_files_of_known_datasets(shared):
    """The tables of reference/datasets.md; COCO's own names as coco128 has them."""
    table = {}
    for line in (shared / "reference" / "datasets.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[1].isdigit():
            table |= {name: (int(cells[1]), cells[2]) for name in cells[0].split(", ")}
    categories = json.loads((shared / "data/coco128/instances.json").read_text())["categories"]
    coco = [category["name"] for category in sorted(categories, key=lambda c: c["id"])]
    assert sorted(table) == ["bdd100k", "coco2014", "coco2017", "dior", "oxfordhand", "visdrone"]
    for name, (classes, names) in table.items():
        data = read_data(ROOT / "data" / f"{name}.data")
        assert (data.classes, data.names) == (classes, coco if "coco" in name else names.split(", "))
        assert (
            data.path.read_text() == f"classes={classes}\ntrain={name}/train.txt\nvalid={name}/valid.txt\nnames={name}.names\n"
        )
        assert read_names(ROOT / "data" / f"{name}.names") == data.names
    assert {form.published for form in FORMATS.values()} - {""} == {"bdd100k", "dior", "oxfordhand", "visdrone"}
