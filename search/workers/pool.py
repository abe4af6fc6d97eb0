"""The contract between whoever has work and the processes that do it: what every pool of workers promises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from search.devices import WorkerDevice
from search.workers.messages import FromWorker, ToWorker


@dataclass(frozen=True)
class Exit:
    """A worker's process has ended."""

    returncode: int
    """Negative: the signal that ended it."""
    log_tail: str
    """The last lines of its log."""
    out_of_memory: bool = False
    """Whether the system killed it for want of memory."""


class Pool(Protocol):
    """Workers, each known by its number from 0, which stays when its process is replaced.

    Promised of every worker, beside what each method says:

    - It ends by itself once nobody reads what it says any more: its coordinator has ended, was killed, or has closed
      the pool. At most the epoch in progress is lost.
    - It hears no Ctrl-C, SIGTERM or closed terminal; those are for the coordinator to answer.
    - Its environment names its device before torch is imported, and holds no secret of the database.
    """

    @property
    def devices(self) -> Sequence[WorkerDevice]:
        """What each worker trains on; a worker's number is the place of its device."""

    def start(self, worker: int) -> None:
        """Start a process for a worker that has none, without waiting for it; its first message is ``Ready``.

        Allowed again after the worker's Exit, and after ``abandon``.
        """

    def send(self, worker: int, message: ToWorker) -> None:
        """Send a message, in order after those before. Never blocks, even if the process is stopped and reads nothing.

        A worker that has no process, or whose process has ended, gets nothing, and nothing is raised: its Exit tells.
        """

    def events(self, timeout: float) -> Iterator[tuple[int, FromWorker | Exit]]:
        """What workers said, whole messages, in order for each worker; waits up to ``timeout`` seconds for the first.

        Each process that was started is followed by exactly one Exit, after all that it said; none follows where the
        worker was abandoned before.
        """

    def kill(self, worker: int) -> None:
        """End a worker's process at once; its Exit comes through ``events``. Does nothing where there is none."""

    def abandon(self, worker: int) -> int:
        """Forget a process that was killed and does not end. Returns its number in the system; no Exit comes for it."""

    def log_tail(self, worker: int) -> str:
        """The last lines that a worker printed, also of one that has ended; "" where it printed none."""

    def close(self, patience_seconds: float = 5) -> list[int]:
        """End all processes, busy ones after ``patience_seconds`` by force. The pool is not used again.

        Returns:
            Numbers in the system of those that were killed and did not end.
        """
