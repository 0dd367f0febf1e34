"""What --source can name, and what each kind of source yields."""

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from utils.converters.base import Options
from utils.converters.tree import Tree
from utils.core.errors import UserError
from utils.data.image_kinds import kind_of
from utils.data.labels import NO_PICTURE, Problems, image_paths
from utils.data.sources import Frames, Item, LatestFrame, find_items, frame_rate, open_capture, shown


def picture(path: Path, value: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((24, 32, 3), value, np.uint8))
    return path


def video(path: Path, frames: int = 5, fps: float = 12.5) -> Path:
    """Frame k is gray of value 40 k."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, (32, 24))
    for k in range(frames):
        writer.write(np.full((24, 32, 3), 40 * k, np.uint8))
    writer.release()
    return path


def read_all(items: list[Item]) -> tuple[list, list[str]]:
    frames = Frames(items)
    return [f for item in items for f in frames.read(item)], frames.skipped


def test_folder_with_folders(tmp_path: Path) -> None:
    picture(tmp_path / "b.png")
    picture(tmp_path / "in" / "a.jpg")
    picture(tmp_path / "in" / "b.png")
    video(tmp_path / "v.avi")
    (tmp_path / "notes.md").write_text("no image")
    found = {(str(i.relative), i.kind) for i in find_items(str(tmp_path))}
    assert found == {("b.png", "image"), ("in/a.jpg", "image"), ("in/b.png", "image"), ("v.avi", "video")}


def test_results_of_an_earlier_run_are_no_input(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "output" / "a.png")
    assert [str(i.relative) for i in find_items(str(tmp_path), tmp_path / "output")] == ["a.png"]
    assert len(find_items(str(tmp_path / "output"), tmp_path / "output")) == 1
    assert [Path(i.name).parent for i in find_items(f"{tmp_path}/**/a.png", tmp_path / "output")] == [tmp_path]


def test_pattern_list_and_single_files(tmp_path: Path) -> None:
    names = [picture(tmp_path / "x" / "a1.png"), picture(tmp_path / "y" / "a2.png"), picture(tmp_path / "y" / "b.png")]
    assert [str(i.relative) for i in find_items(f"{tmp_path}/*/a*.png")] == ["x/a1.png", "y/a2.png"]
    (tmp_path / "list.txt").write_text("y/b.png\nx/a1.png\n")
    assert [str(i.relative) for i in find_items(str(tmp_path / "list.txt"))] == ["y/b.png", "x/a1.png"]
    assert find_items(str(names[0])) == [Item(str(names[0]), Path("a1.png"), "image")]
    assert find_items(str(video(tmp_path / "v.avi")))[0].kind == "video"


def test_what_a_list_names_is_looked_at_whatever_its_name(tmp_path: Path, capsys) -> None:
    """In a folder, hidden files and those that lie beside images are passed over without a word."""
    for name in (".hidden.png", "a.png"):
        picture(tmp_path / name)
    picture(tmp_path / "b.png").rename(tmp_path / "readme")
    (tmp_path / "notes.md").write_text("no image")
    (tmp_path / "list.txt").write_text(".hidden.png\na.png\nreadme\nnotes.md\n")
    assert [str(i.relative) for i in find_items(str(tmp_path / "list.txt"))] == [".hidden.png", "a.png", "readme"]
    assert "1 of 4 files left out, no images that OpenCV can read: notes.md" in capsys.readouterr().err
    assert [str(i.relative) for i in find_items(str(tmp_path))] == ["a.png"]
    assert not capsys.readouterr().err


def test_a_list_of_relative_and_absolute_paths_stays_under_the_output_folder(tmp_path: Path, monkeypatch) -> None:
    picture(tmp_path / "here" / "a.png")
    picture(tmp_path / "there" / "b.png")
    monkeypatch.chdir(tmp_path / "here")
    Path("list.txt").write_text(f"a.png\n../there/b.png\n{tmp_path}/there/b.png\n")
    assert [str(i.relative) for i in find_items("list.txt")] == ["here/a.png", "there/b.png", "there/b.png"]


def test_brackets_in_a_name_are_no_pattern(tmp_path: Path) -> None:
    path = picture(tmp_path / "a[1].png")
    assert find_items(str(path)) == [Item(str(path), Path("a[1].png"), "image")]


def test_what_exists_is_meant_by_its_name(tmp_path: Path, monkeypatch) -> None:
    """A number, an address and a pattern are such only where nothing has that name."""
    monkeypatch.chdir(tmp_path)
    for name in ("2024/a.png", "rtsp:/x/b.png", "[ab]/c.png", "d.jpg/d.png"):
        picture(Path(name))
    for source in ("2024", "rtsp://x", "[ab]", "d.jpg"):
        (item,) = find_items(source)
        assert item.kind == "image"
        assert Path(item.name).parent == Path(source)
    for name in ("0", "x.txt", "clip.mp4"):
        Path(name).write_bytes(picture(tmp_path / "a.png").read_bytes())
        assert find_items(name) == [Item(name, Path(name), "image")]


@pytest.mark.parametrize("source", ["99999999999999999999", "100", "²", "", "/dev/null/x"])
def test_what_looks_like_a_camera(source: str) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        find_items(source)


def test_a_device_and_a_long_address_are_streams() -> None:
    assert find_items("/dev/null")[0].kind == "stream"
    assert find_items(f"http://10.0.0.7/{'x' * 5000}")[0].kind == "stream"


SUFFIXES = ("jpg", "jfif", "jpe", "JPEG", "png", "bmp", "tif", "ppm", "gif", "webp")


def mixed(folder: Path) -> set[str]:
    """Images of all suffixes and of none or another, a clip, and what lies beside them; returns the images' names."""
    for suffix in SUFFIXES:
        kind = ".jpg" if suffix == "jfif" else f".{suffix}"
        data = cv2.imencode(kind, np.full((24, 32, 3), 9, np.uint8))[1].tobytes()
        (folder / f"pic.{suffix}").write_bytes(data)
        (folder / f"{suffix}_without").write_bytes(data)
        (folder / f"pic.{suffix}.backup").write_bytes(data)
    names = {path.name for path in folder.iterdir()}
    for name in ("pic.txt", "pic.xml", "labels.json", ".DS_Store", "._pic.jpg", "README"):
        (folder / name).write_text("no image")
    for name in ("pic.heic", "sound.xyz"):
        (folder / name).write_bytes(b"\0\0\0\x18ftypheic\0")
    (folder / "raw.nef").write_bytes(b"MM\0*\0\0\0\x08")
    return names


def test_which_files_are_pictures_is_one_rule(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    names = mixed(tmp_path)
    items = find_items(str(tmp_path))
    assert {i.name for i in items} == {str(tmp_path / name) for name in names}
    assert {i.kind for i in items} == {"image"}
    said = f"{tmp_path}: 3 of {len(names) + 3} files left out, no images that OpenCV can read: pic.heic, raw.nef, sound.xyz\n"
    assert capsys.readouterr().err == said
    problems = Problems()
    assert set(image_paths(tmp_path, problems)) == {i.name for i in items}
    assert problems.counts == {NO_PICTURE: 3}
    assert set(Tree(tmp_path, Options()).pictures) == {i.name for i in items}
    (tmp_path / "list.txt").write_text("\n".join(sorted(names)))
    assert {i.name for i in find_items(str(tmp_path / "list.txt"))} == {i.name for i in items}
    for item in items:
        assert find_items(item.name)[0].kind == "image"
        assert cv2.haveImageReader(item.name)


@pytest.mark.parametrize("name", ["pic.heic", "sound.xyz", "raw.nef"])
def test_what_is_left_out_is_said_where_nothing_is_left(tmp_path: Path, name: str) -> None:
    mixed(tmp_path)
    (tmp_path / "only").mkdir()
    (tmp_path / name).rename(tmp_path / "only" / name)
    with pytest.raises(UserError, match=f"no images or videos in this folder; 1 of 1 files left out, .*: {name}"):
        find_items(str(tmp_path / "only"))
    with pytest.raises(UserError, match=f"no images in this folder; 1 of 1 files left out, .*: {name}"):
        image_paths(tmp_path / "only", Problems())
    (tmp_path / "list.txt").write_text(f"only/{name}\n")
    with pytest.raises(UserError, match=f"no images or videos in it; 1 of 1 files left out, .*: {name}"):
        find_items(str(tmp_path / "list.txt"))


def test_a_gif_is_a_video_if_it_moves(tmp_path: Path) -> None:
    frames = [Image.new("L", (32, 24), value) for value in (0, 100, 200)]
    frames[0].save(tmp_path / "still.gif")
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:], duration=200)
    assert {i.relative.name: i.kind for i in find_items(str(tmp_path))} == {"still.gif": "image", "moving.gif": "video"}
    assert find_items(str(tmp_path / "moving.gif"))[0].kind == "video"
    assert len(read_all(find_items(str(tmp_path / "moving.gif")))[0]) == 3
    assert kind_of(tmp_path / "moving.gif") == "image"  # labels belong to the first of its images


def test_cameras_and_streams_need_not_answer_to_be_named() -> None:
    assert find_items("0") == [Item("0", Path("camera0"), "stream")]
    item = find_items("rtsp://me:secret@10.0.0.7:554/live?x=1")[0]
    assert (item.kind, str(item.relative)) == ("stream", "10.0.0.7_554_live")
    assert shown(item.name) == "rtsp://10.0.0.7:554/live?x=1"


@pytest.mark.parametrize("source", ["missing.jpg", "missing", "*.missing"])
def test_nothing_there_is_said(source: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        find_items(str(tmp_path / source))


def test_empty_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images or videos in this folder"):
        find_items(str(tmp_path))


def test_video_yields_every_frame_with_its_rate(tmp_path: Path) -> None:
    frames, skipped = read_all(find_items(str(video(tmp_path / "v.avi"))))
    assert [(f.number, f.total, f.fps) for f in frames] == [(k, 5, 12.5) for k in range(1, 6)]
    assert [float(f.image.mean()) for f in frames] == pytest.approx([0, 40, 80, 120, 160], abs=2)
    assert skipped == []


def test_corrupt_items_are_named_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    good = picture(tmp_path / "a.jpg")
    (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[:-100])
    (tmp_path / "no.mp4").write_text("no video")
    frames, skipped = read_all(find_items(str(tmp_path)))
    assert [f.item.name for f in frames] == [str(good)]
    assert skipped == [str(tmp_path / "cut.jpg"), str(tmp_path / "no.mp4")]
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines == [
        f"{tmp_path}/cut.jpg: not a readable image (cut short); skipped", f"{tmp_path}/no.mp4: not a readable video; skipped"
    ]  # fmt: skip


def test_the_only_item_corrupt_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"--source .*a.jpg: not a readable image"):
        read_all(find_items(str(tmp_path / "a.jpg")))
    (tmp_path / "b.jpg").write_text("no image either")
    with pytest.raises(UserError, match="none of the 2 images and videos could be read"):
        read_all(find_items(str(tmp_path)))


@pytest.mark.parametrize(("source", "reason"), [("99", "no camera"), ("http://127.0.0.1:9/x", "this stream cannot be opened")])
def test_unreachable_streams_say_one_thing(source: str, reason: str, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(UserError, match=reason):
        read_all(find_items(source))
    assert capfd.readouterr().err == ""


class FakeCamera:
    """Delivers the frames 0, 1, 2, ... as fast as `gate` lets it, then ends."""

    def __init__(self, count: int) -> None:
        self.count, self.number, self.released = count, 0, False
        self.drained = threading.Event()

    def read(self) -> tuple[bool, np.ndarray | None]:
        if self.number == self.count:
            self.drained.set()
            return False, None
        self.number += 1
        return True, np.full((2, 2, 3), self.number - 1, np.uint8)

    def release(self) -> None:
        self.released = True


def test_a_slow_reader_gets_the_newest_frame_only() -> None:
    camera = FakeCamera(50)
    latest = LatestFrame(camera)
    assert camera.drained.wait(5)
    latest.thread.join(5)
    frame = latest.next()
    assert frame is not None
    assert frame[0, 0, 0] == 49  # the 49 before it were dropped
    assert latest.next() is None
    latest.close()
    assert camera.released


def test_nonsense_frame_rates_are_replaced(tmp_path: Path) -> None:
    capture = open_capture(str(video(tmp_path / "v.avi", fps=7)))
    assert frame_rate(capture) == 7
    capture.release()
    assert frame_rate(capture) == 25  # a closed capture answers 0
