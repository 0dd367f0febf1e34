"""One tiny cfg for each topology, and a network with random weights and statistics."""

import torch

from utils.network.darknet import Darknet
from utils.network.layers import BN_MOMENTUM

NET = "[net]\nwidth=64\nheight=64\nchannels=3\n"


def conv(filters: int, size: int = 3, stride: int = 1, bn: int = 1, activation: str = "leaky", **more: int) -> str:
    extra = "".join(f"{k}={v}\n" for k, v in more.items())
    normalise = "batch_normalize=1\n" if bn else ""
    return (
        f"[convolutional]\n{normalise}filters={filters}\nsize={size}\nstride={stride}\npad=1\nactivation={activation}\n{extra}"
    )


def head(mask: str = "0,1", classes: int = 2) -> str:
    anchors = "8,10, 20,16"
    filters = (mask.count(",") + 1) * (5 + classes)
    yolo = f"[yolo]\nmask={mask}\nanchors={anchors}\nclasses={classes}\nnum=2\n"
    return conv(filters, 1, bn=0, activation="linear") + yolo


RESIDUAL = (
    NET + conv(8, stride=2) + conv(12) + (conv(6, 1) + conv(12) + "[shortcut]\nfrom=-3\nactivation=linear\n") * 2 + head()
)
CSP = (
    NET + conv(8, stride=2) + conv(16) + "[route]\nlayers=-1\ngroups=2\ngroup_id=1\n" + conv(8) + conv(8)
    + "[route]\nlayers=-1,-2\n" + conv(16, 1) + "[route]\nlayers=-6,-1\n" + "[maxpool]\nsize=2\nstride=2\n" + conv(10) + head()
)  # fmt: skip
SPP = (
    NET + conv(8, stride=2) + conv(10, 1)
    + "[maxpool]\nstride=1\nsize=5\n[route]\nlayers=-2\n[maxpool]\nstride=1\nsize=9\n[route]\nlayers=-1,-3,-4\n" + conv(12, 1)
    + head("1") + "[route]\nlayers=-3\n" + conv(6, 1) + "[upsample]\nstride=2\n[route]\nlayers=-1\n" + conv(8) + head("0")
)  # fmt: skip
DEPTHWISE = (
    NET + conv(8, stride=2, activation="swish") + conv(16, 1, activation="swish") + conv(16, activation="swish", groups=16)
    + "[avgpool]\n" + conv(4, 1, bn=0, activation="relu") + conv(16, 1, bn=0, activation="logistic")
    + "[scale_channels]\nfrom=-4\n" + conv(8, 1, activation="linear") + "[shortcut]\nfrom=-8\nactivation=linear\n" + head()
)  # fmt: skip
DIALECT = (
    NET + conv(8, stride=2, activation="h_swish") + conv(16, 1, activation="relu6")
    + "[depthwise]\nbatch_normalize=1\nfilters=16\nsize=3\nstride=1\npad=1\nactivation=relu6\n[se]\nfilters=16\n"
    + conv(8, 1, activation="linear") + "[shortcut]\nfrom=-4\nactivation=linear\n" + head()
)  # fmt: skip
REORG = (
    NET + conv(8, stride=2) + "[reorg3d]\nstride=2\n[route]\nlayers=-1\n" + conv(12) + conv(12, activation="logistic")
    + "[sam]\nfrom=-2\n" + conv(8) + head()
)  # fmt: skip


def dfl_head(source: int, first: int, reg_max: int = 6, classes: int = 2) -> str:
    """An anchor-free head on layer `source`: two branches, joined; its first layer is number `first`."""
    box = conv(8, activation="swish") + conv(4 * reg_max, 1, bn=0, activation="linear")
    scores = conv(6, activation="swish") + conv(classes, 1, bn=0, activation="linear")
    joined = f"[route]\nlayers={first + 2},{first + 5}\n[dfl]\nclasses={classes}\nreg_max={reg_max}\n"
    return f"[route]\nlayers={source}\n{box}[route]\nlayers={source}\n{scores}{joined}"


DFL = (  # a C2f block (halves, a bottleneck on the second, all of it joined), SPPF, two levels of the anchor-free head
    NET + conv(8, stride=2, activation="swish") + conv(16, 1, activation="swish") + "[route]\nlayers=-1\ngroups=2\ngroup_id=1\n"
    + conv(8, activation="swish") + conv(8, activation="swish") + "[shortcut]\nfrom=-3\nactivation=linear\n"
    + "[route]\nlayers=1,-1\n" + conv(12, 1, activation="swish") + conv(6, 1, activation="swish")
    + "[maxpool]\nstride=1\nsize=5\n" * 3 + "[route]\nlayers=-4,-3,-2,-1\n" + conv(12, 1, activation="swish")
    + dfl_head(13, 14) + "[route]\nlayers=13\n" + conv(10, stride=2, activation="swish") + dfl_head(23, 24)
)  # fmt: skip

TOPOLOGIES = {
    "residual": RESIDUAL,
    "csp": CSP,
    "spp": SPP,
    "depthwise": DEPTHWISE,
    "dialect": DIALECT,
    "reorg": REORG,
    "dfl": DFL,
}


def randomise(model: Darknet, beta: float = 0.3) -> Darknet:
    """Random weights, gammas and running statistics; the statistics near those of a random batch, as a trained network's
    are, so that values stay of a plausible size in deep networks."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.2, 1.5)
            module.bias.data.normal_(0, beta) if beta else module.bias.data.zero_()
            module.momentum = 1.0
        elif isinstance(module, torch.nn.Conv2d) and module.bias is not None:
            module.bias.data.normal_(0, 0.3)
    with torch.no_grad():
        model.train()(torch.rand(2, model.defs.net.channels, 64, 64))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean += 0.2 * torch.randn_like(module.running_mean) * module.running_var.sqrt()
            module.running_var *= 0.7 + torch.rand_like(module.running_var)
            module.momentum = BN_MOMENTUM
    return model.eval()


def network(cfg: str, img_size: int = 64, beta: float = 0.3) -> Darknet:
    torch.manual_seed(0)
    return randomise(Darknet(cfg, img_size), beta)
