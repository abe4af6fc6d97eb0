"""Peers that ask for a training up to a number of epochs, and get only the value there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass

from quality.curves import Params, Task
from search.policy.ladder import Ladder


@dataclass(frozen=True)
class Job:
    """A training that such a peer asks for."""

    config: Hashable
    """The configuration. If it is asked for again, its training goes on from its last epoch."""
    params: Params
    epochs: int


class StagedSubject(ABC):
    """Turns jobs into candidates that are paused and go on. This favours the peers: they need not train again."""

    def begin(self, task: Task, seed: int) -> None:
        self.ladder = Ladder((task.epochs,))
        self._numbers: dict[Hashable, int] = {}
        self._jobs: list[Job] = []
        """The present job of each candidate."""
        self._values: list[list[float]] = []
        self._open(task, seed)

    @abstractmethod
    def _open(self, task: Task, seed: int) -> None:
        """Begin a search."""

    @abstractmethod
    def _ask(self) -> Job:
        """The next job."""

    @abstractmethod
    def _tell(self, job: Job, value: float) -> None:
        """A job is done."""

    def next(self) -> int | Params:
        job = self._ask()
        while job.config in self._numbers:
            number = self._numbers[job.config]
            if job.epochs > len(self._values[number]):
                self._jobs[number] = job
                return number
            self._tell(job, self._values[number][job.epochs - 1])  # it has reached that epoch before
            job = self._ask()
        self._numbers[job.config] = len(self._jobs)
        self._jobs.append(job)
        self._values.append([])
        return job.params

    def report(self, number: int, step: int, value: float) -> bool:
        self._values[number].append(value)
        if step < self._jobs[number].epochs:
            return True
        self._tell(self._jobs[number], value)
        return False

    def finish(self, number: int, value: float) -> None:
        self._values[number].append(value)
        self._tell(self._jobs[number], value)
