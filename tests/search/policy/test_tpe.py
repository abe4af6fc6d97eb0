"""TPE that remembers trials suggests what Optuna's TPE suggests."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import optuna
import pytest
from fast import slow_after
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import HyperbandPruner, _filter_study
from optuna.samplers import RandomSampler, TPESampler
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

import search.policy.parzen
import search.policy.tpe
from search.policy.kernels import ERROR, KeptKernels
from search.policy.parzen import KeptMasses, ManyKernels
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
@pytest.mark.parametrize("direction", slow_after(1, ["maximize", "minimize"]))
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


WIDE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "decay": FloatDistribution(1e-3, 0.3, log=True),
    "dropout": FloatDistribution(0.0, 0.5),
    "smoothing": FloatDistribution(0.0, 0.1),
    "layers": IntDistribution(1, 9),
    "width": IntDistribution(1, 64, log=True),
    "batch": CategoricalDistribution([32, 64, 128]),
}


def drawn(axis: BaseDistribution, draw: random.Random) -> Any:
    """A value of an axis; often one of its ends."""
    if isinstance(axis, CategoricalDistribution):
        return draw.choice(axis.choices)
    assert isinstance(axis, FloatDistribution | IntDistribution)
    if draw.random() < 0.1:
        return draw.choice([axis.low, axis.high])
    return draw.randint(axis.low, axis.high) if isinstance(axis, IntDistribution) else draw.uniform(axis.low, axis.high)


def ended(axes: dict[str, BaseDistribution], draw: random.Random) -> FrozenTrial:
    """A trial that has ended, with random settings and a random value."""
    settings = {name: drawn(axis, draw) for name, axis in axes.items()}
    value = round(draw.random(), 2)
    if draw.random() < 0.7:
        steps = dict.fromkeys(range(1, draw.choice([2, 4, 10])), value)
        return create_trial(
            state=TrialState.PRUNED, value=value, params=settings, distributions=axes, intermediate_values=steps
        )
    return create_trial(value=value, params=settings, distributions=axes)


@pytest.mark.parametrize(
    "settings", slow_after(2, [["lr"], ["batch", "layers"], list(WIDE), ["lr", "decay", "dropout", "smoothing"]])
)
def test_with_many_trials_too(settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna's error function is another one for more than 2,000 numbers."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    monkeypatch.setattr(search.policy.parzen, "BLOCK", 2_500)
    axes, draw, known = {name: WIDE[name] for name in settings}, random.Random(0), TrialCache()
    study = optuna.create_study(direction="maximize", sampler=RandomSampler(seed=0))
    study.add_trials([ended(axes, draw) for _ in range(490 if len(settings) > 1 else 1_990)])
    for number in range(20):
        study.add_trial(ended(axes, draw))
        study.ask(axes)
        trial = study.ask()
        frozen, found = study.trials[trial.number], []
        for sampler in (TPESampler(seed=number), RememberingTPE(known, seed=number, startup_trials=10)):
            study._thread_local.cached_all_trials = None
            found.append(sampler.sample_relative(study, frozen, sampler.infer_relative_search_space(study, frozen)))
        assert found[0] == found[1]
        assert found[0].keys() == axes.keys()
        study.tell(trial, state=TrialState.FAIL)


@pytest.mark.parametrize("settings", [list(WIDE), ["lr", "dropout"], ["batch"]])
def test_kept_kernels_have_the_density_of_optunas_up_to_a_constant(settings: list[str]) -> None:
    axes, draw = {name: WIDE[name] for name in settings}, random.Random(0)
    parameters = TPESampler()._parzen_estimator_parameters
    kept, numbers = KeptKernels(axes, parameters), set(range(150))
    values = np.array([[axis.to_internal_repr(drawn(axis, draw)) for axis in axes.values()] for _ in range(400)])
    for at, axis in enumerate(axes.values()):
        if isinstance(axis, FloatDistribution):  # no equal values, and none near the ends
            values[:, at] = [axis.low + (axis.high - axis.low) * draw.uniform(0.2, 0.9) for _ in values]
    equal = 0
    for step in range(60):
        numbers |= set(draw.sample(range(400), 5))
        numbers -= set(draw.sample(sorted(numbers), 4))
        if step >= 40:  # values are often equal, and at an end
            values[draw.choice(sorted(numbers))] = [axis.to_internal_repr(drawn(axis, draw)) for axis in axes.values()]
        chosen = np.array(sorted(numbers))
        theirs = _ParzenEstimator(dict(zip(axes, values[chosen].T, strict=True)), axes, parameters)
        samples = theirs.sample(np.random.RandomState(step), 24)
        known = kept.update(chosen, values[chosen])
        gaps = kept.log_density(samples) - theirs.log_pdf(samples)
        assert not known or np.ptp(gaps[np.isfinite(gaps)]) < ERROR / 100
        assert known or step >= 40
        equal += not known
    assert (equal > 0) == (len(settings) > 1)


def test_samples_that_are_about_equally_good_are_compared_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    exact: list[int] = []
    density = ManyKernels.log_pdf
    monkeypatch.setattr(ManyKernels, "log_pdf", lambda self, samples: (exact.append(1), density(self, samples))[1])
    axes, study = {name: WIDE[name] for name in ("lr", "decay", "batch")}, optuna.create_study()
    study.sampler, found = RandomSampler(seed=0), list[dict[str, Any]]()
    for number in range(60):
        study.tell(study.ask(axes), number % 7)
    for error in (ERROR, 1e9):
        monkeypatch.setattr(search.policy.tpe, "ERROR", error)
        sampler = RememberingTPE(TrialCache(), seed=0, startup_trials=10)
        trial = study.ask()
        frozen = study.trials[trial.number]
        found.append(sampler.sample_relative(study, frozen, sampler.infer_relative_search_space(study, frozen)))
        study.tell(trial, state=TrialState.FAIL)
        assert len(exact) == (error > 1)
    assert found[0] == found[1]


def test_kernels_that_have_not_changed_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    masses = search.policy.parzen._masses
    monkeypatch.setattr(
        search.policy.parzen,
        "_masses",
        lambda means, *ends: (computed.append(len(means) - search.policy.parzen.FEW), masses(means, *ends))[1],
    )
    kept, means = KeptMasses(), np.linspace(0.0, 0.9, 2_500)[:, None]
    ends = np.array([0.0]), np.array([1.0])
    for _ in range(2):
        kept.of(np.arange(2_499), means, np.full_like(means, 0.1), *ends)
    means = np.insert(means, 2_000, 0.123, axis=0)
    kept.of(np.arange(2_500), means, np.full_like(means, 0.1), *ends)
    assert computed == [2_500, 500], "those after the new one have moved to other numbers"
