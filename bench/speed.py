"""How fast the machine is at the moment, so that CPU times of different days and machines can be compared."""

from __future__ import annotations

import random
import statistics
import time

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution

__all__ = ["FINISHED", "Yardstick"]

FINISHED = 1_000
"""Number of finished trials of the yardstick's study."""

SPACE: dict[str, BaseDistribution] = {
    "label_smoothing": FloatDistribution(0, 0.3),
    "weight_decay": FloatDistribution(1e-4, 1, log=True),
    "lr": FloatDistribution(1e-4, 1, log=True),
    "dropout": FloatDistribution(0, 0.7),
    "width": FloatDistribution(0.5, 2),
}


class Yardstick:
    """Asks of Optuna's own TPE, in a study in memory with ``FINISHED`` random trials and five settings."""

    def __init__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        drawn = random.Random(0)
        self._study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
        sampler = optuna.samplers.RandomSampler(seed=0)
        drawing = optuna.create_study(sampler=sampler)
        settings = [drawing.ask(SPACE).params for _ in range(FINISHED)]
        create = optuna.trial.create_trial
        self._study.add_trials([create(params=one, distributions=SPACE, value=drawn.random()) for one in settings])

    def milliseconds(self, asks: int = 9) -> float:
        """Median CPU time of an ask, in ms. Each ask leaves one more unfinished trial, which TPE does not look at."""
        spent = []
        for _ in range(asks):
            begun = time.process_time()
            self._study.ask(SPACE)
            spent.append(time.process_time() - begun)
        return 1_000 * statistics.median(spent)
