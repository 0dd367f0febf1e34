"""convert.py with the owners' checkpoints of YOLOv5, YOLOv5u and YOLOv8: the same boxes; any other network is named."""

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import convert
from tests import owners
from tests.owners import Bottleneck, C2f, Conv, DetectionModel, DistributionDetect, checkpoint, make, save
from tests.references import read_darknet
from utils.core.errors import UserError
from utils.loading import load_model
from utils.network.cfg import parse_cfg
from utils.network.checkpoint import read_checkpoint

LAYOUTS = ("half", "ema", "bare", "wrapped", "resumable", "legacy", "older", "state", "state in model", "state of a wrapper")
BLOCKS, HEADS = "ultralytics.nn.modules.block.", "ultralytics.nn.modules.head."


def run(*words: object) -> Path:
    return convert.main(convert.get_parser().parse_args([str(w) for w in words]))


def ours(path: Path, images: torch.Tensor) -> torch.Tensor:
    """Rows of a converted file as its family has them: cx cy w h, objectness where there is one, classes."""
    loaded = load_model("", path)
    with torch.no_grad():
        decoded = loaded.model(images)[0]
    return decoded if loaded.model.defs.yolo_indices() else torch.cat((decoded[..., :4], decoded[..., 5:]), -1)


def assert_same_boxes(model: nn.Module, path: Path) -> None:
    """At two sizes, in the order of the rows, to 1e-4."""
    for height, width in ((64, 64), (64, 96)):
        images = torch.rand(2, 3, height, width)
        with torch.no_grad():
            expected = model(images)
        torch.testing.assert_close(ours(path, images), expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(params=["yolov5", "yolov5u", "yolov8"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize(("width", "repeats", "classes"), [(8, 1, 3), (8, 3, 120), (12, 2, 1)])
def test_boxes_names_and_size_are_the_checkpoints(family, width, repeats, classes, tmp_path, capsys):
    model = make(family, width, repeats, classes)
    out = run("--weights", save(tmp_path / "best.pt", family, checkpoint(model)))
    assert out == tmp_path / "best_darknet.pt"
    assert_same_boxes(model, out)
    loaded = load_model("", out)
    assert (loaded.names, loaded.img_size) == ([f"class {k}" for k in range(classes)], 96)
    defs = parse_cfg(tmp_path / "best_darknet.cfg")
    assert defs == loaded.model.defs
    assert (defs.net.width, defs.net.height) == (96, 96)
    assert (tmp_path / "best_darknet.weights").exists() == (family == "yolov5")
    assert "assumed" not in capsys.readouterr().out


def test_the_files_for_darknet_are_the_same_network_to_opencv(tmp_path):
    model = make("yolov5", classes=2)
    run("--weights", save(tmp_path / "a.pt", "yolov5", checkpoint(model)))
    net = read_darknet(str(tmp_path / "a_darknet.cfg"), str(tmp_path / "a_darknet.weights"))
    image = np.random.default_rng(0).random((1, 3, 96, 96), dtype=np.float32)
    net.setInput(image)
    names = [n for _, n in sorted((net.getLayerId(n), n) for n in net.getUnconnectedOutLayersNames())]
    theirs = np.concatenate([out.reshape(-1, out.shape[-1]) for out in net.forward(names)])
    with torch.no_grad():
        levels = model(torch.from_numpy(image))[0].split([3 * side**2 for side in (12, 6, 3)])
    rows = torch.cat([level.view(3, -1, 7).transpose(0, 1).reshape(-1, 7) for level in levels]).numpy()  # cell by cell
    np.testing.assert_allclose(theirs[:, :5], rows[:, :5] / [96, 96, 96, 96, 1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_checkpoints(family, layout, tmp_path, capsys):
    """Half precision; averaged weights before others; without a dict around it; PyTorch's format before 1.6; state dicts."""
    half, other = make(family).half(), make(family, classes=1)
    state = half.state_dict()
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": []}
    contents: dict[str, Any] = dict.fromkeys(LAYOUTS, checkpoint(half)) | {
        "ema": checkpoint(other, ema=half), "bare": half, "wrapped": checkpoint(nn.DataParallel(half)),
        "resumable": checkpoint(half, optimizer=optimizer),
        "state": state, "state in model": {"model": state, "epoch": 3},
        "state of a wrapper": {f"module.model.{k}": v for k, v in state.items()},
    }  # fmt: skip
    renamed = {DetectionModel: "yolov5.models.yolo.Model"} if layout == "older" else {}
    path = save(tmp_path / "x.pt", family, contents[layout], renamed, _use_new_zipfile_serialization=layout != "legacy")
    out = run("--weights", path, "--out", tmp_path / "y.pt")
    assert_same_boxes(half.float(), out)
    told, is_state = capsys.readouterr().out, layout.startswith("state")
    assert ("assumed: activations and residuals are the published ones" in told) == is_state
    loaded = load_model("", out)
    assert loaded.names == (["0", "1", "2"] if is_state else ["class 0", "class 1", "class 2"])
    assert loaded.img_size == (640 if is_state or layout == "bare" else 96)


def test_variances_and_their_epsilon_have_the_same_sum_to_the_last_bit(tmp_path):
    """Dozens of layers magnify a rounding; then not even the first seven digits of a random network's boxes are equal."""
    model = make("yolov8")
    loaded = load_model("", run("--weights", save(tmp_path / "a.pt", "yolov8", checkpoint(model))))
    ours, theirs = (
        torch.cat([m.running_var + m.eps for m in network.modules() if isinstance(m, nn.BatchNorm2d)]).sort().values
        for network in (loaded.model, model)
    )
    assert torch.equal(ours, theirs)


def test_other_widths_activations_and_anchors_are_built_as_they_are(family, tmp_path):
    """What pruning tools, a yaml's `activation` and autoanchor leave."""
    model = make(family)
    narrow(model.model[2].m[0])
    for module in convolutions(model):
        module.act = nn.LeakyReLU(0.1)
    if family == "yolov5":
        model.model[-1].anchors *= 1.37
    assert_same_boxes(model, run("--weights", save(tmp_path / "a.pt", family, checkpoint(model))))


def test_batch_normalisations_that_were_folded_into_kernels(family, tmp_path):
    model = make(family)
    expected = copy.deepcopy(model)
    for module in convolutions(model):
        module.conv = nn.utils.fusion.fuse_conv_bn_eval(module.conv, module.bn)
        del module.bn
    assert_same_boxes(expected, run("--weights", save(tmp_path / "a.pt", family, checkpoint(model))))


@pytest.mark.parametrize(("names", "imgsz"), [(7, "large"), ({0: "a", 2: "b"}, [-1, "a"]), (["a"], 10**9), ({"a": "b"}, -1)])
def test_names_and_sizes_that_are_none_are_assumed(names, imgsz, tmp_path, capsys):
    model = make("yolov8", classes=2, names=names)
    out = run("--weights", save(tmp_path / "a.pt", "yolov8", checkpoint(model, train_args={"imgsz": imgsz})))
    told = capsys.readouterr().out
    assert "assumed: its 2 classes are called by their numbers" in told
    assert "assumed: its input is 640 pixels wide" in told
    loaded = load_model("", out)
    assert (loaded.names, loaded.img_size) == (["0", "1"], 640)


def test_names_are_lines_that_can_be_shown_and_sizes_multiples_of_the_stride(tmp_path):
    model = make("yolov8", classes=3, names={1: "b\tb", 0: "a\n\0a", 2: 5})
    out = run("--weights", save(tmp_path / "a.pt", "yolov8", checkpoint(model, train_args={"imgsz": [70, 100]})))
    loaded = load_model("", out)
    assert (loaded.names, loaded.img_size) == (["a a", "b b", "2"], 128)


def convolutions(model: nn.Module) -> list[Conv]:
    return [module for module in model.modules() if isinstance(module, Conv)]


def narrow(bottleneck: Bottleneck) -> None:
    """Take three channels from between a bottleneck's convolutions."""
    first, second = bottleneck.cv1, bottleneck.cv2
    first.conv.weight.data = first.conv.weight.data[3:].clone()
    second.conv.weight.data = second.conv.weight.data[:, 3:].clone()
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(first.bn, name).data = getattr(first.bn, name).data[3:].clone()


def rewired(model: DetectionModel) -> None:
    model.model[14].f = [-1, 2]


def longer(model: DetectionModel) -> None:
    model.model.append(nn.Identity())


def with_parameter(model: DetectionModel) -> None:
    model.model[0].register_parameter("scale", nn.Parameter(torch.ones(3)))


def with_nan(model: DetectionModel) -> None:
    model.model[3].conv.weight.data[0, 0, 0, 0] = float("nan")


def with_other_bins(model: DetectionModel) -> None:
    model.model[-1].dfl.conv.weight.data *= 2


def setting(kind: type, name: str, value: Any) -> Any:
    """A change of one module of a kind."""
    return lambda model: setattr(next(m for m in model.modules() if isinstance(m, kind)), name, value)


OTHERS = {  # class of a YOLOv8's -> what it is called instead, and what the file is then
    "segmentation": (DistributionDetect, f"{HEADS}Segment", "is an Ultralytics YOLOv8 segmentation checkpoint; only YOLOv5"),
    "pose": (DistributionDetect, f"{HEADS}Pose", "is an Ultralytics YOLOv8 pose checkpoint"),
    "rotated": (DistributionDetect, f"{HEADS}OBB26", "is an Ultralytics YOLOv8 rotated-box checkpoint"),
    "classification": (DistributionDetect, f"{HEADS}Classify", "is an Ultralytics YOLOv8 classification checkpoint"),
    "YOLO11": (C2f, f"{BLOCKS}C3k2", r"is a YOLO11 \(or later\) checkpoint; only YOLOv5"),
    "YOLOv9": (C2f, f"{BLOCKS}RepNCSPELAN4", "is a YOLOv9 checkpoint"),
    "YOLOv10": (DistributionDetect, f"{HEADS}v10Detect", "is a YOLOv10 checkpoint"),
    "RT-DETR": (DistributionDetect, f"{HEADS}RTDETRDecoder", "is an RT-DETR checkpoint"),
    "YOLOv5u": (C2f, f"{BLOCKS}C3", "looks like a YOLOv5u, but has 23 modules, not 25, such as"),
    "YOLOv3u": (C2f, "ultralytics.nn.modules.Bottleneck", "is an Ultralytics YOLOv3u checkpoint"),
    "own block": (C2f, f"{BLOCKS}C3Ghost", r"is an Ultralytics .* with layers of its own yaml \(C3Ghost\)"),
    "own layer": (owners.SPPF, f"{BLOCKS}CBAM", r"is .* YOLOv8 checkpoint with layers of its own yaml \(CBAM\)"),
}
CHANGES = {  # change of a YOLOv8 -> what is said of it
    "wiring": (rewired, r"looks like a YOLOv8, but its module 14 reads \[-1, 2\], not -1, 4; only YOLOv5"),
    "length": (longer, "looks like a YOLOv8, but has 24 modules, not 23, such as P2 and P6 networks have"),
    "residual": (setting(Bottleneck, "add", False), r"2\.m\.0 \(Bottleneck\) has add=False, not True"),
    "step": (setting(nn.Conv2d, "stride", (1, 1)), r"0\.conv has stride=\(1, 1\), not \(2, 2\)"),
    "pooling": (setting(nn.MaxPool2d, "kernel_size", 3), r"9\.m \(MaxPool2d\) has kernel_size=3, not 5"),
    "activation": (setting(Conv, "act", nn.GELU()), "0 has the activation GELU, which is not supported"),
    "epsilon": (setting(nn.BatchNorm2d, "eps", "x"), r"0\.bn has eps=x"),
    "long number": (setting(nn.Upsample, "scale_factor", 10**5000), "has scale_factor=a very long number, not 2.0"),
    "parameter": (with_parameter, r"also has 0\.scale \(3,\)"),
    "bins": (with_other_bins, "its head or its first convolution aren't there, or of another shape"),
    "NaN": (with_nan, "tensors with NaN or infinite values: 1"),
}


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=rf"^{path}: .*{message}") as error:
        run("--weights", path)
    assert "\n" not in str(error.value)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("kind", OTHERS)
def test_other_networks_are_named_and_nothing_is_written(kind, tmp_path):
    cls, name, message = OTHERS[kind]
    assert_refused(save(tmp_path / "x.pt", "yolov8", checkpoint(make("yolov8")), {cls: name}), message)


def test_a_segmentation_network_with_a_pickled_method(tmp_path):
    """YOLOv5's keeps its detection head's forward, for which its pickle calls getattr."""
    model = make("yolov5")
    model.model[-1].detect = model.model[-1].forward
    path = save(tmp_path / "x.pt", "yolov5", checkpoint(model), {owners.AnchorDetect: "models.yolo.Segment"})
    assert_refused(path, "is an Ultralytics YOLOv5 segmentation checkpoint")


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_yaml_of_ones_own_changed_is_named(change, tmp_path):
    model, (make_change, message) = make("yolov8"), CHANGES[change]
    make_change(model)
    assert_refused(save(tmp_path / "x.pt", "yolov8", checkpoint(model)), message)


def test_state_dicts_of_other_networks_are_named(tmp_path):
    state, path = make("yolov8").state_dict(), tmp_path / "x.pt"
    for name, more in {
        "a segmentation network": "22.proto.cv1.conv.weight", "a YOLOv10": "22.one2one_cv2.0.0.conv.weight",
        "a classification network": "9.linear.weight", "a pose or rotated-box network": "22.cv4.0.0.conv.weight",
    }.items():  # fmt: skip
        torch.save(state | {f"model.{more}": torch.ones(1)}, path)
        assert_refused(path, f"is {name} as a state dict; only YOLOv5")
    torch.save({k: v for k, v in state.items() if "22.cv3.1.0" not in k}, path)
    assert_refused(path, r"looks like a YOLOv8, but has no 22\.cv3\.1\.0\.bn\.bias \(32,\)")


def test_every_command_says_what_to_do_first(family, tmp_path):
    path = save(tmp_path / "x.pt", family, checkpoint(make(family)))
    state = save(tmp_path / "y.pt", family, make(family).state_dict())
    for weights, what in ((path, "checkpoint"), (state, "as a state dict")):
        message = (
            rf"is an Ultralytics YOLO{family[4:]} {what}; make a cfg and a checkpoint of it first: python convert.py --weights"
        )
        with pytest.raises(UserError, match=message):
            read_checkpoint(weights)
    with pytest.raises(UserError, match="brings its own architecture"):
        run("--weights", path, "--cfg", "x.cfg")


@pytest.mark.parametrize("name", ["yolov5n", "yolov8n-bccd"])
def test_recorded_outputs(name, shared, tmp_path):
    """What the owners' package computed from its own checkpoint, at all recorded sizes, to 1e-4 of each value."""
    recorded = np.load(shared / f"ultralytics/{name}-outputs.npz")
    out = run("--weights", shared / f"ultralytics/{name}.pt", "--out", tmp_path / "x.pt")
    sizes = [key.removeprefix("input_") for key in recorded if key.startswith("input_")]
    assert len(sizes) >= 2
    for size in sizes:
        found = ours(out, torch.from_numpy(recorded[f"input_{size}"])).numpy()
        np.testing.assert_allclose(found, recorded[f"decoded_{size}"], rtol=1e-4, atol=1e-7)
    loaded = load_model("", out)
    assert sorted(loaded.names) == ["Platelets", "RBC", "WBC"]
    assert loaded.img_size == (416 if name == "yolov8n-bccd" else 640)
