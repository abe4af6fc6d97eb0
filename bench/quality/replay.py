"""A whole search, replayed: workers that train epoch by epoch, candidates, a budget, and what would be chosen."""

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
"""Where a search is looked at, in full trainings."""

FINALISTS = 8
"""So many candidates are kept at each look. A race takes at most the first four."""

Rounds = tuple[tuple[int, int], ...]
RACE5: Rounds = ((3, 1), (2, 2))
RACE8: Rounds = ((4, 1), (2, 3))
"""Rounds of a race: how many candidates stay, and how many trainings each has had by then. 5 and 8 trainings."""

RACE8_FROM = 30
"""Full trainings from which a search is followed by the longer race."""


class Subject(Protocol):
    """What is compared: it says what is trained next, and when a training ends."""

    ladder: Ladder
    """Known after ``begin``."""

    def begin(self, task: Task, seed: int) -> None:
        """A new search. All that is random comes from the seed."""

    def next(self) -> int | Params | None:
        """What a free worker does: the number of a paused candidate, which goes on, the settings of a new one, or
        nothing until another result is in.

        New candidates have the numbers 0, 1, 2, ... in the order in which they were named.
        """

    def report(self, number: int, step: int, value: float) -> bool:
        """A candidate has taken a step that is not its last. Whether it goes on at once, and not later or never."""

    def finish(self, number: int, value: float) -> None:
        """A candidate has taken its last step."""


@dataclass
class Candidate:
    """What is known of a candidate. Its values stand in the order of its steps, from 1."""

    number: int
    params: Params
    values: list[float] = field(default_factory=list)
    curve: Floats | None = None
    """Of its present training."""


@dataclass(frozen=True)
class Look:
    """A search at one of its budgets."""

    budget: int
    """Full trainings spent."""
    candidates: int
    complete: int
    raw: float
    """Points of mean accuracy that the choice, the best complete candidate, is behind the best there is."""
    raced: float
    """The same, chosen by a race of the best candidates."""
    race: int
    """What the race costs, in full trainings."""


class Search:
    """A replay of one search.

    Args:
        subject: who decides.
        task: what is searched.
        seed: of this repetition.
        workers: trainings at the same time. Each takes one step in one unit of time.
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
        """Full trainings' worth of epochs."""
        return self.steps / self.task.epochs

    @property
    def over(self) -> bool:
        """Whether nothing is trained any more."""
        return not self._training

    def is_training(self, number: int) -> bool:
        """Whether a candidate is being trained."""
        return any(candidate.number == number for _, _, candidate in self._training)

    def step(self) -> None:
        """The next epoch that ends."""
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
        """Search until the budget is spent; what it knew on its way."""
        looks = []
        for mark in (one for one in BUDGETS if one <= budget):
            while self.spent < mark:
                self.step()
            looks.append(self._look(mark))
        return looks

    def finalists(self) -> list[Candidate]:
        """The complete ones, best first; then the others by how far they came, and their value."""
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
        begun = ladder.begins_at(stage)
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
    """The winner of a race, by fresh full trainings alone, and how many it took."""
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
