"""Totals over the trials that have ended. Each trial is added when it ends, so that no trial is read again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from optuna.trial import TrialState

from search.study.trial import TrialView, rank

Key = TypeVar("Key")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """Totals over all trials that have ended; ``plus`` returns the totals with a further trial."""

    best: TrialView | None = None
    """The best feasible completed trial, ranked as in ``search.study.trial.best_of``."""
    states: Mapping[str, int] = field(default_factory=dict)
    """Optuna's state -> number of trials."""
    steps: Mapping[int, int] = field(default_factory=dict)
    """Last step -> number of trials."""
    failed_under: Mapping[str, int] = field(default_factory=dict)
    """``settings_hash`` of the study -> number of trials that failed under it before their first epoch."""
    seconds: float = 0.0
    """Seconds of training."""
    timed_steps: int = 0
    """Steps of the trials whose durations are in ``seconds``."""
    slowest: float = 0.0
    """Seconds per step of the slowest trial."""

    @classmethod
    def of(cls, views: Iterable[TrialView]) -> Ended:
        """The totals over these trials."""
        ended = cls()
        for view in views:
            ended = ended.plus(view)
        return ended

    def plus(self, view: TrialView) -> Ended:
        """The totals with a further trial."""
        under = view.failed_under
        return replace(
            self,
            best=view if self._is_best(view) else self.best,
            states=_one_more(self.states, view.state),
            steps=_one_more(self.steps, view.epochs),
            failed_under=self.failed_under if under is None else _one_more(self.failed_under, under),
            seconds=self.seconds + view.seconds,
            timed_steps=self.timed_steps + (view.epochs if view.seconds else 0),
            slowest=max(self.slowest, view.seconds / view.epochs if view.epochs else 0.0),
        )

    @property
    def number(self) -> int:
        """Number of trials."""
        return sum(self.states.values())

    @property
    def epochs(self) -> int:
        """Steps of all trials."""
        return sum(step * number for step, number in self.steps.items())

    @property
    def step_seconds(self) -> float | None:
        """Average duration of a step; None before one was measured."""
        return self.seconds / self.timed_steps if self.timed_steps else None

    def _is_best(self, view: TrialView) -> bool:
        if view.state != TrialState.COMPLETE.name or not view.feasible or view.repeats is not None:
            return False
        return self.best is None or _rank(view) < _rank(self.best)


def _rank(view: TrialView) -> tuple[float, int, int]:
    return rank(view.value, view.num_params, view.number)


def _one_more(numbers: Mapping[Key, int], key: Key) -> dict[Key, int]:
    return {**numbers, key: numbers.get(key, 0) + 1}
