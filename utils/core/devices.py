"""Devices and precisions: which one, and what the machine really has."""

import functools
import platform
from pathlib import Path

import torch

from utils.core.errors import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def select_device(name: str = "") -> torch.device:
    """'' (CUDA if there is one, else the CPU), 'cpu', '0', 'cuda', 'cuda:1'; UserError for a GPU that isn't there."""
    if name == "":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    number = name.removeprefix("cuda").removeprefix(":") or "0"
    count = torch.cuda.device_count()
    if not number.isdecimal() or len(number) > 9 or int(number) >= count:
        choices = f"cpu or 0..{count - 1}" if count else "cpu"
        raise UserError(f"--device {name}: this machine has {count} CUDA devices; use --device {choices}")
    return torch.device(f"cuda:{number}")


def processor() -> str:
    """The CPU in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


@functools.cache
def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 itself; elsewhere it is emulated and slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def inference_dtype(device: torch.device, precision: str = "auto") -> torch.dtype:
    """The type that inference computes in. auto: fp16 on CUDA, bf16 on a CPU that has it, else fp32."""
    if precision != "auto":
        return PRECISIONS[precision]
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if cpu_has_bf16() else torch.float32


def training_dtype(device: torch.device) -> torch.dtype | None:
    """The type of mixed-precision training, None where float32 is faster. bf16 before fp16: it needs no loss scaling."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if cpu_has_bf16() else None
