"""When the coordinator does costly work again that nobody waits for."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

QUIET_SECONDS = 2.0
"""Time between two looks at the database, and between two snapshots for the observers, while no worker sends a
message."""

SHOWN_APART = 30
"""Shortest time between two snapshots for the observers, as a multiple of the CPU time that the last one and its
observers took. With 1,000 workers, that time is 0.1 s."""


class Pace:
    """The pace of a costly piece of work.

    Args:
        seconds: time between two times of the work if nothing has happened.
        apart: shortest time between two times of the work, as a multiple of the CPU time that it took last.
    """

    def __init__(self, seconds: float, apart: float = 0.0) -> None:
        self._seconds, self._apart = seconds, apart
        self._since, self._cpu, self._has_news = -math.inf, 0.0, False

    def is_due(self, *, news: bool) -> bool:
        """Whether to do the work now. ``news``: whether something has happened since the last call."""
        self._has_news |= news
        wait = max(self._apart * self._cpu, 0.0 if self._has_news else self._seconds)
        return time.monotonic() - self._since >= wait

    @contextmanager
    def working(self) -> Iterator[None]:
        """The work is done in this context."""
        self._since, self._has_news = time.monotonic(), False
        begun = time.process_time()
        try:
            yield
        finally:
            self._cpu = time.process_time() - begun
