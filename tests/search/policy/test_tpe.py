"""TPE that remembers trials suggests what Optuna's TPE suggests."""

from __future__ import annotations

import math
import random
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import HyperbandPruner, _filter_study
from optuna.samplers import TPESampler
from optuna.trial import Trial, TrialState

from search.policy.tpe import RememberingTPE, TrialCache

SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "layers": IntDistribution(1, 9),
    "kind": CategoricalDistribution(["a", None, True]),
    "fixed": FloatDistribution(0.5, 0.5),
}


def goes_on(study: optuna.Study, running: list[Trial], draw: random.Random) -> None:
    """One of the running trials reports, ends, or both; values are often equal."""
    trial = running.pop(draw.randrange(len(running)))
    match draw.randrange(6):
        case 0:
            study.tell(trial, round(draw.random(), 1))
        case 1:
            trial.set_constraint("params", round(draw.uniform(-1, 2), 1))
            study.tell(trial, draw.random())
        case 2:
            study.tell(trial, state=TrialState.FAIL)
        case 3:
            study.tell(trial, state=TrialState.PRUNED)
        case _:
            step = max(study.trials[trial.number].intermediate_values, default=0) + 1
            trial.report(math.nan if draw.random() < 0.05 else round(draw.random(), 1), step)
            running.append(trial)


def suggested(study: optuna.Study, sampler: TPESampler, trial: Trial) -> tuple[Any, ...]:
    """What a sampler suggests for a trial without settings: its space, its settings, and those drawn one by one."""
    study._thread_local.cached_all_trials = None
    frozen = study.trials[trial.number]
    seen = _filter_study(study, frozen)  # with brackets, the trials of the same one
    space = sampler.infer_relative_search_space(seen, frozen)
    axes = {name: axis for name, axis in SPACE.items() if not axis.single()}
    alone = {name: sampler.sample_independent(seen, frozen, name, axis) for name, axis in axes.items()}
    return space, sampler.sample_relative(seen, frozen, space), alone


@pytest.mark.parametrize("brackets", [False, True])
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_it_suggests_bit_for_bit_what_optunas_suggests(direction: str, brackets: bool) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = HyperbandPruner(min_resource=1, max_resource=9) if brackets else None
    study, draw = optuna.create_study(direction=direction, pruner=pruner), random.Random(0)
    known, running, space, learned = TrialCache(), list[Trial](), dict(SPACE), 0
    for number in range(80):
        if number == 50:  # an accepted change of the study file: a further setting, and another axis
            space |= {"dropout": FloatDistribution(0.0, 0.5), "layers": IntDistribution(1, 20)}
        study.sampler = TPESampler(seed=number)
        running.append(study.ask(space))
        for _ in range(3):
            if running:
                goes_on(study, running, draw)
        trial = study.ask()
        theirs = suggested(study, TPESampler(seed=number, n_startup_trials=5), trial)
        assert suggested(study, RememberingTPE(known, seed=number, startup_trials=5), trial) == theirs
        learned += bool(theirs[1])
        study.tell(trial, state=TrialState.FAIL)
    assert learned > 30


def test_a_trial_that_has_not_changed_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study, known, read = optuna.create_study(), TrialCache(), list[int]()
    reads = TrialCache._read
    monkeypatch.setattr(
        TrialCache, "_read", lambda self, trial, sign: (read.append(trial.number), reads(self, trial, sign))[1]
    )
    for number in range(12):
        study.sampler = RememberingTPE(known, seed=number, startup_trials=5)
        study.tell(study.ask(SPACE), number)
    assert read == [*range(11)]
