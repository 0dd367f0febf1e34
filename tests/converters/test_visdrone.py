"""VisDrone-DET, from a miniature dataset in its folders."""

import pytest

from tests.raw import convert, labels, stems, write_image, write_text
from utils.core.errors import UserError

SETS = ("VisDrone2019-DET-train", "VisDrone2019-DET-val", "VisDrone2019-DET-test-dev")


def make_set(folder, stem: str, text: str, suffix: str = ".jpg") -> None:
    write_image(folder / "images" / f"{stem}{suffix}")
    write_text(folder / "annotations" / f"{stem}.txt", text)


def test_the_sets_side_by_side(tmp_path):
    src = tmp_path / "src"
    train = [
        "20,10,40,40,1,4,0,0",  # car: centre 40, 30
        "150,50,50,50,1,1,0,1,",  # pedestrian, with the comma that some files end lines with: centre 175, 75
        "0,0,200,20,0,0,0,0",  # an ignored region
        "0,0,20,20,1,0,0,0",  # one that claims to count
        "30,30,10,10,1,11,0,0",  # others
        "30,30,10,10,0,4,0,0",  # a car of score 0
        "60,60,0,10,1,10,1,2",  # without width
        "190,90,20,20,1,10,0,0",  # motor, half outside: 190..200, 90..100
    ]
    make_set(src / SETS[0], "0000002_00005_d_0000014", "\r\n".join(train) + "\r\n")
    make_set(src / SETS[1], "0000001_02999_d_0000005", "0,0,100,50,1,9,0,0")  # bus
    make_set(src / SETS[2], "9999", "")
    write_image(src / "VisDrone2019-DET-test-challenge" / "images" / "1.jpg")
    write_text(src / "VisDrone2019-DET-train" / "annotations" / "lost.txt", "0,0,9,9,1,1,0,0")
    report = convert("visdrone", src, tmp_path / "out")
    assert labels(tmp_path / "out", "0000002_00005_d_0000014") == [
        "3 0.200000 0.300000 0.200000 0.400000", "0 0.875000 0.750000 0.250000 0.500000",
        "9 0.975000 0.950000 0.050000 0.100000",
    ]  # fmt: skip
    assert labels(tmp_path / "out", "0000001_02999_d_0000005") == ["8 0.250000 0.250000 0.500000 0.500000"]
    assert (report.names[0], report.names[7], len(report.names)) == ("pedestrian", "awning-tricycle", 10)
    assert [stems(tmp_path / "out", split) for split in ("train", "valid", "test")] == [
        "0000002_00005_d_0000014", "0000001_02999_d_0000005", "9999",
    ]  # fmt: skip
    assert report.problems.counts == {
        "ignored regions (category 0), left out": 2, "objects of category 11 (others), left out": 1,
        "objects of score 0, left out": 1, "boxes without area in the image, dropped": 1, "boxes clipped to the image": 1,
        "annotations without image, left out": 1, "images without annotation, left out": 1,
    }  # fmt: skip
    path = src / SETS[0] / "annotations" / "0000002_00005_d_0000014.txt"
    assert report.problems.first["objects of category 11 (others), left out"] == f"{path}:5"
    assert report.boxes == {("car", "train"): 1, ("pedestrian", "train"): 1, ("motor", "train"): 1, ("bus", "valid"): 1}


def test_one_set_alone_with_capitals(tmp_path):
    src = tmp_path / "VisDrone2019-DET-val"
    write_image(src / "Images" / "a b.JPG")
    write_text(src / "Annotations" / "a b.TXT", "\ufeff0,0,100,50,1,9,0,0", encoding="utf-8")
    report = convert("visdrone", src, tmp_path / "out")
    assert (report.images, report.class_boxes) == ({"train": 1, "valid": 1}, {"bus": 1})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2,3,4,1", r"a.txt:2: expected `left,top,.*found: 1,2,3,4,1; mend or remove this line"),
        ("1,2,3,4,one,1,0,0", "a.txt:2: expected"),
        ("1,2,3,4,1,12,0,0", r"a.txt:2: category 12, but VisDrone has 0..11; mend or remove this line"),
        ("1,2,3,4,1,1.5,0,0", "category 1.5"),
        ("inf,2,3,4,1,1,0,0", "a.txt:2: a corner isn't a finite number"),
    ],
)
def test_lines_that_are_something_else(tmp_path, line, message):
    make_set(tmp_path / "src", "a", f"0,0,100,50,1,9,0,0\n{line}\n")
    with pytest.raises(UserError, match=message):
        convert("visdrone", tmp_path / "src", tmp_path / "out")
