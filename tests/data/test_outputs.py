"""utils.data.outputs: no two results are one file, whatever the images and videos are called."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.core.errors import Remark, UserError
from utils.data.outputs import plan_outputs
from utils.data.sources import Item

pytestmark = pytest.mark.filterwarnings("ignore::utils.core.errors.Remark")


def items(*names: str) -> list[Item]:
    kinds = {".avi": "video", ".mp4": "video", ".stream": "stream"}
    return [Item(f"in/{name}", Path(name), kinds.get(Path(name).suffix.lower(), "image")) for name in names]


def planned(*names: str, fourcc: str = "mp4v") -> dict[str, str]:
    outputs = plan_outputs(Path("out"), items(*names), fourcc)
    return {name: outputs[f"in/{name}"].path.relative_to("out").as_posix() for name in names}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.jpg", "b.PNG", "c.pgm", "v.avi"], ["a.jpg", "b.png", "c.png", "v.mp4"]),
        (["clip.avi", "clip_1.jpg", "clip_2.jpg"], ["clip_avi.mp4", "clip_1.jpg", "clip_2.jpg"]),
        (["clip.avi", "clip_x.jpg", "1.jpg"], ["clip.mp4", "clip_x.jpg", "1.jpg"]),
        (["clip.avi", "clip_1.avi"], ["clip.mp4", "clip_1.mp4"]),  # their texts: clip_1.txt, clip_1_1.txt
        (["clip.avi", "clip.mp4.png"], ["clip.mp4", "clip.mp4.png"]),
        (["a.jpg", "a.png", "a_png.jpg"], ["a.jpg", "a_png.png", "a_png_jpg.jpg"]),
        (["a.pgm", "a.png", "a_png.jpg", "a_png.png"], ["a.png", "a_png.png", "a_png_jpg.jpg", "a_png_png.png"]),
        (["A.jpg", "a.jpg", "x/A.jpg", "X/a.jpg"], ["A.jpg", "a_jpg.jpg", "x/A.jpg", "X/a_jpg.jpg"]),
        (["a\u0308.jpg", "\u00e4.jpg"], ["a\u0308.jpg", "\u00e4_jpg.jpg"]),  # one name for macOS
        (["a.jpg", "a.txt/b.jpg"], ["a_jpg.jpg", "a.txt/b.jpg"]),  # a folder called like a text
        (["v.avi", "v_3.txt/b.jpg"], ["v_avi.mp4", "v_3.txt/b.jpg"]),
        (["a.b.jpg", "a.c.jpg"], ["a.b.jpg", "a.c.jpg"]),
    ],
)
def test_names(names, expected):
    assert list(planned(*names).values()) == expected


def test_longer_names_are_said():
    with pytest.warns(Remark, match=r"since others are called the same: 2 \(first: a.png -> out/a_png.png"):
        planned("a.jpg", "a.png", "a.bmp")


PARTS = [
    "a",
    "A",
    "a_1",
    "a_01",
    "a_1_2",
    "b",
    "clip",
    "clip_1",
    "a_png",
    "a_jpg",
    "ß",
    "ss",
    "\u00e4",
    "a\u0308",
    "a.txt",
    "a.mp4",
]
SUFFIXES = [".jpg", ".JPG", ".png", ".pgm", ".avi", ".mp4", ".MP4", ".stream", "", ".txt"]
LETTERS = st.characters(codec="utf-8", exclude_characters="/\0")
NAME = st.tuples(st.sampled_from(PARTS) | st.text(LETTERS, min_size=1, max_size=4), st.sampled_from(SUFFIXES)).map("".join)
RELATIVE = st.lists(NAME, min_size=1, max_size=3).map("/".join).filter(lambda p: not {".", ".."} & set(p.split("/")))


@settings(max_examples=300, deadline=None)
@given(st.lists(RELATIVE, max_size=12, unique=True), st.sampled_from(["mp4v", "MJPG"]))
def test_any_names_give_distinct_files(names, fourcc):
    """All images, videos and texts of the first hundred frames: different where case doesn't matter, none is a folder of
    another, and an image or video keeps its folder."""
    outputs = plan_outputs(Path("out"), items(*names), fourcc)
    files: list[str] = []
    for item in items(*names):
        output = outputs[item.name]
        assert output.path.parent == (Path("out") / item.relative).parent
        files.append(str(output.path))
        files += [str(output.labels(n)) for n in ((1,) if item.kind == "image" else (*range(1, 12), 99, 100))]
    folded = [name.casefold() for name in files]
    assert len(set(folded)) == len(folded)
    folders = {str(parent).casefold() for name in files for parent in Path(name).parents}
    assert not folders & set(folded)


def test_the_same_picture_twice_has_one_result():
    twice = items("a.jpg", "a.jpg")
    assert {str(o.path) for o in plan_outputs(Path("out"), twice, "mp4v").values()} == {"out/a.jpg"}


@pytest.mark.parametrize("folder", ["in", "in/x/..", "other/../in"])
def test_inputs_are_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("in/x", "other"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError, match=re.escape(f"--output {folder}: would overwrite the input {folder}/a.jpg")):
        plan_outputs(Path(folder), items("a.jpg"), "mp4v")
    with pytest.raises(UserError, match=re.escape(f"would overwrite the input {folder}/a.txt")):
        plan_outputs(Path(folder), items("a.pgm"), "mp4v", inputs=[Path("in/a.txt")])
