"""Successive halving that remembers values at rungs decides as Optuna's does."""

from __future__ import annotations

import math
import random

import optuna
import pytest
from optuna.pruners import SuccessiveHalvingPruner
from optuna.trial import TrialState

from search.policy.halving import RememberingHalving, RungCache
from search.policy.replaced import Reader


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_it_decides_as_optunas(direction: str, factor: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruners = (
        SuccessiveHalvingPruner(min_resource=1, reduction_factor=factor),
        RememberingHalving(min_resource=1, reduction_factor=factor),
    )
    studies = [optuna.create_study(direction=direction, pruner=pruner) for pruner in pruners]
    draw, decided, last = random.Random(0), list[bool](), dict[int, int]()
    for _ in range(400):
        if len(last) < 5:
            last[{study.ask().number for study in studies}.pop()] = 0
        number = draw.choice([*last])
        last[number] += draw.choice([1, 1, 5])  # several rungs at once, too
        value = math.nan if draw.random() < 0.02 else round(draw.random(), 1)
        trials = [optuna.trial.Trial(study, number) for study in studies]
        for trial in trials:
            trial.report(value, last[number])
        theirs, ours = (trial.should_prune() for trial in trials)
        assert ours == theirs
        decided.append(ours)
        if ours or draw.random() < 0.1:
            for study in studies:
                study.tell(number, state=TrialState.PRUNED)
            del last[number]
    attributes = [[trial.system_attrs for trial in study.trials] for study in studies]
    assert attributes[0] == attributes[1]
    assert 20 < sum(decided) < 380


def test_a_value_that_is_taken_back_no_longer_counts() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study, cache = optuna.create_study(), RungCache()
    for value in (0.5, 0.25):
        study._storage.set_trial_system_attr(study.ask()._trial_id, "completed_rung_0", value)
    assert cache.at("completed_rung_0", study.get_trials()) == [0.25, 0.5]
    trials = study.get_trials()
    del trials[0].system_attrs["completed_rung_0"]
    trials[1].system_attrs["completed_rung_1"] = 0.75
    assert cache.at("completed_rung_0", trials) == [0.25]
    assert cache.at("completed_rung_1", trials) == [0.75]
    assert cache.at("completed_rung_1", trials[1:]) == [0.75], "of another study"
    assert cache.at("completed_rung_0", trials[1:]) == [0.25]


def test_a_trial_that_has_not_changed_is_not_read_again() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study, cache = optuna.create_study(), RungCache()
    for value in (0.5, 0.25):
        study._storage.set_trial_system_attr(study.ask()._trial_id, "completed_rung_0", value)
    trials = study.get_trials()
    cache.at("completed_rung_0", trials)
    trials[0].system_attrs["completed_rung_0"] = 0.75  # no storage does this
    assert cache.at("completed_rung_0", trials) == [0.25, 0.5]


def test_trials_that_ended_before_all_unfinished_ones_are_not_looked_at_again() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study, reader = optuna.create_study(), Reader()
    for number in range(6):
        study.ask()
        if number not in (2, 4):
            study.tell(number, 0.5)
    trials = study.get_trials(deepcopy=False)
    assert reader.changed(trials) == [0, 1, 2, 3, 4, 5]
    study.tell(4, 0.5)
    study.ask()
    trials = study.get_trials(deepcopy=False)
    trials[1] = study.trials[1]  # a copy
    assert reader.changed(trials) == [4, 6], "trial 1 was not looked at"
    assert reader.changed(study.trials) is None, "other objects: another study"
    assert reader.changed(study.trials) == [0, 1, 2, 3, 4, 5, 6]
