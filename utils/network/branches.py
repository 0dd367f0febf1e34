"""Branches that fold: 3x3 convolutions that train as sums of several convolutions, and are one again when they are saved.

    cfg's convolution -- branch --> 3x3 + 1x1 + identity, while it trains -- folded --> the cfg's convolution

A sum of convolutions with constant normalisations is a convolution, so what trains better costs nothing afterwards. Two forms:

repvgg (Ding et al. 2021, arXiv 2101.03697): every branch has its own batch normalisation.
qarepvgg (Chu et al. 2022, arXiv 2212.01593): only the 3x3 branch has, and the sum has another. It was made for int8: the
    sum of normalised branches has channels, and folded kernels, of very different spreads, which few bits can't tell apart.

>>> model = Darknet("cfg/yolov3tiny/yolov3-tiny.cfg")
>>> branch(model, "repvgg", trained=False)
[0, 2, 4, 6, 8, 10, 12, 14, 21]
>>> folded(model).state_dict().keys() == Darknet("cfg/yolov3tiny/yolov3-tiny.cfg").state_dict().keys()
True
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.core.distributed import mean_over_processes
from utils.core.errors import UserError
from utils.network.darknet import Darknet
from utils.network.layers import BN_EPSILON, BN_MOMENTUM, Convolution, convolve, draw_kernel

FORMS = ("repvgg", "qarepvgg")


def branch(model: Darknet, form: str, *, trained: bool) -> list[int]:
    """Give every 3x3 convolution with batch normalisation that feeds no head its branches, in place; returns their indices.

    trained: the network goes on from weights: it stays the function that it is, in both modes, see BranchedConvolution.
    Raises UserError for a network that has no such convolution.
    """
    predictions = {source for source, _ in model.head_convolutions()}
    indices = [i for i, m in enumerate(model.module_list) if i not in predictions and _can_branch(m)]
    if not indices:
        raise UserError(f"{model.defs.name}: has no 3x3 convolution with batch normalisation, which branches could fold into; "
                        "leave out --reparam")  # fmt: skip
    for i in indices:
        model.module_list[i] = BranchedConvolution(model.module_list[i], form, trained)
    return indices


def _can_branch(module: nn.Module) -> bool:
    return type(module) is Convolution and module.BatchNorm2d is not None and module.conv.kernel_size == (3, 3)


def folded(model: Darknet) -> Darknet:
    """The cfg's own network, a copy; a network without branches is returned as it is."""
    if not any(isinstance(m, BranchedConvolution) for m in model.module_list):
        return model
    model = copy.deepcopy(model)
    for i, module in enumerate(model.module_list):
        if isinstance(module, BranchedConvolution):
            model.module_list[i] = module.fold()
    return model


class BranchedConvolution(nn.Module):
    """What trains in a Convolution's place: the sum of `main`, the layer itself up to its activation, a 1x1 convolution of what
    lies in the middle of its windows, and of that itself, where it has as many channels and positions as the output.

    It is no Block: a network has neither a .weights file nor a cost before it is folded.
    A depthwise layer's 1x1 kernel is a factor a channel, which a normalisation would take out again; so with `repvgg` it has
    the identity alone, at any stride.

    From scratch all gammas are 1. A trained layer stays the function that it is. repvgg: its new branches begin with a gamma of
    0, which learns at once where their kernels would have to wait for each other. (To take the new branches from the 3x3
    kernel instead would give the three normalisations statistics that nobody has measured.) qarepvgg: the 1x1 kernel begins
    as the identity's negative, the layer's own normalisation becomes the sum's, the 3x3 branch's changes nothing.
    """

    main: Any  # a Convolution; by torch's types every attribute of a layer would be a Tensor or a Module
    point: Any  # an nn.Conv2d, or None
    point_norm: Any  # an nn.BatchNorm2d, nn.Identity where nothing normalises the branch, None where there is no branch
    identity_norm: Any
    total: Any  # a Spread or an nn.BatchNorm2d

    def __init__(self, main: Convolution, form: str, trained: bool) -> None:
        super().__init__()
        conv = main.conv
        one_to_one = conv.groups == conv.in_channels == conv.out_channels
        alike = conv.in_channels == conv.out_channels and conv.stride == (1, 1)
        normed = form == "repvgg"
        self.main = main
        self.border = int(conv.padding[0]) - conv.dilation[0]  # of the middles of the windows; below 0: so much is cut off
        self.point = self.point_norm = self.identity_norm = None
        if not (normed and one_to_one):
            self.point = nn.Conv2d(conv.in_channels, conv.out_channels, 1, groups=conv.groups, bias=False)
            self.point_norm = _norm(conv.out_channels) if normed else nn.Identity()
            draw_kernel(self.point)
        if alike or (normed and one_to_one):
            self.identity_norm = _norm(conv.out_channels) if normed else nn.Identity()
        self.total = Spread(conv.out_channels) if normed else _norm(conv.out_channels)
        with torch.no_grad():
            if trained and normed:
                self._silence()
            elif trained:
                self._hand_over()
            if normed:
                self.total.variance.copy_(torch.stack([norm.weight for norm in self._norms()]).square().sum(0))

    def _silence(self) -> None:
        for norm in self._norms()[1:]:
            norm.weight.zero_()

    def _hand_over(self) -> None:
        norm = self.main.BatchNorm2d
        self.total.load_state_dict(norm.state_dict())
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(norm.running_mean)
        self.point.weight.zero_()
        if self.identity_norm is not None:
            self.point.weight.copy_(-self._identity_kernel()[..., 1:2, 1:2])

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, channels, height, width)."""
        total = self.main.BatchNorm2d(convolve(self.main.conv, x))
        middles = self._middles(x)
        if self.point is not None:
            total = total + self.point_norm(convolve(self.point, middles))
        if self.identity_norm is not None:
            total = total + self.identity_norm(middles)
        if isinstance(self.total, Spread):
            self.total(total, self._mean())
        else:
            total = self.total(total)
        return self.main.blur(self.main.activation(total))

    def _middles(self, x: Tensor) -> Tensor:
        """What lies in the middle of each window. A 1x1 convolution would take the strides itself, but the gradient of such a
        one crashes in oneDNN (PyTorch 2.14, channels_last on the CPU)."""
        x = F.pad(x, [self.border] * 4) if self.border else x
        down, across = self.main.conv.stride
        return x if down == across == 1 else x[..., ::down, ::across].contiguous(memory_format=torch.channels_last)

    def _norms(self) -> list[Any]:
        """What normalises each branch."""
        return [norm for norm in (self.main.BatchNorm2d, self.point_norm, self.identity_norm) if norm is not None]

    def _branches(self) -> Iterator[tuple[Tensor, Any]]:
        """(a 3x3 kernel, what normalises it) of each branch."""
        yield self.main.conv.weight, self.main.BatchNorm2d
        if self.point is not None:
            yield F.pad(self.point.weight, [1, 1, 1, 1]), self.point_norm
        if self.identity_norm is not None:
            yield self._identity_kernel(), self.identity_norm

    def _identity_kernel(self) -> Tensor:
        """(filters, channels of a group, 3, 3): each filter's own channel, unchanged."""
        kernel = torch.zeros_like(self.main.conv.weight)
        filters = torch.arange(len(kernel), device=kernel.device)
        kernel[filters, filters % kernel.shape[1], 1, 1] = 1
        return kernel

    def _mean(self) -> Tensor:
        """(filters,) of the sum of normalised branches over a batch, exactly: what their normalisations add."""
        return torch.stack([norm.bias for norm in self._norms()]).sum(0)

    @torch.no_grad()
    def fold(self) -> Convolution:
        """`main`, which has become the whole sum: the same function in eval mode. This module is used up.

        Its batch normalisation has the statistics of what the new kernel computes, so that training goes on from them, and
        a gamma that says how far the channel spreads, so that it can be pruned by. Computed in float64; the result is rounded.
        """
        layer, norm = self.main, self.main.BatchNorm2d
        outer = self.total.norm(self._mean()) if isinstance(self.total, Spread) else self.total.state_dict()
        kernel, bias = (torch.zeros_like(t, dtype=torch.float64) for t in (layer.conv.weight, norm.bias))
        for weight, own in self._branches():
            factor, offset = _affine(own)
            kernel, bias = kernel + weight * factor, bias + offset
        layer.conv.weight.copy_(kernel)
        norm.load_state_dict(norm.state_dict() | outer)
        norm.running_mean.copy_(outer["running_mean"] - bias)
        return layer


def _affine(norm: Any) -> tuple[Tensor | float, Tensor | float]:
    """(factor (filters, 1, 1, 1), offset (filters,)) of a normalisation by constant statistics, in float64."""
    if isinstance(norm, nn.Identity):
        return 1.0, 0.0
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return factor[:, None, None, None], norm.bias - norm.running_mean * factor


class Spread(nn.Module):
    """The running variance, a channel, of a sum of normalised branches, as nn.BatchNorm2d keeps it."""

    variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("variance", torch.ones(channels))

    @torch.no_grad()
    def forward(self, total: Tensor, mean: Tensor) -> None:
        """total: (batch, channels, height, width); mean: (channels,) its mean."""
        if not self.training:
            return
        spread = (total.float() - mean[:, None, None]).square().mean((0, 2, 3))
        count = total.numel() // total.shape[1]
        self.variance.lerp_(mean_over_processes(spread) * (count / max(count - 1, 1)), BN_MOMENTUM)

    def norm(self, mean: Tensor) -> dict[str, Tensor]:
        """The batch normalisation that has this variance and mean (channels,), and changes nothing."""
        variance = self.variance.double()
        return {"weight": (variance + BN_EPSILON).sqrt(), "bias": mean, "running_mean": mean.double(), "running_var": variance}


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, BN_EPSILON, BN_MOMENTUM)
