"""A thread that tells the user what happens while the main thread waits, for example for a database that hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from search.watch.live import Display

BEAT_SECONDS, TURN_SECONDS = 0.2, 0.4
"""Time between two looks of the thread, and time that the main thread has to tell of a signal by itself."""


@contextmanager
def heard(display: Display, *, is_stopping: Callable[[], bool], announce: Callable[[], None]) -> Iterator[None]:
    """While active, the display goes on, and a signal is answered within a second, even if the main thread waits.

    Args:
        display: the terminal.
        is_stopping: whether a signal has come.
        announce: tells the user so, once; the main thread calls it, too.
    """
    ended = threading.Event()

    def beat() -> None:
        since = None
        while not ended.wait(BEAT_SECONDS):
            now = time.monotonic()
            since = (since or now) if is_stopping() else None
            if is_late := since is not None and now - since >= TURN_SECONDS:
                announce()
            display.go_on(at_once=is_late)

    thread = threading.Thread(target=beat, name="heard", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(1)  # it may wait for a terminal that takes no output
