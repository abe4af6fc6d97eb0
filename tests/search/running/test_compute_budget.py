"""A search ends by compute, with workers that play a script: real Optuna, a real database, no training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from optuna.trial import TrialState
from scripted import EPOCHS, Bench, ScriptedPool, epoch, failed, spec_of, started, states, trains

from search.errors import TrainingFailed
from search.study.budget import Spent
from search.study.journal import read_journal
from search.study.marks import own_trials
from search.study.progress import Snapshot
from search.study.replay import replay
from search.workers.messages import Assign, FromWorker
from search.workers.pool import Exit
from studies import StudySpec


def compute(trainings: float, **search: Any) -> StudySpec:
    """A study with a budget of compute alone, unless ``search`` names trials too."""
    spec = spec_of(**search)
    trials = search.get("trials")
    return spec.model_copy(update={"search": spec.search.model_copy(update={"trainings": trainings, "trials": trials})})


@pytest.mark.parametrize(("workers", "trainings"), [(1, 4), (2, 4), (3, 2.5), (20, 4), (2, 0.5)])
def test_trainings_to_the_end_spend_exactly_the_budget_rounded_up(bench: Bench, workers: int, trainings: float) -> None:
    pool = ScriptedPool(trains, workers)
    coordinator = bench.coordinator(pool, compute(trainings))
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["COMPLETE"] * -int(-trainings // 1)


@pytest.mark.parametrize("workers", [1, 3])
def test_stopped_candidates_leave_their_compute_to_others(bench: Bench, workers: int) -> None:
    def worse_and_worse(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
        yield started(assignment.trial)
        for number in range(1, EPOCHS + 1):
            yield epoch(assignment.trial, number, number / (5 + assignment.trial))

    pool = ScriptedPool(worse_and_worse, workers)
    spec = compute(4, pruner="successive_halving", min_epochs=1)
    seen: list[Snapshot] = []
    coordinator = bench.coordinator(pool, spec, watch=seen.append)
    assert coordinator.run() is True
    trials = coordinator.trials.study.get_trials()
    spent = Spent.of(trials, spec)
    assert coordinator.trials.spent == seen[-1].spent == spent
    assert 4 <= spent.trainings < 5
    assert spent.begun > 4, "most were stopped at the first rung"
    assert spent.complete >= 1
    assert all(trial.state.is_finished() for trial in trials)
    assert seen[-1].is_spent
    assert any("4 full trainings spent; best" in note for note in bench.notes)

    more = bench.coordinator(ScriptedPool(worse_and_worse, workers), compute(6, pruner="successive_halving"))
    assert more.run() is True
    assert 6 <= Spent.of(own_trials(more.trials.study), spec).trainings < 7


def test_trials_cap_the_candidates_of_a_budget_of_compute(bench: Bench) -> None:
    coordinator = bench.coordinator(ScriptedPool(trains, 2), compute(9, trials=2))
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["COMPLETE"] * 2


def test_a_search_of_which_nothing_completes_ends_too(bench: Bench) -> None:
    def too_large(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
        yield failed(assignment.trial, "memory", "out of memory")

    coordinator = bench.coordinator(ScriptedPool(too_large), compute(2))
    assert coordinator.run() is True
    trials = coordinator.trials.study.get_trials()
    assert {trial.state for trial in trials} == {TrialState.PRUNED}
    assert len(trials) == 2 * EPOCHS, "each counts as an epoch, since none has cost one"


def test_what_was_left_unfinished_counts_and_goes_on_first(bench: Bench) -> None:
    spec = compute(2)
    pool = ScriptedPool(trains, on_epoch=lambda message: first.stop() if message.result.epoch == 2 else None)
    first = bench.coordinator(pool, spec)
    assert first.run() is False
    assert first.trials.spent == Spent(epochs=2, trainings=2 / 3, begun=1)
    again = ScriptedPool(trains)
    coordinator = bench.coordinator(again, spec)
    assert coordinator.run() is True
    assert again.trials == [0, 1]
    assert coordinator.trials.spent.trainings == 2


@pytest.mark.parametrize("budget", [spec_of(trials=3), compute(1.0)], ids=["trials", "trainings"])
def test_trials_that_failed_before_an_epoch_do_not_count_once_the_study_file_has_changed(
    bench: Bench, budget: StudySpec
) -> None:
    def fails(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
        yield failed(assignment.trial, "user", "ConfigError: no such transform")

    with pytest.raises(TrainingFailed):
        bench.coordinator(ScriptedPool(fails), budget).run()
    again = bench.coordinator(ScriptedPool(fails), budget)
    assert (again.trials.spent.excused, again.trials.budget.candidates_left(Spent())) == (0, 3)
    more = budget.model_copy(update={"search": budget.search.model_copy(update={"hours": 9.0})})
    again = bench.coordinator(ScriptedPool(fails), more)
    assert again.trials.spent.excused == 0, "a larger budget mends no setting"

    bench.accept_changes = True
    mended = budget.model_copy(update={"train": budget.train.model_copy(update={"label_smoothing": 0.05})})
    coordinator = bench.coordinator(ScriptedPool(trains), mended)
    assert coordinator.run() is True
    trials, spent = own_trials(coordinator.trials.study), coordinator.trials.spent
    good = 3 if budget.search.trainings is None else 1
    assert [trial.state.name for trial in trials] == ["FAIL", "FAIL", *["COMPLETE"] * good]
    assert spent == Spent.of(trials, mended)
    assert (spent.begun, spent.excused) == (2 + good, 2)
    assert coordinator.trials.budget.describe(spent).endswith(", 2 failed before the study file changed")
    assert Spent.of(trials, budget).excused == 0
    answer = replay(read_journal(coordinator.trials.journal.path))
    assert answer.identical, answer


def test_a_trial_that_failed_after_an_epoch_counts_whatever_has_changed(bench: Bench) -> None:
    def fails_later(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
        yield started(assignment.trial)
        yield epoch(assignment.trial, 1, 0.5)
        yield failed(assignment.trial, "user", f"ConfigError: {assignment.trial}")

    spec = spec_of(trials=2)
    assert bench.coordinator(ScriptedPool(fails_later), spec).run() is True
    bench.accept_changes = True
    changed = spec.model_copy(update={"train": spec.train.model_copy(update={"label_smoothing": 0.05})})
    coordinator = bench.coordinator(ScriptedPool(trains), changed)
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["FAIL", "FAIL"]
