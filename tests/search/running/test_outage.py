"""What the coordinator does when its database goes away, with workers that play a script."""

from __future__ import annotations

import itertools
import math
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from scripted import EPOCHS, Bench, ScriptedPool, epoch, failed, spec_of, started, states, trains
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

import search.running.trials
import search.study.outage
import search.study.storage
from search.errors import StorageError
from search.study.events import Ask, Started, Tell
from search.study.journal import read_journal
from search.study.progress import Snapshot
from search.study.replay import replay
from search.study.sampling import end_trial
from search.study.storage import SQLITE_TURN_SECONDS, backend_of, parse_url, storage_errors
from search.workers.messages import Assign, Epoch, FromWorker
from search.workers.pool import Exit
from studies import Faults, Limit


def test_training_goes_on_while_the_database_is_away_and_nothing_is_lost_or_doubled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else holds SQLite's write lock for some seconds; signals and the display do not wait for that."""
    monkeypatch.setattr(search.study.outage, "RETRY_SECONDS", 0.1)
    problems: set[str] = set()
    turns: list[float] = []
    epochs_meanwhile = 0
    blocker = sqlite3.connect(bench.folder / "search.db", isolation_level=None, timeout=30)
    blocked = released = 0.0

    def at_epoch(message: Epoch) -> None:
        nonlocal blocked, epochs_meanwhile
        epochs_meanwhile += bool(blocked and not released)
        if message.trial == 3 and not blocked:
            blocker.execute("BEGIN IMMEDIATE")
            blocked = time.monotonic()

    def watch(snapshot: Snapshot) -> None:
        nonlocal released
        turns.append(time.monotonic())
        problems.update(problem.split(";")[1] for problem in snapshot.problems)
        if blocked and not released and time.monotonic() > blocked + 2.5:
            blocker.execute("ROLLBACK")
            released = time.monotonic()

    pool = ScriptedPool(trains, 2, on_epoch=at_epoch)
    coordinator = bench.coordinator(pool, spec_of(trials=8, pruner="successive_halving"), watch=watch)
    assert coordinator.run() is True
    blocker.close()
    assert released
    assert max(after - before for before, after in itertools.pairwise(turns)) < 2.2 * SQLITE_TURN_SECONDS
    assert any("training goes on" in problem for problem in problems)
    assert epochs_meanwhile > 1, "workers trained on without the database"
    here = coordinator.trials.study.get_trials()
    assert [trial.number for trial in here] == list(range(8))
    assert all(trial.state.is_finished() for trial in here)
    assert sorted(pool.trials) == list(range(8)), "each is trained once"
    assert replay(read_journal(coordinator.journal.path)).identical


def test_a_drained_worker_ends_after_its_epoch_while_the_database_is_away(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.study.outage, "RETRY_SECONDS", 0.1)
    blocker = sqlite3.connect(bench.folder / "search.db", isolation_level=None, timeout=30)

    def at_epoch(message: Epoch) -> None:
        if not pool.answers:
            blocker.execute("BEGIN IMMEDIATE")
            coordinator.crew.drain(coordinator.crew.workers[0])

    def watch(snapshot: Snapshot) -> None:
        if pool.answers and blocker.in_transaction:
            blocker.execute("ROLLBACK")

    pool = ScriptedPool(trains, 2, on_epoch=at_epoch)
    coordinator = bench.coordinator(pool, spec_of(trials=1), watch=watch)
    assert coordinator.run() is True
    blocker.close()
    assert pool.answers[0] is False
    assert (pool.started, pool.trials) == ([0, 1], [0, 0])
    assert states(coordinator.trials.study) == ["COMPLETE"]


def test_no_turn_waits_longer_for_a_locked_file_than_one_time_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one in which a trial is to be created, for which Optuna would try five times."""
    monkeypatch.setattr(search.study.storage, "SQLITE_TURN_SECONDS", 2)
    monkeypatch.setattr(search.study.outage, "RETRY_SECONDS", 3)
    coordinator = bench.coordinator(ScriptedPool(trains), spec_of(trials=1))
    coordinator.begin()
    assert coordinator.turn()  # the worker is ready
    with closing(sqlite3.connect(bench.folder / "search.db", isolation_level=None)) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        begun = time.monotonic()
        assert coordinator.turn()
        assert 2 <= time.monotonic() - begun < 9
        begun = time.monotonic()
        assert coordinator.turn()
        assert time.monotonic() - begun < 1.8, "the pause begins when an attempt has ended"
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["COMPLETE"]


def test_the_database_may_go_away_at_the_very_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the last trial was told, and before one that was created twice is ended."""
    monkeypatch.setattr(search.study.outage, "RETRY_SECONDS", 0)

    def created_twice(message: Epoch) -> None:
        if message.trial == 1 and len(coordinator.trials.study.get_trials()) == 2:
            coordinator.trials.study.ask()

    def away_once() -> None:
        monkeypatch.setattr(coordinator.trials, "fail_unknown", there)
        raise OperationalError("", None, Exception("the server is gone"))

    coordinator = bench.coordinator(ScriptedPool(trains, on_epoch=created_twice), spec_of(trials=2))
    there = coordinator.trials.fail_unknown
    monkeypatch.setattr(coordinator.trials, "fail_unknown", away_once)
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["COMPLETE", "COMPLETE", "FAIL"]
    assert "the database is back after 0 s" in bench.notes


def test_a_trial_whose_telling_is_cut_short_is_told_to_people_once_and_leaves_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.study.outage, "RETRY_SECONDS", 0)

    def keeps(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        Path(assignment.checkpoint).parent.mkdir(parents=True)
        yield from trains(assignment, times)

    def away_once(trial: optuna.trial.Trial) -> optuna.trial.FrozenTrial:
        if (frozen := there(trial)).state.is_finished():
            monkeypatch.setattr(coordinator.trials, "_frozen", there)
            raise OperationalError("", None, Exception("the server is gone"))
        return frozen

    coordinator = bench.coordinator(ScriptedPool(keeps), spec_of(trials=1))
    there = coordinator.trials._frozen
    monkeypatch.setattr(coordinator.trials, "_frozen", away_once)
    assert coordinator.run() is True
    assert ["1 of 1 trials finished" in note for note in bench.notes].count(True) == 1
    assert [event.event for event in read_journal(coordinator.journal.path)].count("tell") == 1
    assert list((bench.folder / "studies/scripted/trials").iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "last", "state"),
    [("memory", "store_setbacks", "COMPLETE"), ("device", "store_setbacks", "COMPLETE"), ("crash", "finish", "FAIL")],
)
def test_a_crash_is_in_the_journal_once_although_the_database_goes_away_while_it_is_dealt_with(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kind: str, last: str, state: str
) -> None:
    def fails_once(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if times == 0:
            yield failed(assignment.trial, kind, "MemoryError")
        yield from trains(assignment, times)

    def away_once(*arguments: Any) -> Any:
        monkeypatch.setattr(coordinator.trials, last, there)
        raise OperationalError("", None, Exception("the server is gone"))

    monkeypatch.setattr(search.study.outage, "RETRY_SECONDS", 0)
    coordinator = bench.coordinator(ScriptedPool(fails_once), spec_of(trials=1, faults={"retries": 0}))
    there = getattr(coordinator.trials, last)
    monkeypatch.setattr(coordinator.trials, last, away_once)
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == [state]
    assert [event.event for event in read_journal(coordinator.journal.path)].count("crash") == 1


def test_a_database_that_stays_away_too_long_ends_the_search_and_the_next_launch_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.study.storage, "SQLITE_TURN_SECONDS", 0.05)
    monkeypatch.setattr(search.study.outage, "RETRY_SECONDS", 0.05)
    blocker = sqlite3.connect(bench.folder / "search.db", isolation_level=None, timeout=30)
    pool = ScriptedPool(trains, on_epoch=lambda _: blocker.in_transaction or blocker.execute("BEGIN IMMEDIATE"))
    coordinator = bench.coordinator(pool, spec_of(trials=2, faults={"storage_minutes": 0.005}))
    url = parse_url(f"sqlite:///{bench.folder}/search.db")
    with pytest.raises(StorageError, match="database is locked"), storage_errors(url):
        coordinator.run()
    blocker.close()
    assert read_journal(coordinator.journal.path)[-1].reason == "OperationalError"
    again = bench.coordinator(ScriptedPool(trains), spec_of(trials=2))
    assert again.run() is True
    assert states(again.trials.study) == ["COMPLETE", "COMPLETE"]


@pytest.mark.parametrize(("grace_seconds", "tried"), [(math.inf, True), (Faults().grace_seconds, True), (5, False)])
def test_a_database_that_is_away_is_not_tried_once_more_where_that_could_outlast_the_grace(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, grace_seconds: float, tried: bool
) -> None:
    monkeypatch.setattr(search.study.outage, "RETRY_SECONDS", 0)
    asked: list[None] = []

    def check_lock() -> None:
        asked.append(None)
        if len(asked) > 2:
            raise OperationalError("SELECT 1", None, Exception("the server is gone"))

    def silent(_assignment: Assign, _times: int) -> Iterator[None]:
        while True:
            yield None

    coordinator = bench.coordinator(ScriptedPool(silent), check_lock=check_lock)
    coordinator.begin()
    for _ in range(2):
        assert coordinator.turn()
    assert coordinator.outage.is_on
    before = len(asked)
    coordinator.stop(grace_seconds)
    coordinator.turn()
    assert (len(asked) > before) is tried


def test_a_trial_that_a_broken_connection_left_behind_is_asked_for_again(bench: Bench) -> None:
    coordinator = bench.coordinator(ScriptedPool(trains), spec_of(trials=3))
    coordinator.begin()
    coordinator.trials.study.ask()  # created, and its answer lost
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["COMPLETE"] * 3


def test_a_candidate_whose_asking_is_cut_short_is_drawn_before_what_happened_meanwhile_is_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings of trial 3 were drawn without trial 0, which ends while the database is away."""
    monkeypatch.setattr(search.study.outage, "RETRY_SECONDS", 0)
    settings: list[str] = []

    def ends_meanwhile(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        *before, last = trains(assignment, times)
        yield from before
        while assignment.trial == 0 and len(settings) < 5:
            yield None
        yield last

    def breaks(*statement: Any) -> None:
        if "INSERT INTO trial_params" in statement[2]:
            settings.append(statement[2])
            if len(settings) == 5:
                raise OperationalError("", None, Exception("the server is gone"))

    coordinator = bench.coordinator(ScriptedPool(ends_meanwhile, 2), spec_of(trials=5, startup_trials=2))
    event.listen(backend_of(coordinator.trials.study).engine, "before_cursor_execute", breaks)
    assert coordinator.run() is True
    events = read_journal(coordinator.journal.path)
    steps = [(step.event, step.trial) for step in events if isinstance(step, Ask | Tell)]
    assert steps.index(("ask", 3)) < steps.index(("tell", 0))
    assert replay(events).identical


def test_a_candidate_whose_creation_was_not_acknowledged_is_not_created_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna itself would try again when the answer to a creation is lost."""
    monkeypatch.setattr(search.study.outage, "RETRY_SECONDS", 0)
    coordinator = bench.coordinator(ScriptedPool(trains), spec_of(trials=3))
    coordinator.begin()
    dialect = backend_of(coordinator.trials.study).engine.dialect
    commit = dialect.do_commit

    def loses_an_answer(connection: Any) -> None:
        commit(connection)
        if connection.cursor().execute("SELECT count(*) FROM trials").fetchone() == (1,):
            monkeypatch.setattr(dialect, "do_commit", commit)
            raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(dialect, "do_commit", loses_an_answer)
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["COMPLETE"] * 3
    assert replay(read_journal(coordinator.journal.path)).identical


def test_a_size_whose_storing_was_not_acknowledged_is_stored_and_noted_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.study.outage, "RETRY_SECONDS", 0)
    spec = spec_of(trials=1).model_copy(update={"limit": Limit(params=10_000, macs=10_000)})
    coordinator = bench.coordinator(ScriptedPool(trains), spec)
    coordinator.begin()
    dialect, told = backend_of(coordinator.trials.study).engine.dialect, list[Any]()
    commit, execute, execute_many = dialect.do_commit, dialect.do_execute, dialect.do_executemany

    def remembers(cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        execute(cursor, statement, parameters, context)
        told.extend(parameters)

    def remembers_all(cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        execute_many(cursor, statement, parameters, context)
        told.extend(value for row in parameters for value in row)

    def loses_an_answer(connection: Any) -> None:
        commit(connection)
        names = {"constraints:params", "constraints:macs", "num_params", "macs"} & {*map(str, told)}
        told.clear()
        if names:
            assert len(names) == 4, "all in one transaction"
            monkeypatch.setattr(dialect, "do_commit", commit)
            raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(dialect, "do_execute", remembers)
    monkeypatch.setattr(dialect, "do_executemany", remembers_all)
    monkeypatch.setattr(dialect, "do_commit", loses_an_answer)
    assert coordinator.run() is True
    assert any("the database is back" in note for note in bench.notes)
    (noted,) = (step for step in read_journal(coordinator.journal.path) if isinstance(step, Started))
    assert noted.constraints == {"params": -9100, "macs": -5000} == coordinator.trials.study.trials[0].constraints


def worse(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
    """Trial 0 is good, the others are not, and train on unless they are stopped."""
    trial = assignment.trial
    yield started(trial)
    for number in range(1, EPOCHS + 1):
        yield epoch(trial, number, 0.9 - 0.2 * trial)


def test_a_pruned_trial_says_after_which_epoch_or_fold(bench: Bench) -> None:
    spec = spec_of(pruner="median", startup_trials=1, trials=2)
    folded = spec.model_copy(update={"name": "folded", "data": spec.data.model_copy(update={"folds": EPOCHS})})
    for searched, step in ((spec, "epoch"), (folded, "fold")):
        coordinator = bench.coordinator(ScriptedPool(worse), searched)
        coordinator.run()
        assert coordinator.trials.study.get_trials()[1].user_attrs["reason"] == f"median after {step} 1"


class Killed(BaseException):
    """Nothing of the coordinator survives it but the database and the journal."""


@pytest.mark.parametrize(
    ("pruner", "kill"),
    [
        ("successive_halving", "no"),
        ("successive_halving", "before the journal"),
        ("successive_halving", "after the journal"),
        ("hyperband", "before the journal"),
    ],
)
def test_a_decision_to_prune_outlives_a_database_that_goes_away_and_a_kill(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, pruner: str, kill: str
) -> None:
    """Successive halving notes the rung before it answers; asked again it would keep the trial."""
    monkeypatch.setattr(search.study.outage, "RETRY_SECONDS", 0)
    spec = spec_of(pruner=pruner, trials=2)
    coordinator = bench.coordinator(ScriptedPool(worse), spec)
    study, prune, failures = coordinator.trials.study, coordinator.trials.study.pruner.prune, []

    def fails_once(what: str, *decision: bool) -> None:
        if (what, *decision) in failures or (decision and not decision[0]):
            return
        failures.append((what, *decision))
        raise Killed if kill != "no" else OperationalError("", None, Exception("the server is gone"))

    def asked(*arguments: Any) -> bool:
        decision = prune(*arguments)
        if kill != "after the journal":
            fails_once("prune", decision)
        return decision

    def ends(*arguments: Any) -> None:
        if arguments[3] == TrialState.PRUNED:
            fails_once("end")
        end_trial(*arguments)

    monkeypatch.setattr(study.pruner, "prune", asked)
    monkeypatch.setattr(search.running.trials, "end_trial", ends)
    if kill == "no":
        assert coordinator.run() is True
        assert len(failures) == 2
    else:
        with pytest.raises(Killed):
            coordinator.run()
        monkeypatch.undo()
        coordinator = bench.coordinator(ScriptedPool(worse), spec)
        assert coordinator.run() is True
    trials = coordinator.trials.study.get_trials()
    assert [(trial.state.name, trial.last_step) for trial in trials] == [("COMPLETE", 3), ("PRUNED", 1)]
    assert replay(read_journal(coordinator.journal.path)).identical
