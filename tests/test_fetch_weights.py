"""fetch_weights.py and utils.core.download against a server of this test's own."""

import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import fetch_weights
from tests.tiny import RESIDUAL, network
from utils.core import download
from utils.core.errors import UserError
from utils.network.weights import save_weights


@dataclass
class Server:
    """Serves `files` from memory. cut: bytes after which each of the coming answers breaks off; ranges: honours Range."""

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        name, wanted = handler.path.lstrip("/"), handler.headers.get("Range")
        self.asked.append((name, wanted))
        if name not in self.files:
            handler.send_error(404)
            return
        data = self.files[name]
        start = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted and self.ranges else 0
        if start >= len(data):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(data)}")
            handler.end_headers()
            return
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(data) - start))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.end_headers()
        handler.wfile.write(data[start : start + (self.cuts.pop(0) if self.cuts else len(data))])


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        state.url = f"http://127.0.0.1:{listening.server_port}"
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield state
        listening.shutdown()


@pytest.fixture
def official(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """`tiny`: a published network, its backbone `tiny.conv.2`, and `tiny.conv.3`, published only as a part of it."""
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "tiny.cfg").write_text(RESIDUAL)
    save_weights(network(RESIDUAL), tmp_path / "source.weights")
    data = (tmp_path / "source.weights").read_bytes()
    entry = fetch_weights.Official(str(tmp_path / "tiny.cfg"), f"{server.url}/tiny.weights")
    files = {
        "tiny": fetch_weights.Official(entry.cfg, entry.url, digest=f"sha1:{hashlib.sha1(data).hexdigest()}"),
        "unsigned": fetch_weights.Official(entry.cfg, f"{server.url}/unsigned.weights"),
        "tiny.conv.2": fetch_weights.Official(entry.cfg, f"{server.url}/tiny.conv.2", layers=2),
        "tiny.conv.3": fetch_weights.Official(entry.cfg, layers=3, whole="tiny"),
    }
    monkeypatch.setattr(fetch_weights, "FILES", files)
    begin = 20 + 4 * files["tiny.conv.2"].value_count()
    server.files |= {"tiny.weights": data, "unsigned.weights": data, "tiny.conv.2": data[:begin]}
    return data


def run(*words: str | Path) -> list[Path]:
    return fetch_weights.main(fetch_weights.get_parser().parse_args([str(w) for w in words]))


def test_a_file_is_fetched_once_and_remembered(server, official, tmp_path, capsys):
    (path,) = run("tiny", "--out", tmp_path / "w")
    assert path.read_bytes() == official
    assert (tmp_path / "w/tiny.weights.sha256").read_text() == f"{hashlib.sha256(official).hexdigest()}  tiny.weights\n"
    assert run("tiny", "--out", tmp_path / "w") == [path]
    assert "already there and intact" in capsys.readouterr().out
    assert len(server.asked) == 1
    assert sorted(p.name for p in (tmp_path / "w").iterdir()) == ["tiny.weights", "tiny.weights.sha256"]


def test_a_cut_connection_goes_on_where_it_stopped(server, official, tmp_path):
    server.cuts = [1000, 500]
    (path,) = run("unsigned", "--out", tmp_path)
    assert path.read_bytes() == official
    assert server.asked == [("unsigned.weights", r) for r in (None, "bytes=1000-", "bytes=1500-")]


def test_the_next_call_goes_on_too(server, official, tmp_path):
    server.cuts = [700, 0, 0, 0]
    with pytest.raises(
        UserError, match=r"unsigned.weights: no connection to 127.0.0.1: .*; check the network.*0.0 MB are kept"
    ):
        run("unsigned", "--out", tmp_path)
    assert (tmp_path / "unsigned.weights.part").read_bytes() == official[:700]
    assert run("unsigned", "--out", tmp_path)[0].read_bytes() == official
    assert server.asked[-1] == ("unsigned.weights", "bytes=700-")


def test_servers_without_ranges_begin_again(server, official, tmp_path):
    server.ranges = False
    (tmp_path / "unsigned.weights.part").write_bytes(b"other bytes")
    assert run("unsigned", "--out", tmp_path)[0].read_bytes() == official


@pytest.mark.parametrize("extra", [0, 10])
def test_a_complete_part_is_taken_and_a_longer_one_replaced(extra, server, official, tmp_path):
    (tmp_path / "unsigned.weights.part").write_bytes(official + b"x" * extra)
    assert run("unsigned", "--out", tmp_path)[0].read_bytes() == official


def test_wrong_checksums_and_counts_are_refused_and_not_kept(server, official, tmp_path):
    server.files["tiny.weights"] = official[:-1] + bytes([official[-1] ^ 1])
    with pytest.raises(
        UserError, match="tiny.weights: what arrived hasn't the published SHA1 [0-9a-f]{40}; run the command again"
    ):
        run("tiny", "--out", tmp_path / "w")
    server.files["unsigned.weights"] = official[:-4]
    with pytest.raises(UserError, match=r"what arrived holds \d+ values, and .*tiny.cfg needs \d+"):
        run("unsigned", "--out", tmp_path / "w")
    server.files["unsigned.weights"] = b"<html>not here any more</html>"
    with pytest.raises(UserError, match="what arrived is no Darknet .weights file"):
        run("unsigned", "--out", tmp_path / "w")
    assert list((tmp_path / "w").iterdir()) == []


def test_a_file_that_changed_since_is_said(official, tmp_path):
    (path,) = run("unsigned", "--out", tmp_path)
    path.write_bytes(official[:-1] + bytes([official[-1] ^ 1]))
    with pytest.raises(UserError, match="already there, but has changed since it was fetched .*delete it and fetch it again"):
        run("unsigned", "--out", tmp_path)


def test_backbones_are_checked_and_cut(server, official, tmp_path):
    backbone, part = run("tiny.conv.2", "tiny.conv.3", "--out", tmp_path)
    count = fetch_weights.FILES["tiny.conv.3"].value_count()
    assert (backbone.name, part.name) == ("tiny.conv.2", "tiny.conv.3")
    assert part.read_bytes() == official[: 20 + 4 * count]
    assert (tmp_path / "tiny.weights").exists()


def test_mirror(server, official, tmp_path):
    server.files["copies/tiny.weights"] = official
    run("tiny", "--out", tmp_path, "--mirror", f"{server.url}/copies/")
    assert server.asked == [("copies/tiny.weights", None)]


def test_no_file_no_network_no_name(server, official, tmp_path, monkeypatch):
    del server.files["tiny.weights"]
    with pytest.raises(UserError, match=r"/tiny.weights: the server answers 404"):
        run("tiny", "--out", tmp_path)
    with pytest.raises(UserError, match=r"no connection to 127.0.0.1: .*refused; check the network"):
        run("tiny", "--out", tmp_path, "--mirror", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="huge: no official file of this name; there are: tiny, unsigned"):
        run("huge")
    with pytest.raises(UserError, match="name a file to fetch; there are"):
        run()
    assert not list(tmp_path.glob("*.part"))


def test_a_full_disk_is_one_line(server, official, tmp_path, monkeypatch):
    def full(url: str, part: Path) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "_receive", full)
    with pytest.raises(UserError, match=r"tiny.weights.part: cannot be written \(No space left on device\)"):
        run("tiny", "--out", tmp_path)


def test_list_names_every_file_and_its_size(capsys):
    """Sizes that their publishers give: 248,007,048 bytes of yolov3.weights, 162,482,580 of darknet53.conv.74."""
    run("--list")
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[2:]}
    assert set(rows) == set(fetch_weights.FILES)
    assert {"yolov3", "yolov3-tiny", "yolov3-spp", "yolov4", "yolov4-tiny", "darknet53.conv.74", "yolov3-tiny.conv.15",
            "yolov4.conv.137", "yolov4-tiny.conv.29"} <= set(rows)  # fmt: skip
    assert 20 + 4 * fetch_weights.FILES["yolov3"].value_count() == 248_007_048
    assert 20 + 4 * fetch_weights.FILES["darknet53.conv.74"].value_count() == 162_482_580
    assert rows["yolov3"] == ["248.0", "https://pjreddie.com/media/files/yolov3.weights"]
