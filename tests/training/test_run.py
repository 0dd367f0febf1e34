"""Optimizer, schedule, averaged weights and the state of a run, against hand-worked formulas."""

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn

from utils.core.distributed import ProcessGroupBatchNorm2d, World, normalise_together, parallel
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.network.checkpoint import Checkpoint
from utils.network.darknet import Darknet
from utils.pruning.sparsity_options import SparsityOptions
from utils.training.ema import ModelEma
from utils.training.optimizer import Schedule, build_optimizer
from utils.training.run import Plan, Run

CFG = """[net]
width=64
height=64
channels=3
[convolutional]
batch_normalize=1
filters=8
size=3
stride=8
pad=1
activation=leaky
[convolutional]
batch_normalize=1
filters=6
size=1
activation=leaky
[convolutional]
size=1
filters=14
activation=linear
[yolo]
mask=0,1
anchors=14,14, 20,20
classes=2
num=2
"""
CPU = torch.device("cpu")


def make_run(dtype: torch.dtype | None = None, hyp: Hyp | None = None, **plan: object) -> Run:
    torch.manual_seed(0)
    settings = {"epochs": 3, "batch_size": 4, "batches": 4, "img_size": 64} | plan
    return Run(Darknet(CFG, 64), hyp or Hyp(), Plan(**settings), CPU, dtype, World())


def test_a_run_learns_by_the_assignment_of_its_plan():
    assert [make_run(assign=a).loss.aligned for a in ("anchor", "aligned")] == [False, True]


@pytest.mark.parametrize(("assign", "share", "wanted"), [
    ("aligned", 0.3, [False, False, False, True, True, True, True, True, True, True]),
    ("aligned", 0.0, [True] * 10),
    ("anchor", 0.3, [False] * 10),
])  # fmt: skip
def test_what_fits_best_is_learned_once_something_fits(assign, share, wanted):
    run = make_run(assign=assign, epochs=10)
    run.hyp.static_share = share
    found = []
    for run.epoch in range(10):
        run.start_epoch()
        found.append(run.loss.aligned)
    assert found == wanted


@pytest.mark.parametrize(("adam", "kind"), [(False, torch.optim.SGD), (True, torch.optim.AdamW)])
def test_only_kernels_decay(adam, kind):
    model = Darknet(CFG, 64)
    optimizer = build_optimizer(model, Hyp(weight_decay=0.5, nominal_batch=64), adam, step_images=16)
    assert type(optimizer) is kind
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(decay) == len(list(model.parameters()))
    for parameter in model.parameters():
        assert decay[id(parameter)] == (0.125 if parameter.ndim == 4 else 0.0)


def test_without_momentum_sgd_is_plain():
    model = nn.Conv2d(1, 1, 1)
    optimizer = build_optimizer(model, Hyp(momentum=0.0, weight_decay=0.0, lr0=0.5), False, 64)
    before = model.weight.item()
    for _ in range(2):
        model.weight.grad, model.bias.grad = torch.ones_like(model.weight), torch.zeros_like(model.bias)
        optimizer.step()
    assert model.weight.item() == pytest.approx(before - 2 * 0.5)


def test_schedule_warms_up_and_follows_a_cosine():
    hyp = Hyp(lr0=0.1, lrf=0.1, momentum=0.9, warmup_epochs=2)
    schedule = Schedule.plan(hyp, adam=False, epochs=100, epoch_steps=50, accumulate=1)
    assert (schedule.total, schedule.warmup) == (5000, 100)
    model = Darknet(CFG, 64)
    optimizer = build_optimizer(model, hyp, False, 64)

    def at(step):
        schedule.apply(optimizer, step)
        return {g["name"]: g["lr"] for g in optimizer.param_groups}, optimizer.param_groups[0]["momentum"]

    def cosine(step):
        return 0.01 + 0.09 * 0.5 * (1 + math.cos(math.pi * step / 5000))

    rates, momentum = at(49)  # half of the warm-up
    assert rates["kernels"] == rates["others"] == pytest.approx(cosine(49) / 2)
    assert rates["biases"] == pytest.approx((0.1 + cosine(49)) / 2)
    assert momentum == pytest.approx(0.85)
    rates, momentum = at(2500)
    assert rates["kernels"] == rates["biases"] == pytest.approx(0.055)
    assert momentum == pytest.approx(0.9)
    assert at(4999)[0]["kernels"] == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize(
    ("epochs", "epoch_steps", "accumulate", "warmup"),
    [(60, 5, 4, 25), (100, 200, 1, 600), (3, 10, 1, 10), (60, 19, 1, 100)],
)
def test_warmup_has_100_batches_but_takes_no_more_than_a_third(epochs, epoch_steps, accumulate, warmup):
    assert Schedule.plan(Hyp(warmup_epochs=3), False, epochs, epoch_steps, accumulate).warmup == warmup


def test_adam_warms_its_first_beta_up():
    hyp = Hyp(momentum=0.9)
    schedule = Schedule.plan(hyp, True, 30, 10, 1)
    optimizer = build_optimizer(Darknet(CFG, 64), hyp, True, 64)
    schedule.apply(optimizer, schedule.warmup // 2 - 1)
    assert optimizer.param_groups[0]["betas"] == (pytest.approx(0.85), 0.999)
    assert {g["lr"] for g in optimizer.param_groups} == {schedule.rate(schedule.warmup // 2 - 1)}


def test_ema_is_the_recursion_it_says():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    ema = ModelEma(model, total_steps=200)
    expected = None
    for update in range(6):
        with torch.no_grad():
            model[0].weight.fill_(update**2)
            model[1].running_mean.fill_(-update)
            model[1].num_batches_tracked.fill_(update)
        ema.update_parameters(model)
        if expected is None:
            expected = (0.0, 0.0)
            continue
        decay = 0.9 * (1 - math.exp(-update / 20))  # a window of 10 steps, tau 20
        expected = tuple(decay * e + (1 - decay) * v for e, v in zip(expected, (update**2, -update), strict=True))
    assert ema.module[0].weight.item() == pytest.approx(expected[0], rel=1e-6)
    assert ema.module[1].running_mean.item() == pytest.approx(expected[1], rel=1e-6)
    assert ema.module[1].num_batches_tracked.item() == 5


def test_the_share_of_the_steps_that_the_average_reaches_over():
    ema = ModelEma(nn.Linear(1, 1), total_steps=300, share=0.2)
    assert ema.decay(10**6) == pytest.approx(1 - 1 / 60)
    assert make_run(epochs=25, accumulate=1, hyp=Hyp(ema_share=0.2)).ema.limit == pytest.approx(1 - 1 / 20)


def test_ema_of_a_long_training():
    ema = ModelEma(nn.Linear(1, 1), total_steps=10**6)
    assert ema.decay(2000) == pytest.approx(0.9999 * (1 - math.exp(-1)))
    assert ema.decay(10**6) == pytest.approx(0.9999)


def test_mosaic_closes_for_at_most_a_fifth():
    assert [make_run(epochs=100, hyp=Hyp(close_mosaic=10)).uses_mosaic(e) for e in (0, 89, 90, 99)] == [
        True,
        True,
        False,
        False,
    ]
    assert [make_run(epochs=10, hyp=Hyp(close_mosaic=10)).uses_mosaic(e) for e in (7, 8)] == [True, False]
    assert not make_run(hyp=Hyp(mosaic=0.0)).uses_mosaic(0)


def test_multi_scale_sizes_depend_on_seed_and_step_alone():
    run, other = make_run(multi_scale=True, seed=1), make_run(multi_scale=True, seed=1)
    sizes = []
    for step in range(60):
        run.step = other.step = step
        sizes.append(run.input_size(64, 64))
        assert sizes[-1] == run.input_size(64, 64) == other.input_size(64, 64)
    assert set(sizes) == {(s, s) for s in range(48, 97, 8)}  # 0.67 * 64 = 42.9 to 1.5 * 64 = 96, stride 8
    run.step = sizes.index((96, 96))
    assert run.input_size(32, 64) == (48, 96)
    assert make_run().input_size(32, 64) == (32, 64)


def gammas(run: Run) -> list[nn.Parameter]:
    return [m.weight for m in run.model.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("dtype", [None, torch.float16])  # float16: the gradients are scaled, and unscaled before clipping
def test_penalty_counts_once_a_step_beside_the_clipped_gradient(dtype, monkeypatch):
    run = make_run(dtype, hyp=Hyp(clip_grad=1.0), sparsity=SparsityOptions(prune=0, s=0.25), accumulate=3)
    assert run.scaler.is_enabled() == (dtype is not None)
    seen = []
    monkeypatch.setattr(run.optimizer, "step", lambda *_: seen.append(gammas(run)[0].grad.clone()))
    for _ in range(3):
        run.backward(100 * gammas(run)[0].sum())
    run.optimizer_step()
    assert torch.allclose(seen[0], torch.full((8,), 1 / math.sqrt(8) + 0.25))  # a gradient of norm 1, and s
    assert run.step == 1
    assert gammas(run)[0].grad is None


def test_gradient_is_the_sum_over_a_step_up_to_the_nominal_batch():
    hyp = Hyp(nominal_batch=16, clip_grad=1e9)
    for batch_size, accumulate, images in ((4, 0, 16), (4, 2, 8), (32, 0, 16), (16, 4, 16)):
        run = make_run(batch_size=batch_size, accumulate=accumulate, hyp=hyp)
        for _ in range(run.accumulate):
            run.backward(gammas(run)[0].sum())  # a mean over the batch whose gradient is 1
        assert torch.allclose(gammas(run)[0].grad, torch.full((8,), float(images)))


def test_non_finite_gradients_stop_the_run():
    run = make_run()
    run.epoch, run.step = 4, 70
    run.backward(gammas(run)[0].sum() * math.inf)
    before = gammas(run)[0].clone()
    with pytest.raises(UserError, match="epoch 5, optimizer step 71"):
        run.optimizer_step()
    assert torch.equal(before, gammas(run)[0])


def test_state_restores_everything_that_changes():
    def advance(run, steps):
        for _ in range(steps):
            run.backward(sum((p * torch.rand_like(p)).sum() for p in run.model.parameters()))
            run.optimizer_step()

    run, other = make_run(adam=True), make_run(adam=True)
    advance(run, 3)
    run.epoch = 1
    assert run.note_evaluation(0.5, 0.25, 0.125)
    assert not run.note_evaluation(0.9, 0.20)
    saved = run.state() | {"model": run.weights.state_dict(), "epoch": 0, "seen": 7}
    saved = Checkpoint.of(torch.load(_saved(saved), weights_only=True) | {"finished": False}, "last.pt")
    other.restore(saved)
    advance(run, 2)
    torch.manual_seed(99)  # of no effect: the state of the random numbers is restored with the rest
    other.restore(saved)
    advance(other, 2)
    assert (other.step, other.epoch, other.model.seen) == (5, 1, 7)
    assert other.best == {"epoch": 1, "map50": 0.5, "map": 0.25, "conf_thres": 0.125}
    for a, b in zip(run.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(run.weights.state_dict().values(), other.weights.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def _saved(data: dict) -> object:
    import io

    file = io.BytesIO()
    torch.save(data, file)
    file.seek(0)
    return file


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_batch_norm_over_processes_is_batch_norm(one_process):
    torch.manual_seed(0)
    plain, shared = nn.BatchNorm2d(5, momentum=0.03), ProcessGroupBatchNorm2d(5, momentum=0.03)
    with torch.no_grad():
        plain.weight.uniform_(), plain.bias.uniform_()
    shared.load_state_dict(plain.state_dict())
    inputs = [(torch.randn(3, 5, 4, 6) * 2 + 100).requires_grad_() for _ in range(2)]  # a large mean cancels in E[x^2] - E[x]^2
    inputs[1].data.copy_(inputs[0].data)
    outputs = [bn(x) for bn, x in zip((plain, shared), inputs, strict=True)]
    wanted = torch.randn_like(outputs[0])
    for y in outputs:
        (y * wanted).sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(shared.weight.grad, plain.weight.grad, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(shared.running_mean, plain.running_mean)
    torch.testing.assert_close(shared.running_var, plain.running_var)
    assert shared.num_batches_tracked == plain.num_batches_tracked == 1
    torch.testing.assert_close(shared.eval()(inputs[0]), plain.eval()(inputs[0]))


def test_on_cuda_nn_sync_batch_norm_takes_over():
    model, plain = Darknet(CFG, 64).eval(), Darknet(CFG, 64).eval()
    plain.load_state_dict(model.state_dict())
    gamma = model.module_list[0].BatchNorm2d.weight
    normalise_together(model, torch.device("cuda"))
    bn = model.module_list[0].BatchNorm2d
    assert isinstance(bn, nn.SyncBatchNorm)
    assert isinstance(bn, nn.BatchNorm2d)  # freezing and fusing look for these
    assert bn.weight is gamma
    assert list(model.state_dict()) == list(plain.state_dict())
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(model(x)[0], plain(x)[0])
    assert torch.equal(model.train()(x)[0], plain.train()(x)[0])  # a process alone
    assert torch.equal(bn.running_var, plain.module_list[0].BatchNorm2d.running_var)


def test_parallel_converts_and_keeps_tensors(one_process):
    model = Darknet(CFG, 64)
    before, bn = model.state_dict(keep_vars=True), model.module_list[0].BatchNorm2d
    assert parallel(model, CPU, World()) is model
    assert type(bn) is nn.BatchNorm2d
    bn.eps, bn.momentum = 0.25, 0.5
    wrapped = parallel(model, CPU, World(0, 2))
    assert isinstance(wrapped, nn.parallel.DistributedDataParallel)
    made = model.module_list[0].BatchNorm2d
    assert type(made) is ProcessGroupBatchNorm2d
    assert (made.eps, made.momentum, made.training) == (0.25, 0.5, True)
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is tensor for name, tensor in before.items())  # whoever holds a gamma keeps holding it
