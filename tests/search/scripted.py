"""Workers that play a script: real Optuna, a real database, no training."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna

from search.devices import WorkerDevice
from search.paths import Runs
from search.plan.space import distributions
from search.running.coordinator import Coordinator
from search.study.identity import take_folder
from search.study.storage import open_storage, parse_url
from search.study.study import open_study, uuid_of
from search.workers.local import Exit, Message
from studies import StudySpec
from trainer.config import EpochResult

EPOCHS = 3

Script = Callable[[Message, int], Iterator[Message | Exit | None]]
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


def epoch(trial: int, number: int, accuracy: float) -> Message:
    result = EpochResult(
        epoch=number,
        train_loss=1.0,
        val_loss=1.0,
        val_accuracy=accuracy,
        seconds=1.0,
        images_per_second=100.0,
        final=number == EPOCHS,
    )
    return {"type": "epoch", "trial": trial, "result": vars(result), "memory_bytes": 1 << 30}


def started(trial: int) -> Message:
    return {"type": "started", "trial": trial, "num_params": 900 + trial, "macs": 5000, "sizes": {}}


def failed(trial: int, kind: str, error: str) -> Message:
    return {"type": "failed", "trial": trial, "kind": kind, "error": error}


def trains(assignment: Message, _times: int) -> Iterator[Message | Exit]:
    """A worker that trains to the end, better with a larger lr."""
    trial = assignment["trial"]
    yield started(trial)
    for number in range(1, EPOCHS + 1):
        yield epoch(trial, number, min(1.0, assignment["config"]["lr"] * number))


@dataclass
class ScriptedPool:
    """Stands in for a LocalPool: each worker plays a script, one step a round, the last worker first."""

    script: Script
    num_workers: int = 1
    starts_fail: bool = False
    on_epoch: Callable[[Message], None] = lambda message: None
    log: str = ""
    assigned: list[int] = field(default_factory=list)
    started: list[int] = field(default_factory=list)
    unkillable: frozenset[int] = frozenset()
    """Workers that no signal ends."""
    closed: bool = False
    worker: int = -1
    """Who plays now, for scripts in which it matters."""

    def __post_init__(self) -> None:
        self.devices = [WorkerDevice(f"cpu:{number}", None, 1) for number in range(self.num_workers)]
        self._inbox: dict[int, deque[Message]] = {}
        self._plays: dict[int, Iterator[Message | Exit | None]] = {}

    def start(self, worker: int) -> None:
        self.started.append(worker)
        self._inbox[worker] = deque()
        self._plays[worker] = self._play(worker)

    def send(self, worker: int, message: Message) -> None:
        self._inbox[worker].append(message)

    def events(self, _timeout: float) -> Iterator[tuple[int, Message | Exit]]:
        for worker in sorted(self._plays, reverse=True):
            self.worker = worker
            event = next(self._plays[worker])
            if event is None:
                continue
            if isinstance(event, Exit):
                del self._plays[worker]
            elif event["type"] == "epoch":
                self.on_epoch(event)
            yield worker, event

    def log_tail(self, _worker: int) -> str:
        return self.log

    def kill(self, worker: int) -> None:
        """As the system does it: the process ends, and its Exit comes next."""
        self._plays[worker] = itertools.repeat(None) if worker in self.unkillable else iter([Exit(-9, "")])

    def abandon(self, worker: int) -> int:
        del self._plays[worker]
        return 4242

    def close(self, patience_seconds: float = 5) -> list[int]:
        self.closed = True
        return [4242 for worker in self._plays if worker in self.unkillable]

    def _play(self, worker: int) -> Iterator[Any]:
        if self.starts_fail:
            yield Exit(1, "ImportError: no module named torch")
            return
        inbox = self._inbox[worker]
        yield {"type": "ready", "device": "a script"}
        while True:
            while not inbox:
                yield None
            assignment = inbox.popleft()
            trial = assignment["trial"]
            times = self.assigned.count(trial)
            self.assigned.append(trial)
            for event in self.script(assignment, times):
                yield event
                if event is None:
                    continue
                if isinstance(event, Exit):
                    return
                if event["type"] == "failed":
                    break
                if event["type"] == "epoch":
                    while not inbox:
                        yield None
                    if not inbox.popleft()["go_on"]:
                        yield {"type": "left", "trial": trial}
                        break
            else:
                yield {"type": "left", "trial": trial}


@dataclass
class Bench:
    """A study in a database of its own, and what its coordinator says."""

    folder: Path
    notes: list[str] = field(default_factory=list)
    accept_changes: bool = False

    def coordinator(self, pool: ScriptedPool, spec: StudySpec | None = None, **options: Any) -> Coordinator:
        spec = spec or spec_of()
        runs = Runs(self.folder)
        storage = open_storage(parse_url(f"sqlite:///{runs.database}"), create=True)
        self.notes += take_folder(runs, spec.name, uuid_of(spec.name, storage))
        study = open_study(spec, storage, "content", accept_changes=self.accept_changes)
        return Coordinator(
            study,
            spec,
            distributions(spec, None),
            list(spec.known),
            pool,  # type: ignore[arg-type]  # all that the coordinator uses of one
            runs,
            "cache",
            **{"watch": lambda snapshot: None, "note": self.notes.append} | options,
        )


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.get_trials()]
