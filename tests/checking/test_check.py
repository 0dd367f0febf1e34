"""check.py on BCCD: every planted fault is found, and a clean copy has none."""

import re
import resource
import sys
from pathlib import Path

import numpy as np
import pytest

import check
from tests.planted import CFG, CLASSES, FAULTS, TRAIN, VALID, run_check
from tests.tiny import DFL, NET, conv
from utils.core.errors import UserError
from utils.network.checkpoint import save_checkpoint
from utils.network.darknet import Darknet
from utils.scripts.cli import run as run_script


def test_a_clean_copy_has_no_findings(copy, capsys):
    status, report = copy.check("--decode")
    assert status == 0
    assert report["findings"] == []
    assert report["counts"] == {"error": 0, "warning": 0, "note": 0}
    assert report["splits"]["train"]["pictures"] == TRAIN
    rows = copy.rows()
    counts = [sum(row[0] == str(k) for row in rows) for k in range(3)]
    assert report["splits"]["train"]["classes"] == [list(pair) for pair in zip(CLASSES, counts, strict=True)]
    assert f"RBC {counts[1]}" in " ".join(capsys.readouterr().out.split())
    sides = np.array([row[3:] for row in rows], float) * (416, 416 * 480 / 640)
    ratios = np.maximum(sides[:, None] / [(32, 32), (70, 65), (140, 130)], [(32, 32), (70, 65), (140, 130)] / sides[:, None])
    assert report["anchors"]["recall"] == pytest.approx((ratios.max(2).min(1) < 4).mean())


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_nothing_else(copy, name):
    fault, rows = FAULTS[name], len(copy.label(0).read_text().splitlines())
    fault.plant(copy)
    status, report = copy.check()
    assert len(report["findings"]) == 1, report["findings"]
    (finding,) = report["findings"]
    assert finding["severity"] == fault.severity
    assert finding["what"].startswith(fault.what)
    assert fault.first.replace("ROW+1", str(rows + 2)).replace("ROW", str(rows + 1)) in finding["first"]
    assert finding["count"] == fault.count or fault.count < 0 < finding["count"]
    assert status == (1 if fault.severity == "error" else 0)


def test_fifteen_faults_at_once(copy, capsys):
    names = [
        "a listed image that isn't there", "an image cut short", "an image that is none", "an image without label file",
        "a label file without image", "a row of four numbers", "a value that is nan", "a class out of range",
        "a box in pixels", "a box without area", "a box that reaches outside", "a name given twice",
        "an image of valid in train", "anchors far from the boxes", "two images of one label file", "a tiny image",
    ]  # fmt: skip
    for name in names:
        FAULTS[name].plant(copy)
    status, report = copy.check(weights=False)
    assert status == 1
    said = sorted(f["what"] for f in report["findings"])
    for what, name in zip(said, sorted(names, key=lambda n: FAULTS[n].what), strict=True):
        assert what.startswith(FAULTS[name].what)
    severities = [f["severity"] for f in report["findings"]]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    output = capsys.readouterr().out
    assert "train.txt:17: images/gone.jpg" in output
    assert "findings would break training or make its figures wrong" in output


def test_corners_in_place_of_centres(copy):
    for number in range(TRAIN):
        rows = [row.split() for row in copy.label(number).read_text().splitlines()]
        boxes = np.array([row[1:] for row in rows], float)
        boxes = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
        lines = [f"{row[0]} {' '.join(f'{v:.6f}' for v in box)}\n" for row, box in zip(rows, boxes.tolist(), strict=True)]
        copy.label(number).write_text("".join(lines))
    status, report = copy.check(weights=False)
    assert (status, report["findings"][0]["what"]) == (1, "train: most boxes reach outside")
    assert report["findings"][0]["count"] > 0.5 * len(copy.rows())


def test_several_heads_and_classes(copy):
    copy.replace("net.cfg", "classes=3", "classes=1")
    copy.replace("net.cfg", "filters=24", "filters=18")
    _, report = copy.check(weights=False)
    (finding,) = report["findings"]
    assert finding["what"] == "[yolo] layers with classes=1, where the .data has 3"
    assert finding["remedy"] == "python make_cfg.py --cfg net.cfg --data bccd.data, or train with --single-cls"
    (copy.folder / "net.cfg").write_text("[net]\n[convolution]\n")
    _, report = copy.check(weights=False)
    assert "this kind of layer is not supported" in report["findings"][0]["what"]
    (copy.folder / "net.cfg").write_text(CFG.replace("channels=3", "channels=4"))
    _, report = copy.check(weights=False)
    assert [f["what"] for f in report["findings"]] == ["a network for images of 4 channels"]
    (copy.folder / "net.cfg").write_text(NET + conv(4))
    _, report = copy.check(weights=False)
    assert [f["what"] for f in report["findings"]] == ["a network without [yolo] or [dfl] layer"]


def test_anchor_free_heads(copy):
    copy.replace("bccd.data", "classes=3", "classes=2")
    (copy.folder / "bccd.names").write_text("a\nb\n")
    (copy.folder / "net.cfg").write_text(DFL)
    _, report = copy.check(weights=False)
    assert report["anchors"] is None
    assert not any("anchor" in f["what"] or "[dfl]" in f["what"] for f in report["findings"])
    (copy.folder / "net.cfg").write_text(DFL.replace("classes=2\nreg_max=6", "classes=3\nreg_max=6"))
    _, report = copy.check(weights=False)
    found = {f["what"]: f for f in report["findings"]}
    assert found["[dfl] layers with classes=3, where the .data has 2"]["count"] == 2
    (wrong,) = (f for what, f in found.items() if what.startswith("filters=2 before a [dfl] that has reg_max=6 and classes=3"))
    assert (wrong["remedy"], wrong["count"], wrong["first"].split(": ")[1]) == ("set filters=3", 2, "layer 19 [convolutional]")


def test_img_size_and_stretch_are_what_anchors_are_held_against(copy):
    status, report = copy.check("--img-size", "100")
    assert (status, report["findings"][0]["first"]) == (1, "--img-size 100")
    plain, small, stretched = (copy.check(*flags)[1]["anchors"] for flags in ([], ["--img-size", "160"], ["--stretch"]))
    assert small["mean_iou"] < plain["mean_iou"]
    assert stretched["mean_iou"] != plain["mean_iou"]


def test_decode_finds_damage_inside(copy):
    data = bytearray(copy.image(0).read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    copy.image(0).write_bytes(data)
    assert copy.check()[0] == 0
    status, report = copy.check("--decode")
    assert status == 1
    assert report["findings"][0]["what"] == "train: images damaged inside"
    assert "orrupt JPEG" in report["findings"][0]["first"]


def test_classes_are_counted_where_the_data_does_not_say(copy):
    copy.replace("bccd.data", "classes=3\n", "")
    status, report = copy.check()
    assert [f["what"] for f in report["findings"]] == ["a .data without a usable line `classes=`"]
    assert report["findings"][0]["remedy"] == "add a line `classes=3`"
    copy.replace("bccd.data", "names=bccd.names\n", "")
    status, report = copy.check()
    assert (status, report["splits"]["train"]["boxes"]) == (1, len(copy.rows()))
    with pytest.raises(UserError, match="nothing to write"):
        copy.check("--fix")


def test_rare_classes_and_those_that_valid_lacks(copy):
    for number in range(1, TRAIN):
        rows = copy.label(number).read_text().splitlines(keepends=True)
        copy.label(number).write_text("".join(row for row in rows if not row.startswith("2 ")))
    for number in range(VALID):
        label = copy.label(number, "valid")
        label.write_text("".join(r for r in label.read_text().splitlines(keepends=True) if not r.startswith("2 ")))
    status, report = copy.check()
    assert status == 0
    assert [(f["severity"], f["what"]) for f in report["findings"]] == [
        ("warning", "train: rare classes"), ("note", "valid: classes without boxes")]  # fmt: skip
    assert "--image-weights" in report["findings"][0]["remedy"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--data none.data", "--data none.data: there is no such file"),
        ("--data bccd.data --cfg none.cfg", "--cfg none.cfg: there is no such file"),
        ("--data bccd.data --weights net.weights", "net.weights: carries no cfg"),
        ("--data bccd.data --out x", "--out x is where --fix writes"),
        ("--data bccd.data --img-size 0", "--img-size: 0: must be a whole number, 1 to 8192"),
        ("--data bccd.data --workers -1", "--workers: -1: must be a whole number, 1 to 256"),
        ("", "--data"),
    ],
)
def test_an_unusable_command_line_is_one_line_and_2(copy, flags, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check.py", *flags.split()])
    with pytest.raises(SystemExit) as end:
        run_script(check.main, check.get_parser())
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_line_without_a_value_is_no_folder(copy):
    copy.replace("bccd.data", "valid=valid.txt", "valid=")
    status, report = copy.check()
    assert status == 1
    assert [f["what"] for f in report["findings"]] == ["a .data without a line `valid=`"]


def test_a_command_that_a_message_ends_with_stays_on_one_line(copy, capsys):
    """It is there to be copied, so it is the remedy and not a part of what is wrong, which is wrapped."""
    names = copy.folder / "bccd.names"
    names.write_bytes("红细胞\n白细胞\n血小板\n".encode("gbk"))
    _, report = copy.check()
    found = next(f for f in report["findings"] if "gbk" in f["what"])
    assert found["first"].endswith("bccd.names:1")
    assert re.fullmatch(r"iconv -f gbk -t utf-8 \S*bccd.names > \S*bccd-utf8.names", found["remedy"])
    assert found["remedy"] in capsys.readouterr().out


def test_an_onnx_file_is_called_so(copy):
    Path("x.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    with pytest.raises(UserError, match=r"x.onnx: an ONNX file isn't checked; name the .pt or .weights"):
        run_check("--data bccd.data --weights x.onnx")


def test_a_checkpoint_needs_no_cfg(copy):
    state = {"model": Darknet(CFG, 416).state_dict(), "names": CLASSES, "cfg": CFG, "cfg_name": "net.cfg"}
    save_checkpoint("x.pt", state | {"settings": {"img_size": 320, "stretch": True}})
    _, carried = run_check("--data bccd.data --json report.json --weights x.pt")
    _, given = copy.check("--img-size", "320", "--stretch", weights=False)
    assert carried["anchors"] == given["anchors"] != copy.check()[1]["anchors"]
    assert carried["findings"] == []


def test_workers_see_the_same(copy):
    """More images than one process is worth starting for."""
    lines = (copy.folder / "train.txt").read_text()
    (copy.folder / "train.txt").write_text(lines * 20)
    copy.add_row(3, "0 .5 .5 .1")
    begin = children_time()
    alone = run_check("--data bccd.data --json report.json")
    assert children_time() == begin
    together = run_check("--data bccd.data --json report.json --workers 2")
    assert children_time() > begin
    assert alone == together
    counts = {f["what"]: f["count"] for f in alone[1]["findings"]}
    assert counts == {"train: label rows that aren't five numbers": 20, "train: images again": 19 * TRAIN}


def children_time() -> float:
    """Seconds that processes of this one have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
