"""Observers of a search: the terminal, ``search status``, the dashboard's study page, a webhook.

The coordinator calls ``watch`` after each epoch, and otherwise every five seconds; with many workers, it does so more
seldom. It does not know the single observers. An observer cannot disturb the search: one that raises is skipped for a
minute, and its first error is reported.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from logging import INFO, WARNING
from pathlib import Path
from types import TracebackType
from typing import Protocol

from search.errors import HeldError, StudyChanged
from search.study.progress import Snapshot
from search.watch.live import Display
from search.watch.status import STATE_SECONDS, write_state

PAUSE_SECONDS = 60.0
"""Pause before an observer that raised is called again: by then the disk or the database may have recovered."""


FINISHED_SECONDS, STOPPED_SECONDS = 20.0, 4.0
"""Longest time for each observer at the end of a search: if the budget is spent; and if the search was stopped."""


class Audience(Protocol):
    """The observers of a search, as its coordinator calls them. They must not delay the coordinator."""

    def watch(self, snapshot: Snapshot) -> None:
        """Called with the current state of the search, after each epoch, and otherwise every five seconds. With many
        workers it is called more seldom, so that snapshots and observers take at most a thirtieth of the time."""

    def say(self, line: str, level: int = INFO, /) -> None:
        """Called with one line for the user; ``level`` is one of logging's."""


class Observer(Protocol):
    """An observer of a search, besides the terminal. Its methods may raise any exception."""

    name: str
    """Name for messages, with an article: "the study page"."""

    def watch(self, snapshot: Snapshot) -> None:
        """Called with the current state of the search. Must return within milliseconds, because workers wait."""

    def end(self, snapshot: Snapshot, reason: str | None, seconds: float, *, lost: bool = False) -> None:
        """Called once at the end of the search.

        Args:
            snapshot: the last state of the search.
            reason: None if the budget is spent; else why the search stopped, "" after a stop request.
            seconds: longest time to take.
            lost: whether another process owns the study by now, so that nothing may be written to it.
        """


class Observers:
    """The display and all other observers. A context manager: on exit it calls ``end`` of the other observers.

    Args:
        display: the terminal.
        others: the other observers.
        at_once: returns whether the search must end immediately.
    """

    def __init__(self, display: Display, others: Sequence[Observer], *, at_once: Callable[[], bool]) -> None:
        self._display, self._at_once = display, at_once
        self._others = dict.fromkeys(others, -math.inf)
        """Observer -> the time before which it is not called."""
        self._failed: set[str] = set()
        self._last: Snapshot | None = None

    def __enter__(self) -> Observers:
        return self

    def watch(self, snapshot: Snapshot) -> None:
        """Pass the current state of the search to all observers."""
        self._last = snapshot
        self._display.watch(snapshot)
        now = time.monotonic()
        for other, since in self._others.items():
            if now >= since:
                with self._skipped_if_it_fails(other):
                    other.watch(snapshot)

    def say(self, line: str, level: int = INFO, /) -> None:
        """Show one line permanently in the terminal."""
        self._display.say(line, level)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._last is None:
            return
        reason = str(error) or type(error).__name__ if error else "" if self._last.stopping else None
        seconds = 0.0 if self._at_once() else FINISHED_SECONDS if reason is None else STOPPED_SECONDS
        for other in self._others:
            with self._skipped_if_it_fails(other):
                other.end(self._last, reason, seconds, lost=isinstance(error, HeldError | StudyChanged))

    @contextlib.contextmanager
    def _skipped_if_it_fails(self, other: Observer) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._others[other] = time.monotonic() + PAUSE_SECONDS
            if other.name not in self._failed:
                why = str(error).partition("\n")[0]
                self._display.say(f"{other.name} is not up to date ({why}); the search goes on", WARNING)
            self._failed.add(other.name)


class StateFile:
    """Writes the state file, from which ``search status`` in another terminal reads the workers."""

    name = "search status"

    def __init__(self, file: Path, owner: str) -> None:
        self._file, self._owner = file, owner
        self._written = 0.0

    def watch(self, snapshot: Snapshot) -> None:
        """Write the file, at most every STATE_SECONDS."""
        if time.monotonic() - self._written >= STATE_SECONDS:
            write_state(self._file, snapshot, self._owner)
            self._written = time.monotonic()

    def end(self, snapshot: Snapshot, reason: str | None, seconds: float, *, lost: bool = False) -> None:
        """Remove the file, because the search has no workers any more."""
        self._file.unlink(missing_ok=True)
