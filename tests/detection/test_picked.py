"""What a loss reads of a raw map, against plain indexing."""

import torch

from utils.detection.picked import Picked


def test_its_gradient_is_that_of_indexing() -> None:
    torch.manual_seed(0)
    ours = torch.randn(2, 3, 4, 5, 7, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    where = tuple(torch.tensor(i) for i in ([0, 1, 0], [2, 0, 2], [3, 1, 3], [4, 0, 4]))  # the first and the last are the same
    found, objectness = Picked.apply(ours, *where)
    wanted = theirs[where], theirs[..., 4]
    assert torch.equal(found, wanted[0])
    assert torch.equal(objectness, wanted[1])
    (found.square().sum() + objectness.exp().sum()).backward()
    (wanted[0].square().sum() + wanted[1].exp().sum()).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-6)


def test_nothing_picked() -> None:
    raw, none = torch.randn(1, 3, 2, 2, 6, requires_grad=True), torch.zeros(0, dtype=torch.long)
    found, objectness = Picked.apply(raw, none, none, none, none)
    assert found.shape == (0, 6)
    (found.sum() + 2 * objectness.sum()).backward()
    assert raw.grad.sum((0, 1, 2, 3)).tolist() == [0, 0, 0, 0, 24, 0]
