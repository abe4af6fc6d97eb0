"""Messages that wait together: their results are one transaction and one write to the journal."""

from __future__ import annotations

from collections import Counter

import optuna
import pytest
from optuna.trial import TrialState
from scripted import EPOCHS, Bench, ScriptedPool, spec_of, states, trains
from sqlalchemy import Connection, event
from sqlalchemy.exc import OperationalError

import search.study.outage
from search.running.coordinator import Coordinator
from search.study import events
from search.study.journal import Journal, read_journal
from search.study.replay import replay
from search.study.storage import backend_of
from search.workers.messages import Epoch, Started

WORKERS = 6
PRUNERS = ("none", "median", "successive_halving")


class Killed(BaseException):
    """As kill -9: no code of the coordinator handles it."""


def searching(bench: Bench, pruner: str = "median", *, url: str | None = None) -> Coordinator:
    bench.url = url or bench.url
    spec = spec_of(trials=12, pruner=pruner)
    parts = spec.train.model_copy(update={"schedule": "constant"})  # with it, rungs are epochs of the full training
    return bench.coordinator(ScriptedPool(trains, WORKERS), spec.model_copy(update={"train": parts}))


def is_sound(coordinator: Coordinator) -> bool:
    """Whether nothing is lost or doubled, and a replay agrees."""
    trials = coordinator.trials.study.get_trials()
    paused = set(coordinator.trials.rungs.paused)
    assert [trial.number for trial in trials] == list(range(12))
    assert all(trial.state.is_finished() or trial.number in paused for trial in trials)
    lines = read_journal(coordinator.journal.path)
    decided = Counter(
        (one.trial, one.step) for one in lines if isinstance(one, events.Epoch) and one.pruned is not None
    )
    assert set(decided.values()) <= {1}
    stored = {(trial.number, step): value for trial in trials for step, value in trial.intermediate_values.items()}
    assert {(one.trial, one.step): one.value for one in lines if isinstance(one, events.Epoch)} == stored
    found = replay(lines)
    return found.identical


@pytest.mark.parametrize("pruner", PRUNERS)
def test_results_that_wait_together_are_one_transaction_and_one_write(
    bench: Bench, pruner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    append = Journal.append

    def noted(self: Journal, *lines: events.Event) -> None:
        if any(isinstance(line, events.Started | events.Epoch) for line in lines):
            writes.append(len(lines))
        append(self, *lines)

    monkeypatch.setattr(Journal, "append", noted)
    coordinator = searching(bench, pruner)
    commits: list[Connection] = []
    event.listen(backend_of(coordinator.trials.study).engine, "commit", commits.append)
    assert coordinator.run() is True
    lines = read_journal(coordinator.journal.path)
    of_results = sum(isinstance(one, events.Started | events.Epoch) for one in lines)
    assert max(writes) == WORKERS, "all workers were heard at once"
    assert len(writes) < of_results / 2
    assert len(commits) < len(lines), "fewer than one for each line"
    assert is_sound(coordinator)


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("stored", [True, False])
def test_a_kill_beside_such_a_transaction_loses_no_more_than_it(
    bench: Bench, pruner: str, stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``stored``: whether the transaction was made, and the journal lacks its lines."""
    append, times = Journal.append, 0

    def dies(self: Journal, *lines: events.Event) -> None:
        nonlocal times
        if sum(isinstance(line, events.Epoch) for line in lines) > 1 and (times := times + 1) == 2:
            raise Killed
        append(self, *lines)

    if stored:
        monkeypatch.setattr(Journal, "append", dies)
    coordinator = searching(bench, pruner)
    if not stored:
        written = 0

        def dies_first(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
            nonlocal written
            written += statement.startswith("INSERT INTO trial_intermediate_values")
            if written == 2:
                raise Killed

        event.listen(backend_of(coordinator.trials.study).engine, "before_cursor_execute", dies_first)
    with pytest.raises(Killed):
        coordinator.run()
    monkeypatch.setattr(Journal, "append", append)
    bench.notes.clear()
    again = searching(bench, pruner)
    assert again.run() is True
    assert not any("more steps" in note for note in bench.notes), "lines of one transaction are added"
    launches = [one for one in read_journal(again.journal.path) if isinstance(one, events.Launch)]
    assert [one.history for one in launches] == [None, None]
    assert is_sound(again)


def test_a_trial_that_another_program_ends_keeps_the_others_results(bench: Bench) -> None:
    coordinator = searching(bench)
    ended: list[int] = []
    store = coordinator.trials.results.store_together

    def store_together(news: list[object]) -> None:
        running = [one.trial for one in news if isinstance(one, Epoch)]
        if len(running) > 2 and not ended:
            ended.append(running[1])
            theirs = optuna.load_study(study_name="scripted", storage=str(backend_of(coordinator.trials.study).url))
            theirs.tell(running[1], state=TrialState.FAIL)
        store(news)  # type: ignore[arg-type]

    coordinator.trials.results.store_together = store_together  # type: ignore[assignment, method-assign]
    assert coordinator.run() is True
    assert len(ended) == 1
    found = states(coordinator.trials.study)
    assert found[ended[0]] == "FAIL"
    assert found.count("FAIL") == 1
    assert replay(read_journal(coordinator.journal.path)).identical


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("lost", ["the request", "the reply"])
def test_an_outage_at_such_a_transaction_doubles_and_loses_nothing(
    bench: Bench, pruner: str, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.study.outage, "RETRY_SECONDS", 0.0)
    coordinator = searching(bench, pruner)
    engine, breaks = backend_of(coordinator.trials.study).engine, 0
    rows = 0

    def count_rows(
        _connection: Connection, _cursor: object, statement: str, values: object, _context: object, many: bool
    ) -> None:
        nonlocal rows
        if statement.startswith("INSERT INTO trial_intermediate_values") and many:
            rows = len(values)  # type: ignore[arg-type]
            if lost == "the request":
                fail()

    def fail(*_: object) -> None:
        nonlocal rows, breaks
        rows_of_this, rows = rows, 0
        if rows_of_this > 1 and breaks < 2:
            breaks += 1
            raise OperationalError("", None, Exception("database is locked"), connection_invalidated=True)

    event.listen(engine, "before_cursor_execute", count_rows)
    if lost == "the reply":
        dialect, commit = engine.dialect, engine.dialect.do_commit

        def do_commit(connection: object) -> None:
            commit(connection)  # type: ignore[arg-type]
            fail()

        monkeypatch.setattr(dialect, "do_commit", do_commit)
    assert coordinator.run() is True
    assert breaks == 2
    assert is_sound(coordinator)


def test_an_epoch_at_a_rung_and_the_last_one_are_not_stored_before_their_turn(bench: Bench) -> None:
    coordinator = searching(bench, "promote")
    ladder = coordinator.trials.rungs.ladder
    assert ladder.rungs
    together: list[tuple[int, int]] = []
    store = coordinator.trials.results.store_together

    def store_together(news: list[object]) -> None:
        known = {number: set(progress.reported) for number, progress in coordinator.trials.progress.items()}
        store(news)  # type: ignore[arg-type]
        for number, progress in coordinator.trials.progress.items():
            together.extend((number, step) for step in set(progress.reported) - known.get(number, set()))

    coordinator.trials.results.store_together = store_together  # type: ignore[assignment, method-assign]
    assert coordinator.run() is True
    assert not {step for _, step in together} & {*ladder.rungs, ladder.last_step}


def test_a_size_is_stored_once(bench: Bench) -> None:
    coordinator = searching(bench, "none")
    assert coordinator.run() is True
    lines = [one.trial for one in read_journal(coordinator.journal.path) if isinstance(one, events.Started)]
    assert sorted(lines) == list(range(12))
    assert [trial.user_attrs["num_params"] for trial in coordinator.trials.study.get_trials()] == [
        900 + number for number in range(12)
    ]
    assert EPOCHS > 1
    news = [Started(trial=0, num_params=1, macs=1)]
    coordinator.trials.results.store_together(news)  # a finished trial is left alone
