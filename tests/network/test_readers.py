"""Readers of files from outside: any bytes end in a result or in a UserError, and what was read is written as it was."""

import contextlib
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from tests.fuzz import QUICK, THOROUGH, always, nearly
from tests.raw import voc_file, voc_object
from tests.tiny import NET, TOPOLOGIES, conv, head
from utils.checking.files import usable_rows
from utils.checking.read import read_subject
from utils.converters.base import Options
from utils.converters.voc import parse_voc
from utils.core.errors import UserError, noting_remarks
from utils.core.files import write_text
from utils.data.data_file import read_data, read_names
from utils.data.labels import CONFIDENCE, POLYGON, Problems, image_paths, parse_labels, read_labels
from utils.network.cfg import parse_cfg, write_cfg
from utils.network.darknet import Darknet
from utils.network.footprint import check_memory
from utils.network.shapes import output_shapes
from utils.network.summary import summarise
from utils.network.weights import load_weights, save_weights
from utils.pruning.graph import ChannelGraph

OTHERS = "[local_avgpool]\nsize=2\nstride=2\n[upsample]\nscale=0.5\n[dropout]\nprobability=.3\n"
CFGS = (*TOPOLOGIES.values(), NET + OTHERS + head())
SMALL = NET + conv(2) + "[se]\n" + head()
DATA = b"classes=2\ntrain=list.txt # images\nvalid = list.txt\nnames=b.names\n; end\nbackup=b\n"
LABELS = b"0 0.5 0.5 0.25 0.5\n1 0.25 0.5 0.1 0.2 0.9\n2 .1 .1 .2 .1 .2 .2\n\n1 0.9 0.5 0.3 0.2\n"
LITTLE = 2**26  # bytes of a network whose graph costs no time


def cfg_reader(path: Path) -> None:
    defs = parse_cfg(path)
    text = write_cfg(defs)
    again = parse_cfg(text)
    assert again == defs
    assert write_cfg(again) == text
    summarise(defs)
    check_memory(defs, output_shapes(defs), (defs.net.channels, defs.net.height, defs.net.width), LITTLE)
    ChannelGraph(defs)


def data_reader(path: Path) -> None:
    read_subject(str(path))  # a check stops at nothing
    data = read_data(path)
    assert len(data.names) == data.classes


def names_reader(path: Path) -> None:
    names = read_names(path)
    path.write_text("\n".join(names), encoding="utf-8-sig")
    assert read_names(path) == names


def list_reader(path: Path) -> None:
    found = image_paths(path, Problems())
    assert all(map(os.path.isfile, found))


def label_reader(path: Path) -> None:
    with contextlib.suppress(UnicodeDecodeError):
        usable_rows(path.read_bytes().decode(), "a.txt", (480, 640), 3)  # a check stops at no row
    rows, _ = read_labels(path.with_suffix(".jpg"), 3)
    assert np.isfinite(rows).all()
    assert (rows[:, 1:].min(initial=0), rows[:, 1:].max(initial=1)) == (0, 1)
    text = "".join(f"{int(c)} {x!r} {y!r} {w!r} {h!r}\n" for c, x, y, w, h in rows.tolist())
    again, findings = parse_labels(text, "a.txt", 3)
    assert len(again) == len(rows)
    assert not {CONFIDENCE, POLYGON} & {kind for kind, _ in findings}
    np.testing.assert_allclose(again, rows, atol=1e-6)


def voc_reader(path: Path) -> None:
    found = parse_voc(str(path), Options(skip_difficult=True))
    assert len(found.corners) == 4 * len(found.names) == 4 * len(found.numbers)


def weights_reader(path: Path) -> None:
    data, model = path.read_bytes(), Darknet(SMALL, 32)
    load_weights(model, path)
    save_weights(model, path)
    (version,) = struct.unpack("<i", data[4:8])
    assert path.read_bytes()[20:][: len(data)].startswith(data[20 if version >= 2 else 16 :])


def _weights() -> bytes:
    tensors = [t.detach().numpy().ravel() for module in Darknet(SMALL, 32).module_list for t in module.darknet_tensors()]
    return struct.pack("<3iq", 0, 2, 5, 7) + np.abs(np.concatenate(tensors)).astype("<f4").tobytes()


# name of the file -> (inputs, reader)
READERS: dict[str, tuple[st.SearchStrategy[bytes], Callable[[Path], None]]] = {
    "a.cfg": (nearly(*map(str.encode, CFGS)), cfg_reader),
    "a.data": (nearly(DATA), data_reader),
    "a.names": (nearly("cat\ndog # 2\n\nnaïve zebra\n".encode()), names_reader),
    "list.txt": (nearly(b"a.jpg\nimages/b #1.jpg\nc.jpg\n"), list_reader),
    "a.txt": (nearly(LABELS), label_reader),
    "a.xml": (nearly(voc_file(voc_object("dog", 1, 2, 30, 40) + voc_object("cat", 9, 9, 5, 5)).encode()), voc_reader),
    "a.weights": (nearly(_weights()), weights_reader),
}


def ends_well(name: str, folder: Path, profile: object) -> None:
    strategy, read = READERS[name]
    write_text(folder / "b.names", "cat\ndog\n")
    for picture in ("a.jpg", "c.jpg"):
        write_text(folder / picture, "")

    def holds(data: bytes) -> None:
        (folder / name).write_bytes(data)
        with noting_remarks(), contextlib.suppress(UserError):
            read(folder / name)

    always(strategy, holds, profile)


@pytest.mark.parametrize("name", READERS)
def test_any_bytes_end_in_a_result_or_a_user_error(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ends_well(name, tmp_path, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_bytes_do(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ends_well(name, tmp_path, THOROUGH)
