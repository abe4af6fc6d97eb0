"""The contract of every pool of workers: what a search or an export may rely on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from search.devices import WorkerDevice
from search.workers.messages import FromWorker, ToWorker


@dataclass(frozen=True)
class Exit:
    """A worker's process has ended."""

    returncode: int
    """Exit code of the process; negative if a signal ended it."""
    log_tail: str
    """The last lines of the worker's log."""
    out_of_memory: bool = False
    """Whether the system killed the process for lack of memory."""
    lost: Literal["lost", "preempted"] | None = None
    """Why the process ended although neither it nor its training is at fault. lost: its node was lost, or it is not
    known how the process ended. preempted: the cluster took the device back. None: the process ended by itself or was
    killed."""


class Pool(Protocol):
    """Workers, numbered from 0. A worker keeps its number when its process is replaced.

    Every pool promises, besides the contract of each method:

    - A worker's process ends by itself once its coordinator has ended, was killed, or has closed the pool. At most
      the epoch in progress is lost.
    - Ctrl-C, SIGTERM to the search and a closed terminal do not reach workers; the coordinator handles them.
    - A worker's environment names its device before torch is imported, and holds no secret of the database.
    """

    @property
    def devices(self) -> Sequence[WorkerDevice]:
        """The device of each worker, in the order of their numbers."""

    def add(self, device: WorkerDevice, log: Path) -> None:
        """Add a worker, which gets the next number and has no process yet. Its output is appended to ``log``."""

    def start(self, worker: int) -> None:
        """Start a process for a worker that has none, without waiting for it.

        The process says ``Placed``, then ``Ready``. On a cluster, it may wait for any time before it is ``Placed``. The
        method may be called again after the worker's Exit and after ``abandon``. If the process cannot be started, only
        its Exit follows.
        """

    def send(self, worker: int, message: ToWorker) -> None:
        """Send a message. Messages arrive in order. Never blocks, even if the process is stopped and reads nothing.

        A message to a worker without a living process is dropped without an error; the Exit reports the end.
        """

    def events(self, timeout: float) -> Iterator[tuple[int, FromWorker | Exit]]:
        """Whole messages from the workers, in order for each worker. Waits up to ``timeout`` seconds for the first.

        Each started process yields exactly one Exit, after all its messages; an abandoned one yields none.
        """

    def kill(self, worker: int) -> None:
        """Kill a worker's process; its Exit comes through ``events``. Does nothing if the worker has no process."""

    def release(self, worker: int) -> None:
        """Give the device of a worker without a process back to its cluster; the worker is not started again."""

    def abandon(self, worker: int) -> int:
        """Forget a killed process that does not end. Returns its process id; no Exit follows for it."""

    def log_tail(self, worker: int) -> str:
        """The last lines that a worker printed, even after its end; "" if it printed nothing."""

    def close(self, patience_seconds: float = 5) -> list[int]:
        """End all processes; kill those that have not ended after ``patience_seconds``. The pool cannot be used again.

        Returns:
            Process ids of those that were killed and did not end.
        """
