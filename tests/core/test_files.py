"""utils.core.files: what can't be written is named, before the work and after it, and stays as it was."""

import importlib
import os
import stat

import pytest

from tests.tiny import RESIDUAL, network
from utils.core.errors import UserError
from utils.core.files import check_writable, output_place, write_text
from utils.network.cfg import write_cfg
from utils.network.checkpoint import save_checkpoint


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize(("name", "message"), [("sub", "is a folder"), ("pipe", "is a device or a pipe")])
def test_only_files_are_replaced(folder, name, message):
    kind = stat.S_IFMT((folder / name).stat().st_mode)
    for write in (check_writable, lambda path: write_text(path, "new")):
        with pytest.raises(UserError, match=f"{name}: {message}"):
            write(folder / name)
    assert stat.S_IFMT((folder / name).stat().st_mode) == kind


@pytest.mark.parametrize("name", ["n" * 300, f"new/{'n' * 300}/x"])
def test_a_name_that_is_too_long_is_told_before_the_work(folder, name):
    check_writable(folder / name.replace("n" * 300, "n" * 200))
    with pytest.raises(UserError, match=r"cannot be written \(File name too long\); choose another"):
        check_writable(folder / name)
    assert not (folder / "new").exists()


@pytest.mark.parametrize("name", ["file/x", "file/deep/x"])
def test_a_file_is_no_folder(folder, name):
    with pytest.raises(UserError, match="x: cannot be written, since .*file is no folder"):
        check_writable(folder / name)
    with pytest.raises(UserError, match="cannot create this folder"):
        write_text(folder / name, "new")


def test_folders_of_others_are_named(folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda place, mode: place != str(folder / "sub"))
    with pytest.raises(UserError, match="since .*sub belongs to others"):
        check_writable(folder / "sub" / "new" / "x")


@pytest.mark.parametrize("name", ["file", "x", "sub/x", "new/deep/x"])
def test_checking_leaves_nothing_behind(folder, name):
    before = sorted(folder.rglob("*"))
    check_writable(folder / name)
    assert sorted(folder.rglob("*")) == before
    write_text(folder / name, "new")
    assert (folder / name).read_text() == "new"


@pytest.fixture(params=["mode", "owner", "access"])
def foreign(request, folder, monkeypatch):
    """A folder that isn't the user's own: kept from being written, of another user, or on a file system for reading only."""
    place = folder / "sub"
    if request.param == "mode":
        place.chmod(0o555)
    elif request.param == "owner":
        monkeypatch.setattr(os, "geteuid", lambda: place.stat().st_uid + 1)
    else:
        monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(place))
    yield place
    place.chmod(0o755)


def test_nothing_is_added_to_a_folder_of_others_unasked(foreign, folder):
    with pytest.raises(UserError, match=r"sub: isn't a folder of yours that can be written; say with --out where"):
        output_place("", foreign / "x.pt")
    assert output_place(folder / "x.pt", foreign / "x.pt") == folder / "x.pt"


def test_results_lie_beside_the_input_in_a_folder_of_ones_own(folder):
    assert output_place(None, folder / "sub" / "x.pt") == folder / "sub" / "x.pt"
    assert output_place(None, folder / "sub", is_folder=True) == folder / "sub"
    with pytest.raises(UserError, match="sub: is a folder, but a file"):
        output_place(None, folder / "sub")
    with pytest.raises(UserError, match="cannot be written, since .*file is no folder"):
        output_place(folder / "file" / "x", folder / "y")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("PTQ", "--weights W --data d.data"),
        ("convert", "--weights W"),
        ("export", "--weights W"),
        ("make_cfg", "--cfg C --data d.data"),
        ("check", "--data D --fix"),
    ],
)
def test_scripts_say_so_before_the_work(script, words, tmp_path, monkeypatch):
    """Nothing but the names of the files is looked at before."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shared").mkdir()
    model = network(RESIDUAL)
    save_checkpoint(tmp_path / "shared" / "x.pt", {"model": model.state_dict(), "cfg": write_cfg(model.defs)})
    for name in ("d.data", "shared/d.data", "shared/x.cfg"):
        (tmp_path / name).write_text("classes=2\n")
    (tmp_path / "shared").chmod(0o555)
    before = sorted(tmp_path.rglob("*"))
    spelled = {"W": "shared/x.pt", "C": "shared/x.cfg", "D": "shared/d.data"}
    module = importlib.import_module(script)
    args = module.get_parser().parse_args([spelled.get(word, word) for word in words.split()])
    with pytest.raises(UserError, match="shared: isn't a folder of yours"):
        module.main(args)
    assert sorted(tmp_path.rglob("*")) == before
