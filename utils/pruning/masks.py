"""Strategy -> keep-mask: which channel ids stay.

A strategy is a policy of three facts: how shared channels are scored, whether channels that a shortcut united may go,
and what counts are rounded up to. Everything else, what may never go and how a threshold becomes a valid mask, is the
same for all.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from utils.pruning.graph import ChannelGraph, Ids


@dataclass(frozen=True)
class Policy:
    """combine: score of an id that several convolutions make (see gamma_scores); prunes_united: whether channels that
    a shortcut united may go; round_to: the multiple that a layer's count is rounded up to."""

    combine: str
    prunes_united: bool
    round_to: int = 1


POLICIES = {
    "normal": Policy("first", prunes_united=False),
    "regular": Policy("first", prunes_united=False, round_to=8),
    "shortcut": Policy("first", prunes_united=True),
    "slim": Policy("largest", prunes_united=True),
}


@dataclass(frozen=True)
class Limits:
    """What a layer must keep: at least `min_channels` and the share `layer_keep` of it, and a multiple of `round_to`.

    split: the least share of its channels that a convolution must be spared by being written in parts, whose numbers may
    differ then (see utils.pruning.split); 0: whatever it is spared, None: it stays one, with parts of equal width.
    """

    min_channels: int = 1
    layer_keep: float = 0.0
    round_to: int = 1
    split: float | None = None

    def required(self, kept: int, total: int) -> int:
        """Channels that a layer of `total` has to keep, if `kept` scored above the threshold."""
        least = max(kept, self.min_channels, int(np.ceil(self.layer_keep * total)))
        return min(total, -(-least // self.round_to) * self.round_to)


@dataclass(frozen=True)
class Mask:
    """keep: (ids,) bool. achieved: share of the candidates that goes, after every limit was met. limit: the largest
    percent that empties no layer. threshold: score of the strongest channel that the percent asked to remove."""

    keep: np.ndarray
    achieved: float
    limit: float
    threshold: float


def candidates(graph: ChannelGraph, policy: Policy) -> np.ndarray:
    """(ids,) bool: what the policy may remove."""
    return ~graph.frozen if policy.prunes_united else ~(graph.frozen | graph.united)


def global_mask(graph: ChannelGraph, scores: np.ndarray, policy: Policy, percent: float, limits: Limits,
                order: np.ndarray | None = None) -> Mask:  # fmt: skip
    """Remove the `percent` (0..1) weakest candidates of the whole network, except for what the limits keep.

    order: the candidates as they are to go, if not by their scores. Ties of scores are broken by position, so that the number
    of removed channels doesn't depend on equal scores.
    """
    pool = np.flatnonzero(candidates(graph, policy))
    by_score = order is None
    if by_score:
        order = pool[np.argsort(scores[pool], kind="stable")]
    count = round(percent * len(pool))
    keep = np.ones(graph.count, dtype=bool)
    keep[order[:count]] = False
    rank = np.full(graph.count, len(pool))
    rank[order] = np.arange(len(pool))
    complete(graph, scores if by_score else rank, keep, limits)
    limit = min((int(rank[ids].max()) for ids in _layers(graph)), default=0) / max(len(pool), 1)
    achieved = float((~keep).sum()) / max(len(pool), 1)
    return Mask(keep, achieved, min(limit, 1.0), float(scores[order[:count]].max()) if count else 0.0)


def complete(graph: ChannelGraph, scores: np.ndarray, keep: np.ndarray, limits: Limits) -> None:
    """Bring back, in place, the strongest removed ids until every layer meets the limits and the parts of grouped
    routes keep equally many, but for those of convolutions that are worth being written in parts. It only ever adds, so it
    ends."""
    divided: set[int] = set()
    if limits.split is not None and graph.divisible:
        whole, parted = keep.copy(), keep.copy()
        _restore_all(graph, scores, whole, limits, divided)
        _restore_all(graph, scores, parted, limits, set(graph.divisible))
        counts = {i: [int(k[np.unique(graph.out[i])].sum()) for k in (whole, parted)] for i in graph.divisible}
        divided = {i for i, (one, many) in counts.items() if many < one and one - many >= limits.split * one}
    _restore_all(graph, scores, keep, limits, divided)


def _restore_all(graph: ChannelGraph, scores: np.ndarray, keep: np.ndarray, limits: Limits, divided: set[int]) -> None:
    """Bring back what `complete` says, where the convolutions `divided`, and no others, are written in parts."""
    parts = [np.unique(ids) for i in sorted(divided) for ids in graph.part_ids(i)]
    layers = list(_layers(graph))
    convolutions = [np.unique(graph.out[i]) for i in graph.convolutions() if i not in divided] + parts
    equal = [p for i, p in zip(graph.cut_layers, graph.equal_parts, strict=True) if i not in divided]
    nonempty = Limits(limits.min_channels)
    before = -1
    while before != keep.sum():
        before = keep.sum()
        for ids in layers:
            _restore(scores, keep, ids, nonempty.required(int(keep[ids].sum()), len(ids)))
        for ids in convolutions:
            _restore(scores, keep, ids, limits.required(int(keep[ids].sum()), len(ids)))
        for cut in equal:
            most = max(int(keep[p].sum()) for p in cut)
            for p in cut:
                _restore(scores, keep, p, most)


def _layers(graph: ChannelGraph) -> Iterator[Ids]:
    """The distinct ids of every layer's output."""
    return (np.unique(ids) for ids in graph.out)


def _restore(scores: np.ndarray, keep: np.ndarray, ids: Ids, required: int) -> None:
    missing = required - int(keep[ids].sum())
    if missing > 0:
        gone = ids[~keep[ids]]
        keep[gone[np.argsort(-scores[gone], kind="stable")[:missing]]] = True
