"""Chooses the trials of an export, and checks that they fit the limit with the members and views of [final]."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.errors import NothingToExport, UsageError
from search.paths import DEFAULT_RUNS, Runs
from search.plan.space import check_exported
from search.plan.width import Fitter
from search.policy.ladder import REPEATS
from search.study.marks import foreign_trials, own_trials
from search.study.trial import exportable, outcome_of, paused_trials, ranked, size_of
from search.words import trials_in_words
from studies import StudySpec
from studies.final import Selection
from trainer.config import ModelSize, TrainConfig
from trainer.data import Dataset


def choose_trials(
    study: optuna.Study, numbers: Sequence[int], spec: StudySpec, runs: Runs = DEFAULT_RUNS
) -> list[FrozenTrial]:
    """The trials to export: those in ``numbers``; if it is empty, the best one that fits with the members and views.

    ``runs`` is named in the commands of messages.

    Raises:
        NothingToExport: no trial is COMPLETE and feasible, or one of ``numbers`` is not.
        UsageError: [final] chooses among the seeds of one trial or reranks one model, but several trials are named.
        LimitError: no trial fits with the members and views of [final], or the named ones do not fit together.
    """
    trials = own_trials(study)
    if numbers:
        feasible, outcomes = ranked(trials, spec.limit), {trial.number: outcome_of(trial) for trial in trials}
        foreign = {trial.number: trial.user_attrs["reason"] for trial in foreign_trials(study)}
        found = [trial for number in numbers for trial in feasible if trial.number == number]
        for number in set(numbers) - {trial.number for trial in found}:
            state = outcomes.get(number)
            why = {None: "not there", "complete": "over the limit"}.get(state, f"{state}, not complete")
            repeated = next((one.user_attrs.get(REPEATS) for one in trials if one.number == number), None)
            if repeated is not None:
                why = f"trial {repeated} again with another seed, and not a candidate"
            if number in foreign:
                why = foreign[number].partition(";")[0]
            name = study.study_name
            lists = runs.command("report", name)
            raise NothingToExport(f"trial {number} of {name!r} is {why}; {lists} lists the others")
        if len(found) > 1:
            if isinstance(spec.final.ensemble, Selection):
                raise UsageError(
                    "final.ensemble = { of, keep } chooses among the seeds of one trial; name one trial with --trial, "
                    "or give final.ensemble as a number"
                )
            if spec.final.rerank is not None:
                raise UsageError("final.rerank is for a single model; name one trial with --trial, or leave it out")
            sizes = [size_of(trial) for trial in found for _ in range(spec.num_members)]
            check_exported(spec, sizes, trials_in_words(numbers))
        return found
    best = ranked(trials, spec.limit)
    if not best:
        paused = f", {number:,} paused" if (number := len(paused_trials(trials))) else ""
        within = " within its limit" if any(trial.state == TrialState.COMPLETE for trial in trials) else ""
        raise NothingToExport(
            f"study {study.study_name!r} has no completed trial{within} yet ({len(trials)} begun{paused}); to go "
            "on, repeat its search launch"
        )
    fitting = exportable(trials, spec)
    if not fitting:
        smallest = min(best, key=lambda trial: (size_of(trial).params, size_of(trial).macs))
        check_exported(
            spec, [size_of(smallest)] * spec.num_members, f"trial {smallest.number}, the smallest that is complete,"
        )
    return fitting[:1]


def check_limit(configs: Sequence[TrainConfig], spec: StudySpec, data: Dataset) -> list[ModelSize]:
    """Check that an export's members fit the limit together. Returns the size of each, for one view of a picture.

    Args:
        configs: the configuration of each trial.
        spec: the study, for its limit and its [final].
        data: the pictures.

    Raises:
        LimitError: the members together are over the limit, which may have changed since the trials were trained.
    """
    fitter = Fitter(data.shape, spec.limit)
    sizes = [size for size in map(fitter.check, configs) for _ in range(spec.num_members)]
    check_exported(spec, sizes)
    return sizes
