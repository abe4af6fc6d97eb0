"""The product's own sampler, rungs and promotion, on a study in memory."""

from __future__ import annotations

from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import Trial

from quality.curves import Params, Task
from search.policy.ladder import PAUSED_AT, PROMOTED_AT, Ladder, ladder_for
from search.policy.promotion import Promotion

FACTOR = 3
"""``reduction_factor`` of a new study."""

WARMUP = 1
"""Epochs of warm-up of our own trainer's recorded trainings; of the other tables the warm-up is not known."""

MakeSampler = Callable[[int, Ladder], BaseSampler]


def truncated(task: Task) -> Ladder:
    """Rungs on the way of the full training."""
    warmup = WARMUP if task.kind == "trainings" else 0
    return ladder_for(task.epochs, anew=False, factor=FACTOR, warmup=warmup)


def anew(task: Task) -> Ladder:
    """A short training for each rung, of the lengths that the task has.

    Raises:
        ValueError: it has none.
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
        cap: largest number of candidates; None: no limit.
    """

    def __init__(self, sampler: MakeSampler, ladder: Callable[[Task], Ladder], cap: int | None = None) -> None:
        self._make_sampler, self._make_ladder, self._cap = sampler, ladder, cap

    def begin(self, task: Task, seed: int) -> None:
        self.ladder = self._make_ladder(task)
        self._space = task.space
        self._study = optuna.create_study(direction="maximize", sampler=self._make_sampler(seed, self.ladder))
        self._promotion = Promotion(self.ladder, FACTOR)
        self._trials: list[Trial] = []

    def next(self) -> int | Params | None:
        capped = len(self._trials) == self._cap
        number = self._promotion.next(at_least=1 if capped else 0)
        if number is not None:
            rung = self._promotion.paused[number]
            self._promotion.promote(number)
            self._trials[number].set_user_attr(PROMOTED_AT, self.ladder.rungs[rung])
            return number
        if capped:
            return None
        trial = self._study.ask(self._space)
        self._trials.append(trial)
        return trial.params

    def report(self, number: int, step: int, value: float) -> bool:
        trial = self._trials[number]
        trial.report(value, step)
        if step not in self.ladder.rungs:
            return True
        if self._promotion.arrive(number, step, value):
            trial.set_user_attr(PROMOTED_AT, step)
            return True
        self._promotion.pause(number, step)
        trial.set_user_attr(PAUSED_AT, step)
        return False

    def finish(self, number: int, value: float) -> None:
        self._trials[number].report(value, self.ladder.last_step)
        self._study.tell(self._trials[number], value)
        self._promotion.complete(number, value)
