"""Syne Tune's asynchronous schedulers, called as its tuner calls them: a result after each epoch."""

from __future__ import annotations

import datetime
import logging

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from syne_tune.backend.trial_status import Trial
from syne_tune.config_space import Domain, choice, lograndint, loguniform, randint, uniform
from syne_tune.optimizer import baselines

from quality.curves import Params, Task
from search.policy.ladder import Ladder


class SyneSubject:
    """A scheduler of ``syne_tune.optimizer.baselines``, with its defaults.

    Args:
        scheduler: the name of its class.
    """

    def __init__(self, scheduler: str) -> None:
        self._class = getattr(baselines, scheduler)

    def begin(self, task: Task, seed: int) -> None:
        logging.getLogger("syne_tune").setLevel(logging.ERROR)
        self.ladder = Ladder((task.epochs,))
        self._names = list(task.space)
        np.random.seed(seed)  # BOHB draws from numpy's global state, too
        self._scheduler = self._class(
            config_space={name: _domain(axis) for name, axis in task.space.items()},
            metric="accuracy",
            do_minimize=False,
            time_attr="epoch",
            max_t=task.epochs,
            random_seed=seed,
        )
        self._trials: list[Trial] = []

    def next(self) -> Params:
        config = self._scheduler.suggest().config
        trial = Trial(len(self._trials), config, datetime.datetime.now())
        self._scheduler.on_trial_add(trial)
        self._trials.append(trial)
        return {name: config[name] for name in self._names}

    def report(self, number: int, step: int, value: float) -> bool:
        trial = self._trials[number]
        if self._scheduler.on_trial_result(trial, {"accuracy": value, "epoch": step}) == "CONTINUE":
            return True
        self._scheduler.on_trial_remove(trial)
        return False

    def finish(self, number: int, value: float) -> None:
        self._scheduler.on_trial_complete(self._trials[number], {"accuracy": value, "epoch": self.ladder.last_step})


def _domain(axis: BaseDistribution) -> Domain:
    if isinstance(axis, CategoricalDistribution):
        return choice(list(axis.choices))
    if isinstance(axis, IntDistribution):
        return lograndint(axis.low, axis.high) if axis.log else randint(axis.low, axis.high)
    assert isinstance(axis, FloatDistribution)
    return loguniform(axis.low, axis.high) if axis.log else uniform(axis.low, axis.high)
