"""Images that are annotated twice, and names that several images have: no box is lost, none goes to another image."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.raw import convert, labels, stems, voc_file, voc_object, write_image, write_json, write_text
from utils.core.errors import UserError

FIRST, SECOND = [20, 10, 40, 40], [100, 50, 20, 20]
LINES = ["0 0.200000 0.300000 0.200000 0.400000", "0 0.550000 0.600000 0.100000 0.200000"]
TOGETHER = {"annotations of an image that has one already, put together": 1}


def make_coco(path: Path, names: list[str], boxes: list[tuple[int, list[float]]], **more) -> None:
    """names: file_names of images 0, 1, ..; boxes: (number of the image, bbox)."""
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    annotations = [{"id": n, "image_id": image, "category_id": 0, "bbox": bbox} for n, (image, bbox) in enumerate(boxes)]
    write_json(path, {"images": images, "annotations": annotations, "categories": [{"id": 0, "name": "x"}]} | more)


def other_image(path: Path) -> None:
    """Of the same size, but white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, np.full((100, 200, 3), 255, np.uint8))[1].tobytes())


def test_coco_lists_a_picture_twice(tmp_path):
    make_coco(tmp_path / "src/instances.json", ["a.jpg", "a.jpg", "./a.jpg"], [(0, FIRST), (1, SECOND), (2, FIRST)])
    write_image(tmp_path / "src/images/a.jpg")
    report = convert("coco", tmp_path / "src", tmp_path / "out")
    assert labels(tmp_path / "out", "a") == LINES
    assert report.problems.counts == {
        "annotations of an image that has one already, put together": 2, "duplicate boxes, dropped": 1,
    }  # fmt: skip


def test_coco_files_of_one_class_each(tmp_path):
    make_coco(tmp_path / "src/instances_train_1.json", ["a.jpg"], [(0, FIRST)])
    make_coco(tmp_path / "src/instances_train_2.json", ["a.jpg"], [(0, SECOND)])
    write_image(tmp_path / "src/a.jpg")
    report = convert("coco", tmp_path / "src", tmp_path / "out")
    assert labels(tmp_path / "out", "a") == LINES
    assert report.problems.counts == TOGETHER


def test_coco_boxes_stay_with_the_picture_of_their_folder(tmp_path):
    """Of two images of one name, one is missing: its box doesn't go to the other."""
    make_coco(tmp_path / "src/instances.json", ["left/a.jpg", "right/a.jpg"], [(0, FIRST), (1, SECOND)])
    write_image(tmp_path / "src/images/right/a.jpg")
    report = convert("coco", tmp_path / "src", tmp_path / "out")
    assert labels(tmp_path / "out", "a") == LINES[1:]
    assert report.problems.counts == {"annotations that another image of the same name lacks, left out": 1}


def test_coco_ids_that_stand_for_two_pictures(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]
    make_coco(tmp_path / "instances.json", [], [(1, FIRST)], images=images)
    with pytest.raises(UserError, match=r"images number 2: .*its id 1 is that of a.jpg, too, so nobody knows whose boxes"):
        convert("coco", tmp_path, tmp_path / "out")


def test_coco_absent_keys_and_segmentations(tmp_path):
    """Neither sizes nor iscrowd nor area; the box of the second is that of its outline. A number too large for 64 bits."""
    outline = {"id": 10**30, "image_id": "0", "category_id": 0.0, "segmentation": [[100, 50, 120, 50, 120, 70, 100, 70]]}
    box = {"image_id": 0, "category_id": 0, "bbox": ["20", "10", "40", "40"]}
    make_coco(tmp_path / "src/instances.json", ["a.jpg"], [], annotations=[box, outline])
    write_image(tmp_path / "src/a.jpg")
    assert convert("coco", tmp_path / "src", tmp_path / "out").problems.counts == {}
    assert labels(tmp_path / "out", "a") == LINES


def test_coco_invented_sizes(tmp_path):
    """A size that the boxes don't fit into isn't that of their pixels."""
    make_coco(
        tmp_path / "src/instances.json", [], [(0, FIRST)], images=[{"id": 0, "file_name": "a.jpg", "width": 1, "height": 1}]
    )
    write_image(tmp_path / "src/a.jpg")
    report = convert("coco", tmp_path / "src", tmp_path / "out")
    assert labels(tmp_path / "out", "a") == LINES[:1]
    assert report.problems.counts == {"images annotated with a size that their boxes don't fit into, taken as they are": 1}


@pytest.mark.parametrize("other", ["y/a.jpg", "x/a.png", "x/A.JPG"])
def test_pictures_that_only_differ_in_folder_or_suffix(tmp_path, other):
    """Both are annotated by name: each gets its own box and its own label file."""
    make_coco(tmp_path / "src/instances.json", ["x/a.jpg", other], [(0, FIRST), (1, SECOND)])
    write_image(tmp_path / "src/x/a.jpg")
    other_image(tmp_path / "src" / other)
    convert("coco", tmp_path / "src", tmp_path / "out")
    listed = (tmp_path / "out/train.txt").read_text().split()
    assert len(listed) == 2
    for line in listed:
        is_first = (tmp_path / "out" / line).read_bytes() == (tmp_path / "src/x/a.jpg").read_bytes()
        assert labels(tmp_path / "out", Path(line).stem) == LINES[:1] if is_first else LINES[1:]


def test_a_name_that_two_pictures_have(tmp_path):
    """Copies of one image are one; of others nobody can say which is meant."""
    make_coco(tmp_path / "src/instances.json", ["a.jpg"], [(0, FIRST)])
    for folder in ("x", "y"):
        write_image(tmp_path / "src" / folder / "a.jpg")
    assert convert("coco", tmp_path / "src", tmp_path / "out").total_images == 1
    other_image(tmp_path / "src/y/a.jpg")
    with pytest.raises(UserError, match=r"instances.json: a.jpg: may be about .*/x/a.jpg or .*/y/a.jpg; move one of them away"):
        convert("coco", tmp_path / "src", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_bdd100k_lists_a_picture_twice(tmp_path):
    def listed(x1: int, y1: int, x2: int, y2: int) -> dict:
        return {"name": "a.jpg", "labels": [{"category": "person", "box2d": {"x1": x1, "y1": y1, "x2": x2, "y2": y2}}]}

    write_json(tmp_path / "src/labels/det_20/det_train.json", [listed(20, 10, 60, 50), listed(100, 50, 120, 70)])
    write_image(tmp_path / "src/images/100k/train/a.jpg")
    report = convert("bdd100k", tmp_path / "src", tmp_path / "out")
    assert [line.split()[1:] for line in labels(tmp_path / "out", "a")] == [line.split()[1:] for line in LINES]
    assert report.problems.counts == TOGETHER


def test_visdrone_annotations_of_two_people(tmp_path):
    """Of one image, in folders beside each other; but those of another part's image of that name stay away."""
    for folder, line in (("train/annotations/a", "20,10,40,40,1,4,0,0"), ("train/annotations/b", "100,50,20,20,1,4,0,0")):
        write_text(tmp_path / "src" / folder / "1.txt", line)
    write_text(tmp_path / "src/val/annotations/1.txt", "0,0,9,9,1,4,0,0")
    write_image(tmp_path / "src/train/images/1.jpg")
    report = convert("visdrone", tmp_path / "src", tmp_path / "out")
    assert [line.split()[1:] for line in labels(tmp_path / "out", "1")] == [line.split()[1:] for line in LINES]
    assert report.problems.counts == TOGETHER | {"annotations that another image of the same name lacks, left out": 1}


def test_voc_names_one_of_two_pictures(tmp_path):
    """a.jpg and a.png: the annotation's <filename> decides; a stale one doesn't where the names do."""
    box = voc_object("x", 20, 10, 60, 50)
    write_image(tmp_path / "src/a.jpg")
    other_image(tmp_path / "src/a.png")
    write_text(tmp_path / "src/a.xml", voc_file(box, filename="old/a.png"))
    write_image(tmp_path / "src/b.jpg")
    write_text(tmp_path / "src/b.xml", voc_file(box, filename="a.jpg"))
    convert("voc", tmp_path / "src", tmp_path / "out")
    assert stems(tmp_path / "out", "train") == "a b"
    assert (tmp_path / "out/images/a.png").read_bytes() == (tmp_path / "src/a.png").read_bytes()
    write_text(tmp_path / "src/a.xml", voc_file(box, filename="camera.jpg"))
    with pytest.raises(UserError, match=r"a.xml: may be about .*/a.jpg or .*/a.png; move one of them away"):
        convert("voc", tmp_path / "src", tmp_path / "out")


def test_voc_files_that_wrap_or_hold_several(tmp_path):
    """One <annotation> counts wherever it stands; boxes of several images are never put on one."""
    one = voc_file(voc_object("x", 20, 10, 60, 50), size="<width>400</width><height>200</height>")
    write_image(tmp_path / "src/a.jpg")
    write_text(tmp_path / "src/a.xml", f"<dataset>{one}</dataset>")
    convert("voc", tmp_path / "src", tmp_path / "out")
    assert labels(tmp_path / "out", "a") == ["0 0.100000 0.150000 0.100000 0.200000"]
    write_text(tmp_path / "src/a.xml", f"<dataset>{one}{one}</dataset>")
    with pytest.raises(UserError, match=r"a.xml: holds 2 annotations, but VOC has a file for each image; take them apart"):
        convert("voc", tmp_path / "src", tmp_path / "out")
    write_text(tmp_path / "src/a.xml", "<html/>")
    with pytest.raises(UserError, match=r"a.xml: holds no <annotation>, so it is none of VOC; remove it"):
        convert("voc", tmp_path / "src", tmp_path / "out")


def test_voc_without_size_or_box(tmp_path):
    """The size is the image's own; an <object> without a bndbox is left out, and said."""
    bare = "<object><name>x</name></object>"
    write_image(tmp_path / "src/a.jpg")
    write_text(tmp_path / "src/a.xml", f"<annotation>{voc_object('x', 20, 10, 60, 50)}{bare}</annotation>")
    report = convert("voc", tmp_path / "src", tmp_path / "out")
    assert labels(tmp_path / "out", "a") == LINES[:1]
    assert report.problems.counts == {"objects without bndbox, left out": 1}
