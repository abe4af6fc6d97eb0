"""NePS' PriorBand, by ask and tell. It gets no prior, because no other subject has one. Without a prior it draws
uniformly and around the best known candidate."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping

import neps
import numpy as np
import torch
from neps.state import Trial
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from quality.curves import Task
from quality.staged import Job, StagedSubject

EPOCHS = "epochs_of_this_stage"
"""Name of the fidelity among the settings."""


class NepsSubject(StagedSubject):
    """PriorBand with its defaults."""

    def _open(self, task: Task, seed: int) -> None:
        logging.getLogger("neps").setLevel(logging.ERROR)
        random.seed(seed)  # NePS draws from the global random states
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        self._space = task.space
        axes: Mapping[str, object] = {name: _axis(axis) for name, axis in task.space.items()}
        epochs = neps.IntegerFidelity(1, task.epochs)
        space = type("Space", (neps.PipelineSpace,), {**axes, EPOCHS: epochs})
        self._neps = neps.AskAndTell(neps.algorithms.priorband(space()))
        self._trials: dict[tuple[str, int], Trial] = {}

    def _ask(self) -> Job:
        trial = self._neps.ask()
        config, _, _ = trial.metadata.id.partition("_")  # CONFIG_RUNG
        job = Job(config, {name: trial.config[name] for name in self._space}, round(trial.config[EPOCHS]))
        self._trials[config, job.epochs] = trial
        return job

    def _tell(self, job: Job, value: float) -> None:
        self._neps.tell(self._trials[str(job.config), job.epochs], -value)


def _axis(axis: BaseDistribution) -> neps.Float | neps.Integer | neps.Categorical:
    if isinstance(axis, CategoricalDistribution):
        return neps.Categorical(tuple(axis.choices))
    if isinstance(axis, IntDistribution):
        return neps.Integer(axis.low, axis.high, log=axis.log)
    assert isinstance(axis, FloatDistribution)
    return neps.Float(axis.low, axis.high, log=axis.log)
