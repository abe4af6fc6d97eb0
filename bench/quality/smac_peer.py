"""SMAC's multi-fidelity facade (Hyperband and a random forest), by ask and tell."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ConfigSpace import Categorical, Configuration, ConfigurationSpace, Float, Integer
from ConfigSpace.hyperparameters import Hyperparameter
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from smac import MultiFidelityFacade, Scenario
from smac.runhistory.dataclasses import TrialInfo, TrialValue

from quality.curves import Task
from quality.optuna_peers import STARTUP
from quality.staged import Job, StagedSubject

MANY = 10_000
"""Number of trials that no replay reaches."""


class SmacSubject(StagedSubject):
    """SMAC with its defaults, except for the number of random configurations at the beginning."""

    def _open(self, task: Task, seed: int) -> None:
        space = ConfigurationSpace(seed=seed)
        space.add([_parameter(name, axis) for name, axis in task.space.items()])
        self._folder = tempfile.TemporaryDirectory()
        scenario = Scenario(
            space,
            output_directory=Path(self._folder.name),
            deterministic=True,
            n_trials=MANY,
            min_budget=1,
            max_budget=task.epochs,
            seed=seed,
        )
        design = MultiFidelityFacade.get_initial_design(scenario, n_configs=STARTUP)
        self._smac = MultiFidelityFacade(
            scenario, _never_called, initial_design=design, overwrite=True, logging_level=False
        )
        self._infos: dict[tuple[Configuration, int], TrialInfo] = {}

    def _ask(self) -> Job:
        info = self._smac.ask()
        job = Job(info.config, dict(info.config), round(info.budget))
        self._infos[info.config, job.epochs] = info
        return job

    def _tell(self, job: Job, value: float) -> None:
        self._smac.tell(self._infos[job.config, job.epochs], TrialValue(cost=-value), save=False)


def _never_called(config: Configuration, seed: int, budget: float) -> float:
    raise AssertionError("the replay trains")


def _parameter(name: str, axis: BaseDistribution) -> Hyperparameter:
    if isinstance(axis, CategoricalDistribution):
        return Categorical(name, list(axis.choices))
    if isinstance(axis, IntDistribution):
        return Integer(name, (axis.low, axis.high), log=axis.log)
    assert isinstance(axis, FloatDistribution)
    return Float(name, (axis.low, axis.high), log=axis.log)
