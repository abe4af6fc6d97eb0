"""The workers of a pool: the crew starts them, kills those that hang, replaces them, and puts bad devices aside."""

from __future__ import annotations

import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from logging import WARNING
from pathlib import Path
from typing import Literal, TypeAlias

from search.console import Say
from search.devices import WorkerDevice
from search.process import versions
from search.study.progress import WorkerView
from search.words import duration
from search.workers.failures import MOST_DEVICE_ERRORS, MOST_LOSSES, Failure
from search.workers.messages import Epoch, Failed, Left, Placed, Ready, Started, ToWorker
from search.workers.pool import Exit, Pool
from studies.objective import Objective, value_of
from studies.spec import Faults
from trainer.config import EpochResult

Event: TypeAlias = Started | Epoch | Left | Failed | Exit
"""An event that concerns the trial of a worker."""

POLL_SECONDS = 0.5
"""Longest wait for a worker's message before signals and the display get their turn."""

WATCH_SECONDS = 0.1
"""Shortest time between two looks for workers that hang or are drained."""

STUCK_SECONDS = 60.0
"""Longest time for a killed process to end. A process that waits for a driver or a disk may never end."""


_STUCK = "was killed and does not end"


@dataclass
class Worker:
    """A worker as the crew sees it."""

    number: int
    label: str
    device: str = "starting"
    process: Literal["none", "running", "ended"] = "none"
    """State of the worker's process: "ended" until its Exit has been handled, which may wait for the database."""
    placed: Placed | None = None
    """Node and GPU of the worker's process, or of the last one; None before the first was placed."""
    ready: bool = False
    """Whether the worker's process is ready for work, or is at work."""
    was_ready: bool = False
    """Whether any process of this worker was ever ready."""
    trial: int | None = None
    """Number of the trial in progress, or of an export's training; None without work."""
    attempt: int = 0
    """How often the trial was started, the present start included."""
    epoch: EpochResult | None = None
    """The last finished epoch of the trial."""
    busy_since: float | None = None
    """Time of the last message to or from the worker, while its next message is due; None while none is due."""
    kill_reason: str | None = None
    """Reason why the crew killed the process; None if the crew did not."""
    killed_at: float | None = None
    """Time of the kill; None once the process has exited."""
    memory_bytes: int | None = None
    """Peak memory, from the worker's last epoch."""
    failed_starts: int = 0
    """Number of processes in a row that ended before they were ready, without those that were lost or preempted."""
    losses: int = 0
    """Number of losses and preemptions since the worker last sent an epoch, even an old one of a resumed training."""
    lost: bool = False
    """Whether the process was lost or preempted; False once its Exit has been handled."""
    drained: bool = False
    """Whether the device was taken away from the search: the worker finishes its epoch and ends."""
    disabled_reason: str | None = None
    """Reason why the device was put aside; None while it is in use."""

    @property
    def silent_seconds(self) -> float:
        """Seconds since the last message to or from the worker, while its next message is due; else 0."""
        return 0.0 if self.busy_since is None else time.monotonic() - self.busy_since

    @property
    def disabled(self) -> bool:
        """Whether the device was put aside."""
        return self.disabled_reason is not None

    @property
    def waits(self) -> bool:
        """Whether the worker's process was asked for and has not begun, for example because a cluster has no device for
        it yet."""
        return self.device == "waiting"

    @property
    def gpu(self) -> tuple[str, str]:
        """Key of the worker's GPU in counts of errors: its node and UUID. Without a GPU: "" and the worker's label."""
        return (self.placed.node, self.placed.gpu) if self.placed and self.placed.gpu else ("", self.label)

    @property
    def usable(self) -> bool:
        """Whether the search may use the device: it was neither put aside nor taken away."""
        return not (self.disabled or self.drained)

    @property
    def unused(self) -> bool:
        """Whether the device is usable and has no process: the search has more devices than work."""
        return self.process == "none" and self.usable

    def view(self, epochs: int, objective: Objective) -> WorkerView:
        """The worker's state for observers; ``epochs`` is the number of epochs of the trial's present training."""
        epoch = self.epoch
        return WorkerView(
            label=self.label,
            device=self.device,
            trial=self.trial,
            epoch=epoch.epoch if epoch else 0,
            epochs=epochs,
            val_accuracy=epoch.val_accuracy if epoch else None,
            value=value_of(epoch, objective) if epoch else None,
            images_per_second=epoch.images_per_second if epoch else None,
            attempt=0 if self.trial is None else self.attempt,
            epoch_seconds=epoch.seconds if epoch else None,
            seconds_since_progress=round(self.silent_seconds, 1),
            memory_bytes=self.memory_bytes,
            node=self.placed.node if self.placed else "",
            waiting=self.waits,
        )

    def failure_of(self, event: Exit) -> Failure:
        """The failure that the end of the worker's process means for its training."""
        if event.out_of_memory:
            return Failure(
                kind="memory", sentence="the worker ran out of memory and was killed by the system", log=event.log_tail
            )
        if self.kill_reason:
            return Failure(kind="hang", sentence=f"the worker {self.kill_reason}", log=event.log_tail)
        if event.lost:
            node = self.placed.node if self.placed else "its node"
            how = f"was lost with {node}" if event.lost == "lost" else f"was preempted on {node}"
            return Failure(kind=event.lost, sentence=f"the worker {how}", log=event.log_tail)
        if event.returncode < 0:
            kind: Literal["killed", "exit"] = "killed" if event.returncode == -signal.SIGKILL else "exit"
            return Failure(kind=kind, sentence=f"the worker ended with signal {-event.returncode}", log=event.log_tail)
        return Failure(kind="exit", sentence=f"the worker ended with exit code {event.returncode}", log=event.log_tail)


class Crew:
    """The workers of a pool. The crew starts, watches and replaces their processes.

    Args:
        pool: the pool that runs the processes.
        faults: limits for restarts, and for the time without a message of a worker.
        say: called with a line about each event that the user should know.
    """

    def __init__(self, pool: Pool, faults: Faults, say: Say) -> None:
        self.pool, self.faults, self.say, self._versions = pool, faults, say, versions()
        self.workers = [Worker(number, device.label) for number, device in enumerate(pool.devices)]
        self._errors = Counter[tuple[str, str]]()
        """Number of CUDA errors of each GPU."""
        self.watched_apart, self._watched = WATCH_SECONDS, -math.inf
        """Shortest time between two looks through the workers, and the time of the last one."""

    @property
    def present(self) -> list[Worker]:
        """The workers without those that were drained and have ended."""
        return [worker for worker in self.workers if not (worker.drained and worker.process == "none")]

    @property
    def put_aside(self) -> list[str]:
        """A sentence for each worker whose device was put aside."""
        return [
            f"{worker.label} put aside: {worker.disabled_reason}; leave it out of --gpus, or reset it and launch again"
            for worker in self.workers
            if worker.disabled_reason
        ]

    def start(self, number: int) -> None:
        """Make sure that the first ``number`` usable workers run, or all of them if there are fewer."""
        for worker in [worker for worker in self.workers if worker.usable][:number]:
            if worker.unused:
                self._start(worker)

    def add(self, device: WorkerDevice, log: Path) -> None:
        """Add a worker on another device, and start it."""
        self.pool.add(device, log)
        self.workers.append(worker := Worker(len(self.workers), device.label))
        self._start(worker)

    def drain(self, worker: Worker) -> None:
        """Take away a device: its worker gets no more trials, and ends once it is free."""
        worker.drained = True
        if worker.process == "none":  # no Exit follows
            self.pool.release(worker.number)

    def idle(self) -> Iterator[Worker]:
        """Workers that are ready and have no trial."""
        return (worker for worker in self.workers if worker.ready and worker.trial is None and worker.usable)

    def training(self) -> bool:
        """Whether any worker has a trial."""
        return any(worker.trial is not None for worker in self.workers)

    def busy(self) -> bool:
        """Whether a message of any worker that has a trial is due."""
        return any(worker.trial is not None and worker.busy_since is not None for worker in self.workers)

    def send(self, number: int, message: ToWorker) -> None:
        """Send a message that the worker answers. If its process has ended, nothing is sent, and the Exit follows."""
        if self.workers[number].process == "running":
            self.workers[number].busy_since = time.monotonic()
            self.pool.send(number, message)

    def events(self, timeout: float, patience: Callable[[Worker], float]) -> Iterator[tuple[int, Event]]:
        """Events of the workers' trials. A worker that hangs is killed; its Exit follows.

        Args:
            timeout: longest wait, in seconds.
            patience: returns the seconds without a message after which a worker that trains counts as hanging.
        """
        for number, event in self.pool.events(timeout):
            worker = self.workers[number]
            if isinstance(event, Exit):
                worker.process, worker.busy_since, worker.killed_at = "ended", None, None
                worker.lost = event.lost is not None
                worker.losses += worker.lost
            elif isinstance(event, Placed):
                self._place(worker, event)
                continue
            elif isinstance(event, Ready):
                worker.ready, worker.was_ready, worker.device = True, True, event.device
                worker.failed_starts, worker.busy_since = 0, None
                continue
            elif isinstance(event, Started):
                worker.busy_since = time.monotonic()
            else:
                worker.busy_since = None
                worker.losses = 0 if isinstance(event, Epoch) else worker.losses
            yield number, event
        now, shortest = time.monotonic(), min(self.faults.hang_seconds, self.faults.first_epoch_seconds)
        if now - self._watched < self.watched_apart:
            return
        self._watched = now
        for worker in self.workers:
            silent = 0.0 if worker.busy_since is None else now - worker.busy_since
            if silent > shortest and silent > (patience(worker) if worker.ready else self.faults.first_epoch_seconds):
                worker.failed_starts += not worker.ready
                self._kill(worker, f"made no progress for {duration(silent)} and was ended")
            elif worker.drained and worker.process == "running" and worker.trial is None and worker.killed_at is None:
                self._kill(worker, "was drained")
            elif worker.killed_at is not None and now - worker.killed_at > STUCK_SECONDS:
                yield worker.number, self._abandon(worker)

    def replace(self, worker: Worker, failure: Failure) -> None:
        """Give a worker a new process. If its device has had too many errors, put the device aside instead."""
        if failure.kind == "device":
            self._errors[worker.gpu] += 1
        if self._errors[worker.gpu] >= MOST_DEVICE_ERRORS and not worker.disabled:
            sharing = [other for other in self.workers if other.gpu == worker.gpu]
            why = f"{MOST_DEVICE_ERRORS} CUDA errors, the last: {failure.sentence}"
            for other in sharing:  # a worker that is training may still finish its trial
                other.disabled_reason = why
            name = worker.label if len(sharing) == 1 else worker.label.rpartition(":")[0]
            self.say(f"{name} is put aside after {why}", WARNING)
        self._kill(worker, worker.disabled_reason or "was replaced")

    def on_exit(self, worker: Worker, *, restart: bool) -> str | None:
        """Handle the end of a worker's process; start another one if ``restart``. Returns the reason why the search
        cannot go on, or None."""
        worker.failed_starts += not (worker.ready or worker.kill_reason or worker.lost)
        worker.process, worker.ready, worker.device, worker.kill_reason = "none", False, "starting", None
        worker.lost = False
        if worker.losses > MOST_LOSSES and not worker.disabled:
            worker.disabled_reason = f"lost or preempted {MOST_LOSSES + 1} times without an epoch"
            self.say(f"{worker.label} is put aside: {worker.disabled_reason}", WARNING)
        if worker.failed_starts > self.faults.retries and not worker.disabled:
            worker.disabled_reason = "no new process of it can start, see its log"
            # If another worker was ever ready, this device is at fault. If none was, all have the same cause.
            if not any(other.usable for other in self.workers) or not any(other.was_ready for other in self.workers):
                return f"worker {worker.label} cannot start"
            self.say(f"{worker.label} is put aside: {worker.disabled_reason}", WARNING)
        if worker.disabled:
            worker.device = "put aside"
        if worker.drained:
            self.pool.release(worker.number)
        if not worker.usable:
            spare = next((other for other in self.workers if other.unused), None)
            if restart and spare is not None:
                self._start(spare)
            return None if any(other.usable for other in self.workers) else "no device is left"
        if restart:
            self._start(worker)
        return None

    def close(self, patience_seconds: float) -> None:
        """End all processes; kill those that are still busy after ``patience_seconds``."""
        for process in self.pool.close(patience_seconds):
            self.say(f"process {process} {_STUCK}; its device may need a reset", WARNING)

    def _place(self, worker: Worker, placed: Placed) -> None:
        """Note that a worker's process has begun: from now on, it must make progress."""
        worker.placed, worker.device, worker.busy_since = placed, "starting", time.monotonic()
        why = None
        if placed.versions != self._versions:
            why = f"{placed.node} has {placed.versions}, and the coordinator {self._versions}"
        elif self._errors[worker.gpu] >= MOST_DEVICE_ERRORS:  # a cluster has assigned it again
            why = f"{MOST_DEVICE_ERRORS} CUDA errors of this GPU of {placed.node}"
        if why is not None:
            worker.disabled_reason = why
            self.say(f"{worker.label} is put aside: {why}", WARNING)
            self._kill(worker, f"was put aside: {why}")

    def _kill(self, worker: Worker, why: str) -> None:
        worker.ready, worker.busy_since, worker.kill_reason = False, None, why
        if worker.process == "running":
            worker.killed_at = time.monotonic()
            self.pool.kill(worker.number)

    def _abandon(self, worker: Worker) -> Exit:
        """Give up a killed process that does not end, and its device.

        If the process ever runs again, it ends with its current system call. That call may still write a checkpoint
        while another worker has resumed the training. The file's CRC-32 and the previous file limit the damage to one
        epoch.
        """
        worker.process, worker.killed_at = "ended", None
        worker.disabled_reason = f"process {self.pool.abandon(worker.number)} {_STUCK}"
        self.say(f"{worker.label} is put aside: {worker.disabled_reason}", WARNING)
        return Exit(-signal.SIGKILL, self.pool.log_tail(worker.number))

    def _start(self, worker: Worker) -> None:
        worker.process, worker.device, worker.busy_since = "running", "waiting", None
        self.pool.start(worker.number)


def patience(faults: Faults, own: float | None, others: float | None, epochs: int = 1) -> float:
    """Seconds without a result after which a worker counts as hanging.

    Args:
        faults: the study's limits.
        own: seconds of the slowest result of this worker's training; None before the first.
        others: seconds of the slowest result of all trainings: a weak hint, because this candidate may be many times
            as large.
        epochs: number of epochs that one result stands for: 1, or all epochs of a fold.
    """
    if own is not None:
        return max(faults.hang_seconds, faults.hang_factor * own)
    return max(faults.first_epoch_seconds * epochs, faults.hang_factor * (others or 0.0))
