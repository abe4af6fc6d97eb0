"""The load of the machine during a measurement: how busy other processes kept it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

QUIET = 0.1
"""The machine counts as quiet if other processes take at most this share of its cores."""

_STAT = Path("/proc/stat")
"""Processor time since the start of the machine, of all processes: proc_stat(5)."""


@dataclass(frozen=True)
class Load:
    """The load of a machine during a measurement."""

    before: float
    """The system's load average of the last minute, per core, before the measurement. It includes this program."""
    after: float
    """The load average after the measurement."""
    others: float | None
    """Share of all cores that other processes took during the measurement, from 0 to 1; None if it is not known."""


def with_load(measure: Callable[[], T]) -> tuple[T, Load]:
    """The result of a measurement, and the load of the machine during it."""
    before = _average()
    began, busy, own = time.monotonic(), _busy_seconds(), time.process_time()
    found = measure()
    seconds, busy_now, others = time.monotonic() - began, _busy_seconds(), None
    if busy is not None and busy_now is not None:
        by_others = (busy_now - busy) - (time.process_time() - own)
        others = round(min(1.0, max(0.0, by_others / (seconds * (os.cpu_count() or 1)))), 3)
    return found, Load(before, _average(), others)


def _average() -> float:
    return round(os.getloadavg()[0] / (os.cpu_count() or 1), 2)


def _busy_seconds() -> float | None:
    """Processor time of all processes, in seconds; None if the system does not report it."""
    try:
        ticks = [int(number) for number in _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    user, nice, system, _idle, _iowait, irq, softirq, _steal = ticks
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
