"""What the product ships: its sampler, its rungs and its rule of who goes on, on a study in memory."""

from __future__ import annotations

from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import Trial

from quality.curves import Params, Task
from quality.replay import Verdict
from search.policy.ladder import PAUSED_AT, PROMOTED_AT, Ladder, ladder_for
from search.policy.promotion import Promotion

FACTOR = 3
"""``reduction_factor`` of a new study."""

MakeSampler = Callable[[int, Ladder], BaseSampler]


def truncated(task: Task) -> Ladder:
    """Rungs on the way of one training."""
    return ladder_for(task.epochs, anew=False, factor=FACTOR)


def anew(task: Task) -> Ladder:
    """A whole shorter training at each rung, as far as the task knows them.

    Raises:
        ValueError: it knows none.
    """
    if not task.short:
        raise ValueError(f"{task.name} has no whole short trainings")
    return Ladder((*task.short, task.epochs), anew=True)


def whole(task: Task) -> Ladder:
    """No rungs."""
    return Ladder((task.epochs,))


class PromoteSubject:
    """A sampler with the promotion of the product.

    Args:
        sampler: makes the sampler from a seed and the rungs.
        ladder: makes the rungs of a task.
    """

    def __init__(self, sampler: MakeSampler, ladder: Callable[[Task], Ladder]) -> None:
        self._make_sampler, self._make_ladder = sampler, ladder

    def begin(self, task: Task, seed: int) -> None:
        self.ladder = self._make_ladder(task)
        self._space, self._seed = task.space, seed
        self._study = optuna.create_study(direction="maximize", sampler=self._make_sampler(seed, self.ladder))
        self._promotion = Promotion(len(self.ladder.rungs), FACTOR)
        self._trials: list[Trial] = []

    def next(self) -> int | Params:
        number = self._promotion.next()
        if number is not None:
            self._go_on(number, self.ladder.rungs[self._promotion.waiting[number]])
            return number
        trial = self._study.ask(self._space)
        self._trials.append(trial)
        return trial.params

    def report(self, number: int, step: int, value: float) -> Verdict:
        self._trials[number].report(value, step)
        if step not in self.ladder.rungs:
            return "go on"
        rung = self.ladder.rungs.index(step)
        self._promotion.arrive(number, rung, value)
        if self._promotion.goes_on(number, rung):
            self._go_on(number, step)
            return "go on"
        self._promotion.wait(number, rung)
        self._trials[number].set_user_attr(PAUSED_AT, step)
        return "pause"

    def finish(self, number: int, value: float) -> None:
        self._trials[number].report(value, self.ladder.last_step)
        self._study.tell(self._trials[number], value)

    def _go_on(self, number: int, step: int) -> None:
        self._promotion.go(number)
        self._trials[number].set_user_attr(PROMOTED_AT, step)
