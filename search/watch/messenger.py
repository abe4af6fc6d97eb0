"""``[notify]``: a message on a new best trial, when a search stops, and when it is finished.

Addresses are secrets, because anyone who knows one can post to it. They are stored only in the study file. Messages to
the user show only a host or the name of a service.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from logging import WARNING
from typing import TypeAlias

from search.console import Say
from search.study.progress import Snapshot
from search.watch.live import headline
from trainer.values import Json

NOTIFY_VERSION = 2
"""Version of a message's JSON shape."""

END_SECONDS = 6
"""Longest wait for the last message when a search ends."""

Message: TypeAlias = "dict[str, Json]"
"""An event of a search. docs/watching.md documents the keys. ``text`` describes the event in one sentence."""


class UndeliveredError(Exception):
    """A message was not delivered; the reason, without any secret."""


class Messenger:
    """Delivers messages from a thread of its own. A newer message replaces one about the same event that still waits.

    Args:
        kind: name of the setting in messages to the user, such as "webhook".
        to: the receiver, without any secret, for messages to the user.
        deliver: sends one message, and may be slow. The text of an error is shown only if it is an UndeliveredError.
        say: called with one line if a message is not delivered.
    """

    def __init__(self, kind: str, to: str, deliver: Callable[[Message], None], say: Say) -> None:
        self.name = f"the {kind}"
        self._kind, self._to, self._deliver, self._say = kind, to, deliver, say
        self._best: int | None = None
        self._begun = self._failing = self._ended = False
        self._waiting: dict[str, Message] = {}
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._send, name=kind, daemon=True)
        self._thread.start()

    def watch(self, snapshot: Snapshot) -> None:
        """Report a new best trial. The best trial of an earlier launch does not count as new."""
        best = snapshot.best
        if best is not None and best.number != self._best:
            if self._begun:
                self._tell(
                    "new_best", snapshot, f"{snapshot.study}: new best, trial {best.number}, {snapshot.best_number}"
                )
            self._best = best.number
        self._begun = True

    def end(self, snapshot: Snapshot, reason: str | None, seconds: float, *, lost: bool = False) -> None:
        """Report how the search ended, and wait at most END_SECONDS until the message is sent."""
        event = "finished" if reason is None else "stopped"
        text = f"{headline(snapshot)}; {event}"
        text += f", best {snapshot.best_number} (trial {snapshot.best.number})" if snapshot.best else ""
        self._tell(event, snapshot, text if not reason else f"{text}: {reason}")
        with self._news:
            self._ended = True
            self._news.notify()
        patience = min(seconds, END_SECONDS)
        self._thread.join(patience)
        if self._thread.is_alive() and patience:
            self._say(f"{self._kind}: {self._to} did not accept the last message within {patience:g} s", WARNING)

    def _tell(self, event: str, snapshot: Snapshot, text: str) -> None:
        message: Message = {
            "version": NOTIFY_VERSION,
            "event": event,
            "study": snapshot.study,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "text": text,
            "budget": asdict(snapshot.budget),
            "spent": asdict(snapshot.spent),
            "eta_seconds": snapshot.eta_seconds,
            "objective": snapshot.objective,
            "best": asdict(snapshot.best) if snapshot.best else None,
        }
        with self._news:
            self._waiting[event] = message
            self._news.notify()

    def _send(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._ended)
                if not self._waiting:
                    return
                message = self._waiting.pop(next(iter(self._waiting)))
            try:
                self._deliver(message)
                self._failing = False
            except Exception as error:
                why = str(error) if isinstance(error, UndeliveredError) else type(error).__name__
                if not self._failing:  # reported once, not at every new best
                    self._say(f"{self._kind}: {self._to} did not accept a message ({why}); the search goes on", WARNING)
                self._failing = True
