"""Files of torch.save, read without running them: what they hold, and what damaged and malicious ones come to."""

import contextlib
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import convert
import detect
import export
from tests.owners import checkpoint, make, save
from utils.core.errors import UserError
from utils.network.foreign import Foreign
from utils.network.pickled import attributes, is_tensor, read_torch_file

TENSORS = {
    "half": torch.tensor([1.5, -2.0]).half(), "bfloat16": torch.tensor([[0.5], [3.0]]).bfloat16(), "scalar": torch.tensor(7.0),
    "long": torch.arange(5), "bool": torch.tensor([True, False]), "empty": torch.empty(0, 3),
    "double": torch.tensor([1e-300]).double(),
    "strided": torch.arange(24.0).view(4, 6).T[1:4, 1::2], "parameter": nn.Parameter(torch.ones(2, 3)),
}  # fmt: skip


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_every_kind_come_back(zipped, tmp_path):
    shared = torch.arange(10.0)
    torch.save(TENSORS | {"head": shared[:4], "tail": shared[4:]}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    file = read_torch_file(tmp_path / "x.pt")
    found = file.tensors({name: value for name, value in file.content.items() if is_tensor(value)})
    assert list(found) == [*TENSORS, "head", "tail"]
    for name, tensor in (TENSORS | {"head": shared[:4], "tail": shared[4:]}).items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_memory_in_the_other_order_of_bytes(tmp_path):
    torch.save({"x": torch.tensor([1.0, -2.5])}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        files = {n: archive.read(n) for n in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
        for name, data in files.items():
            changed = np.frombuffer(data, "<f4").astype(">f4").tobytes() if name == "x/data/0" else data
            archive.writestr(name, b"big" if name == "x/byteorder" else changed)
    file = read_torch_file(tmp_path / "y.pt")
    assert file.tensors(file.content)["x"].tolist() == [1.0, -2.5]


def test_objects_are_records_of_what_was_asked_for(tmp_path):
    torch.save({"network": nn.Conv2d(2, 3, 1), "set": {1, 2}, "size": torch.Size((4, 5))}, tmp_path / "x.pt")
    file = read_torch_file(tmp_path / "x.pt")
    network = file.content["network"]
    assert (network.origin, network.kind) == ("torch.nn.modules.conv.Conv2d", "Conv2d")
    assert attributes(network)["kernel_size"] == (1, 1)
    assert is_tensor(attributes(attributes(network)["_parameters"])["weight"])
    assert file.content["set"].arguments == ([1, 2],)
    assert file.content["size"].arguments == ((4, 5),)


@pytest.mark.parametrize(("family", "protocol"), [("yolov5", 2), ("yolov8", 2), ("yolov8", 4), ("yolov8", 5)])
def test_a_pickle_that_would_run_code_runs_nothing(family, protocol, tmp_path):
    """Alone, and in a network's checkpoint, where all else is as it should be; by any command that reads weights."""
    canary = Canary(tmp_path / "canary")
    (tmp_path / "a.pt").write_bytes(pickle.dumps(canary, protocol))
    save(tmp_path / "b.pt", family, checkpoint(make(family), git=canary), pickle_protocol=protocol)
    save(tmp_path / "c.pt", family, checkpoint(make(family), git=canary), _use_new_zipfile_serialization=False)
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((32, 32, 3), np.uint8))
    words = {convert: [], export: [], detect: ["--source", str(tmp_path / "x.png")]}
    for name in "abc":
        for command in words:
            arguments = [*words[command], "--weights", str(tmp_path / f"{name}.pt")]
            with pytest.raises(UserError, match=r"holds more than tensors and numbers: it would run posix\.system; nothing"):
                command.main(command.get_parser().parse_args(arguments))
    assert not (tmp_path / "canary").exists()


def test_the_canary_would_sing(tmp_path):
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def test_what_holds_no_network_is_named(tmp_path):
    def told(name: str) -> str:
        with pytest.raises(UserError) as error:
            convert.main(convert.get_parser().parse_args(["--weights", str(tmp_path / name)]))
        return str(error.value).partition(": ")[2]

    torch.save({"optimizer": {"state": {}, "param_groups": []}, "epoch": 3}, tmp_path / "optimizer.pt")
    assert told("optimizer.pt") == "holds an optimizer and no weights of a network"
    (tmp_path / "call.pt").write_bytes(b"\x80\x02ctorch.hub\nload\n(S'x'\ntR.")
    assert told("call.pt") == "holds torch.hub.load and no weights of a network"
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "module.pt")
    assert told("module.pt").startswith("holds more than tensors and numbers, so it isn't loaded (a pickled torch.nn.modules")
    with zipfile.ZipFile(tmp_path / "word.pt", "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    assert told("word.pt") == "is a zip archive, but not one that PyTorch wrote"
    torch.jit.trace(nn.Conv2d(3, 4, 3), torch.rand(1, 3, 8, 8)).save(tmp_path / "script.pt")
    assert told("script.pt").startswith("is a TorchScript archive, a program; give the .pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_and_changed_files_end_in_a_line(zipped, tmp_path):
    """Cut anywhere: a line; with bytes of the pickle written over: a line, or something that is no worse than another file."""
    data = save(tmp_path / "x.pt", "yolov8", checkpoint(make("yolov8")), _use_new_zipfile_serialization=zipped).read_bytes()
    path = tmp_path / "y.pt"
    for length in (3, 1000, len(data) // 2, len(data) - 30):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match="damaged or truncated"):
            found = Foreign.of(path)
            found.file.tensors(found.tensors)
    rng = np.random.default_rng(0)
    for _ in range(20):
        changed = bytearray(data)
        for position in rng.integers(0, 80_000, 3):
            changed[position] = rng.integers(256)
        path.write_bytes(changed)
        with contextlib.suppress(UserError):
            found = Foreign.of(path)
            found.file.tensors(found.tensors)
