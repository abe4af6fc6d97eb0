"""Trials that are deleted or changed by SQL in the database of a search."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import optuna
import pytest
from needed import postgres
from optuna.trial import create_trial
from scripted import EPOCHS, Bench, ScriptedPool, epoch, spec_of, started, states, trains

from search.errors import NothingToExport
from search.export.choice import choose_trials
from search.study.gone import GONE_REASON, fill_gaps
from search.study.journal import read_journal
from search.study.marks import CHANGED_REASON, ENDED, MARK, own_trials
from search.study.replay import Replay, replay, text_of_replay
from search.study.storage import open_storage, parse_url
from search.study.study import find_study
from search.study.void import DIFFERS
from search.workers.messages import Assign, FromWorker

KINDS = ("values", "params", "intermediate_values", "user_attributes", "system_attributes")


def sql(bench: Bench, *statements: str) -> list[Any]:
    """Change the database as people do with sqlite3."""
    with closing(sqlite3.connect(bench.folder / "search.db", timeout=10)) as database, database:
        return [database.execute(statement).fetchall() for statement in statements]


def delete(bench: Bench, *numbers: int, rows: bool = True) -> None:
    for number in numbers:
        this = f"(SELECT trial_id FROM trials WHERE number = {number})"
        tables = [f"DELETE FROM trial_{kind} WHERE trial_id = {this}" for kind in KINDS] if rows else []
        sql(bench, *tables, f"DELETE FROM trials WHERE number = {number}")


def search(bench: Bench, trials: int, pool: ScriptedPool | None = None, **more: Any) -> tuple[optuna.Study, Replay]:
    """A launch to its end; what it says is in the bench. Its replay."""
    bench.warnings.clear()
    coordinator = bench.coordinator(pool or ScriptedPool(trains), spec_of(trials=trials), **more)
    assert coordinator.run() is True
    found = replay(read_journal(coordinator.journal.path))
    assert found.identical, found
    numbers = [number for (number,) in sql(bench, "SELECT number FROM trials ORDER BY trial_id")[0]]
    assert numbers == list(range(len(numbers)))
    return coordinator.trials.study, found


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("numbers", [(0,), (1,), (1, 2), (0, 1, 2), (0, 2)])
def test_a_finished_trial_that_is_deleted_is_named_once_and_the_search_goes_on(
    bench: Bench, numbers: tuple[int, ...], rows: bool
) -> None:
    search(bench, 4)
    delete(bench, *numbers, rows=rows)
    study, found = search(bench, 5)
    listed = ", ".join(map(str, numbers))
    assert [line for line in bench.warnings if GONE_REASON in line] == [
        f"trial {listed}: {GONE_REASON}; the journal has it, and a replay does not judge it"
    ]
    assert len(own_trials(study)) == 5
    assert all(study.trials[number].user_attrs["reason"] == GONE_REASON for number in numbers)
    assert found.void == {str(number): GONE_REASON for number in numbers}
    assert f"trial {numbers[0]}: {GONE_REASON}" in text_of_replay(found)
    study, _ = search(bench, 6)
    assert not any(GONE_REASON in line for line in bench.warnings)
    assert len(own_trials(study)) == 6


def test_a_trial_that_gets_the_id_of_a_deleted_one_has_none_of_its_rows(bench: Bench) -> None:
    search(bench, 3)
    before = sql(bench, "SELECT value FROM trial_values ORDER BY trial_id")[0]
    delete(bench, 2, rows=False)
    sql(bench, "UPDATE trial_user_attributes SET value_json = '123456' WHERE trial_id = 3 AND key = 'num_params'")
    study, _ = search(bench, 3)
    assert states(study) == ["COMPLETE"] * 3
    assert study.trials[2].user_attrs["num_params"] != 123456
    assert len(sql(bench, "SELECT value FROM trial_values")[0]) == len(before)


@pytest.mark.parametrize("last", [True, False])
def test_a_running_trial_that_is_deleted_is_given_up_and_no_other_gets_its_results(bench: Bench, last: bool) -> None:
    bench.coordinator(ScriptedPool(trains), spec_of(trials=4))
    deleted: list[int] = []

    def watch(_snapshot: Any) -> None:
        running = [n for (n,) in sql(bench, "SELECT number FROM trials WHERE state = 'RUNNING' ORDER BY number")[0]]
        stepped = sql(bench, "SELECT count(*) FROM trial_intermediate_values")[0][0][0]
        if not deleted and len(running) == 2 and stepped:
            deleted.append(running[-1] if last else running[0])
            delete(bench, *deleted)

    study, _ = search(bench, 4, ScriptedPool(trains, num_workers=2), watch=watch)
    assert deleted
    assert bench.warnings.count(f"trial {deleted[0]}: {GONE_REASON}") == 1
    assert states(study) == ["FAIL" if number == deleted[0] else "COMPLETE" for number in range(5)]
    assert all(
        len(trial.intermediate_values) == len(study.trials[-1].intermediate_values) for trial in own_trials(study)
    )


def test_a_finished_trial_that_is_deleted_while_others_queue_leaves_each_trial_its_number(bench: Bench) -> None:
    bench.coordinator(ScriptedPool(trains), spec_of(trials=5))
    deleted: list[int] = []

    def watch(_snapshot: Any) -> None:
        if not deleted and sql(bench, "SELECT count(*) FROM trials WHERE state = 'COMPLETE'")[0][0][0] == 2:
            deleted.append(0)
            delete(bench, 0)
            raw = optuna.load_study(study_name="scripted", storage=f"sqlite:///{bench.folder}/search.db")
            raw.enqueue_trial({"lr": 0.05})  # Optuna numbers it by the count of the trials

    study, _ = search(bench, 5, watch=watch)
    assert deleted
    assert [trial.params["lr"] for trial in own_trials(study)].count(0.05) == 1


def test_two_trials_with_one_number_are_told_apart(bench: Bench) -> None:
    search(bench, 3)
    delete(bench, 1)
    raw = optuna.load_study(study_name="scripted", storage=f"sqlite:///{bench.folder}/search.db")
    raw.enqueue_trial({"lr": 0.05})
    assert [number for (number,) in sql(bench, "SELECT number FROM trials ORDER BY trial_id")[0]] == [0, 2, 2]
    study, _ = search(bench, 4)
    assert [trial.number for trial in own_trials(study)] == [0, 2, 3, 4]
    assert study.trials[3].params["lr"] == 0.05


CHANGES = {
    "value": "UPDATE trial_values SET value = 0.9999 WHERE trial_id = 2",
    "no value": "DELETE FROM trial_values WHERE trial_id = 2",
    "settings": "UPDATE trial_params SET param_value = param_value * 2 WHERE trial_id = 2 AND param_name = 'lr'",
    "a setting less": "DELETE FROM trial_params WHERE trial_id = 2 AND param_name = 'lr'",
    "size": "UPDATE trial_user_attributes SET value_json = '1' WHERE trial_id = 2 AND key = 'num_params'",
    "no size": "DELETE FROM trial_user_attributes WHERE trial_id = 2 AND key = 'num_params'",
    "no steps": "DELETE FROM trial_intermediate_values WHERE trial_id = 2",
    "state": "UPDATE trials SET state = 'PRUNED' WHERE trial_id = 2",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_trial_that_is_changed_after_its_end_is_named_and_never_used(bench: Bench, change: str) -> None:
    search(bench, 3)
    sql(bench, change)
    reader, spec = find_study(open_storage(parse_url(f"sqlite:///{bench.folder}/search.db")), "scripted")
    assert [trial.number for trial in own_trials(reader)] == [0, 2], "each reader sees it, before any launch"
    with pytest.raises(NothingToExport, match=f"trial 1 of 'scripted' is {CHANGED_REASON.partition(';')[0]}"):
        choose_trials(reader, (1,), spec)
    study, found = search(bench, 4)
    said = f"trial 1: {CHANGED_REASON}; the journal has it, and a replay does not judge it"
    assert [line for line in bench.warnings if "trial 1" in line] == [said]
    assert found.void == {"1": CHANGED_REASON}
    assert len(own_trials(study)) == 4
    search(bench, 5)
    assert not any("trial 1:" in line for line in bench.warnings)


def test_an_attribute_that_another_program_adds_to_a_running_trial_is_no_change(bench: Bench) -> None:
    tagged: list[int] = []

    def watch(_snapshot: Any) -> None:
        for (number,) in sql(bench, "SELECT number FROM trials WHERE state = 'RUNNING'")[0]:
            if number not in tagged:
                tagged.append(number)
                raw = optuna.load_study(study_name="scripted", storage=f"sqlite:///{bench.folder}/search.db")
                raw._storage.set_trial_user_attr(raw.trials[number]._trial_id, "tag", "mine")

    search(bench, 3, watch=watch)
    reader, _ = find_study(open_storage(parse_url(f"sqlite:///{bench.folder}/search.db")), "scripted")
    assert [trial.user_attrs["tag"] for trial in own_trials(reader) if trial.number in tagged] == ["mine"] * len(tagged)
    assert tagged
    assert len(own_trials(reader)) == 3


def test_a_value_of_minus_zero_is_no_change(bench: Bench) -> None:
    """SQLite stores it as 0.0."""

    def without_loss(assignment: Assign, _times: int) -> Iterator[FromWorker]:
        yield started(assignment.trial)
        for number in range(1, EPOCHS + 1):
            said = epoch(assignment.trial, number, 1.0)
            yield replace(said, result=replace(said.result, val_loss=0.0))

    bench.coordinator(ScriptedPool(without_loss), spec_of(trials=2, objective="loss")).run()
    reader, _ = find_study(open_storage(parse_url(f"sqlite:///{bench.folder}/search.db")), "scripted")
    assert [trial.value for trial in own_trials(reader)] == [0.0, 0.0]


def test_the_last_trials_that_are_deleted_in_a_search_are_replaced_whether_they_ran_or_not(bench: Bench) -> None:
    bench.coordinator(ScriptedPool(trains), spec_of(trials=5))
    deleted: list[int] = []

    def watch(_snapshot: Any) -> None:
        ended = [n for (n,) in sql(bench, "SELECT number FROM trials WHERE state = 'COMPLETE' ORDER BY number")[0]]
        running = [n for (n,) in sql(bench, "SELECT number FROM trials WHERE state = 'RUNNING' ORDER BY number")[0]]
        if not deleted and len(ended) == 2 and running == [2]:
            deleted.extend([1, 2])
            delete(bench, 1, 2)

    study, _ = search(bench, 5, watch=watch)
    assert deleted
    assert len(own_trials(study)) >= 5


def test_a_changed_value_of_an_earlier_version_is_said_too(bench: Bench) -> None:
    study, _ = search(bench, 3)
    mark = study.trials[1].user_attrs[MARK]
    whole = f"{mark.partition(ENDED)[0]}{ENDED}"
    sql(bench, f"UPDATE trial_user_attributes SET value_json = '\"{whole}\"' WHERE value_json = '\"{mark}\"'")
    search(bench, 3)
    assert bench.warnings == []
    sql(bench, CHANGES["value"])
    _, found = search(bench, 4)
    assert [line for line in bench.warnings if "trial 1" in line] == [
        f"trial 1: {DIFFERS}; the journal has it, and a replay does not judge it"
    ]
    assert found.void == {"1": DIFFERS}


@pytest.mark.postgres
def test_deleted_trials_are_replaced_on_a_server_too() -> None:
    with postgres() as server:
        url = parse_url(server.get_uri().replace("postgresql://", "postgresql+psycopg://"))
        storage = open_storage(url, create=True)
        studies = [optuna.create_study(study_name=name, storage=storage) for name in "ab"]
        for study in studies * 3:
            study.add_trial(create_trial(value=0.5))
        with storage.engine.begin() as connection:
            ids = [one._trial_id for one in studies[0].trials if one.number < 2]
            for table in ("trial_values", "trials"):
                connection.exec_driver_sql(f"DELETE FROM {table} WHERE trial_id IN ({ids[0]}, {ids[1]})")
        assert fill_gaps(storage.engine, studies[0]._study_id).gone == (0, 1)
        assert [trial.number for trial in studies[0].trials] == [0, 1, 2]
        studies[0].add_trial(create_trial(value=0.5))
        assert [trial.number for trial in studies[0].trials] == [0, 1, 2, 3]
        assert fill_gaps(storage.engine, studies[1]._study_id).gone == ()
        storage.engine.dispose()
