"""Comments, and keys given twice: of a .cfg, of a .data file, and how they are said."""

import subprocess
import sys
import warnings

import pytest

from make_cfg import edit, find_changes
from tests.conftest import ROOT
from tests.tiny import NET, conv, head
from utils.checking.findings import WARNING
from utils.checking.read import read_subject
from utils.core.errors import Remark, UserError, noting_remarks, remark
from utils.data.data_file import read_data, read_names
from utils.network.cfg import parse_cfg, write_cfg

TWICE = NET + "width=32\n" + conv(8, stride=2) + "filters=4\nfilters=8\n" + head()


def test_of_a_key_given_twice_the_first_counts():
    with noting_remarks() as remarks:
        defs = parse_cfg(TWICE)
    assert list(map(str, remarks)) == [
        "cfg:5: width=32 is left out: width=64 stands in line 2 already, and the first counts, as in Darknet (and 1 more)"
    ]
    assert (defs.net.width, defs[0].filters) == (64, 8)
    text = write_cfg(defs)
    assert text.count("filters=") == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parse_cfg(text) == defs


def test_make_cfg_changes_the_one_that_counts():
    text = NET + head().replace("classes=2", "classes=\nclasses = 2\nclasses=9")
    with noting_remarks():
        before, after = parse_cfg(text), parse_cfg(text)
        after[1].classes = 5
        edited = edit(text, find_changes(before, after))
        assert parse_cfg(edited) == after
    assert edited == text.replace("classes = 2", "classes=5")


def test_an_empty_value_is_none():
    with noting_remarks() as remarks:
        defs = parse_cfg(NET + "[convolutional]\nfilters=\nfilters=4\nstride=\n")
    assert (defs[0].filters, defs[0].stride) == (4, 1)
    assert list(map(str, remarks)) == [
        "cfg:6: filters= has no value, so it counts as not given, as in Darknet",
        "cfg:8: stride= has no value, so it counts as not given, as in Darknet",
    ]


def test_a_check_has_them_as_a_finding(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.cfg").write_text(TWICE)
    (tmp_path / "a.data").write_text("classes=2\nclasses=3\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_subject("a.data", "a.cfg").found
    said = [(f.severity, f.first, f.what.partition(" is left")[0]) for f in found if "first counts" in f.what]
    assert said == [(WARNING, "a.cfg:5", "width=32"), (WARNING, "a.data:2", "classes=3")]


def test_a_script_says_it_once_and_in_one_line(tmp_path):
    (tmp_path / "a.cfg").write_text(TWICE)
    command = [sys.executable, "models.py", "--cfg", str(tmp_path / "a.cfg")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.startswith("models.py: warning: ")
    assert done.stderr.count("\n") == 1
    assert "a.cfg:5: width=32 is left out" in done.stderr


def test_only_remarks_are_noted():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with noting_remarks() as remarks:
            warnings.warn("another", UserWarning, stacklevel=1)
            remark("odd", "a.cfg:1")
            remark("odd", place="a.cfg:1")
        remark("odd", "a.cfg:2")
    assert [(str(r), r.place, r.what) for r in remarks] == [("a.cfg:1: odd", "a.cfg:1", "odd")]
    assert [(str(w.message), w.category) for w in shown] == [("another", UserWarning), ("a.cfg:2: odd", Remark)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_comments_and_ends_of_lines(tmp_path, end):
    lines = [
        "; my data",
        "  # more",
        "",
        "classes = 2 # two",
        "train=x.txt # my list",
        "valid= # none yet",
        "names=a.names ;why",
    ]
    (tmp_path / "a.data").write_bytes(b"\xef\xbb\xbf" + end.join(lines).encode())
    (tmp_path / "a.names").write_bytes(f"cat # 1{end} ;dog".encode())
    data = read_data(tmp_path / "a.data")
    assert (data.classes, str(data.train), data.valid) == (2, "x.txt", None)
    assert data.names == ["cat # 1", ";dog"]
    text = TWICE.replace("width=32\n", "; note\n   # note\n\t[ yolo_ ] \n")
    with pytest.raises(UserError, match=r"cfg:7: layer 0 \[yolo_\]: this kind"):
        parse_cfg(text.replace("\n", end) + "\n")


@pytest.mark.parametrize("name", ["c#set", "c;set", "c #set", "c ; set", "my set"])
def test_a_path_may_hold_signs_of_comments(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "l.txt").write_text("x.jpg")
    (tmp_path / "a.data").write_text(f"classes=1\ntrain= {name}/l.txt \nvalid={name}/l.txt # the same ; list\n")
    data = read_data("a.data")
    assert (str(data.train), str(data.valid)) == (f"{name}/l.txt", f"{name}/l.txt")


def test_the_first_counts_in_a_data_file_too(tmp_path):
    (tmp_path / "a.data").write_text("classes=2\ntrain=\ntrain=a.txt\ntrain=b.txt\n")
    with noting_remarks() as remarks:
        assert str(read_data(tmp_path / "a.data").train) == "a.txt"
    assert len(remarks) == 1
    assert str(remarks[0]).startswith(f"{tmp_path}/a.data:4: train=b.txt is left out: train=a.txt stands in line 3 already")


@pytest.mark.parametrize("classes", ["0", "-1", "1000000000", "9" * 5000, "two", ""])
def test_numbers_of_classes_that_are_none(tmp_path, classes):
    (tmp_path / "a.data").write_text(f"classes={classes}\ntrain=a.txt\n")
    with pytest.raises(UserError, match="needs a line `classes=N` with the number of classes, at most") as caught:
        read_data(tmp_path / "a.data")
    assert not classes or f"but has classes={classes[:40]}" in str(caught.value)


def test_names_keep_what_only_python_takes_for_the_end_of_a_line(tmp_path):
    (tmp_path / "a.names").write_text("cat\u2028x\ndog\x0by\n", encoding="utf-8")
    assert read_names(tmp_path / "a.names") == ["cat\u2028x", "dog\x0by"]
