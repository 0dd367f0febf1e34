"""A strategy at work on one network: from an amount to the channels and blocks that go, and to the smaller network."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from utils.core.errors import UserError
from utils.network import definitions
from utils.network.cost import network_size
from utils.network.darknet import Darknet
from utils.pruning.compact import compact_defs, compact_model, mask_model
from utils.pruning.graph import ChannelGraph
from utils.pruning.importance import CRITERIA, Evidence, channel_scores
from utils.pruning.latency import LayerTimes
from utils.pruning.masks import POLICIES, Limits, Mask, candidates, complete, global_mask
from utils.pruning.residual_blocks import Block, block_scores, ends_of, residual_blocks, weakest_blocks
from utils.pruning.spend import MILLISECONDS, Cost, Removal, removal
from utils.pruning.split import uneven

SPARSE_ABSOLUTE, SPARSE_RELATIVE = 0.1, 0.1  # see Pruner.sparsity_warning


@dataclass(frozen=True)
class Strategy:
    """policy: which channels may go and how they are scored (utils.pruning.masks.POLICIES); the rest: defaults of the
    options."""

    policy: str
    percent: float = 0.5
    shortcuts: int = 0
    layer_keep: float = 0.0


STRATEGIES = {
    "normal": Strategy("normal"),
    "regular": Strategy("regular"),
    "shortcut": Strategy("shortcut"),
    "slim": Strategy("slim", layer_keep=0.01),
    "layer": Strategy("slim", percent=0.0, shortcuts=8),
    "layer_channel": Strategy("slim", shortcuts=8, layer_keep=0.01),
}


@dataclass(frozen=True)
class Amount:
    """percent: share of the prunable channels, 0..1; shortcuts: number of residual blocks."""

    percent: float
    shortcuts: int = 0

    def __str__(self) -> str:
        parts = [f"--percent {self.percent:g}"] if self.percent or not self.shortcuts else []
        return " ".join(parts + ([f"--shortcuts {self.shortcuts}"] if self.shortcuts else []))


@dataclass(frozen=True)
class Choice:
    """What goes for an amount: the ids that `mask` doesn't keep, and the blocks `dropped`."""

    amount: Amount
    mask: Mask
    dropped: list[Block]


class Pruner:
    """Scores of a network's channels and blocks under a strategy; `choose` says what goes for an amount.

    importance: the criterion (utils.pruning.importance.CRITERIA), `evidence` what it needs of images. cost: what scores are
    weighed against (see utils.pruning.spend), None where they alone decide.
    """

    def __init__(self, model: Darknet, strategy: str, limits: Limits, importance: str = "gamma",
                 evidence: Evidence | None = None, cost: Cost | None = None) -> None:  # fmt: skip
        self.model, self.strategy, self.limits, self.importance = model, strategy, limits, importance
        self.policy = POLICIES[STRATEGIES[strategy].policy]
        self.graph = ChannelGraph(model.defs)
        self.blocks = residual_blocks(self.graph)
        self.evidence = replace(evidence or Evidence(), combine=self.policy.combine)
        self.scores = channel_scores(importance, model, self.graph, self.evidence)
        self.pool = candidates(self.graph, self.policy)
        weighed = self._weighed(cost)
        self.order = weighed.order if weighed else None
        self.prices = weighed.prices if weighed else self.scores
        self.times: LayerTimes | None = None  # of the runtime that `size` tells milliseconds of

    def _weighed(self, cost: Cost | None) -> Removal | None:
        """The candidates as they are to go, None where that is simply by their scores."""
        following = CRITERIA[self.importance].following
        if following is None:
            return None if cost is None else removal(lambda keep: self.scores, self.pool, cost)
        return removal(following(self.model, self.graph, self.evidence), self.pool, cost)

    def check(self, percent: float, shortcuts: int | None, force: bool = False) -> Amount:
        """The amount, if this network can give it; UserError in one line if not. With `force` at most all blocks.

        shortcuts None: the strategy's own number, or all blocks where there are fewer.
        """
        name, usual = self.model.defs.name, STRATEGIES[self.strategy].shortcuts
        if percent and not self.pool.any():
            raise UserError(f"{name}: {self.strategy} pruning finds no channel that may go; try shortcut or slim")
        wanted = min(usual, len(self.blocks)) if shortcuts is None else shortcuts
        if (usual or wanted) and not self.blocks:
            raise UserError(
                f"{name}: has no residual blocks that could be dropped; use normal, regular, shortcut or slim pruning"
            )
        if wanted < min(usual, 1):
            raise UserError(f"--shortcuts {wanted}: give the number of residual blocks to drop, 1 to {len(self.blocks)}")
        if wanted > len(self.blocks) and not force:
            raise UserError(
                f"{name}: --shortcuts {wanted}: there are {len(self.blocks)} residual blocks; --force drops them all"
            )
        return Amount(percent, min(wanted, len(self.blocks)))

    def choose(self, amount: Amount) -> Choice:
        """The weakest channels of the whole network, then the blocks that are the weakest by what is left of them."""
        mask = global_mask(self.graph, self.scores, self.policy, amount.percent, self.limits, self.order)
        return Choice(amount, mask, weakest_blocks(self.blocks, self.block_scores(mask.keep), amount.shortcuts))

    def last_gone_first(self) -> np.ndarray:
        """(candidates,) their ids, beginning with the one that goes last."""
        if self.order is not None:
            return self.order[::-1]
        pool = np.flatnonzero(self.pool)
        return pool[np.argsort(self.scores[pool], kind="stable")][::-1]

    def with_channels(self, choice: Choice, more: np.ndarray) -> Choice:
        """The choice, but for the ids `more`, which stay, and whatever else the limits ask for then."""
        keep, last = choice.mask.keep.copy(), self.last_gone_first()
        keep[more] = True
        rank = np.full(len(keep), len(last))
        rank[last] = np.arange(len(last), 0, -1)
        complete(self.graph, rank, keep, self.limits)
        return replace(choice, mask=replace(choice.mask, keep=keep, achieved=float((~keep).sum()) / max(len(last), 1)))

    def price(self, choice: Choice) -> float:
        """What the channels that go are worth together, each as it was when its turn came."""
        return float(self.prices[~choice.mask.keep].sum())

    def block_scores(self, keep: np.ndarray) -> np.ndarray:
        """(blocks,) what is lost with the end of each block, by the criterion if that reads images. One that compares the
        kernels of a layer with each other says nothing of whole blocks: there the mean |gamma| decides."""
        criterion = CRITERIA[self.importance]
        if not criterion.needs:
            return block_scores(self.model, self.graph, self.blocks, keep)
        parts = criterion.parts(self.model, self.graph, self.evidence)
        return np.array([parts.scores(ends_of(self.graph, block, keep), 1)[0] for block in self.blocks])

    def defs(self, choice: Choice) -> definitions.Defs:
        return compact_defs(self.graph, choice.mask.keep, choice.dropped)

    def masked(self, choice: Choice) -> Darknet:
        return mask_model(self.model, self.graph, choice.mask.keep, choice.dropped)

    def compact(self, choice: Choice) -> Darknet:
        return compact_model(self.model, self.graph, choice.mask.keep, choice.dropped)

    def divided(self, choice: Choice) -> list[int]:
        """The convolutions that are written in parts (see utils.pruning.split)."""
        gone = {layer for block in choice.dropped for layer in block.layers}
        return [i for i in uneven(self.graph, choice.mask.keep) if i not in gone]

    def size(self, choice: Choice, img_size: int) -> dict[str, float]:
        """{params, macs, channels} of the compact network, without computing its weights; with `times` also {ms}."""
        defs = self.defs(choice)
        milliseconds = {MILLISECONDS: self.times.total(defs, img_size)} if self.times else {}
        channels = sum(d.filters for d in defs if isinstance(d, definitions.Convolutional))
        return network_size(type(self.model), defs, img_size) | {"channels": channels} | milliseconds

    def layer_counts(self, choice: Choice) -> list[dict[str, int]]:
        """Filters of each convolution before and after; 0 after for those of a dropped block."""
        gone = {layer for block in choice.dropped for layer in block.layers}
        out, keep = self.graph.out, choice.mask.keep
        return [
            {"index": i, "before": len(out[i]), "after": 0 if i in gone else int(keep[out[i]].sum())}
            for i in self.graph.convolutions()
        ]

    def sparsity_warning(self, choice: Choice) -> str:
        """A line if channels go by gammas that aren't sparse, else "".

        They aren't if what goes is not much weaker than what stays: the strongest removed gamma (of a block: the mean of
        its end's) is above 0.1 and above a tenth of the median of all that could go.
        """
        if self.importance != "gamma":
            return ""
        scores = self.block_scores(choice.mask.keep)
        gone = [float(s) for s, block in zip(scores, self.blocks, strict=True) if block in choice.dropped]
        checks = [("channels", choice.mask.threshold, self.scores[self.pool])] if choice.amount.percent else []
        checks += [("blocks", max(gone), scores)] if gone else []
        for what, strongest, values in checks:
            typical = float(np.median(values))
            if strongest > SPARSE_ABSOLUTE and strongest > SPARSE_RELATIVE * typical:
                return (f"the gammas aren't sparse: those of removed {what} reach {strongest:.3f}, all have a median of "
                        f"{typical:.3f}. Expect a large drop; train sparse first (train.py --prune P), remove "
                        "less, or choose by --importance taylor")  # fmt: skip
        return ""

    def summary(self, choice: Choice) -> dict[str, Any]:
        """What --json says of the choice: {importance{name, images}, requested, achieved, limit, shortcuts{requested, achieved,
        limit, layers}, divided: layers}."""
        shortcuts = {
            "requested": choice.amount.shortcuts, "achieved": len(choice.dropped), "limit": len(self.blocks),
            "layers": [b.shortcut for b in choice.dropped],
        }  # fmt: skip
        channels = {"requested": choice.amount.percent, "achieved": choice.mask.achieved, "limit": choice.mask.limit}
        counts = {k: shortcuts[k] for k in channels}
        images = self.evidence.pictures if CRITERIA[self.importance].needs else 0
        amounts = channels if choice.amount.percent or not choice.amount.shortcuts else counts
        importance = {"name": self.importance, "images": images}
        return {"importance": importance, **amounts, "shortcuts": shortcuts, "divided": self.divided(choice)}
