"""utils.network.weights: the file format byte by byte, and every way in which a file can be wrong."""

import contextlib
import struct

import numpy as np
import pytest
import torch

from tests.tiny import CSP, NET, RESIDUAL, TOPOLOGIES, conv, head, network
from utils.core.errors import UserError, noting_remarks
from utils.network.checkpoint import load_checkpoint, save_checkpoint
from utils.network.darknet import Darknet
from utils.network.file_kind import is_checkpoint
from utils.network.weights import darknet_tensors, load_weights, save_weights


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_save_load_save_is_identical(name, tmp_path):
    model = network(TOPOLOGIES[name])
    save_weights(model, tmp_path / "a.weights", seen=7)
    other = Darknet(TOPOLOGIES[name], 64)
    assert load_weights(other, tmp_path / "a.weights").message == ""
    save_weights(other, tmp_path / "b.weights")
    assert (tmp_path / "a.weights").read_bytes() == (tmp_path / "b.weights").read_bytes()
    assert other.seen == 7


def test_layout_of_one_convolution(tmp_path):
    model = network(NET + conv(2, 1))
    save_weights(model, tmp_path / "a.weights", seen=5)
    data = (tmp_path / "a.weights").read_bytes()
    assert struct.unpack("<3iq", data[:20]) == (0, 2, 5, 5)
    bn, kernel = model.module_list[0].BatchNorm2d, model.module_list[0].Conv2d.weight
    expected = [bn.bias, bn.weight, bn.running_mean, bn.running_var, kernel]  # beta, gamma, mean, variance, kernel
    np.testing.assert_array_equal(np.frombuffer(data[20:], "<f4"), torch.cat([t.detach().flatten() for t in expected]).numpy())


def test_header_of_old_versions_counts_images_in_32_bits(tmp_path):
    model = network(NET + conv(2, 1, bn=0))
    values = b"".join(t.detach().numpy().tobytes() for _, t in darknet_tensors(model))
    (tmp_path / "old.weights").write_bytes(struct.pack("<3ii", 0, 1, 0, 9) + values)
    other = Darknet(NET + conv(2, 1, bn=0), 64)
    load_weights(other, tmp_path / "old.weights")
    assert other.seen == 9
    assert torch.equal(other.module_list[0].Conv2d.weight, model.module_list[0].Conv2d.weight)


def test_a_backbone_loads_as_prefix_only_where_layers_end(tmp_path):
    model, other = network(RESIDUAL), network(RESIDUAL).requires_grad_(False)
    size = 20 + 4 * sum(t.numel() for i, t in darknet_tensors(model) if i < 2)
    save_weights(model, tmp_path / "all.weights")
    data = (tmp_path / "all.weights").read_bytes()
    (tmp_path / "cut.weights").write_bytes(data[:size])
    for _, tensor in darknet_tensors(other):
        tensor.zero_()
    assert load_weights(other, tmp_path / "cut.weights").message.startswith("the weights end after layer 1")
    assert [bool(t.any()) for i, t in darknet_tensors(other) if i < 3] == [True] * 10 + [False] * 5
    with pytest.raises(UserError, match=r"they part at layer 2 \[convolutional\]"):
        load_weights(other, tmp_path / "cut.weights", prefix=False)
    (tmp_path / "torn.weights").write_bytes(data[: size + 40])
    with pytest.raises(UserError, match=r"hold \d+ values, this cfg needs \d+; they part at layer 2"):
        load_weights(other, tmp_path / "torn.weights")
    (tmp_path / "odd.weights").write_bytes(data[:-3])
    with pytest.raises(UserError, match="truncated"):
        load_weights(other, tmp_path / "odd.weights")


def test_weights_of_another_network_leave_the_model_alone(tmp_path):
    save_weights(network(CSP), tmp_path / "csp.weights")
    model = network(RESIDUAL)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match="this cfg needs"):
        load_weights(model, tmp_path / "csp.weights")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("suffix", ["weights", "pt"])
def test_heads_of_other_classes_are_skipped_only_when_pretrained(suffix, tmp_path):
    body = NET + conv(8, stride=2)
    model, other, path = network(body + head(classes=2)), network(body + head(classes=5)), tmp_path / f"two.{suffix}"
    if suffix == "pt":
        save_checkpoint(path, {"model": model.state_dict()})
    else:
        save_weights(model, path)
    with pytest.raises(UserError, match="use -pt|use the cfg they belong to, or -pt"):
        load_weights(other, path)
    own_head = other.module_list[1].conv.weight.clone()
    report = load_weights(other, path, pretrained=True)
    assert report.skipped_layers == [1]
    assert torch.equal(other.module_list[0].conv.weight, model.module_list[0].conv.weight)
    assert torch.equal(other.module_list[1].conv.weight, own_head)


def test_checkpoint_of_another_cfg_names_both_shapes(tmp_path):
    save_checkpoint(tmp_path / "a.pt", {"model": network(NET + conv(8)).state_dict()})
    with pytest.raises(
        UserError, match=r"module_list.0.Conv2d.weight is \(8, 3, 3, 3\) there, but this cfg makes it \(6, 3, 3, 3\)"
    ):
        load_weights(network(NET + conv(6)), tmp_path / "a.pt", pretrained=True)
    for layer in ("1", "²", "9" * 5000):
        with pytest.raises(UserError, match="which this cfg has no place for"):
            load_weights(network(NET + conv(8)), _with_extra(tmp_path / "a.pt", layer))


def _with_extra(path, layer):
    data = load_checkpoint(path)
    data["model"] |= {f"module_list.{layer}.Conv2d.weight": torch.zeros(1)}
    save_checkpoint(path, data)
    return path


@pytest.mark.parametrize("seen", [-5, 2**53 + 1, 2**63 - 1])
def test_a_count_of_pictures_that_cannot_be_starts_again(seen, tmp_path):
    """Otherwise a training that counts on would write a file that no one can read."""
    model = network(RESIDUAL)
    save_weights(model, tmp_path / "a.weights", seen=seen)
    with noting_remarks() as remarks:
        load_weights(model, tmp_path / "a.weights")
    assert model.seen == 0
    (said,) = remarks
    assert said.place == f"{tmp_path}/a.weights"
    assert said.what == f"its header says that {seen} images were seen, which can't be; they are counted from 0"


def test_formats_are_told_apart_by_content(tmp_path):
    model = network(RESIDUAL)
    save_weights(model, tmp_path / "really_weights.pt")
    save_checkpoint(tmp_path / "really_pt.weights", {"model": model.state_dict()})
    for name in ("really_weights.pt", "really_pt.weights"):
        other = Darknet(RESIDUAL, 64)
        load_weights(other, tmp_path / name)
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(darknet_tensors(model), darknet_tensors(other), strict=True))


def test_checkpoints_with_numpy_numbers_load_and_code_does_not(tmp_path):
    torch.save({"model": {}, "best_fitness": np.float64(0.5)}, tmp_path / "old.pt")
    assert load_checkpoint(tmp_path / "old.pt")["best_fitness"] == 0.5
    torch.save({"model": _Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="holds more than tensors"):
        load_checkpoint(tmp_path / "evil.pt")


class _Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_cut_or_overwritten_anywhere_is_a_users_error_or_loads(zipped, tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"model": {"a": torch.rand(4, 3)}, "names": ["a"]}, path, _use_new_zipfile_serialization=zipped)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for number in range(120):
        damaged = bytearray(whole[: random.integers(4, len(whole))] if number % 2 else whole)
        damaged[random.integers(2, len(damaged))] = random.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            load_checkpoint(path)


@pytest.mark.parametrize("size", [8_000, 20_000, 60_000])  # from some length on torch says it with an OSError
def test_a_checkpoint_that_was_not_copied_whole_is_one_line(size, tmp_path):
    torch.save({"model": {"a": torch.rand(400, 50)}}, tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:size])
    with pytest.raises(UserError, match=r"x.pt: damaged or truncated \(.*\)$"):
        load_checkpoint(tmp_path / "x.pt")


def test_an_empty_file_is_called_so(tmp_path):
    (tmp_path / "x.pt").touch()
    with pytest.raises(UserError, match=r"x.pt: is empty; get the file again"):
        is_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 100, b"PK\x03\x04 but no archive"])
def test_damaged_files_are_one_line(content, tmp_path):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match="x.pt") as error:
        load_weights(network(RESIDUAL), tmp_path / "x.pt")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="do not exist"):
        load_weights(network(RESIDUAL), tmp_path / "missing.weights")


def test_the_real_network_gives_its_file_back(shared, tmp_path):
    folder = shared / "darknet/weights"
    model = Darknet(folder / "yolo-fastest-1.1.cfg", 320)
    load_weights(model, folder / "yolo-fastest-1.1.weights", prefix=False)
    save_weights(model, tmp_path / "copy.weights")
    assert (tmp_path / "copy.weights").read_bytes()[20:] == (folder / "yolo-fastest-1.1.weights").read_bytes()[20:]
