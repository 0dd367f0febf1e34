"""Milliseconds of networks side by side, where they are to run: each measured once, and kept in compress.json."""

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.compression.state import State
from utils.core.devices import select_device
from utils.loading import Loaded, load_model
from utils.network.cost import latency_ms, weights_bytes
from utils.network.darknet import Darknet
from utils.runtimes.deployment import Deployment
from utils.runtimes.whole import read_together, written

TURNS = 7  # of each network
FIRST = "before"  # the name of the network that all others are measured beside


@dataclass(frozen=True)
class Network:
    """A checkpoint, and the side of its images in pixels; None: as it was trained."""

    weights: str
    img_size: int | None = None

    def load(self) -> Loaded[Darknet]:
        return load_model("", self.weights, self.img_size)


class Times:
    """What networks cost to run: {name: {bytes, ms{median, least, most}}}.

    deployment: where they are computed, None for PyTorch on `device`. anchor: the milliseconds of FIRST, where those were said
    before; the others are told by their ratio to it in each turn, so that a machine that has become slower or faster since
    then moves nothing.
    """

    def __init__(self, state: State, device: str, deployment: Deployment | None, anchor: float | None) -> None:
        self.state, self.device, self.deployment, self.anchor = state, device, deployment, anchor
        self.known: dict[str, dict[str, Any]] = dict(state.result.get("costs") or {})

    def measure(self, networks: dict[str, Network]) -> None:
        """Those that aren't known yet take turns with FIRST, which is one of them or was."""
        missing = {name: network for name, network in networks.items() if name not in self.known}
        if not missing:
            return
        loaded = {name: networks[name].load() for name in [FIRST, *missing]}
        times = self._in_pytorch(loaded) if self.deployment is None else self._deployed(loaded, self.deployment)
        anchor = self.known[FIRST]["ms"]["median"] if FIRST in self.known else self.anchor or statistics.median(times[FIRST])
        middle = statistics.median(times[FIRST])
        for name in missing:
            turns = zip(times[name], times[FIRST], strict=True)
            told = [anchor * (one / middle if name == FIRST else one / first) for one, first in turns]
            ms = {"median": statistics.median(told), "least": min(told), "most": max(told)}
            self.known[name] = {"bytes": weights_bytes(loaded[name].model), "ms": ms}
        self.state.result = self.state.result | {"costs": self.known}
        self.state.save()

    def ms(self, name: str) -> float:
        return self.known[name]["ms"]["median"]

    def _in_pytorch(self, loaded: dict[str, Loaded[Darknet]]) -> dict[str, list[float]]:
        """Milliseconds of each turn."""
        where = select_device(self.device)
        times: dict[str, list[float]] = {name: [] for name in loaded}
        for _ in range(TURNS):
            for name, each in loaded.items():
                times[name].append(latency_ms(each.model, each.img_size, where, runs=5))
        return times

    def _deployed(self, loaded: dict[str, Loaded[Darknet]], deployment: Deployment) -> dict[str, list[float]]:
        with tempfile.TemporaryDirectory() as folder:
            requests = [written(deployment, each, Path(folder) / str(n)) for n, each in enumerate(loaded.values())]
            return dict(zip(loaded, read_together(deployment, requests, TURNS), strict=True))
