"""Trials that are deleted or changed by SQL in the database of a search."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import optuna
import pytest
from needed import postgres
from optuna.trial import create_trial
from scripted import EPOCHS, Bench, ScriptedPool, epoch, failed, spec_of, started, states, trains
from sqlalchemy.event import listen

from search.errors import NothingToExport
from search.export.choice import choose_trials
from search.paths import Runs
from search.policy.halving import RUNG
from search.policy.ladder import PAUSED_AT, PROMOTED_AT, REPEATS
from search.running.stop import stop_search
from search.study.gone import CREATED, GONE_REASON, fill_gaps
from search.study.journal import read_journal
from search.study.marks import BEFORE, CHANGED_REASON, ENDED, MARK, own_trials
from search.study.mending import mend_trials
from search.study.replay import Replay, replay, text_of_replay
from search.study.storage import open_storage, parse_url
from search.study.study import find_study
from search.study.trial import FAILURE
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
    assert states(study) == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert [one.user_attrs.get("num_params") for one in study.trials[2:]] == [None, 903]
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


KEPT_BY_JOURNAL = {
    "value": "UPDATE trial_values SET value = 0.9999 WHERE trial_id = 2",
    "no value": "DELETE FROM trial_values WHERE trial_id = 2",
    "settings": "UPDATE trial_params SET param_value = param_value * 2 WHERE trial_id = 2 AND param_name = 'lr'",
    "a setting less": "DELETE FROM trial_params WHERE trial_id = 2 AND param_name = 'lr'",
    "a step": "UPDATE trial_intermediate_values SET intermediate_value = 0.9999 WHERE trial_id = 2 AND step = 2",
    "no steps": "DELETE FROM trial_intermediate_values WHERE trial_id = 2",
    "state": "UPDATE trials SET state = 'PRUNED' WHERE trial_id = 2",
}
USER, SYSTEM = (
    f"INSERT INTO trial_{kind}_attributes (trial_id, key, value_json) VALUES " for kind in ("user", "system")
)
CHANGES = KEPT_BY_JOURNAL | {
    "size": "UPDATE trial_user_attributes SET value_json = '1' WHERE trial_id = 2 AND key = 'num_params'",
    "no size": "DELETE FROM trial_user_attributes WHERE trial_id = 2 AND key = 'num_params'",
    "sizes": f"{USER} (2, 'sizes', '{{\"width_mult\": 2.0}}')",
    "paused": f"{USER} (2, '{PAUSED_AT}', '1')",
    "promoted": f"{USER} (2, '{PROMOTED_AT}', '1')",
    "repeat": f"{USER} (2, '{REPEATS}', '0')",
    "kind of failure": f"{USER} (2, '{FAILURE}', '\"diverged\"')",
    "constraint": f"{SYSTEM} (2, 'constraints:params', '0.5')",
    "rung": f"{SYSTEM} (2, '{RUNG}0', '0.9999')",
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


def test_a_pruned_trial_has_the_value_of_its_last_step_or_counts_as_changed(bench: Bench) -> None:
    def diverges(assignment: Assign, _times: int) -> Iterator[FromWorker]:
        yield started(assignment.trial)
        yield epoch(assignment.trial, 1, 0.25)
        yield failed(assignment.trial, "diverged", "not finite")

    bench.coordinator(ScriptedPool(diverges), spec_of(trials=2)).run()
    url = parse_url(f"sqlite:///{bench.folder}/search.db")
    assert [(one.state.name, one.value) for one in own_trials(find_study(open_storage(url), "scripted")[0])] == [
        ("PRUNED", 0.25),
        ("PRUNED", 0.25),
    ]
    sql(bench, "UPDATE trial_values SET value = 0.9999 WHERE trial_id = 2")
    assert [one.number for one in own_trials(find_study(open_storage(url), "scripted")[0])] == [0]


def as_ended_by(bench: Bench, version: str) -> None:
    """Give the trials the marks of an earlier version, of two."""
    for trial in optuna.load_study(study_name="scripted", storage=f"sqlite:///{bench.folder}/search.db").trials:
        mark = f"{trial.user_attrs[MARK].partition(ENDED)[0]}{ENDED}"
        if version == "with checksums":
            steps = sorted(trial.intermediate_values.items())
            sizes = [trial.user_attrs["num_params"], trial.user_attrs["macs"]]
            content = (trial.state.name, trial.value, trial.params, steps, *sizes)
            mark += f"/{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"
        this = f"trial_id = {trial._trial_id} AND key = '{MARK}'"
        if version == "without marks":
            sql(bench, f"DELETE FROM trial_user_attributes WHERE {this}")
        else:
            sql(bench, f"UPDATE trial_user_attributes SET value_json = '{json.dumps(mark)}' WHERE {this}")
    if version == "without marks":
        sql(bench, f"DELETE FROM study_user_attributes WHERE key = '{BEFORE}'")


@pytest.mark.parametrize("version", ["without marks", "without checksums"])
@pytest.mark.parametrize("change", KEPT_BY_JOURNAL.values(), ids=KEPT_BY_JOURNAL)
def test_a_trial_of_an_earlier_version_that_differs_from_the_journal_is_named_once_and_never_used(
    bench: Bench, change: str, version: str
) -> None:
    search(bench, 3)
    as_ended_by(bench, version)
    sql(bench, change)
    study, found = search(bench, 4)
    said = f"trial 1: {CHANGED_REASON}; the journal has it, and a replay does not judge it"
    assert [line for line in bench.warnings if "trial 1" in line] == [said]
    assert found.void == {"1": CHANGED_REASON}
    assert [trial.number for trial in own_trials(study)] == [0, 2, 3, 4]
    search(bench, 5)
    assert not any("trial 1:" in line for line in bench.warnings)


@pytest.mark.parametrize("version", ["without marks", "without checksums"])
def test_a_trial_of_an_earlier_version_that_agrees_with_the_journal_gets_a_checksum(bench: Bench, version: str) -> None:
    search(bench, 3)
    as_ended_by(bench, version)
    # as after a kill, on other hardware
    sql(bench, "UPDATE trial_intermediate_values SET intermediate_value = intermediate_value + 0.001 WHERE step = 1")
    study, _ = search(bench, 3)
    assert bench.warnings == []
    assert len(own_trials(study)) == 3
    sql(bench, CHANGES["size"])
    reader, _ = find_study(open_storage(parse_url(f"sqlite:///{bench.folder}/search.db")), "scripted")
    assert [trial.number for trial in own_trials(reader)] == [0, 2]


def test_the_marks_of_an_earlier_version_are_replaced_by_one_statement(bench: Bench) -> None:
    search(bench, 3)
    as_ended_by(bench, "without checksums")
    storage, said = open_storage(parse_url(f"sqlite:///{bench.folder}/search.db")), list[str]()
    listen(storage.engine, "before_cursor_execute", lambda _connection, _cursor, words, *_: said.append(words))
    mend_trials(storage, "scripted", Runs(bench.folder))
    assert (
        len([words for words in said if words.startswith("DELETE FROM trial_user_attributes") and "key" in words]) == 1
    )
    assert [len(row) for row in sql(bench, f"SELECT 1 FROM trial_user_attributes WHERE key = '{MARK}'")] == [3]


def test_a_deleted_trial_is_named_by_the_launch_and_not_by_a_stop_that_writes_no_line(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    search(bench, 3)
    delete(bench, 1)
    url = parse_url(f"sqlite:///{bench.folder}/search.db")
    assert stop_search("scripted", url, Runs(bench.folder), finish=True, tell=bench.hear).finished == 0
    assert GONE_REASON not in capsys.readouterr().err
    search(bench, 4)
    assert len([line for line in bench.warnings if GONE_REASON in line]) == 1


def test_a_changed_trial_of_an_earlier_version_is_named_by_a_stop(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    search(bench, 3)
    as_ended_by(bench, "without checksums")
    sql(bench, CHANGES["value"])
    url = parse_url(f"sqlite:///{bench.folder}/search.db")
    assert stop_search("scripted", url, Runs(bench.folder), finish=True, tell=bench.hear).finished == 0
    assert f"trial 1: {CHANGED_REASON}" in capsys.readouterr().err.splitlines()


def test_a_trial_of_an_earlier_version_that_the_journal_lacks_is_kept(bench: Bench) -> None:
    search(bench, 3)
    as_ended_by(bench, "without checksums")
    Runs(bench.folder).journal("scripted").unlink()
    study, _ = search(bench, 3)
    assert len(own_trials(study)) == 3


def test_the_checksum_of_an_earlier_version_stays_valid(bench: Bench) -> None:
    search(bench, 3)
    as_ended_by(bench, "with checksums")
    sql(bench, CHANGES["rung"])
    study, _ = search(bench, 3)
    assert bench.warnings == []
    assert len(own_trials(study)) == 3
    sql(bench, CHANGES["value"])
    study, _ = search(bench, 3)
    assert [trial.number for trial in own_trials(study)] == [0, 2, 3]


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("numbers", [(3,), (2, 3), (0, 1, 2, 3), (0, 3)])
def test_the_last_trials_that_are_deleted_between_two_launches_are_named_and_replaced(
    bench: Bench, numbers: tuple[int, ...], rows: bool
) -> None:
    search(bench, 4)
    delete(bench, *numbers, rows=rows)
    study, found = search(bench, 5)
    assert [line for line in bench.warnings if "the journal has" in line] == [
        f"trial {', '.join(map(str, numbers))}: {GONE_REASON}; the journal has it, and a replay does not judge it"
    ]
    assert found.void == {str(number): GONE_REASON for number in numbers}
    assert states(study) == ["FAIL" if number in numbers else "COMPLETE" for number in range(5 + len(numbers))]
    search(bench, 5)
    assert bench.warnings == []


def test_the_last_trials_of_an_earlier_version_that_are_deleted_are_named_with_both_causes(bench: Bench) -> None:
    search(bench, 4)
    delete(bench, 2, 3)
    sql(bench, f"DELETE FROM study_user_attributes WHERE key = '{CREATED}'")
    study, _ = search(bench, 4)
    assert [line for line in bench.warnings if "trial" in line] == [
        "the journal has more steps of trial 2, 3 than the database, which is an older copy, or from which they were "
        "deleted: the search goes on from the database under these numbers, and a replay does not judge these trials"
    ]
    assert states(study) == ["COMPLETE"] * 4


def test_the_last_finished_trial_that_is_deleted_in_a_search_keeps_its_number(bench: Bench) -> None:
    bench.coordinator(ScriptedPool(trains), spec_of(trials=4))
    deleted: list[int] = []

    def watch(_snapshot: Any) -> None:
        states = [state for (state,) in sql(bench, "SELECT state FROM trials ORDER BY number")[0]]
        if not deleted and states == ["COMPLETE"] * 3:
            deleted.append(2)
            delete(bench, 2)

    bench.coordinator(ScriptedPool(trains), spec_of(trials=4), watch=watch).run()
    assert deleted
    assert [number for (number,) in sql(bench, "SELECT number FROM trials ORDER BY trial_id")[0]] == [0, 1, 3]
    study, _ = search(bench, 4)
    assert states(study) == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert any(f"trial 2: {GONE_REASON}" in line for line in bench.warnings)


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
