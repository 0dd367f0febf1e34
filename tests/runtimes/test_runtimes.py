"""Runtimes: every one that is installed computes what PyTorch does in float32, in a process of its own where it is measured,
with as many threads as were asked for; what it can't read is said in one line."""

import json
import os
import re
from pathlib import Path

import cv2
import pytest
import torch

import benchmark
import detect
import test as test_script
from tests.rectangles import BLUE, CELLS, RED, cells, write_rectangles
from tests.references import READS_DARKNET
from tests.tiny import CSP, DFL, SPP, network
from utils.core.errors import UserError
from utils.core.preparation import Preparation
from utils.core.workers import usable_cores
from utils.export.onnx.header import read_header
from utils.loading import Loaded
from utils.network.cfg import write_cfg
from utils.network.checkpoint import save_checkpoint
from utils.network.darknet import Darknet
from utils.network.weights import LoadReport
from utils.quantized.settings import Settings
from utils.quantized.transform import quantize
from utils.runtimes import opencv
from utils.runtimes.base import Request
from utils.runtimes.measure import RUNS, Job, Timing, measure
from utils.runtimes.ncnn_files import outputs_of
from utils.runtimes.registry import RUNTIMES, choose, installed, load
from utils.scripts import compare_runtimes

ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from utils.export.ncnn import convert  # noqa: E402
from utils.export.onnx.trace import GraphPlan, build, finish  # noqa: E402

CPU = torch.device("cpu")
KINDS = [
    ("torch", "pt"),
    ("opencv", "pt"),
    ("ncnn", "pt"),
    ("ncnn", "ncnn"),
    *((name, "onnx") for name in ("onnxruntime", "openvino", "opencv")),
]


def write(model: Darknet, path: Path, **plan: object) -> None:
    """What export.py writes, without its checks."""
    chosen = GraphPlan((64, 64), **plan)
    loaded = type("Loaded", (), {"model": model, "names": ["red", "blue"], "conf_thres": None})
    ir.save(finish(build(model, chosen), loaded, chosen, Preparation(), "fp32"), path)


def save(model: Darknet, path: Path) -> None:
    quantization = model.quantization.to_dict() if model.quantization else None
    content = {"model": model.state_dict(), "cfg": write_cfg(model.defs), "names": ["red", "blue"], "settings": {}}
    save_checkpoint(path, content | {"quantization": quantization})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two heads, joined maps; as a checkpoint, as a graph for one image and for any number of them."""
    folder, model = tmp_path_factory.mktemp("files"), network(SPP)
    save(model, folder / "x.pt")
    write(model, folder / "x.onnx", dynamic=False, batch=1)
    write(model, folder / "any.onnx")
    save(network(DFL), folder / "dfl.pt")
    write(network(DFL), folder / "dfl.onnx", dynamic=False, batch=1)
    quantized = network(CSP)
    quantize(quantized, Settings(1))
    save(quantized, folder / "quantized.pt")
    write(model, folder / "nms.onnx", dynamic=False, batch=1, outputs="nms")
    (folder / "empty").mkdir()
    (folder / "empty" / "metadata.json").write_text("{}")
    (folder / "damaged.onnx").write_bytes((folder / "x.onnx").read_bytes()[:3000])
    return folder


def made(files: Path, name: str, kind: str) -> Path:
    """The file of that kind, with ncnn's folder, which only pnnx can make."""
    if name == "ncnn":
        pytest.importorskip("pnnx")
    if kind == "ncnn" and not (files / "x.ncnn").exists():
        (files / "x.ncnn").mkdir()
        plan = GraphPlan((64, 64), dynamic=False, batch=1, outputs="maps")
        loaded = Loaded(network(SPP), ["red", "blue"], 64, None, LoadReport())
        convert.write(files / "x.ncnn", loaded, plan, Preparation(), half=False)
    return files / f"x.{kind}"


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_computes_what_pytorch_does(name: str, kind: str, files: Path) -> None:
    if name not in installed():
        pytest.skip(f"{name} isn't installed")
    if (name, kind) == ("opencv", "pt") and not READS_DARKNET:
        pytest.skip("OpenCV 5 doesn't read Darknet's files")
    loaded = load(name, None, Request(weights=str(made(files, name, kind))))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = network(SPP)(images)[0]
        found = loaded.model.inference_copy(CPU, "fp32")(images)[0]
    tolerance = 1e-3 if name == "ncnn" else 1e-4
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert (loaded.names, loaded.shape) == (["red", "blue"], (64, 64))


@pytest.mark.parametrize(("name", "kind"), [("ncnn", "pt"), ("onnxruntime", "onnx"), ("openvino", "onnx"), ("opencv", "onnx")])
def test_heads_without_anchors(name: str, kind: str, files: Path) -> None:
    """Halves of maps that nothing reads are no outputs, and sums over bins become distances, in each of them."""
    if name not in installed():
        pytest.skip(f"{name} isn't installed")
    if name == "ncnn":
        pytest.importorskip("pnnx")
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = network(DFL)(images)[0]
        found = load(name, None, Request(weights=str(files / f"dfl.{kind}"))).model(images)[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_outputs_of_ncnn() -> None:
    assert outputs_of(["9", "out10", "out2", "190", "out0", "about"]) == ["out0", "out2", "out10"]


def test_measured_in_processes_of_their_own_with_the_threads_wanted(files: Path) -> None:
    """Three threads, which neither this process nor the machine has."""
    kinds = dict(reversed([(n, k) for n, k in KINDS if n in installed() and (n != "opencv" or READS_DARKNET or k == "onnx")]))
    jobs = [Job(n, Request(weights=str(made(files, n, kind))), 3, precision="fp32") for n, kind in kinds.items()]
    timings = measure([*jobs, Job("torch", Request(weights=str(files / "x.onnx")))], turns=2)
    assert isinstance(timings.pop(), UserError)
    assert len({t.pid for t in timings} | {os.getpid()}) == len(jobs) + 1
    for job, timing in zip(jobs, timings, strict=True):
        most = usable_cores() if job.runtime == "openvino" else 3  # it takes no more threads than there are cores
        assert timing.threads == min(3, most), job.runtime
        assert len(timing.milliseconds) == 2 * RUNS
        assert min(timing.milliseconds) <= timing.quartiles[0] <= timing.median <= timing.quartiles[1]
        assert timing.size == (64, 64)


def test_a_process_that_dies_is_one_line(files: Path) -> None:
    job = Job("torch", Request(weights=str(files / "x.pt")), device=0)  # no text: a defect that the other process trips over
    with pytest.raises(UserError, match=r"torch: the process that measured .*x.pt ended with status 1"):
        measure([job], 1)


@pytest.mark.parametrize(("name", "file", "said"), [
    ("torch", "x.onnx", r"--runtime torch: .*x.onnx is an ONNX file; name the .pt or .weights"),
    ("onnxruntime", "x.pt", r"--runtime onnxruntime: .*x.pt: it reads ONNX files; make one: python export.py --weights .*x.pt"),
    ("openvino", "x.pt", r"--runtime openvino: .*x.pt: it reads ONNX files; make one: python export.py --weights .*x.pt"),
    ("openvino", "damaged.onnx", r"damaged.onnx: OpenVINO .* can't run this file \("),
    ("opencv", "damaged.onnx", r"damaged.onnx: OpenCV .* can't run this file \("),
    ("opencv", "dfl.pt", r"--runtime opencv: .*dfl.pt: Darknet's files have no \[dfl\] in OpenCV; export it"),
    ("opencv", "quantized.pt", r"--runtime opencv: .*quantized.pt: is a quantized network, which Darknet's files can't hold"),
    ("torch", "empty", r"--runtime torch: .*empty is a folder for ncnn; name the weights that it comes from, or"),
    ("openvino", "empty", r"--runtime openvino: .*empty is a folder for ncnn"),
    ("opencv", "no.pt", r"no.pt: these weights do not exist"),
    ("opencv", "nms.onnx", r"nms.onnx: gives nms, which OpenCV doesn't compute here; export it with --target opencv"),
    ("ncnn", "x.onnx", r"--runtime ncnn: .*x.onnx is an ONNX file; name the .pt or .weights that it comes from"),
    ("ncnn", "quantized.pt", r"quantized.pt: is quantized \(.*\), but files for ncnn are made of float networks"),
    ("ncnn", "empty", r"empty: ncnn .* can't run this file \(model.ncnn.param can't be read\)"),
])  # fmt: skip
def test_files_that_a_runtime_cannot_read(name: str, file: str, said: str, files: Path) -> None:
    if name not in installed():
        pytest.skip(f"{name} isn't installed")
    if name == "opencv" and file.endswith(".pt") and not READS_DARKNET:
        pytest.skip("OpenCV 5 doesn't read Darknet's files")
    with pytest.raises(UserError, match=said) as caught:
        load(name, None, Request(weights=str(files / file)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("outputs", ["raw", "maps"])
def test_a_graph_with_the_metadata_of_another_network(outputs: str, files: Path, tmp_path: Path) -> None:
    """They say other numbers of heads or channels."""
    for name, cfg in (("x", SPP), ("other", DFL if outputs == "maps" else CELLS)):
        write(network(cfg), tmp_path / f"{name}.onnx", dynamic=False, batch=1, outputs=outputs)
    graph = ir.load(tmp_path / "x.onnx")
    graph.metadata_props.update(ir.load(tmp_path / "other.onnx").metadata_props)
    ir.save(graph, tmp_path / "mixed.onnx")
    network_of = load("onnxruntime", None, Request(weights=str(tmp_path / "mixed.onnx"))).model
    with pytest.raises(UserError, match=r"mixed.onnx: gives .*, which isn't what its metadata say: it is another network's"):
        network_of(torch.rand(1, 3, 64, 64))


def test_opencv_5_reads_no_darknet_files(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2.dnn, "readNetFromDarknet", raising=False)
    with pytest.raises(UserError, match=r"x.pt: OpenCV .* no longer reads Darknet's files; export it and name the .onnx"):
        load("opencv", None, Request(weights=str(files / "x.pt")))


@pytest.mark.skipif(not READS_DARKNET, reason="OpenCV 5 doesn't read Darknet's files")
def test_opencv_of_channels_that_hardly_vary(tmp_path: Path) -> None:
    """Trained networks have variances that PyTorch's epsilon counts beside: OpenCV's is another."""
    model = network(SPP)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(1e-4)
            module.weight.data *= 0.01
    save(model, tmp_path / "x.pt")
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    found = load("opencv", None, Request(weights=str(tmp_path / "x.pt"))).model(images)[0]
    torch.testing.assert_close(found, model(images)[0].detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not READS_DARKNET, reason="OpenCV 5 doesn't read Darknet's files")
def test_opencv_that_computes_something_else_is_found_out(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opencv, "write_cfg", lambda defs: re.sub("activation=leaky", "activation=relu", write_cfg(defs)))
    with pytest.raises(UserError, match="computes another function of it than PyTorch"):
        load("opencv", None, Request(weights=str(files / "x.pt")))


def test_a_runtime_that_is_not_installed(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNTIMES["openvino"].packages, "no_such_module", "no-such-package")
    assert "openvino" not in installed()
    with pytest.raises(UserError, match=r"--runtime openvino needs .*no-such-package, which isn't installed: pip install"):
        load("openvino", None, Request(weights=str(files / "x.onnx")))


def test_without_a_name_the_file_decides(files: Path) -> None:
    assert choose("", str(files / "empty")) == "ncnn"
    assert choose("", str(files / "x.onnx")) == "onnxruntime"
    assert choose("", str(files / "x.pt")) == choose("", "") == "torch"
    assert choose("opencv", str(files / "x.onnx")) == "opencv"


@pytest.mark.parametrize(("name", "kind", "other"), [("openvino", "onnx", "bf16"), ("ncnn", "ncnn", "fp16")])
def test_precision_is_a_choice_that_is_named(name: str, kind: str, other: str, files: Path) -> None:
    if name not in installed():
        pytest.skip(f"{name} isn't installed")
    model = load(name, None, Request(weights=str(made(files, name, kind)))).model
    assert model.inference_copy(CPU) is model
    assert RUNTIMES[name].place(model, CPU, "auto").endswith(" on the CPU, fp32")
    assert RUNTIMES[name].place(model, CPU, other).endswith(f" on the CPU, {other}")
    assert model.inference_copy(CPU, other).float_precision == other
    wrong = {"bf16": "fp16", "fp16": "bf16"}[other]
    with pytest.raises(UserError, match=f"--precision {wrong}: .* on the CPU in fp32 or {other} what isn't integers"):
        model.inference_copy(CPU, wrong)


@pytest.mark.parametrize("content", ["{", "[]", '{"cfg": 1}'])
def test_header_of_a_damaged_folder(content: str, tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text(content)
    with pytest.raises(UserError, match=r"metadata.json: isn't what export.py writes: the file is damaged; export it again"):
        read_header(tmp_path)


@pytest.mark.parametrize("name", ["x.onnx", "any.onnx"])
def test_header_is_what_onnx_reads(name: str, files: Path) -> None:
    graph, header = ir.load(files / name), read_header(files / name)
    assert header.metadata == dict(graph.metadata_props)
    assert header.batch == (1 if name == "x.onnx" else None)


def test_header_of_what_is_cut_off(files: Path, tmp_path: Path) -> None:
    content = (files / "x.onnx").read_bytes()
    for length in (3, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "cut.onnx").write_bytes(content[:length])
        with pytest.raises(UserError, match="is no whole ONNX file"):
            read_header(tmp_path / "cut.onnx")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pictures = [((64, side), (2 + k, 17, 18 + k, 33), (32, 16, 48, 32)) for k, side in enumerate((64, 96, 48))]
    model = cells()
    save_checkpoint(tmp_path / "x.pt", {"model": model.state_dict(), "cfg": CELLS, "names": ["red", "blue"], "settings": {}})
    write(model, tmp_path / "x.onnx", dynamic=False, batch=1)
    return write_rectangles(tmp_path, {"red": RED, "blue": BLUE}, pictures)


@pytest.mark.parametrize(("name", "file"), [("opencv", "x.pt"), ("opencv", "x.onnx"), ("openvino", "x.onnx"), ("ncnn", "x.pt")])
def test_scripts_run_through_it(name: str, file: str, data: Path, capsys: pytest.CaptureFixture) -> None:
    if name not in installed() or ((name, file) == ("opencv", "x.pt") and not READS_DARKNET):
        pytest.skip(f"{name} isn't installed, or doesn't read {file}")
    fixed = ["--device", "cpu", "--img-size", "64", "--precision", "fp32"]

    def evaluated(*more: str) -> float:
        wanted = ["--data", str(data), "--workers", "0", *fixed, *more]
        return test_script.main(test_script.get_parser().parse_args(wanted)).map

    expected = evaluated("--weights", str(data.parent / "x.pt"), *(["--square"] if (name, file) != ("opencv", "x.pt") else []))
    weights = ["--weights", str(data.parent / file), "--runtime", name, "--threads", "1"]
    assert evaluated(*weights) == pytest.approx(expected, abs=1e-4)
    assert 0.2 < expected < 0.99
    assert {"opencv": "OpenCV", "openvino": "OpenVINO", "ncnn": "ncnn on the CPU"}[name] in capsys.readouterr().out
    source = ["--source", str(data.parent / "images" / "100.png"), "--output", str(data.parent / "out")]
    figures = detect.main(detect.get_parser().parse_args([*fixed, *weights, *source]))
    assert figures["per_class"] == {"red": 1, "blue": 1}


def compared(data: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict:
    """What benchmark.py --runtimes gives when every job takes 1, 2, 3, ... ms, so without starting processes."""

    def timings(jobs: list[Job], turns: int) -> list[Timing]:
        return [Timing(k, job.threads, "here", (64, 64), [float(k)] * turns * RUNS) for k, job in enumerate(jobs, 1)]

    monkeypatch.setattr(compare_runtimes, "measure", timings)
    fixed = ["--device", "cpu", "--threads", "1", "--workers", "0", "--runtimes"]
    return benchmark.main(benchmark.get_parser().parse_args([*fixed, *arguments]))


def test_one_table_of_runtimes_and_files(data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    folder, broken = data.parent, str(data.parent / "broken.onnx")
    Path(broken).write_bytes((folder / "x.onnx").read_bytes()[:2000])
    asked = ["torch", "onnxruntime", "--weights", str(folder / "x.pt"), "--onnx", str(folder / "x.onnx"), "--onnx-int8", broken]
    found = compared(data, monkeypatch, *asked, "--data", str(data), "--img-size", "64", "--json", str(folder / "r.json"))
    rows = found["rows"]
    assert [(r["runtime"], Path(r["file"]).name, r["ms"]) for r in rows] == [("torch", "x.pt", 1), ("onnxruntime", "x.onnx", 2)]
    assert rows[0]["map50"] == pytest.approx(rows[1]["map50"], abs=1e-4)
    assert rows[1]["bytes"] == (folder / "x.onnx").stat().st_size
    assert [r["file"] for r in found["refused"]] == [broken]
    assert json.loads((folder / "r.json").read_text()) == json.loads(json.dumps(found))
    out = capsys.readouterr().out
    assert f"onnxruntime: {broken}: ONNX Runtime" in out
    assert "median of 25 warm runs at batch 1, 64x64" in out
    with pytest.raises(UserError, match=r"broken.onnx: ONNX Runtime"):
        compared(data, monkeypatch, "onnxruntime", "--weights", str(folder / "x.pt"), "--onnx", broken, "--data", str(data))


@pytest.mark.parametrize(("arguments", "said"), [
    ("--runtimes", "--runtimes: name the network with --weights FILE"),
    ("--weights x.pt --cfg x.cfg", "--weights is about --runtimes, which is missing"),
    ("--runtimes --weights x.pt --parts peak", "--parts doesn't go with --runtimes"),
    ("--runtimes onnxruntime --weights x.pt", "--runtimes onnxruntime: name an ONNX file with --onnx or --onnx-int8"),
    ("", "name the network with --cfg FILE"),
])  # fmt: skip
def test_arguments_that_do_not_go_together(arguments: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        benchmark.main(benchmark.get_parser().parse_args(arguments.split()))
