"""--reparam: a training whose 3x3 convolutions have branches (utils.network.branches)."""

from utils.core.errors import UserError
from utils.network.branches import branch
from utils.network.darknet import Darknet
from utils.pruning.sparsity_options import SparsityOptions


def check_reparam(sparsity: SparsityOptions, quantized: int) -> None:
    """Raises UserError for what can't be trained with branches."""
    if sparsity.prune >= 0:
        raise UserError("--reparam: branches have gammas of their own, none of which says what --prune could take; train with "
                        "branches first, then sparsely from what that wrote, without --reparam")  # fmt: skip
    if quantized:
        raise UserError("--reparam: branches are folded before anything is rounded; train with branches first, then with "
                        "--quantized from what that wrote, without --reparam")  # fmt: skip


def reparametrise(model: Darknet, form: str, *, trained: bool) -> str:
    """Give `model` branches, in place; what they are, in words. See utils.network.branches.branch."""
    before = sum(p.numel() for p in model.parameters())
    count = len(branch(model, form, trained=trained))
    more = sum(p.numel() for p in model.parameters()) - before
    return f"{form}: branches beside {count} 3x3 convolutions, with {more:,} parameters until they are folded"
