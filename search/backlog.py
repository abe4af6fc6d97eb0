"""What workers said and the database has not taken yet, in order; and whether the database is away."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from search.pools.local import Exit, Message
from search.status import duration
from search.storage import STORAGE_FAILURES, is_away

RETRY_SECONDS = 2.0
"""Between two attempts to reach a database that has gone away."""


@dataclass
class Said:
    """What a worker said."""

    worker: int
    event: Message | Exit
    answered: bool = False

    @property
    def can_go_on(self) -> bool:
        """Whether it waits for an answer that needs no database: an epoch's, unless it was the last."""
        return not isinstance(self.event, Exit) and self.event["type"] == "epoch" and not self.event["result"]["final"]


class Backlog:
    """Keeps what was said until the database has taken it.

    Args:
        most_minutes: longest that the database may be away.
        note: called with a sentence when it goes and when it is back.
    """

    def __init__(self, most_minutes: float, note: Callable[[str], None]) -> None:
        self._most_minutes, self._note = most_minutes, note
        self._waiting: deque[Said] = deque()
        self._away_since: float | None = None
        self._tried = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Said]:
        return iter(self._waiting)

    def add(self, worker: int, event: Message | Exit) -> None:
        """Keep what a worker said."""
        self._waiting.append(Said(worker, event))

    def work_off(self, handle: Callable[[Said], None]) -> None:
        """Handle all of it; what fails in the middle is handled again next time, from its start."""
        while self._waiting:
            handle(self._waiting[0])
            self._waiting.popleft()

    @property
    def is_away(self) -> bool:
        """Whether the database could not be reached when it was last tried."""
        return self._away_since is not None

    @property
    def away_seconds(self) -> float:
        """For how long it has not been reached; 0 while it is there."""
        return 0.0 if self._away_since is None else time.monotonic() - self._away_since

    def reach(self, *steps: Callable[[], None]) -> bool:
        """Take steps that need the database; False if it cannot be reached now.

        Raises:
            SQLAlchemyError, StorageInternalError: of another kind, or it has been away for too long.
        """
        now = time.monotonic()
        if self.is_away and now - self._tried < RETRY_SECONDS:
            return False
        self._tried = now
        try:
            for step in steps:
                step()
        except STORAGE_FAILURES as error:
            if not is_away(error) or self.away_seconds > 60 * self._most_minutes:
                raise
            if not self.is_away:
                self._away_since = now
                self._note("the database cannot be reached; training goes on, and what workers report waits in order")
            return False
        if self.is_away:
            self._note(f"the database is back after {duration(self.away_seconds)}")
            self._away_since = None
        return True
