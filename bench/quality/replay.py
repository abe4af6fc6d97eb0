"""Replay of a whole search: workers that train epoch by epoch, candidates, a budget, and the choice."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

import numpy as np

from quality.curves import Floats, Params, Task
from search.policy.ladder import Ladder

BUDGETS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60)
"""Budgets at which a search is looked at, in full trainings."""

FINALISTS = 8
"""Number of candidates that a look considers. A race takes at most the first four."""

Rounds = tuple[tuple[int, int], ...]
RACE5: Rounds = ((3, 1), (2, 2))
RACE8: Rounds = ((4, 1), (2, 3))
"""Rounds of a race: number of candidates, and of trainings for each so far. They cost 5 and 8 trainings."""

RACE8_FROM = 30
"""Budget in full trainings from which on a search is followed by the longer race."""


class Subject(Protocol):
    """A policy to compare: it decides which candidate is trained next, and when a candidate stops."""

    ladder: Ladder
    """Known after ``begin``."""

    def begin(self, task: Task, seed: int) -> None:
        """Begin a new search. All random numbers come from the seed."""

    def next(self) -> int | Params | None:
        """The work for a free worker: the number of a paused candidate, the settings of a new one, or None to wait for
        another result.

        New candidates are numbered 0, 1, 2, ... in the order in which they are returned.
        """

    def report(self, number: int, step: int, value: float) -> bool:
        """Report a step of a candidate that is not its last. Returns whether it goes on at once."""

    def finish(self, number: int, value: float) -> None:
        """Report the last step of a candidate."""


@dataclass
class Candidate:
    """A candidate. Its values are in the order of its steps."""

    number: int
    params: Params
    values: list[float] = field(default_factory=list)
    curve: Floats | None = None
    """Curve of its present training."""


@dataclass(frozen=True)
class Look:
    """A search at one of the budgets."""

    budget: int
    """Full trainings spent."""
    candidates: int
    complete: int
    raw: float
    """Points of mean accuracy between the choice, which is the best complete candidate, and the best settings."""
    raced: float
    """The same for the winner of a race between the best candidates."""
    race: int
    """Cost of the race, in full trainings."""


class Search:
    """A replay of one search.

    Args:
        subject: the policy.
        task: the task.
        seed: seed of this repetition.
        workers: number of trainings at the same time. A step takes one unit of time.
    """

    def __init__(self, subject: Subject, task: Task, seed: int, workers: int) -> None:
        subject.begin(task, seed)
        self.subject, self.task, self.seed = subject, task, seed
        self.candidates: list[Candidate] = []
        self.steps = 0
        self._order = count()
        self._training: list[tuple[int, int, Candidate]] = []
        self._free = workers
        self._employ(0)

    @property
    def spent(self) -> float:
        """Compute so far, in full trainings."""
        return self.steps / self.task.epochs

    @property
    def over(self) -> bool:
        """Whether no candidate is being trained."""
        return not self._training

    def is_training(self, number: int) -> bool:
        """Whether a candidate is being trained."""
        return any(candidate.number == number for _, _, candidate in self._training)

    def step(self) -> None:
        """Finish the epoch that ends next."""
        now, _, candidate = heapq.heappop(self._training)
        ladder = self.subject.ladder
        self.steps += 1
        step = len(candidate.values) + 1
        value = self._value(candidate, step)
        candidate.values.append(value)
        if step == ladder.last_step:
            self.subject.finish(candidate.number, value)
        elif self.subject.report(candidate.number, step, value):
            heapq.heappush(self._training, (now + 1, next(self._order), candidate))
            return
        self._free += 1
        self._employ(now)

    def run(self, budget: float) -> list[Look]:
        """Search until the budget is spent. Returns a look at each of BUDGETS."""
        looks = []
        for mark in (one for one in BUDGETS if one <= budget):
            while self.spent < mark:
                self.step()
            looks.append(self._look(mark))
        return looks

    def finalists(self) -> list[Candidate]:
        """The best candidates: complete ones first, then the others by their number of steps, each by value."""
        begun = [one for one in self.candidates if one.values]
        return sorted(begun, key=lambda one: (-len(one.values), -one.values[-1], one.number))[:FINALISTS]

    def _employ(self, now: int) -> None:
        while self._free:
            what = self.subject.next()
            if what is None:
                return
            if isinstance(what, int):
                candidate = self.candidates[what]
            else:
                candidate = Candidate(len(self.candidates), what)
                self.candidates.append(candidate)
            self._free -= 1
            heapq.heappush(self._training, (now + 1, next(self._order), candidate))

    def _value(self, candidate: Candidate, step: int) -> float:
        ladder = self.subject.ladder
        stage = sum(rung < step for rung in ladder.rungs) if ladder.anew else 0
        begun = ladder.steps_before(stage)
        if candidate.curve is None or step == begun + 1:
            length = ladder.lengths[stage] if ladder.anew else self.task.epochs
            seed = int(np.random.SeedSequence((self.seed, candidate.number, stage)).generate_state(1)[0])
            candidate.curve = self.task.curve(candidate.params, seed, length)
        return float(candidate.curve[step - begun - 1])

    def _look(self, mark: int) -> Look:
        best = self.finalists()
        race = RACE8 if mark >= RACE8_FROM else RACE5
        raced, cost = race_of(self.task, [one.params for one in best], race, (self.seed, mark))
        complete = sum(len(one.values) == self.subject.ladder.last_step for one in self.candidates)
        behind = self.task.best - self.task.truth(best[0].params)
        return Look(mark, len(self.candidates), complete, behind, self.task.best - self.task.truth(raced), cost)


def race_of(task: Task, finalists: Sequence[Params], rounds: Rounds, seed: tuple[int, int]) -> tuple[Params, int]:
    """The winner of a race, by fresh full trainings alone, and the number of these trainings."""
    ends: list[list[float]] = [[] for _ in finalists]
    alive = list(range(len(finalists)))
    for keep, trainings in rounds:
        alive = sorted(alive, key=lambda one: -float(np.mean(ends[one])) if ends[one] else one)[:keep]
        for one in alive:
            for again in range(len(ends[one]), trainings):
                fresh = np.random.SeedSequence((*seed, one, again, 1)).generate_state(1)[0]
                ends[one].append(float(task.curve(finalists[one], int(fresh), task.epochs)[-1]))
    winner = max(alive, key=lambda one: float(np.mean(ends[one])))
    return finalists[winner], sum(len(known) for known in ends)
