"""Where a network is to run: the runtime, its threads, and bits."""

from dataclasses import dataclass

import torch

from utils.core.devices import inference_dtype, processor, select_device
from utils.core.errors import UserError
from utils.runtimes.base import Runtime, check_installed, lanes, version
from utils.runtimes.registry import RUNTIMES


@dataclass(frozen=True)
class Deployment:
    """runtime: a key of RUNTIMES; bits: 32 or 8; device, precision: as --device and --precision name them, where the runtime
    doesn't decide by itself."""

    runtime: str
    threads: int
    bits: int = 32
    device: str = "cpu"
    precision: str = "auto"

    @classmethod
    def of(cls, runtime: str, threads: int | None, bits: int, device: str, precision: str) -> "Deployment":
        """What the command line asks for; UserError for what isn't installed, and for bits that say nothing there."""
        adapter = RUNTIMES[runtime]
        if not adapter.bits:
            raise UserError(f"--runtime {runtime}: its layers can't be timed one by one here; name another one")
        if bits not in adapter.bits:
            able = ", ".join(name for name, other in RUNTIMES.items() if bits in other.bits)
            raise UserError(f"--runtime {runtime} --bits {bits}: it computes no network in {bits}-bit integers here; leave "
                            f"--bits out, or name a runtime that does: {able}")  # fmt: skip
        check_installed(runtime, {**adapter.packages, **adapter.writing})
        return cls(runtime, threads or torch.get_num_threads(), bits, device, precision)

    @property
    def adapter(self) -> Runtime:
        return RUNTIMES[self.runtime]

    @property
    def step(self) -> int:
        """The multiple in which it computes channels."""
        return lanes()

    @property
    def is_alone(self) -> bool:
        """Whether it computes with one thread, which waits for no other: CPU time is then what a run takes, and a machine that
        is busy with something else doesn't lengthen that."""
        return self.threads == 1 and select_device(self.device).type == "cpu"

    @property
    def machine(self) -> str:
        device = select_device(self.device)
        return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()

    @property
    def key(self) -> dict[str, str | int]:
        """What milliseconds depend on besides the network."""
        key = {"machine": self.machine, "runtime": self.runtime, "version": version(self.adapter.packages)}
        own = str(inference_dtype(select_device(self.device), self.precision)).removeprefix("torch.")
        return key | {"threads": self.threads, "bits": self.bits, "float": own if self.runtime == "torch" else self.precision}

    def __str__(self) -> str:
        number = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.runtime} {version(self.adapter.packages)}, {number}, {self.bits} bits"
