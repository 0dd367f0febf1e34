"""train.py --quantized, and what comes after it: checkpoints, --resume, test.py, detect.py, sparse training, distillation."""

from pathlib import Path

import numpy as np
import pytest
import torch

import detect
import test as test_script
from tests.network.test_networks import ALL
from tests.test_train import here, interrupt_at, results, train_with  # noqa: F401
from tests.tiny import TOPOLOGIES, network
from utils.core.distributed import World
from utils.core.errors import UserError
from utils.core.hyp import QUANTIZED, Hyp
from utils.distillation.distiller import Distiller
from utils.distillation.links import links
from utils.distillation.teacher import Teacher
from utils.loading import load_model
from utils.network.checkpoint import load_checkpoint, save_checkpoint
from utils.network.darknet import Darknet
from utils.network.weights import save_weights
from utils.pruning.sparsity import gamma_values
from utils.pruning.sparsity_options import SparsityOptions
from utils.quantized.fake_quantize import FakeQuantize
from utils.quantized.settings import Settings
from utils.quantized.transform import quantize, quantizers
from utils.training.run import Plan, Run

CPU = torch.device("cpu")
KINDS = {
    "google": Settings(1), "dorefa": Settings(2), "fpga": Settings(1, fpga=True), "few bits": Settings(2, a_bit=4, w_bit=3),
    "ptq": Settings(1, observer="mse"),
}  # fmt: skip


def start(cfg: str | Path, settings: Settings, size: int = 64, **plan: object) -> Run:
    torch.manual_seed(0)
    model = quantize(Darknet(cfg, size), settings)
    return Run(model, Hyp(), Plan(epochs=3, batch_size=2, batches=2, img_size=size, **plan), CPU, None, World())


def step(run: Run, size: int = 64) -> list[torch.Tensor]:
    """One optimizer step on random images; returns the raw maps."""
    targets = torch.tensor([[0, 0, 0.5, 0.5, 0.3, 0.4], [1, 0, 0.3, 0.6, 0.2, 0.2]])
    images = torch.rand(2, run.model.defs.net.channels, size, size)
    with run.autocast():
        raws = run.forward(images)
    loss, _ = run.loss(raws, targets, (size, size))
    if run.distiller:
        loss = loss + sum(run.distiller(images, raws, targets, run.loss).values())
    run.backward(loss)
    run.optimizer_step()
    return raws


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_topology_trains_a_step_and_survives_a_checkpoint(tmp_path, name, kind):
    run = start(TOPOLOGIES[name], KINDS[kind])
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    raws = step(run)
    assert all(r.isfinite().all() and r.dtype == torch.float32 for r in raws)
    changed = {k for k, v in run.model.state_dict().items() if not torch.equal(v, before[k])}
    assert {n for n, _ in run.model.named_parameters()} <= changed
    assert all(q.observed == 1 for q in quantizers(run.model) if not q.config.dynamic)
    model = run.weights.eval()
    path = tmp_path / "x.pt"
    save_checkpoint(path, {"model": model.state_dict(), "cfg": TOPOLOGIES[name], "quantization": model.quantization.to_dict()})
    loaded = load_model("", path)
    assert loaded.model.quantization == KINDS[kind]
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        wanted = model(image)[0]
        assert torch.equal(loaded.model(image)[0], wanted)
        assert torch.equal(loaded.model.inference_copy(CPU)(image)[0], wanted)


def test_half_precision_rounds_in_float32():
    run = start(TOPOLOGIES["csp"], Settings(1))
    run.dtype = torch.bfloat16
    seen: list[torch.Tensor] = []
    for quantizer in quantizers(run.model):
        quantizer.register_forward_hook(lambda m, x, out: seen.append(out) if m.low > -1e9 else None)
    raws = step(run)
    assert all(r.dtype == torch.float32 and r.isfinite().all() for r in raws)
    assert any(s.dtype == torch.bfloat16 for s in seen)
    for q in quantizers(run.model):
        if not q.config.dynamic:
            assert q.low.dtype == q.high.dtype == torch.float32
            assert (q.high > q.low).all()


@pytest.mark.usefixtures("here")
def test_quantized_training_reaches_the_scripts(capsys):
    figures = train_with("--epochs 2 --quantized 1 --adam --name q --w-bit 6 --keep-first-last")
    output = capsys.readouterr().out
    assert "quantized: Google (Jacob et al. 2018), 6-bit kernels, 8-bit maps, first and last at 8 bits" in output
    last = load_checkpoint("weights/last_q.pt")
    assert last["quantization"] == Settings(1, w_bit=6, keep_first_last=True).to_dict()
    arguments = ["--data", "d.data", "--weights", "weights/last_q.pt", "--device", "cpu", "--workers", "0"]
    measured = test_script.main(test_script.get_parser().parse_args(arguments))
    assert (measured.map50, measured.map) == pytest.approx((figures["last"]["map50"], figures["last"]["map"]), abs=1e-6)
    arguments = ["--weights", "weights/last_q.pt", "--source", "valid/0.png", "--output", "out", "--device", "cpu"]
    assert detect.main(detect.get_parser().parse_args(arguments))["images"] == 1
    with pytest.raises(UserError, match=r"--precision fp16: a quantized network computes in fp32"):
        detect.main(detect.get_parser().parse_args([*arguments, "--precision", "fp16"]))
    # training goes on with a quantized network as it is, also where the flags say the same, but not with others
    train_with("--epochs 1 --weights weights/last_q.pt --name more", base=BASE_WITHOUT_CFG)
    rates = [load_checkpoint(f"weights/last_{name}.pt")["hyp"]["lr0_adam"] for name in ("q", "more")]
    assert rates == [Hyp().lr0_adam, QUANTIZED["lr0_adam"]]  # from scratch, and from trained weights
    assert load_checkpoint("weights/last_more.pt")["quantization"] == last["quantization"]
    train_with("--epochs 1 --weights weights/last_q.pt --quantized 1 --w-bit 6 --keep-first-last", base=BASE_WITHOUT_CFG)
    with pytest.raises(
        UserError, match=r"weights/last_q.pt: is quantized already: Google .* begin with float weights for: DoReFa"
    ):
        train_with("--epochs 1 --weights weights/last_q.pt --quantized 2", base=BASE_WITHOUT_CFG)


BASE_WITHOUT_CFG = "--data d.data --batch-size 4 --accumulate 1 --workers 0 --device cpu --logdir= --notest"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("flags", "cut"),  # two batches an epoch: in the second epoch, and in the fifth, which is frozen
    [("--quantized 1 --prune 0 --s 0.01", 4), ("--quantized 2 --FPGA --a-bit 4 --w-bit 4 --no-ema", 10)],
)
def test_an_interrupted_quantized_run_resumes_exactly(monkeypatch, flags, cut):
    flags += " --epochs 5 --notest"
    train_with(f"{flags} --name whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="--resume"):
        interrupt_at(patch, cut)
        train_with(f"{flags} --name cut")
    train_with("--resume --name cut --device cpu --workers 0", base="")
    whole, again = load_checkpoint("weights/last_whole.pt"), load_checkpoint("weights/last_cut.pt")
    assert again["quantization"] == whole["quantization"]
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, again["model"][name]), name
    np.testing.assert_array_equal(results("results_whole.txt")["total"], results("results_cut.txt")["total"])


@pytest.mark.usefixtures("here")
def test_the_observer_can_be_chosen():
    train_with("--epochs 1 --quantized 1 --observer percentile --notest --nosave")
    model = load_model("", "weights/last.pt").model
    assert {q.config.observer for q in quantizers(model) if not q.config.dynamic} == {"percentile", "minmax"}  # and the image's


@pytest.mark.usefixtures("here")
def test_the_last_fifth_is_frozen():
    train_with("--epochs 5 --quantized 1 --notest --no-ema")
    last = load_checkpoint("weights/last.pt")["model"]
    counts = {int(v) for k, v in last.items() if k.endswith(("observed", "num_batches_tracked"))}
    assert counts == {8}  # 4 epochs of 2 batches


@pytest.mark.usefixtures("here")
def test_begins_with_darknet_weights():
    save_weights(Darknet("tiny.cfg", 64), "tiny.weights")
    train_with("--epochs 1 --weights tiny.weights --quantized 2 --notest --name d")
    assert load_checkpoint("weights/last_d.pt")["quantization"]["strategy"] == 2


def test_sparse_training_reaches_the_gammas_of_a_quantized_network():
    medians = {}
    for s in (0.0, 1.0):
        run = start(TOPOLOGIES["residual"], Settings(1), sparsity=SparsityOptions(0 if s else -1, s))
        for _ in range(4):
            run.start_epoch()
            step(run)
        channels = start(TOPOLOGIES["residual"], Settings(1), sparsity=SparsityOptions(0, 1.0)).penalty.channels
        medians[s] = float(np.median(gamma_values(run.model, channels)))
    assert medians[1.0] < medians[0.0] - 1e-4


@pytest.mark.parametrize("number", [1, 4, 5])
def test_distillation_into_a_quantized_student(number):
    run, teacher = start(TOPOLOGIES["residual"], Settings(1)), network(TOPOLOGIES["residual"])
    count = sum(p.numel() for p in teacher.parameters())
    found = links(run.model.defs, teacher.defs, 256)
    run.distil(Distiller(Teacher(teacher.fuse(), [0], found, False, count), number, 1.0, None, CPU))
    with run.distiller.watch(run.model):
        before = run.model.module_list[0].conv.weight.clone()
        step(run)
    assert not torch.equal(before, run.model.module_list[0].conv.weight)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--FPGA", "--FPGA needs --quantized: 1 Google"),
        ("--a-bit 4 --shortcut_way 2", "--a-bit --shortcut_way needs --quantized"),
        ("--observer mse", "--observer needs --quantized"),
        ("--quantized 1 --FPGA --w-bit 32", "--w-bit 32: with --FPGA"),
    ],
)
@pytest.mark.usefixtures("here")
def test_mistakes_are_named(flags, message):
    with pytest.raises(UserError, match=message):
        train_with(f"--epochs 1 {flags}")
    assert not Path("weights").exists()


@pytest.mark.usefixtures("here")
def test_shortcut_way_can_be_spelled_with_a_dash():
    with pytest.raises(UserError, match="needs --quantized"):
        train_with("--shortcut-way 1")


FAST = {"yolov3-tiny", "yolov7-tiny", "yolov3tiny-mobilenet-small-coco"}


def train_a_step_of(path: Path, settings: Settings) -> None:
    run = start(path, settings)
    raws = step(run)
    assert all(r.isfinite().all() for r in raws)
    model = run.weights.eval()
    with torch.no_grad():
        assert model.inference_copy(CPU)(torch.rand(1, 3, 64, 64))[0].isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["google", "dorefa", "fpga", "ptq"])
@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_every_network_of_cfg_trains_a_step(path, kind):
    train_a_step_of(path, KINDS[kind])


@pytest.mark.parametrize("path", [p for p in ALL if p.stem in FAST], ids=lambda p: p.stem)
def test_some_networks_of_cfg_train_a_step(path):
    train_a_step_of(path, Settings(1, fpga=True))


def test_quantizers_have_no_parameters():
    model = quantize(Darknet(TOPOLOGIES["csp"], 64), Settings(1))
    assert not [p for m in model.modules() if isinstance(m, FakeQuantize) for p in m.parameters()]
