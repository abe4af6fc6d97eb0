"""A database that goes away: the steps that wait for it, and what a worker has said meanwhile."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from logging import WARNING

from search.console import Say
from search.study.storage import STORAGE_FAILURES, is_away
from search.words import duration

RETRY_SECONDS = 2.0
"""Between two attempts to reach a database that has gone away."""


class Outage:
    """Whether the database is away. Steps towards it are taken again, from the first, until it is back.

    Args:
        say: called with a sentence when it goes and when it is back.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self._since: float | None = None
        self._tried = 0.0

    @property
    def is_on(self) -> bool:
        """Whether the database could not be reached when it was last tried."""
        return self._since is not None

    @property
    def seconds(self) -> float:
        """For how long it has not been reached; 0 while it is there."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    def with_database(self, *steps: Callable[[], object], most_minutes: float = math.inf) -> bool:
        """Take steps that need the database; False if it cannot be reached now.

        Args:
            steps: each may be taken more than once.
            most_minutes: longest that the database may be away.

        Raises:
            SQLAlchemyError, StorageInternalError: of another kind, or it has been away for too long.
        """
        begun = time.monotonic()
        if self.is_on and begun - self._tried < RETRY_SECONDS:
            return False
        try:
            for step in steps:
                step()
        except STORAGE_FAILURES as error:
            self._tried = time.monotonic()  # not before: an attempt may take as long as the pause between two
            if not is_away(error) or self.seconds > 60 * most_minutes:
                raise
            if self._since is None:
                self._since = begun
                words = "the database cannot be reached; training goes on, and what workers report waits in order"
                self._say(words, WARNING)
            return False
        if self.is_on:
            self._say(f"the database is back after {duration(self.seconds)}")
            self._since = None
        return True
