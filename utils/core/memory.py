"""How much memory there is."""

from pathlib import Path

# What a container may use: cgroups of version 2 and 1.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def available_memory() -> int | None:
    """Bytes that can still be used without swapping (Linux); None where the system doesn't say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min((*free, *_container_limits()), default=None)


def _container_limits() -> list[int]:
    texts = [Path(path).read_text().strip() for path in _LIMITS if Path(path).is_file()]
    return [int(text) for text in texts if text.isdecimal()]  # or `max`
