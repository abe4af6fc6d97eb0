"""The CPU cores that this process may use, and how many threads a training on them gets."""

from __future__ import annotations

import math
import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""A container's share of the machine: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files"""


def num_cores() -> int:
    """The cores of this process's affinity, or of its container's quota, rounded up, where that is fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        return min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no such file on a bare machine; "max" where there is no quota
        return cores


def most_threads(cores: int) -> int:
    """Threads for a training on so many cores: one each, or as few as OMP_NUM_THREADS says, as PyTorch has it."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # "4,2" is for nested regions
    return min(cores, int(wanted)) if wanted.isdecimal() and int(wanted) > 0 else cores
