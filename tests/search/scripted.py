"""Workers that play a script: real Optuna, a real database, no training."""

from __future__ import annotations

import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy import event

from search.devices import WorkerDevice
from search.errors import FailureKind
from search.paths import Runs
from search.plan.space import Bounds, distributions
from search.process import versions
from search.running.clock import Clock
from search.running.coordinator import Coordinator
from search.running.pace import Pace
from search.study.identity import take_folder
from search.study.mending import mend_trials
from search.study.owned import OwnedStudy
from search.study.progress import Snapshot
from search.study.storage import open_storage, parse_url
from search.study.study import open_study, uuid_of
from search.workers.failures import Failure
from search.workers.messages import Answer, Assign, Epoch, Failed, FromWorker, Left, Placed, Ready, Started, ToWorker
from search.workers.pool import Exit, Pool
from studies import StudySpec
from trainer.config import EpochResult

EPOCHS = 3

Script = Callable[[Assign, int], Iterator[FromWorker | Exit | None]]
"""(assignment, how many times this trial was assigned before) -> what the worker says; None is a silent moment."""


def spec_of(faults: dict[str, Any] | None = None, **search: Any) -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": "scripted",
            "data": {"source": "digits"},
            "train": {"epochs": EPOCHS},
            "space": {"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "dropout": {"low": 0.0, "high": 0.5}},
            "search": {"trials": 6, "startup_trials": 3, "pruner": "none"} | search,
            "faults": faults or {},
        }
    )


def result(number: int, accuracy: float, *, seconds: float = 1.0, epochs: int = EPOCHS) -> EpochResult:
    return EpochResult(
        epoch=number,
        train_loss=1.0,
        val_loss=1.0,
        val_accuracy=accuracy,
        seconds=seconds,
        images_per_second=100.0,
        final=number == epochs,
    )


def epoch(trial: int, number: int, accuracy: float) -> Epoch:
    return Epoch(trial=trial, result=result(number, accuracy), memory_bytes=1 << 30)


def started(trial: int) -> Started:
    return Started(trial=trial, num_params=900 + trial, macs=5000)


def failed(trial: int, kind: FailureKind, error: str, *, with_pictures: bool = False) -> Failed:
    return Failed(trial=trial, failure=Failure(kind=kind, sentence=error, with_pictures=with_pictures))


def placed(device: WorkerDevice, node: str = "here") -> Placed:
    return Placed(node=node, gpu=device.visible, kind=device.kind, versions=versions())


def trains(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
    """A worker that trains to the end, better with a larger lr."""
    trial, lr = assignment.trial, assignment.config["lr"]
    assert isinstance(lr, float)
    yield started(trial)
    for number in range(1, EPOCHS + 1):
        yield epoch(trial, number, min(1.0, lr * number))


@dataclass
class ScriptedPool:
    """A pool without processes: each worker plays a script, one step a round, the last worker first."""

    script: Script
    num_workers: int = 1
    starts_fail: bool = False
    on_epoch: Callable[[Epoch], None] = lambda message: None
    log: str = ""
    assigned: list[Assign] = field(default_factory=list)
    answers: list[bool] = field(default_factory=list)
    started: list[int] = field(default_factory=list)
    node: str = "here"
    queued: set[int] = field(default_factory=set)
    """Workers that wait for a device."""
    unkillable: frozenset[int] = frozenset()
    """Workers that no signal ends."""
    released: list[int] = field(default_factory=list)
    closed: bool = False
    worker: int = -1
    """The worker that plays now, for scripts in which it matters."""

    def __post_init__(self) -> None:
        self.devices = [WorkerDevice(f"cpu:{number}", None, 1) for number in range(self.num_workers)]
        self._inbox: dict[int, deque[ToWorker]] = {}
        self._plays: dict[int, Iterator[FromWorker | Exit | None]] = {}

    @property
    def trials(self) -> list[int]:
        """Of each assignment, in order."""
        return [assignment.trial for assignment in self.assigned]

    def add(self, device: WorkerDevice, log: Path) -> None:
        self.devices = [*self.devices, device]

    def start(self, worker: int) -> None:
        assert worker not in self._plays, "it has a process"
        self.started.append(worker)
        self._inbox[worker] = deque()
        self._plays[worker] = self._play(worker)

    def send(self, worker: int, message: ToWorker) -> None:
        if isinstance(message, Answer):
            self.answers.append(message.go_on)
        if worker in self._plays:
            self._inbox[worker].append(message)

    def events(self, timeout: float) -> Iterator[tuple[int, FromWorker | Exit]]:
        for worker in sorted(self._plays, reverse=True):
            self.worker = worker
            event = next(self._plays[worker])
            if event is None:
                continue
            if isinstance(event, Exit):
                del self._plays[worker]
            elif isinstance(event, Epoch):
                self.on_epoch(event)
            yield worker, event

    def log_tail(self, worker: int) -> str:
        return self.log

    def kill(self, worker: int) -> None:
        """As the system does it: the process ends, and its Exit comes next."""
        if worker in self._plays:
            ends: Iterator[FromWorker | Exit | None] = iter([Exit(-9, self.log)])
            self._plays[worker] = itertools.repeat(None) if worker in self.unkillable else ends

    def release(self, worker: int) -> None:
        self.released.append(worker)

    def abandon(self, worker: int) -> int:
        del self._plays[worker]
        return 4242

    def close(self, patience_seconds: float = 5) -> list[int]:
        self.closed = True
        return [4242 for worker in self._plays if worker in self.unkillable]

    def _play(self, worker: int) -> Iterator[FromWorker | Exit | None]:
        if self.starts_fail:
            yield Exit(1, "ImportError: no module named torch")
            return
        inbox = self._inbox[worker]
        while worker in self.queued:
            yield None
        yield placed(self.devices[worker], self.node)
        yield Ready(device="a script")
        while True:
            while not inbox:
                yield None
            assignment = inbox.popleft()
            if isinstance(assignment, Answer):
                continue  # to an epoch before which the script let go
            times = self.trials.count(assignment.trial)
            self.assigned.append(assignment)
            last: FromWorker | Exit | None = None
            for last in self.script(assignment, times):
                yield last
                if isinstance(last, Exit):
                    return
                if isinstance(last, Failed | Left):
                    break
                if isinstance(last, Epoch):
                    while not inbox:
                        yield None
                    answer = inbox.popleft()
                    if isinstance(answer, Answer) and not answer.go_on:
                        break
            if not isinstance(last, Failed | Left):
                yield Left(trial=assignment.trial)


@dataclass
class Listener:
    """Hears what a coordinator says."""

    say: Callable[..., None]
    watch: Callable[[Snapshot], None] = lambda snapshot: None


@dataclass
class Bench:
    """A study in a database of its own, and what its coordinator says."""

    folder: Path
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """Those of the notes that are shown with --quiet too."""
    accept_changes: bool = False
    url: str | None = None
    """URL of the database; None: a file in the folder."""

    def hear(self, line: str, level: int = logging.INFO) -> None:
        self.notes.append(line)
        if level >= logging.WARNING:
            self.warnings.append(line)

    def coordinator(
        self,
        pool: Pool,
        spec: StudySpec | None = None,
        *,
        check_lock: Callable[[], None] = lambda: None,
        watch: Callable[[Snapshot], None] = lambda snapshot: None,
        room_needed: int = 0,
        clock: Clock | None = None,
    ) -> Coordinator:
        spec = spec or spec_of()
        clock = clock or Clock(spec.search.hours)
        runs = Runs(self.folder)
        storage = without_sync(open_storage(parse_url(self.url or f"sqlite:///{runs.database}"), create=True))
        self.notes += take_folder(runs, spec.name, uuid_of(spec.name, storage))
        self.notes += mend_trials(storage, spec.name, runs).renumbered
        study = open_study(spec, storage, "content", accept_changes=self.accept_changes)
        bounds = Bounds(width=None, most_params=0, space=distributions(spec, None), known=list(spec.known), left_out={})
        audience = Listener(self.hear, watch)
        coordinator = Coordinator(OwnedStudy(study, spec, check_lock), bounds, pool, runs, "cache", audience, clock)
        coordinator.room_needed = room_needed
        coordinator.assign_seconds = math.inf  # which worker gets which trial depends on no clock,
        coordinator.quota.apart = 0  # and neither does which checkpoint is deleted,
        # or how often ``watch`` is called,
        coordinator.looking, coordinator.showing = Pace(0, most=coordinator.looking.most), Pace(0)
        coordinator.crew.watched_apart = 0  # or when a drained worker is ended
        return coordinator


def without_sync(storage: optuna.storages.RDBStorage) -> optuna.storages.RDBStorage:
    """Let a SQLite file's commits return before they are on the disk: only a cut of the power would tell."""

    def configure(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    if storage.engine.dialect.name == "sqlite":
        event.listen(storage.engine, "connect", configure)
        storage.engine.dispose()
    return storage


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.get_trials()]
