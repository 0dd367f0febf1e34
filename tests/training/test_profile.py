"""What a training step consists of: that the parts are all there and change nothing, not how long they take."""

import pytest
import torch
import torch.nn.functional as F

from tests.tiny import TOPOLOGIES, network
from utils.core.distributed import World
from utils.core.hyp import Hyp
from utils.training import profile
from utils.training.profile import OTHER, PASSES, Shapes, StepProfile, profile_step, report_profile
from utils.training.run import Plan, Run


class Ticks:
    """A clock that a second passes on whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_halves_of_a_convolution_s_backward_pass_are_its_gradients(groups: int) -> None:
    torch.manual_seed(0)
    x, kernel, bias = torch.randn(2, 4, 7, 9), torch.randn(8, 4 // groups, 3, 3), torch.randn(8)
    leaves = [t.requires_grad_() for t in (x, kernel, bias)]

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(F.conv2d(x, kernel, bias, 2, 1, 1, groups).square().sum(), leaves)

    wanted = gradients()
    timer = profile._Timer(Ticks())
    with timer:
        found = gradients()
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)
    kind = "convolutions" if groups == 1 else "depthwise and grouped convolutions"
    assert {k: v for k, v in timer.seconds.items() if "convolutions" in k} == {f"{kind}, {name}": 1 for name in PASSES}
    (shapes,) = timer.convolutions
    assert shapes == Shapes((2, 4, 7, 9), (8, 4 // groups, 3, 3), (2, 8, 4, 5), (2, 2), (1, 1), (1, 1), groups, True)


def test_a_step_s_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Ticks()
    monkeypatch.setattr(profile.time, "process_time", clock)
    monkeypatch.setattr(profile.time, "perf_counter", clock)
    model = network(TOPOLOGIES["depthwise"])
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    grouped = sum(m.groups > 1 for m in convolutions)
    plan = Plan(epochs=1, batch_size=2, batches=9, img_size=64, accumulate=1)
    run = Run(model, Hyp(), plan, torch.device("cpu"), torch.bfloat16, World())
    targets = torch.tensor([[0, 0, 0.5, 0.5, 0.3, 0.3], [1, 0, 0.4, 0.6, 0.2, 0.4]])
    found = profile_step(run, lambda: torch.full((2, 3, 64, 64), 0.5), targets, 2)
    plain, deep = "convolutions", "depthwise and grouped convolutions"
    assert found.kinds[f"{plain}, forward"] == len(convolutions) - grouped
    assert found.kinds[f"{deep}, forward"] == found.kinds[f"{deep}, backward, kernels"] == grouped > 0
    assert (
        found.kinds[f"{plain}, backward, maps"] == len(convolutions) - grouped - 1
    )  # nothing learns from the image's gradient
    norms = sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    assert found.kinds["batch normalisation"] == 2 * norms
    assert {OTHER, "loss", "optimizer, clipping, average", "activations"} <= set(found.kinds)
    assert found.best == {kind: seconds for kind, seconds in found.kinds.items() if "convolutions" in kind}
    assert run.step == profile.WARM_UP + 2 * 2


def test_the_table() -> None:
    kinds = {"loss": 0.25, "convolutions, forward": 0.75}
    lines = report_profile(StepProfile(1.0, kinds, {"convolutions, forward": 0.5}, 0.1), 10).splitlines()
    assert [line.split() for line in lines[2:5]] == [
        ["convolutions,", "forward", "75.00", "75.0%", "50.00"],
        ["loss", "25.00", "25.0%", "-"],
        ["a", "whole", "step", "100.00", "100.0%", "50.00"],
    ]
    assert lines[5].endswith(": 10.00 ms an image")
