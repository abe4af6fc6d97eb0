"""An outage of the database: steps that need the database are retried until it is back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from logging import WARNING

from search.console import Say
from search.study.storage import STORAGE_FAILURES, is_outage, is_refusal, words_of_outage
from search.words import duration

RETRY_SECONDS = 2.0
"""Pause between two attempts to reach the database during an outage."""


class Outage:
    """Tracks an outage of the database. If ``with_database`` returns False, the caller passes all its steps again
    later.

    Args:
        say: called with a sentence when an outage begins and when it ends.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self._since: float | None = None
        self._tried = 0.0
        self._has_worked = False
        """Whether the database has done all that was asked, once. From then on, a refused user is an outage too: what
        was revoked may be granted again, and until then training goes on."""

    @property
    def is_on(self) -> bool:
        """Whether the database could not be reached when it was last tried."""
        return self._since is not None

    @property
    def seconds(self) -> float:
        """Seconds since the outage began; 0 without an outage."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    def with_database(self, *steps: Callable[[], object], most_minutes: float = math.inf) -> bool:
        """Run steps that need the database. Returns False if the database cannot be reached now.

        Args:
            steps: functions that are called in this order; each must be safe to repeat.
            most_minutes: longest outage to wait for.

        Raises:
            SQLAlchemyError, StorageInternalError: the error is not an outage, or the outage lasts too long.
        """
        begun = time.monotonic()
        if self.is_on and begun - self._tried < RETRY_SECONDS:
            return False
        try:
            for step in steps:
                step()
        except STORAGE_FAILURES as error:
            self._tried = time.monotonic()  # measured now, because the attempt itself may take as long as the pause
            waits = self._has_worked if is_refusal(error) else is_outage(error)
            if not waits or self.seconds > 60 * most_minutes:
                raise
            if self._since is None:
                self._since = begun
                words = f"the database {words_of_outage(error)}; training goes on, and reports of workers wait in order"
                self._say(words, WARNING)
            return False
        self._has_worked = True
        if self.is_on:
            self._say(f"the database is back after {duration(self.seconds)}")
            self._since = None
        return True
