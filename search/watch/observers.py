"""Whoever is told how a search goes: the terminal, ``search status``, the dashboard's study page, a webhook.

The coordinator calls ``watch`` at least twice a second and knows none of them. None of them can disturb the search:
one that fails is left alone for a minute, and its first failure is said.
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
"""Before an observer that failed is told of the search again: a full disk or a restarted database may be well again."""


FINISHED_SECONDS, STOPPED_SECONDS = 20.0, 4.0
"""Longest that each observer may take at the end: when the budget is spent, and when the search was told to stop."""


class Observer(Protocol):
    """Someone beside the terminal who wants to know how a search goes; may raise whatever it likes."""

    name: str
    """With an article: "the study page"."""

    def watch(self, snapshot: Snapshot) -> None:
        """See the search as it is now; workers wait meanwhile, so milliseconds matter."""

    def end(self, snapshot: Snapshot, reason: str | None, seconds: float, *, lost: bool = False) -> None:
        """See it for the last time, and take at most so long.

        ``reason`` is None when the budget is spent, else why the search stopped: "" where it was told to.
        ``lost``: because the study is another's, and nothing may be written to it.
        """


class Observers:
    """The display and everyone else; a context manager, which tells them when and how the search ended.

    Args:
        display: the terminal.
        others: whoever else wants to know.
        at_once: whether somebody is in a hurry when it ends.
    """

    def __init__(self, display: Display, others: Sequence[Observer], *, at_once: Callable[[], bool]) -> None:
        self._display, self._at_once = display, at_once
        self._others = dict.fromkeys(others, -math.inf)
        """Whom to tell, and from when on."""
        self._failed: set[str] = set()
        self._last: Snapshot | None = None

    def __enter__(self) -> Observers:
        return self

    def watch(self, snapshot: Snapshot) -> None:
        """Show everyone the search as it is now."""
        self._last = snapshot
        self._display.watch(snapshot)
        now = time.monotonic()
        for other, since in self._others.items():
            if now >= since:
                with self._left_alone_if_it_fails(other):
                    other.watch(snapshot)

    def say(self, line: str, level: int = INFO, /) -> None:
        """Say one line, which stays, in the terminal."""
        self._display.say(line, level)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._last is None:
            return
        reason = str(error) or type(error).__name__ if error else "" if self._last.stopping else None
        seconds = 0.0 if self._at_once() else FINISHED_SECONDS if reason is None else STOPPED_SECONDS
        for other in self._others:
            with self._left_alone_if_it_fails(other):
                other.end(self._last, reason, seconds, lost=isinstance(error, HeldError | StudyChanged))

    @contextlib.contextmanager
    def _left_alone_if_it_fails(self, other: Observer) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._others[other] = time.monotonic() + PAUSE_SECONDS
            if other.name not in self._failed:
                why = str(error).partition("\n")[0]
                self._display.say(f"{other.name} is not up to date ({why}); the search goes on", WARNING)
            self._failed.add(other.name)


class StateFile:
    """What ``search status`` in another terminal shows of the workers."""

    name = "search status"

    def __init__(self, file: Path, owner: str) -> None:
        self._file, self._owner = file, owner
        self._written = 0.0

    def watch(self, snapshot: Snapshot) -> None:
        """Write it, at most every STATE_SECONDS."""
        if time.monotonic() - self._written >= STATE_SECONDS:
            write_state(self._file, snapshot, self._owner)
            self._written = time.monotonic()

    def end(self, snapshot: Snapshot, reason: str | None, seconds: float, *, lost: bool = False) -> None:
        """Nobody works any more."""
        self._file.unlink(missing_ok=True)
