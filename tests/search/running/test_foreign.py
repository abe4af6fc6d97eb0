"""Trials that other programs queue, add, copy or finish in the database of a search."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import optuna
import pytest
from fast import slow_after
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from scripted import Bench, ScriptedPool, epoch, spec_of, started, states, trains

from search.errors import StudyChanged
from search.paths import Runs
from search.study.journal import read_journal
from search.study.marks import BEFORE, FOREIGN_REASON, MARK, own_trials
from search.study.replay import replay
from search.study.storage import open_storage, parse_url
from search.study.study import find_study
from search.study.trial import best_of
from search.watch.status import read_snapshot
from search.workers.messages import Assign, FromWorker
from search.workers.pool import Exit
from studies import StudySpec

LR, DROPOUT = FloatDistribution(1e-4, 1e-1, log=True), FloatDistribution(0.0, 0.5)


def raw(bench: Bench) -> optuna.Study:
    """The study as any other program opens it."""
    return optuna.load_study(study_name="scripted", storage=f"sqlite:///{bench.folder}/search.db")


def search(bench: Bench, spec: StudySpec | None = None, pool: ScriptedPool | None = None) -> optuna.Study:
    coordinator = bench.coordinator(pool or ScriptedPool(trains), spec or spec_of(trials=3))
    assert coordinator.run() is True
    assert replay(read_journal(coordinator.journal.path)).identical
    return coordinator.trials.study


def finished(value: float = 0.99, **more: Any) -> optuna.trial.FrozenTrial:
    settings: dict[str, Any] = {"params": {"lr": 0.01, "dropout": 0.1}, "distributions": {"lr": LR, "dropout": DROPOUT}}
    return create_trial(state=TrialState.COMPLETE, value=value, **(settings | more))


# -- queued


@pytest.mark.parametrize(
    ("values", "reason"),
    slow_after(
        4,
        [
            ({"lr": 7.0}, "lr = 7.0 is not among numbers 0.0001 to 0.1, log"),
            ({"lr": -1}, "lr = -1 is not among"),
            ({"lr": float("nan")}, "lr = nan is not among"),
            ({"lr": float("inf")}, "lr = inf is not among"),
            ({"lr": "0.01"}, "lr = '0.01' is not among"),
            ({"lr": None}, "lr = None is not among"),
            ({"lr": True}, "lr = True is not among"),
            ({"dropout": {"a": 1}}, "dropout = {'a': 1} is not among numbers 0 to 0.5"),
            ({"learning_rate": 0.01}, "learning_rate is not sampled in this study, which samples lr, dropout"),
        ],
    ),
)
def test_a_queued_trial_with_values_that_cannot_be_fails_with_the_reason_and_the_search_goes_on(
    bench: Bench, values: dict[str, Any], reason: str
) -> None:
    bench.coordinator(ScriptedPool(trains), spec_of(trials=3))
    for _ in range(2):
        raw(bench).enqueue_trial(values)
    study = search(bench)
    assert states(study) == ["FAIL", "FAIL", "COMPLETE"]
    assert f"impossible values: {reason}" in study.trials[0].user_attrs["reason"]
    assert sum(note.startswith("trial 0 fail") for note in bench.warnings) == 1


@pytest.mark.parametrize("state", slow_after(1, [TrialState.WAITING, TrialState.RUNNING]))
@pytest.mark.parametrize(
    "added",
    [
        {"params": {"lr": 7.0}, "distributions": {"lr": FloatDistribution(0.0001, 10, log=True)}},
        {"params": {"warmth": 1.0}, "distributions": {"warmth": FloatDistribution(0, 1)}},
        {"system_attrs": {"fixed_params": ["lr"]}},
        {"system_attrs": {"fixed_params": 7}},
    ],
)
def test_an_added_trial_with_values_that_cannot_be_fails_too(
    bench: Bench, state: TrialState, added: dict[str, Any]
) -> None:
    bench.coordinator(ScriptedPool(trains), spec_of(trials=3))
    raw(bench).add_trial(create_trial(state=state, **added))
    assert states(search(bench)) == ["FAIL", "COMPLETE", "COMPLETE"]


def test_a_queued_trial_with_values_that_can_be_is_trained_with_them(bench: Bench) -> None:
    bench.coordinator(ScriptedPool(trains))
    raw(bench).enqueue_trial({"lr": 0.05}, user_attrs={"reason": 5, "num_params": "many", "seconds": None})
    raw(bench).add_trial(create_trial(state=TrialState.WAITING, params={"lr": 0.02}, distributions={"lr": LR}))
    study = search(bench)
    assert states(study) == ["COMPLETE"] * 3
    assert [trial.params["lr"] for trial in study.trials[:2]] == [0.05, 0.02]


def test_what_is_queued_and_added_during_a_search_is_repeated_by_a_replay(bench: Bench) -> None:
    def meddle(said: Any) -> None:
        if said.result.epoch == 2 and said.trial in (1, 3):
            other = raw(bench)
            other.enqueue_trial({"lr": 0.05})
            other.enqueue_trial({"lr": 0.05})
            other.add_trial(finished())
            other.enqueue_trial({"lr": 9.0})

    study = search(bench, spec_of(trials=11), ScriptedPool(trains, 2, on_epoch=meddle))
    assert len([trial for trial in own_trials(study) if trial.state == TrialState.COMPLETE]) == 9
    assert [trial.params.get("lr") for trial in study.trials].count(0.05) == 4
    assert sum(note.endswith(FOREIGN_REASON) for note in bench.warnings) == 2


def test_a_trial_that_another_program_has_begun_and_left_is_trained_from_its_first_epoch(bench: Bench) -> None:
    bench.coordinator(ScriptedPool(trains))
    raw(bench).add_trial(
        create_trial(
            state=TrialState.RUNNING,
            params={"lr": 0.02, "dropout": 0.1},
            distributions={"lr": LR, "dropout": DROPOUT},
            intermediate_values={1: 0.97, 900: 0.98},
        )
    )
    study = search(bench)
    assert states(study) == ["COMPLETE"] * 3
    assert study.trials[0].params == {"lr": 0.02, "dropout": 0.1}
    assert study.trials[0].intermediate_values == {1: 0.02, 2: 0.04, 3: 0.06}


# -- finished


def told_by_another(bench: Bench) -> Callable[[Any], None]:
    """Another program tells the end of trial 1 while it is trained."""

    def meddle(said: Any) -> None:
        if (said.trial, said.result.epoch) == (1, 2):
            raw(bench).tell(1, 0.99)

    return meddle


def test_a_finished_trial_of_another_program_is_named_once_and_never_the_best(bench: Bench) -> None:
    search(bench)
    other = raw(bench)
    other.add_trials([finished(), finished(params={}, distributions={}), create_trial(state=TrialState.PRUNED)])
    own = other.trials[2]
    other.add_trial(own)  # with all its attributes

    study = search(bench, spec_of(trials=4))
    (line,) = [note for note in bench.warnings if FOREIGN_REASON in note]
    assert line == f"trial 3, 4, 5, 6: {FOREIGN_REASON}"
    assert states(study) == [*["COMPLETE"] * 3, *["FAIL"] * 4, "COMPLETE"]
    assert [trial.number for trial in own_trials(study)] == [0, 1, 2, 7], "the budget is for the search's own"
    bench.warnings.clear()
    search(bench, spec_of(trials=5))
    assert not bench.warnings

    url = parse_url(f"sqlite:///{bench.folder}/search.db")
    found, spec = find_study(open_storage(url), "scripted")
    best = best_of(found.get_trials(), spec.limit)
    assert best is not None
    assert best.number in (0, 1, 2, 7, 8)
    snapshot, _ = read_snapshot("scripted", url, Runs(bench.folder))
    assert snapshot.best is not None
    assert snapshot.best.number == best.number
    assert len(snapshot.finished) == 5


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "model"])
@pytest.mark.parametrize("pruner", slow_after(1, ["hyperband", "median", "successive_halving"]))
def test_a_foreign_trial_teaches_neither_sampler_nor_pruner(bench: Bench, sampler: str, pruner: str) -> None:
    """GPSampler would raise at each ask, because a foreign trial lacks the constraints."""
    spec = spec_of(trials=5, startup_trials=1, sampler=sampler, pruner=pruner)
    bench.coordinator(ScriptedPool(trains), spec)
    raw(bench).add_trials([finished(), finished(0.98, intermediate_values={1: 1.0, 2: 1.0, 3: 1.0})])
    study = search(bench, spec)
    assert [trial.number for trial in own_trials(study)] == [2, 3, 4, 5, 6]
    assert {trial.state for trial in study.get_trials()[:2]} == {TrialState.FAIL}, "as all of them see the two"


def test_a_trial_that_another_program_finishes_while_it_is_trained_is_let_go(bench: Bench) -> None:
    study = search(bench, spec_of(trials=3), ScriptedPool(trains, 2, on_epoch=told_by_another(bench)))
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert [note for note in bench.warnings if FOREIGN_REASON in note] == [f"trial 1: {FOREIGN_REASON}"]


@pytest.mark.parametrize("step", ["started", "final"])
def test_it_is_let_go_at_whatever_message_that_is_found(bench: Bench, step: str) -> None:
    def spoilt(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
        if assignment.trial != 0:
            yield from trains(assignment, times)
            return
        if step == "started":
            raw(bench).tell(0, 0.99)
        yield started(0)
        for number in (1, 2, 3):
            if step == "final" and number == 3:
                raw(bench).tell(0, state=TrialState.FAIL)
            yield epoch(0, number, 0.5)

    study = search(bench, spec_of(trials=2), ScriptedPool(spoilt))
    assert states(study) == ["FAIL", "COMPLETE", "COMPLETE"]


def test_a_trial_copied_from_another_study_of_ours_is_not_this_ones(bench: Bench) -> None:
    search(bench)
    elsewhere = Bench(bench.folder / "elsewhere")
    search(elsewhere)
    raw(elsewhere).add_trials(raw(bench).trials)
    assert len(own_trials(search(elsewhere, spec_of(trials=4)))) == 4


def test_a_foreign_trial_that_bars_an_axis_is_said_with_the_cure(bench: Bench) -> None:
    bench.coordinator(ScriptedPool(trains))
    axis = CategoricalDistribution(["slow", "fast"])
    raw(bench).add_trial(finished(params={"lr": "slow"}, distributions={"lr": axis}))
    with pytest.raises(StudyChanged, match=r"has trials with lr from the choices .* give the study another name"):
        bench.coordinator(ScriptedPool(trains)).run()


# -- studies of before


def test_a_study_of_before_is_marked_once_and_keeps_its_trials(bench: Bench) -> None:
    search(bench)
    other = raw(bench)
    as_before(bench)
    other.add_trial(finished())  # no worker has counted it
    url = parse_url(f"sqlite:///{bench.folder}/search.db")
    assert [trial.number for trial in own_trials(find_study(open_storage(url), "scripted")[0])] == [0, 1, 2]

    study = search(bench, spec_of(trials=4))
    assert [trial.number for trial in own_trials(study)] == [0, 1, 2, 4]
    assert raw(bench).user_attrs[BEFORE] == {"trials": 4, "without": [3]}
    other.add_trial(finished(user_attrs={"num_params": 900}))
    assert [trial.number for trial in own_trials(search(bench, spec_of(trials=5)))] == [0, 1, 2, 4, 6]


def as_before(bench: Bench) -> None:
    """Take the marks off, as a version before had none."""
    with closing(sqlite3.connect(bench.folder / "search.db")) as database, database:
        database.execute("DELETE FROM trial_user_attributes WHERE key = ?", (MARK,))
        database.execute("DELETE FROM study_user_attributes WHERE key = ?", (BEFORE,))
