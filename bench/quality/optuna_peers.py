"""Optuna as users call it, in memory: a sampler, a pruner, a value after each epoch."""

from __future__ import annotations

from collections.abc import Callable

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import Trial, TrialState

from quality.curves import Params, Task
from search.policy.ladder import Ladder

STARTUP = 10
"""Number of random candidates before a sampler learns, for all subjects: the default of Optuna and of the product."""


class OptunaSubject:
    """An Optuna study that gets each epoch's value and decides whether to prune.

    Args:
        sampler: makes the sampler from a seed.
        pruner: makes the pruner from the number of epochs.
        cap: largest number of candidates; None: no limit.
    """

    def __init__(
        self, sampler: Callable[[int], BaseSampler], pruner: Callable[[int], BasePruner], cap: int | None = None
    ) -> None:
        self._sampler, self._pruner, self._cap = sampler, pruner, cap

    def begin(self, task: Task, seed: int) -> None:
        self.ladder = Ladder((task.epochs,))
        self._space = task.space
        self._study = optuna.create_study(
            study_name=f"replay-{seed}",  # Hyperband's brackets depend on the name
            direction="maximize",
            sampler=self._sampler(seed),
            pruner=self._pruner(task.epochs),
        )
        self._trials: list[Trial] = []

    def next(self) -> Params | None:
        if len(self._trials) == self._cap:
            return None
        trial = self._study.ask(self._space)
        self._trials.append(trial)
        return trial.params

    def report(self, number: int, step: int, value: float) -> bool:
        trial = self._trials[number]
        trial.report(value, step)
        if not trial.should_prune():
            return True
        self._study.tell(trial, state=TrialState.PRUNED)
        return False

    def finish(self, number: int, value: float) -> None:
        trial = self._trials[number]
        trial.report(value, self.ladder.last_step)
        self._study.tell(trial, value)


def tpe(seed: int) -> BaseSampler:
    """Optuna's default sampler."""
    return TPESampler(seed=seed, n_startup_trials=STARTUP)


def gp(seed: int) -> BaseSampler:
    """Optuna's Gaussian process, with a noisy objective."""
    return GPSampler(seed=seed, n_startup_trials=STARTUP, deterministic_objective=False)


def uniform(seed: int) -> BaseSampler:
    """Random settings."""
    return RandomSampler(seed=seed)


def none(epochs: int) -> BasePruner:
    """Every candidate is trained to its end."""
    return NopPruner()


def median(epochs: int) -> BasePruner:
    """Optuna's default pruner."""
    return MedianPruner()


def halving(epochs: int) -> BasePruner:
    """The product's earlier default pruner."""
    return SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)


def hyperband(epochs: int) -> BasePruner:
    """Hyperband over the whole training."""
    return HyperbandPruner(min_resource=1, max_resource=epochs, reduction_factor=3)
