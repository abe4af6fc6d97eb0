"""Builds the sampler and the pruner; asks for trials and resumes them, partly with private functions of Optuna."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import assert_never

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler
from optuna.storages._rdb import models
from optuna.study._tell import _tell_with_warning
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import delete

from search.policy.halving import RUNG, RememberingHalving
from search.policy.ladder import PAUSED_AT, PROMOTED_AT, Ladder, ladder_for
from search.policy.model import ModelSampler
from search.policy.tpe import RememberingTPE, TrialCache
from search.study.memory import below_optuna, one_transaction, trial_of
from search.words import short_change, short_json
from studies import StudySpec
from studies.axes import Value, numbers_of
from trainer.values import Json

QUEUED = "fixed_params"
"""Name of the attribute in which Optuna keeps the values of a trial that was queued."""


def build_sampler(spec: StudySpec, trial: int) -> BaseSampler:
    """The study's sampler, seeded for one trial: Optuna stores no random state, so a new process would repeat
    values."""
    search, seed = spec.search, seed_of(spec.seed, trial, purpose=1)
    match search.sampler:
        case "tpe":
            return RememberingTPE(_trial_cache(), seed=seed, startup_trials=search.startup_trials)
        case "random":
            return RandomSampler(seed=seed)
        case "gp":
            return GPSampler(seed=seed, n_startup_trials=search.startup_trials)
        case "model":  # seeded by the study alone; one object for all trials, because it remembers them
            return _model_sampler(seed_of(spec.seed, 0, purpose=1), build_ladder(spec), search.startup_trials)
        case _:
            assert_never(search.sampler)


@lru_cache(maxsize=1)
def _trial_cache() -> TrialCache:
    return TrialCache()


@lru_cache(maxsize=1)
def _model_sampler(seed: int, ladder: Ladder, startup_trials: int) -> ModelSampler:
    return ModelSampler(seed=seed, ladder=ladder, startup_trials=startup_trials)


def build_ladder(spec: StudySpec) -> Ladder:
    """The rungs at which the study's candidates are compared; without rungs if its pruner does not pause trials."""
    if spec.search.pruner != "promote":
        return Ladder((spec.num_steps,))
    return ladder_for(
        spec.num_steps,
        anew=spec.decays_as_a_whole and not spec.data.folds,
        factor=spec.search.reduction_factor,
        first=spec.search.min_epochs,
        warmup=0 if spec.data.folds else max(numbers_of("warmup_epochs", spec.train, spec.space)),
    )


def first_rung(spec: StudySpec) -> int:
    """The first step after which a candidate can be paused or pruned; the last step if none ever is."""
    match spec.search.pruner:
        case "promote":
            return build_ladder(spec).steps[0]
        case "none":
            return spec.num_steps
        case _:
            return spec.search.min_epochs or 1


def build_pruner(spec: StudySpec) -> BasePruner:
    """The study's pruner. For "promote" it is one that never prunes; ``search.policy.promotion`` decides instead."""
    search, min_epochs = spec.search, spec.search.min_epochs or 1
    match search.pruner:
        case "successive_halving":
            return RememberingHalving(min_resource=min_epochs, reduction_factor=search.reduction_factor)
        case "hyperband":
            pruner = HyperbandPruner(
                min_resource=min_epochs,
                max_resource=spec.num_steps,
                reduction_factor=search.reduction_factor,
            )
            # Hyperband shows a sampler only the trials of one bracket, and makes the brackets when it is first asked.
            # In a search, the sampler may be asked before that, and in a replay after it. The brackets are made now,
            # so that the sampler suggests the same in both.
            pruner._try_initialization(None)  # type: ignore[arg-type]  # needs no study, because max_resource is known
            return pruner
        case "median":
            return MedianPruner(n_startup_trials=search.startup_trials, n_warmup_steps=min_epochs - 1)
        case "none" | "promote":
            return NopPruner()
        case _:
            assert_never(search.pruner)


def seed_of(study_seed: int, trial: int, purpose: int = 0) -> int:
    """A 32-bit seed from the study's seed and a trial's number.

    Each purpose has its own seeds: 0 a training of the search, 1 the sampler, 3 and up trainings for an export.
    """
    return int(np.random.SeedSequence((study_seed, trial, purpose)).generate_state(1)[0])


def new_trial(study: optuna.Study) -> FrozenTrial:
    """The next trial, RUNNING and without sampled settings: the first WAITING trial, or a new trial."""
    study.sampler = RandomSampler()  # draws nothing here, because no settings are asked for
    return trial_of(study, study.ask().number)


def resume_trial(
    study: optuna.Study, spec: StudySpec, frozen: FrozenTrial, space: dict[str, BaseDistribution]
) -> Trial:
    """Go on with a RUNNING trial. Missing settings get the values that ``study.ask`` would have drawn.

    The sampler is seeded by the trial's number. If a setting was stored before a kill, it is drawn a second time and
    the second value is discarded, so that the settings after it get the same random numbers.
    """
    if frozen.params.keys() >= space.keys():  # it needs no sampler, and some samplers are slow
        for name, distribution in space.items():
            check_distribution_compatibility(frozen.distributions[name], distribution)
        study.sampler = RandomSampler()
        return Trial(study, frozen._trial_id)  # Optuna has no public way to resume a trial
    study.sampler = build_sampler(spec, frozen.number)
    trial = Trial(study, frozen._trial_id)
    stored = dict(frozen.params)
    with one_transaction(study):
        for name, distribution in space.items():
            # ``drawn``: the value was drawn together with others, or queued, so it needs no random number of its own.
            drawn = name in trial.relative_params or name in frozen.system_attrs.get(QUEUED, {})
            if name in stored and not drawn and not distribution.single():
                study.sampler.sample_independent(study, frozen, name, distribution)
            trial._suggest(name, distribution)
    return trial


def set_attributes(study: optuna.Study, trial: FrozenTrial | Trial, attributes: Mapping[str, Json]) -> None:
    """Store attributes of an unfinished trial without a ``Trial``, because making a ``Trial`` asks the sampler."""
    with one_transaction(study):
        for name, value in attributes.items():
            study._storage.set_trial_user_attr(trial._trial_id, name, value)


def report_step(study: optuna.Study, trial: Trial, step: int, value: float) -> None:
    """Report a value. ``Trial.report`` would ignore a value that it has kept and that the database has not stored."""
    study._storage.set_trial_intermediate_value(trial._trial_id, step, float(value))
    trial._cached_frozen_trial.intermediate_values[step] = float(value)


def end_trial(study: optuna.Study, trial: Trial, value: float | None, state: TrialState) -> None:
    """As Optuna's ``study.tell``, which also copies the whole trial to return it."""
    _tell_with_warning(study, trial, value, state)


def reset_foreign(study: optuna.Study, frozen: FrozenTrial, attributes: Collection[str]) -> FrozenTrial:
    """Reset an unfinished trial of another program: only its settings stay, queued for the search.

    Args:
        study: the study, owned.
        frozen: the trial; its settings are possible.
        attributes: names of the trial attributes that the search itself sets; they are removed.
    """
    if frozen.intermediate_values:
        begin_anew(study, frozen)
    if frozen.user_attrs.keys() & set(attributes):
        model = models.TrialUserAttributeModel
        with below_optuna(study, frozen) as connection:
            connection.execute(delete(model).where(model.trial_id == frozen._trial_id, model.key.in_(attributes)))
    if frozen.params:
        queued = frozen.system_attrs.get(QUEUED, {}) | frozen.params
        study._storage.set_trial_system_attr(frozen._trial_id, QUEUED, queued)
    return trial_of(study, frozen.number)


def why_impossible(frozen: FrozenTrial, space: dict[str, BaseDistribution]) -> str | None:
    """The reason why a trial whose settings another program has chosen cannot be trained; None if it can.

    Optuna itself accepts values outside a range, with a warning, and ignores settings that are not sampled.
    """
    queued = frozen.system_attrs.get(QUEUED, {})
    if not isinstance(queued, dict):
        return f"{queued!r} names no settings"
    for name, value in (queued | frozen.params).items():
        if name not in space:
            return f"{name} is not sampled in this study, which samples {', '.join(space)}"
        axis = space[name]
        stored = frozen.distributions.get(name, axis)
        try:
            check_distribution_compatibility(stored, axis)
            allowed = admits(axis, value)
        except ValueError:
            allowed = False
        if not allowed:
            return f"{name} = {value!r} is not among {described(axis)}"
    return None


def admits(axis: BaseDistribution | None, value: Value | None) -> bool:
    """Whether a value is possible on an axis; False without an axis."""
    if axis is None:
        return False
    number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        is_of_its_kind = number or isinstance(axis, CategoricalDistribution)
        return is_of_its_kind and bool(axis._contains(axis.to_internal_repr(value)))
    except (TypeError, ValueError):
        return False


def described(axis: BaseDistribution) -> str:
    """The values of an axis in words."""
    if isinstance(axis, CategoricalDistribution):
        return f"the choices {short_json(list(axis.choices))}"
    assert isinstance(axis, FloatDistribution | IntDistribution)
    kind = "whole numbers" if isinstance(axis, IntDistribution) else "numbers"
    return f"{kind} {axis.low:g} to {axis.high:g}{', log' if axis.log else ''}"


def described_change(before: BaseDistribution, after: BaseDistribution) -> tuple[str, str]:
    """The values of two axes in words; for long lists of choices, only their differences."""
    if isinstance(before, CategoricalDistribution) and isinstance(after, CategoricalDistribution):
        was, now = short_change(list(before.choices), list(after.choices))
        return f"the choices {was}", f"the choices {now}"
    return described(before), described(after)


def undo_prune_query(study: optuna.Study, frozen: FrozenTrial) -> None:
    """Reset the pruner to its state before it was asked about a trial's last step.

    Successive halving stores the rung on the trial before it answers. If it were asked a second time, it would begin
    at the next rung, and would not prune a trial that it has pruned.
    """
    pruner = study.pruner
    if frozen.last_step is None:
        return
    if isinstance(pruner, HyperbandPruner):
        pruner = pruner._pruners[pruner._get_bracket_id(study, frozen)]
    if not isinstance(pruner, SuccessiveHalvingPruner):
        return
    assert pruner._min_resource is not None
    rung, first = 0, pruner._min_resource * pruner._reduction_factor**pruner._min_early_stopping_rate
    while first * pruner._reduction_factor**rung < frozen.last_step:
        rung += 1
    key = f"{RUNG}{rung}"
    if key in frozen.system_attrs:
        model = models.TrialSystemAttributeModel
        with below_optuna(study, frozen) as connection:
            connection.execute(delete(model).where(model.trial_id == frozen._trial_id, model.key == key))


def begin_anew(study: optuna.Study, frozen: FrozenTrial) -> None:
    """Reset a RUNNING trial to its state before the first epoch; its settings stay."""
    values, attributes = models.TrialIntermediateValueModel, models.TrialSystemAttributeModel
    rungs = attributes.key.startswith(RUNG, autoescape=True)
    marks = models.TrialUserAttributeModel
    paused = marks.key.in_((PAUSED_AT, PROMOTED_AT, "seconds"))
    with below_optuna(study, frozen) as connection:
        connection.execute(delete(values).where(values.trial_id == frozen._trial_id))
        connection.execute(delete(marks).where(marks.trial_id == frozen._trial_id, paused))
        connection.execute(delete(attributes).where(attributes.trial_id == frozen._trial_id, rungs))
