"""A database or a journal that is an older copy, as a backup brings it back."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from scripted import Bench, ScriptedPool, spec_of, states, trains
from test_identity import refuses_others, stopped

from search.paths import Runs
from search.study.events import Ask, Assign, Event, Launch, Tell
from search.study.journal import read_journal
from search.study.replay import Replay, replay, replay_with
from search.study.storage import open_storage, parse_url


@pytest.fixture
def journal(bench: Bench) -> Path:
    return Runs(bench.folder).journal("scripted")


@pytest.fixture
def database(bench: Bench) -> Path:
    return Runs(bench.folder).database


def backup(database: Path) -> None:
    with closing(sqlite3.connect(database)) as now, closing(sqlite3.connect(database.with_suffix(".old"))) as old:
        now.backup(old)


def restore(database: Path) -> None:
    for ending in ("", "-wal", "-shm"):  # a new file: the one before is still open here
        Path(f"{database}{ending}").unlink(missing_ok=True)
    shutil.copy(database.with_suffix(".old"), database)


def search(bench: Bench, trials: int, seed: int = 0) -> tuple[list[str], list[Event]]:
    bench.notes.clear()
    bench.accept_changes = True
    spec = spec_of(trials=trials, pruner="median", startup_trials=1).model_copy(update={"seed": seed})
    coordinator = bench.coordinator(ScriptedPool(refuses_others, 2), spec)
    assert coordinator.run() is True
    assert states(coordinator.trials.study).count("FAIL") == 0
    return states(coordinator.trials.study), read_journal(coordinator.journal.path)


def judged(events: list[Event]) -> Replay:
    found = replay(events)
    assert found.identical, found.first_difference
    replay_with(events, "hyperband")
    return found


def about(bench: Bench) -> list[str]:
    return [note for note in bench.notes if "a replay does not judge" in note]


def since_last_launch(events: list[Event]) -> list[Event]:
    at = max(index for index, event in enumerate(events) if isinstance(event, Launch))
    return events[at:]


@pytest.mark.parametrize("seed", [0, 1])
def test_an_older_database_beside_a_newer_journal_is_said_and_searched_from_there(
    bench: Bench, database: Path, seed: int
) -> None:
    search(bench, 3)
    backup(database)
    search(bench, 6)
    restore(database)
    found, events = search(bench, 6, seed)
    assert about(bench) == [
        "the journal has more steps of trial 3, 4, 5 than the database, which is an older copy, or from which they "
        "were deleted: the search goes on from the database under these numbers, and a replay does not judge these "
        "trials"
    ]
    assert len(found) == 6
    anew = since_last_launch(events)
    for kind in (Ask, Tell):
        assert [event.trial for event in anew if isinstance(event, kind)] in ([3, 4, 5], [4, 3, 5], [3, 5, 4])
    assert judged(events).rebuilt == 3
    _, events = search(bench, 7, seed)
    assert about(bench) == [], "once"
    assert [event.trial for event in since_last_launch(events) if isinstance(event, Assign)] == [6]
    judged(events)


def test_a_trial_that_was_going_on_in_the_copy_is_trained_to_its_end_under_its_number(
    bench: Bench, database: Path
) -> None:
    stopped(bench, spec_of(trials=4, pruner="median", startup_trials=1), epochs=2, workers=2)
    backup(database)
    with closing(sqlite3.connect(database)) as now:
        assert now.execute("SELECT number FROM trials WHERE state = 'RUNNING'").fetchall() == [(0,), (1,)]
    search(bench, 4)
    restore(database)
    found, events = search(bench, 4)
    assert len(found) == 4
    (note,) = about(bench)
    assert "the journal has more steps of trial 0, 1, 2, 3 than the database" in note
    judged(events)


def test_a_trial_that_was_another_one_in_the_later_copy_does_not_go_on_with_its_checkpoint(
    bench: Bench, database: Path
) -> None:
    search(bench, 2)
    backup(database)
    stopped(bench, spec_of(trials=6, pruner="median", startup_trials=1), epochs=3, workers=2)
    restore(database)
    bench.accept_changes = True
    other = spec_of(trials=6, pruner="median", startup_trials=1).model_copy(update={"seed": 1})
    elsewhere = bench.folder / "elsewhere"
    Runs(bench.folder).study("scripted").rename(elsewhere)
    stopped(bench, other, epochs=3, workers=2)
    shutil.rmtree(Runs(bench.folder).study("scripted"))
    elsewhere.rename(Runs(bench.folder).study("scripted"))
    _, events = search(bench, 6, seed=1)
    judged(events)


def test_a_newer_database_beside_an_older_journal_is_said_and_searched_from_there(bench: Bench, journal: Path) -> None:
    search(bench, 3)
    shutil.copy(journal, journal.with_suffix(".old"))
    search(bench, 6)
    shutil.copy(journal.with_suffix(".old"), journal)
    found, events = search(bench, 7)
    assert about(bench) == [
        "the database has more steps of trial 3, 4, 5 than the journal: a replay does not judge these trials"
    ]
    assert len(found) == 7
    assert [event.trial for event in since_last_launch(events) if isinstance(event, Assign)] == [6]
    assert judged(events).rebuilt == 3
    search(bench, 8)
    assert about(bench) == []


def test_a_database_and_a_journal_that_have_each_gone_on_alone_are_brought_together(
    bench: Bench, database: Path, journal: Path
) -> None:
    search(bench, 3)
    backup(database)
    search(bench, 5)
    restore(database)
    journal.rename(journal.with_suffix(".kept"))
    search(bench, 6, seed=1)
    journal.with_suffix(".kept").replace(journal)
    found, events = search(bench, 7, seed=1)
    assert len(found) == 7
    assert about(bench)
    judged(events)


def test_a_kill_between_two_steps_is_no_older_copy(bench: Bench, journal: Path) -> None:
    stopped(bench, spec_of(trials=4), epochs=4)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-2]))  # the last step, and the stop
    coordinator = bench.coordinator(ScriptedPool(trains), spec_of(trials=4))
    assert coordinator.run() is True
    assert about(bench) == []


def test_a_database_from_before_the_study_begins_a_new_one(bench: Bench, database: Path) -> None:
    open_storage(parse_url(f"sqlite:///{database}"), create=True)
    backup(database)
    search(bench, 3)
    restore(database)
    found, events = search(bench, 3)
    assert len(found) == 3
    assert any("deleted or in another database" in note for note in bench.notes)
    judged(events)
