"""What only runs on CUDA: training in float16 with its scaler, inference in half precision, processes that talk by nccl."""

import pytest
import torch

import train
from tests.test_train import BASE, here, results, train_in_two_processes  # noqa: F401
from tests.tiny import TOPOLOGIES, network
from utils.core.devices import inference_dtype, select_device
from utils.core.hyp import Hyp
from utils.network.checkpoint import load_checkpoint
from utils.network.cost import latency_ms
from utils.network.darknet import Darknet
from utils.training import setup
from utils.training.run import Plan, Run, World

pytestmark = pytest.mark.gpu
DEVICE = "0"
FLAGS = BASE.replace("--device cpu", f"--device {DEVICE}").replace("--no-mixedprecision", "-mpt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_learns(here, monkeypatch, dtype):  # noqa: F811
    monkeypatch.setattr(setup, "training_dtype", lambda device: dtype)
    train.main(train.get_parser().parse_args([*FLAGS.split(), *["--epochs", "12", "--adam", "--seed", "3", "--name", "a"]]))
    losses = results("results_a.txt")["total"]
    assert losses[-1] < 0.8 * losses[0]
    state = load_checkpoint("weights/last_a.pt")["model"]
    assert all(tensor.dtype == torch.float32 for tensor in state.values() if tensor.is_floating_point())


def test_the_scaler_leaves_a_step_out_whose_gradients_overflow():
    device = select_device(DEVICE)
    plan = Plan(epochs=1, batch_size=2, batches=8, img_size=64)
    run = Run(Darknet(TOPOLOGIES["residual"], 64), Hyp(), plan, device, torch.float16, World())
    before, scale = run.model.module_list[0].conv.weight.detach().clone(), run.scaler.get_scale()
    raws = run.forward(torch.rand(2, 3, 64, 64, device=device))
    run.scaler.scale(sum(raw.sum() for raw in raws) * float("inf")).backward()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    assert torch.equal(run.model.module_list[0].conv.weight, before)
    assert run.scaler.get_scale() == scale / 2


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_half_precision_gives_the_boxes_of_float32(name):
    model, device = network(TOPOLOGIES[name]), select_device(DEVICE)
    assert inference_dtype(device) == torch.float16
    half, images = model.inference_copy(device), torch.rand(2, 3, 64, 64)
    wanted = model(images)[0]
    found = half(images.to(device, half.dtype))[0].float().cpu()
    assert found.shape == wanted.shape
    torch.testing.assert_close(found[..., 4:], wanted[..., 4:], atol=0.02, rtol=0)
    torch.testing.assert_close(found[..., :4], wanted[..., :4], atol=1.0, rtol=0.05)  # pixels


def test_float32_on_cuda_is_float32_on_the_cpu():
    model, device = network(TOPOLOGIES["residual"]), select_device(DEVICE)
    copied, images = model.inference_copy(device, "fp32"), torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(copied(images.to(device))[0].cpu(), model(images)[0], atol=0.05, rtol=1e-3)  # TF32 kernels


def test_latency_waits_for_the_device():
    device = select_device(DEVICE)
    assert latency_ms(network(TOPOLOGIES["residual"]), 64, device, runs=3) > 0


@pytest.mark.gpu(2)
def test_two_devices_train_as_one(here):  # noqa: F811
    """The same batches, halved: the losses of one device, to the rounding of two sums."""
    plain = FLAGS.replace("-mpt", "--no-mixedprecision") + " --epochs 2 --seed 3"
    train.main(train.get_parser().parse_args([*plain.split(), "--name", "one"]))
    train_in_two_processes("--name two", plain)
    assert results("results_two.txt")["total"] == pytest.approx(results("results_one.txt")["total"], rel=1e-2)
