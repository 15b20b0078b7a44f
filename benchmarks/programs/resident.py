"""Memory of this process, from /proc; `ru_maxrss` would start at the parent's memory."""

from __future__ import annotations

from pathlib import Path


def now_mib() -> float:
    """Return the resident memory."""
    return _mib("VmRSS")


def high_water_mib() -> float:
    """Return the most memory that was ever resident."""
    return _mib("VmHWM")


def _mib(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.removesuffix("kB")) / 1024
    raise KeyError(name)
