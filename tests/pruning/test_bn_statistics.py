"""utils.pruning.bn_statistics: statistics become those of the images, and nothing else changes."""

import pytest
import torch

from tests.tiny import RESIDUAL, network
from utils.core.errors import UserError
from utils.data.batch import Batch, normalise
from utils.pruning.bn_statistics import recalibrate


def batches(count: int, size: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.randint(0, 256, (size, 3, 64, 64), generator=generator, dtype=torch.uint8) for _ in range(count)]
    return [Batch(image, torch.zeros(0, 6), []) for image in images]


def test_statistics_are_the_means_over_the_batches():
    model = network(RESIDUAL)
    data = batches(3, 4)
    weights = {k: v.clone() for k, v in model.state_dict().items() if "running" not in k and "tracked" not in k}
    assert recalibrate(model, data, torch.device("cpu")) == 12
    first = model.module_list[0]
    maps = [first.conv(batch.images.float() / 255).detach() for batch in data]
    norm = first.BatchNorm2d
    torch.testing.assert_close(norm.running_mean, torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([m.var((0, 2, 3)) for m in maps]).mean(0))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in weights.items())
    assert not model.training
    assert norm.momentum == 0.03


def test_it_mends_statistics_that_are_wrong():
    model = network(RESIDUAL)
    data = batches(2, 8)
    images = torch.cat([batch.images for batch in data]).float() / 255
    recalibrate(model, data, torch.device("cpu"))
    good = model(images)[1][0].detach()
    model.module_list[3].BatchNorm2d.running_mean += 5
    assert (model(images)[1][0] - good).abs().max() > 1
    recalibrate(model, data, torch.device("cpu"))
    torch.testing.assert_close(model(images)[1][0], good)


def test_a_batch_of_one_picture_is_left_out():
    assert recalibrate(network(RESIDUAL), [*batches(1, 4), *batches(1, 1)], torch.device("cpu")) == 4
    with pytest.raises(UserError, match="at least 2 images"):
        recalibrate(network(RESIDUAL), batches(3, 1), torch.device("cpu"))


def test_nothing_drops_out_and_each_batch_counts_the_same():
    cfg = RESIDUAL.replace("[shortcut]", "[dropout]\nprobability=0.9\n[shortcut]", 1).replace("from=-3", "from=-4", 1)
    model, plain = network(cfg), network(cfg)
    plain.load_state_dict(model.state_dict())
    norms = [m for m in plain.eval().modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for batch in batches(3, 4):
            plain(normalise(batch.images, torch.device("cpu")))
    recalibrate(model, batches(3, 4), torch.device("cpu"))
    assert any(isinstance(m, torch.nn.Dropout) for m in model.modules())
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in model.state_dict().items())
