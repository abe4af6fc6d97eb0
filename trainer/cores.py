"""The CPU cores that this process may use, the threads of a training, and work in threads with results in order."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""File with a container's CPU quota: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files"""


def num_cores() -> int:
    """Number of cores: those of this process's affinity, or its container's quota rounded up if that is smaller."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        return min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # the file is missing without a container; it says "max" without a quota
        return cores


def most_threads(cores: int) -> int:
    """Number of threads for a training on ``cores`` cores: one per core, at most OMP_NUM_THREADS, as in PyTorch."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # "4,2" sets nested regions too
    return min(cores, int(wanted)) if wanted.isdecimal() and int(wanted) > 0 else cores


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[tuple[Item, Future[Result]]]:
    """Do the work in the pool. Yield each item with its result, in order; at most ``ahead`` results are in memory."""
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(work, item)))
        if len(waiting) >= ahead:
            yield waiting.popleft()
    yield from waiting
