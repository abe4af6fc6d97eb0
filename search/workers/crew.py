"""The workers of a search: who is ready, who hangs, who is started again, whose device is put aside."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from search.study.progress import WorkerView
from search.words import duration
from search.workers.failures import MOST_DEVICE_ERRORS
from search.workers.local import Exit, LocalPool, Message
from studies.spec import Faults
from trainer.config import EpochResult

POLL_SECONDS = 0.5
"""Longest wait for a worker's message before signals and the display get their turn."""

STUCK_SECONDS = 60.0
"""After a process was killed, how long it may take to end. One that waits for a driver or a disk may never."""


_STUCK = "was killed and does not end"


@dataclass
class Worker:
    """What is known of a worker."""

    number: int
    label: str
    device: str = "starting"
    process: Literal["none", "running", "ended"] = "none"
    """Whether it has one; "ended" until its Exit, which may wait for the database, is dealt with."""
    ready: bool = False
    was_ready: bool = False
    """Whether any of its processes ever was."""
    trial: Any = None
    """What it trains: an Optuna trial, or a training of an export."""
    attempt: int = 0
    """How often that was begun, this time included."""
    epoch: EpochResult | None = None
    """The last one it finished of that trial."""
    busy_since: float | None = None
    """When it was last heard of or spoken to, while it owes a message; None while it waits for one."""
    ended: str | None = None
    """Why its process was ended from here."""
    ended_since: float | None = None
    """When that was, until its Exit comes."""
    memory_bytes: int | None = None
    """Its peak, as it said with its last epoch."""
    failed_starts: int = 0
    device_errors: int = 0
    aside: str | None = None
    """Why its device is not used any more."""

    @property
    def silent_seconds(self) -> float:
        """Seconds since its last progress; 0 while it waits for work."""
        return 0.0 if self.busy_since is None else time.monotonic() - self.busy_since

    @property
    def unused(self) -> bool:
        """Whether its device is sound and nobody has started it: there was less to do than there are devices."""
        return self.process == "none" and self.aside is None

    def view(self, epochs: int) -> WorkerView:
        """Its state for people; ``epochs`` is how many its trial has."""
        epoch = self.epoch
        return WorkerView(
            label=self.label,
            device=self.device,
            trial=self.trial.number if self.trial else None,
            epoch=epoch.epoch if epoch else 0,
            epochs=epochs,
            val_accuracy=epoch.val_accuracy if epoch else None,
            images_per_second=epoch.images_per_second if epoch else None,
            attempt=self.attempt if self.trial else 0,
            epoch_seconds=epoch.seconds if epoch else None,
            seconds_since_progress=round(self.silent_seconds, 1),
            memory_bytes=self.memory_bytes,
        )

    def how_it_ended(self, event: Exit) -> str:
        """What its process came to, in words that follow its name."""
        if event.out_of_memory:
            return "ran out of memory and was killed by the system"
        if self.ended:
            return self.ended
        if event.returncode < 0:
            return f"ended with signal {-event.returncode}"
        return f"ended with exit code {event.returncode}"


class Crew:
    """The workers of a pool, and the care that their processes need."""

    def __init__(self, pool: LocalPool, faults: Faults, note: Callable[[str], None]) -> None:
        self.pool, self.faults, self.note = pool, faults, note
        self.workers = [Worker(number, device.label) for number, device in enumerate(pool.devices)]

    def start(self, number: int) -> None:
        """See to it that so many workers run, if there are so many."""
        for worker in [worker for worker in self.workers if not worker.aside][:number]:
            if worker.unused:
                self._start(worker)

    def idle(self) -> Iterator[Worker]:
        """Workers that are ready and have no trial."""
        return (worker for worker in self.workers if worker.ready and worker.trial is None and not worker.aside)

    def training(self) -> bool:
        """Whether any worker has a trial."""
        return any(worker.trial is not None for worker in self.workers)

    def busy(self) -> bool:
        """Whether any worker that has a trial owes a message."""
        return any(worker.trial is not None and worker.busy_since is not None for worker in self.workers)

    def send(self, number: int, message: Message) -> None:
        """Send a message that is answered by another, unless the process is gone: its Exit is all that follows."""
        if self.workers[number].process == "running":
            self.workers[number].busy_since = time.monotonic()
            self.pool.send(number, message)

    def events(self, timeout: float, patience: Callable[[Worker], float]) -> Iterator[tuple[int, Message | Exit]]:
        """What workers say that concerns their trials; ends those that have hung, whose Exit comes after it.

        Args:
            timeout: seconds to wait at most.
            patience: seconds after which a worker that trains counts as hanging.
        """
        for number, event in self.pool.events(timeout):
            worker = self.workers[number]
            if isinstance(event, Exit):
                worker.process, worker.busy_since, worker.ended_since = "ended", None, None
            elif event["type"] == "ready":
                worker.ready, worker.was_ready, worker.device = True, True, event["device"]
                worker.failed_starts, worker.busy_since = 0, None
                continue
            elif event["type"] == "started":
                worker.busy_since = time.monotonic()
            else:
                worker.busy_since = None
            yield number, event
        for worker in self.workers:
            silent = worker.silent_seconds
            if silent > (patience(worker) if worker.ready else self.faults.first_epoch_seconds):
                worker.failed_starts += not worker.ready
                self._end(worker, f"made no progress for {duration(silent)} and was ended")
            elif worker.ended_since is not None and time.monotonic() - worker.ended_since > STUCK_SECONDS:
                yield worker.number, self._abandon(worker)

    def replace(self, worker: Worker, device_error: str | None) -> None:
        """Give a worker a new process; after too many errors of its device, put that aside instead."""
        if device_error is not None:
            worker.device_errors += 1
        sharing = self._sharing(worker)
        if sum(other.device_errors for other in sharing) >= MOST_DEVICE_ERRORS and worker.aside is None:
            why = f"{MOST_DEVICE_ERRORS} CUDA errors, the last: {device_error}"
            for other in sharing:  # one that trains may still finish its trial
                other.aside = why
            name = worker.label if len(sharing) == 1 else worker.label.rpartition(":")[0]
            self.note(f"{name} is put aside after {why}")
        self._end(worker, worker.aside or "was replaced")

    def on_exit(self, worker: Worker, *, restart: bool) -> str | None:
        """A worker's process has ended: start another, or say why the search cannot go on."""
        worker.failed_starts += not worker.ready and worker.ended is None
        worker.process, worker.ready, worker.device, worker.ended = "none", False, "starting", None
        if worker.failed_starts > self.faults.retries and not worker.aside:
            worker.aside = "no new process of it can start, see its log"
            # Where one has started, it is the device; where none ever has, they would all fail for the same reason.
            if all(other.aside for other in self.workers) or not any(other.was_ready for other in self.workers):
                return f"worker {worker.label} cannot start"
            self.note(f"{worker.label} is put aside: {worker.aside}")
        if worker.aside:
            worker.device = "put aside"
            spare = next((other for other in self.workers if other.unused), None)
            if restart and spare is not None:
                self._start(spare)
            return "no device is left" if all(other.aside for other in self.workers) else None
        if restart:
            self._start(worker)
        return None

    def close(self, patience_seconds: float) -> None:
        """End all processes, those still busy after so many seconds by force."""
        for process in self.pool.close(patience_seconds):
            self.note(f"process {process} {_STUCK}; its device may need a reset")

    def _sharing(self, worker: Worker) -> list[Worker]:
        """The workers of the same GPU, this one among them."""
        gpu = self.pool.devices[worker.number].visible
        return [
            other
            for other in self.workers
            if other is worker or (gpu is not None and self.pool.devices[other.number].visible == gpu)
        ]

    def _end(self, worker: Worker, why: str) -> None:
        worker.ready, worker.busy_since, worker.ended = False, None, why
        if worker.process == "running":
            worker.ended_since = time.monotonic()
            self.pool.kill(worker.number)

    def _abandon(self, worker: Worker) -> Exit:
        """Do without a process that was killed and does not end, and without its device.

        Should it ever wake, it ends with the system call that it is in. If that was to write a checkpoint, whose
        training goes on elsewhere by then, the file's hash and the one before it keep the damage to an epoch.
        """
        worker.process, worker.ended_since = "ended", None
        worker.aside = f"process {self.pool.abandon(worker.number)} {_STUCK}"
        self.note(f"{worker.label} is put aside: {worker.aside}")
        return Exit(-signal.SIGKILL, self.pool.log_tail(worker.number))

    def _start(self, worker: Worker) -> None:
        worker.process, worker.busy_since = "running", time.monotonic()
        self.pool.start(worker.number)


def patience(faults: Faults, own: float | None, others: float | None, epochs: int = 1) -> float:
    """Seconds without a result after which a worker counts as hanging.

    Args:
        faults: the study's numbers.
        own: the slowest result of what it trains; None before the first.
        others: the slowest of the others, which say little: a candidate may be many times as large as theirs.
        epochs: that a result stands for; a fold's are all of them.
    """
    if own is not None:
        return max(faults.hang_seconds, faults.hang_factor * own)
    return max(faults.first_epoch_seconds * epochs, faults.hang_factor * (others or 0.0))
