"""An observer in a thread of its own, so that it can neither disturb nor slow down a search."""

from __future__ import annotations

import threading
from collections import deque
from logging import WARNING

from search.console import Say
from search.study.progress import Snapshot
from search.watch.observers import Observer

MOST_WAITING = 1000
"""Largest number of snapshots that wait for a slow observer; if there are more, the oldest are dropped."""

END_SECONDS = 6.0
"""Longest wait for an observer when a search ends."""


class ThreadedObserver:
    """Calls an observer from a thread, with a snapshot for each epoch that ends and each trial that finishes, in order.

    If the observer raises, its first error is reported, and it is called again with the next snapshot. If the observer
    hangs, the search ends without it.
    """

    def __init__(self, observer: Observer, say: Say) -> None:
        self.name = observer.name
        self._observer, self._say = observer, say
        self._seen: object = None
        self._waiting: deque[Snapshot] = deque(maxlen=MOST_WAITING)
        self._ending: tuple[Snapshot, str | None, float, bool] | None = None
        self._failed = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._call, name=observer.name, daemon=True)
        self._thread.start()

    def watch(self, snapshot: Snapshot) -> None:
        """Pass the snapshot on to the observer if an epoch or a trial has ended since the last snapshot."""
        news = [(worker.trial, worker.epochs, worker.epoch) for worker in snapshot.workers], len(snapshot.finished)
        if news == self._seen:
            return
        self._seen = news
        with self._news:
            self._waiting.append(snapshot)
            self._news.notify()

    def end(self, snapshot: Snapshot, reason: str | None, seconds: float, *, lost: bool = False) -> None:
        """Pass the end of the search on to the observer, and wait at most END_SECONDS for it."""
        patience = min(seconds, END_SECONDS)
        with self._news:
            self._ending = (snapshot, reason, patience, lost)
            self._news.notify()
        self._thread.join(patience)
        if self._thread.is_alive() and patience:
            self._say(f"{self.name} did not handle the end of the search within {patience:g} s", WARNING)

    def _call(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._ending)
                snapshot = self._waiting.popleft() if self._waiting else None
            try:
                if snapshot is not None:
                    self._observer.watch(snapshot)
                    continue
                assert self._ending is not None
                last, reason, seconds, lost = self._ending
                return self._observer.end(last, reason, seconds, lost=lost)
            except Exception as error:
                if not self._failed:
                    why = str(error).partition("\n")[0] or type(error).__name__
                    self._say(f"{self.name} is not up to date ({why}); the search goes on", WARNING)
                self._failed = True
                if snapshot is None:
                    return None
