"""utils.files: what can't be written is named, before the work and after it, and stays as it was."""

import os
import stat

import pytest

from utils.errors import UserError
from utils.files import check_writable, write_text


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
