"""Pascal VOC and DIOR, from miniature datasets in their folders."""

import pytest

from tests.raw import convert, labels, make_voc, stems, voc_file, voc_object, write_image, write_text
from utils.converters.base import SWAPPED, Options
from utils.converters.examine import examine
from utils.converters.voc import parse_voc, read_dior, read_voc
from utils.core.errors import UserError
from utils.data.labels import NO_AREA

BOX = voc_object("x", 1, 1, 9, 9)


@pytest.mark.parametrize(
    ("lists", "train", "valid"),
    [
        ({"train": "a", "val": "b", "test": "c"}, "a b", "c"),
        ({"train": "a", "val": "b", "trainval": "a b"}, "a", "b"),
        ({"train": "a", "val": "b", "trainval": "a b", "test": "nobody has its boxes"}, "a", "b"),
        ({"trainval": "a b"}, "a b", "a b"),
        ({"train": "a b"}, "a b", "a b"),
        ({"test": "a b"}, "a b", "a b"),
        ({"dog_train": "a -1", "dog_val": "b 1"}, "a b c", "a b c"),
        ({}, "a b c", "a b c"),
    ],
)
def test_lists(tmp_path, lists, train, valid):
    src = make_voc(tmp_path / "src", dict.fromkeys("abc", BOX))
    for name, members in lists.items():
        write_text(src / "ImageSets" / "Main" / f"{name}.txt", members.replace(" ", "\n"))
        write_text(src / "ImageSets" / "Segmentation" / f"{name}.txt", "c")  # of another task
    report = convert("voc", src, tmp_path / "out")
    assert (stems(tmp_path / "out", "train"), stems(tmp_path / "out", "valid")) == (train, valid)
    listed = {word for members in lists.values() for word in members.split()} & set("abc")
    unlisted = 3 - len(listed) if listed and "dog_train" not in lists else 0
    assert report.problems.counts.get("annotations that no list of images names, left out", 0) == unlisted


def test_spellings_in_lists(tmp_path):
    src = make_voc(tmp_path / "src", {"my cat 1": BOX, "b": BOX, "c.d": BOX, "e": BOX})
    lines = ["my cat 1", "VOC2007/JPEGImages/b.jpg", "c.d.jpg", "e 1", "gone", "gone"]
    write_text(src / "ImageSets" / "Main" / "train.txt", "\r\n".join(lines))
    report = convert("voc", src, tmp_path / "out")
    assert report.total_images == 4
    assert report.problems.counts == {"listed images without annotation, left out": 1}
    assert report.problems.first["listed images without annotation, left out"].endswith("train.txt:5: gone")


def test_several_years_side_by_side(tmp_path):
    """VOC 2007 and 2012 as usual: everything trains but the test set of 2007; masks of the same names are no images."""
    make_voc(tmp_path / "src/VOCdevkit/VOC2007", dict.fromkeys("abc", BOX), trainval="a b", train="a", val="b", test="c")
    new = make_voc(tmp_path / "src/VOCdevkit/VOC2012", dict.fromkeys("def", BOX), trainval="d e", train="d", val="e")
    write_image(new / "SegmentationClass" / "d.png")
    write_image(new / "SegmentationObject" / "f.png")
    report = convert("voc", tmp_path / "src", tmp_path / "out")
    assert (stems(tmp_path / "out", "train"), stems(tmp_path / "out", "valid")) == ("a b d e", "c")
    assert (tmp_path / "out" / "images" / "d.jpg").exists()
    assert report.problems.counts == {
        "annotations that no list of images names, left out": 1, "images without annotation, left out": 1,
    }  # fmt: skip
    assert report.problems.first["images without annotation, left out"].endswith("VOC2012/JPEGImages/f.jpg")


def test_difficult_objects(tmp_path):
    src = make_voc(tmp_path / "src", {"a": voc_object("x", 1, 1, 9, 9, difficult=1) + voc_object("x", 2, 2, 8, 8)})
    assert convert("voc", src, tmp_path / "all").class_boxes == {"x": 2}
    report = convert("voc", src, tmp_path / "out", skip_difficult=True)
    assert report.class_boxes == {"x": 1}
    assert report.problems.first == {"difficult objects, left out": f"{src}/Annotations/a.xml: object 1"}


@pytest.mark.parametrize("size", ["<width>0</width><height>0</height>", "<width/>", ""])
def test_without_a_size_the_picture_is_measured(tmp_path, size):
    write_image(tmp_path / "src" / "a.jpg")
    write_text(tmp_path / "src" / "a.xml", voc_file(voc_object("x", 50, 25, 150, 75), size))
    convert("voc", tmp_path / "src", tmp_path / "out")
    assert labels(tmp_path / "out", "a") == ["0 0.500000 0.500000 0.500000 0.500000"]


def test_folders_of_other_programs(tmp_path):
    """Lower-case folders, files called otherwise than their images, space before the declaration."""
    src = tmp_path / "src"
    write_image(src / "images" / "dog 7.png")
    text = "\n <?xml version='1.0'?>" + voc_file(voc_object(" dog\n", "20.0", " 10 ", 60, 50), filename="dog 7.png")
    write_text(src / "annotations" / "0007.xml", text)
    write_text(src / "readme.xml", "<help/>")
    convert("voc", src, tmp_path / "out")
    assert labels(tmp_path / "out", "dog 7") == ["0 0.200000 0.300000 0.200000 0.400000"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<object>", r"a.xml:1: not valid XML \(no element found.*\); mend or remove this file"),
        ("\n\n<annotation>\n</x>", r"a.xml:4: not valid XML"),
        (voc_file(BOX + voc_object("x", 1, "?", 1, 1)), r"a.xml: object 2: ymin is '\?', which is no number; mend or remove"),
        (voc_file("<object><name>x</name><bndbox></bndbox></object>"), "object 1: xmin is ''"),
        (voc_file(BOX, "<width>wide</width>"), "a.xml: width is 'wide', which is no number of pixels"),
        ('<?xml version="1.0" encoding="klingon"?><a/>', r"a.xml: not valid XML \(unknown encoding"),
    ],
)
def test_what_cannot_be_read(tmp_path, text, message):
    write_image(tmp_path / "src" / "a.jpg")
    write_text(tmp_path / "src" / "a.xml", text)
    with pytest.raises(UserError, match=message):
        convert("voc", tmp_path / "src", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_objects_without_a_box(tmp_path):
    found = parse_voc(str(write_text(tmp_path / "a.xml", voc_file("<object><name>x</name></object>" + BOX))), Options())
    assert (found.names, list(found.corners), list(found.numbers)) == (["x"], [1, 1, 9, 9], [2])
    assert found.problems.first == {"objects without bndbox, left out": f"{tmp_path}/a.xml: object 1"}


def make_dior(root, name="Horizontal Bounding Boxes"):
    """One image a list; the oriented boxes are others, in the same file names."""
    for stem, kind in (("00001", "trainval"), ("00002", "trainval"), ("11726", "test")):
        write_image(root / f"JPEGImages-{kind}" / f"{stem}.jpg", 800, 800)
        objects = voc_object("Expressway-Service-area", 80, 160, 240, 240) + voc_object("golffield", 400, 400, 800, 600)
        size = "<width>800</width><height>800</height><depth>3</depth>"
        write_text(root / "Annotations" / name / f"{stem}.xml", voc_file(objects, size))
        corners = "<robndbox><x_left_top>1</x_left_top><y_left_top>2</y_left_top></robndbox>"
        oriented = f"<object><name>ship</name>{corners}</object>"
        write_text(root / "Annotations" / "Oriented Bounding Boxes" / f"{stem}.xml", voc_file(oriented, size))
    return root


@pytest.mark.parametrize("lists", ["ImageSets/Main", "Main", ""])
def test_dior(tmp_path, lists):
    src = make_dior(tmp_path / "src")
    for kind, stem in (("train", "00001"), ("val", "00002"), ("test", "11726")):
        if lists:
            write_text(src / lists / f"{kind}.txt", f"{stem}\n")
    report = convert("dior", src, tmp_path / "out")
    assert (stems(tmp_path / "out", "train"), stems(tmp_path / "out", "valid")) == ("00001 00002", "11726")
    assert (len(report.names), report.names[7], report.names[9], report.names[19]) == (
        20, "Expressway-Service-area", "golffield", "overpass",
    )  # fmt: skip
    # 80..240 and 160..240 of 800: centre 160, 200; 400..800 and 400..600: centre 600, 500
    assert labels(tmp_path / "out", "11726") == [
        "7 0.200000 0.250000 0.200000 0.100000", "9 0.750000 0.625000 0.500000 0.250000",
    ]  # fmt: skip
    assert report.problems.counts == {}


def test_dior_in_plain_folders_with_other_cases(tmp_path):
    src = make_dior(tmp_path / "src", "Other")
    for path in (src / "Annotations" / "Oriented Bounding Boxes").iterdir():
        path.unlink()
    text = voc_object("expressway-service-area", 80, 160, 240, 240) + voc_object("submarine", 80, 160, 240, 240)
    write_text(src / "Annotations" / "Other" / "00001.xml", voc_file(text, "<width>800</width><height>800</height>"))
    report = convert("dior", src, tmp_path / "out", skip_difficult=True)
    assert labels(tmp_path / "out", "00001")[0].startswith("7 ")
    assert report.problems.counts["boxes of class 'submarine', which isn't among the names, left out"] == 1


def test_corners_in_the_wrong_order_change_places(tmp_path):
    objects = voc_object("x", 60, 10, 20, 50) + voc_object("x", 30, 50, 70, 30) + voc_object("x", 1, 1, 9, 9)
    (tmp_path / "a.xml").write_text(voc_file(objects))
    found = parse_voc(str(tmp_path / "a.xml"), Options())
    assert list(found.corners) == [20, 10, 60, 50, 30, 30, 70, 50, 1, 1, 9, 9]
    assert found.problems.counts == {SWAPPED: 2}
    assert found.problems.first[SWAPPED].endswith("a.xml: object 1")


def test_readers_list_without_reading(tmp_path):
    """What costs time happens in parallel, later."""
    src = make_voc(tmp_path / "src", {"a": "<"})
    for read in (read_voc, read_dior):
        (entry,) = read(src, Options()).entries
        assert (entry.image, entry.notes) == (f"{src}/JPEGImages/a.jpg", (f"{src}/Annotations/a.xml",))
        with pytest.raises(UserError, match="not valid XML"):
            examine(entry, "voc", Options())


def test_bccd(tmp_path, shared):
    report = convert("voc", shared / "data" / "bccd", tmp_path / "bccd")
    assert (report.total_images, report.images) == (364, {"train": 292, "valid": 72})
    assert report.names == ["Platelets", "RBC", "WBC"]
    assert report.problems.counts == {NO_AREA: 2}
    # its first object: WBC 68, 315, 286, 480 of 640 x 480
    assert labels(tmp_path / "bccd", "BloodImage_00001")[0] == "2 0.276562 0.828125 0.340625 0.343750"
