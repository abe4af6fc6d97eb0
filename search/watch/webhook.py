"""``[notify] webhook``: a JSON POST on a new best, when a search stops, and when it is finished.

The address is a secret, because anyone who has it can post. It is stored only in the study file, and messages show only
its host.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from dataclasses import asdict
from datetime import UTC, datetime
from logging import WARNING
from urllib.error import HTTPError
from urllib.parse import urlsplit

from search.console import Say
from search.study.progress import Snapshot
from search.watch.live import headline
from trainer.values import Json

NOTIFY_VERSION = 2
"""Version of the posted JSON shape."""

TIMEOUT_SECONDS = 5
"""Longest wait for a server to accept the connection, and again for its answer."""

END_SECONDS = 6
"""Longest wait for the last message when a search ends."""


class Webhook:
    """Posts messages from a separate thread. A newer message of the same kind replaces one that still waits."""

    name = "the webhook"

    def __init__(self, address: str, say: Say) -> None:
        self._address, self._say = address, say
        self._host = urlsplit(address).hostname
        self._best: int | None = None
        self._begun = self._failing = self._ended = False
        self._waiting: dict[str, dict[str, Json]] = {}
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._send, name="webhook", daemon=True)
        self._thread.start()

    def watch(self, snapshot: Snapshot) -> None:
        """Post a new best. The best of an earlier launch does not count as new."""
        best = snapshot.best
        if best is not None and best.number != self._best:
            if self._begun:
                self._tell("new_best", snapshot, f"{snapshot.study}: new best, trial {best.number}, {best.value:.2%}")
            self._best = best.number
        self._begun = True

    def end(self, snapshot: Snapshot, reason: str | None, seconds: float, *, lost: bool = False) -> None:
        """Post how the search ended, and wait a moment until the message is sent."""
        event = "finished" if reason is None else "stopped"
        text = f"{headline(snapshot)}; {event}"
        text += f", best {snapshot.best.value:.2%} (trial {snapshot.best.number})" if snapshot.best else ""
        self._tell(event, snapshot, text if not reason else f"{text}: {reason}")
        with self._news:
            self._ended = True
            self._news.notify()
        patience = min(seconds, END_SECONDS)
        self._thread.join(patience)
        if self._thread.is_alive() and patience:
            self._say(f"webhook: {self._host} has not taken the last message within {patience:g} s", WARNING)

    def _tell(self, event: str, snapshot: Snapshot, text: str) -> None:
        best = asdict(snapshot.best) if snapshot.best else None
        message: dict[str, Json] = {
            "version": NOTIFY_VERSION,
            "event": event,
            "study": snapshot.study,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "text": text,
            "budget": asdict(snapshot.budget),
            "spent": asdict(snapshot.spent),
            "eta_seconds": snapshot.eta_seconds,
            "best": best,
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
            began = time.monotonic()
            try:
                self._post(message)
                self._failing = False
            except Exception as error:
                late = time.monotonic() - began >= TIMEOUT_SECONDS
                why = f"no answer within {TIMEOUT_SECONDS} s" if late else _reason(error)
                if not self._failing:  # reported once, not at every new best
                    self._say(f"webhook: {self._host} cannot be told ({why}); the search goes on", WARNING)
                self._failing = True

    def _post(self, message: dict[str, Json]) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": "featherweight"}
        request = urllib.request.Request(self._address, json.dumps(message).encode(), headers)
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=TIMEOUT_SECONDS) as answer:
            answer.read(1024)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Turns a redirect into an error: a redirected POST would arrive as a GET without its message."""

    def redirect_request(self, *_: object) -> None:
        return None


def _reason(error: Exception) -> str:
    """An error in words, without the address, which some errors contain."""
    if isinstance(error, HTTPError):
        return f"it answers {error.code}"
    cause = getattr(error, "reason", error)
    return getattr(cause, "strerror", None) or type(cause).__name__
