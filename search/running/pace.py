"""When the coordinator does costly work again that nobody waits for."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

QUIET_SECONDS = 5.0
"""Time between two looks at the database, and between two snapshots for the observers, while no worker sends a
message."""

SHOWN_APART = 30
"""Shortest time between two snapshots for the observers, as a multiple of the CPU time that the last one and its
observers took. With 1,000 workers, that time is 0.1 s."""

LOOKS_APART, GATHERED_FOR, GATHERED_AT_MOST = 4, 0.00025, 0.25
"""Shortest time between two turns with the database, as a multiple of the CPU time that the last one took; but not
longer than so many seconds for each worker, and in all. Messages that come meanwhile are handled together: their
results are one transaction. With a few workers, few would come, so a worker does not wait for them."""


def pace_of_turns(workers: int) -> Pace:
    """The pace of turns with the database."""
    return Pace(QUIET_SECONDS, LOOKS_APART, min(GATHERED_AT_MOST, GATHERED_FOR * workers))


class Pace:
    """The pace of a costly piece of work.

    Args:
        seconds: time between two times of the work if nothing has happened.
        apart: shortest time between two times of the work, as a multiple of the CPU time that it took last.
        most: longest of these times, in seconds.
    """

    def __init__(self, seconds: float, apart: float = 0.0, most: float = math.inf) -> None:
        self._seconds, self._apart, self.most = seconds, apart, most
        self._since, self._cpu, self._has_news = -math.inf, 0.0, False

    def is_due(self, *, news: bool) -> bool:
        """Whether to do the work now. ``news``: whether something has happened since the last call."""
        self._has_news |= news
        return self.left(news=news) <= 0.0

    def left(self, *, news: bool) -> float:
        """Seconds until the work is due; 0 or less if it is."""
        wait = max(min(self.most, self._apart * self._cpu), 0.0 if news or self._has_news else self._seconds)
        return self._since + wait - time.monotonic()

    @contextmanager
    def working(self) -> Iterator[None]:
        """The work is done in this context."""
        self._since, self._has_news = time.monotonic(), False
        begun = time.process_time()
        try:
            yield
        finally:
            self._cpu = time.process_time() - begun
