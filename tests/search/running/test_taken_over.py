"""A study that is deleted, replaced or taken over while it is searched: it is noticed, and no longer written to."""

from __future__ import annotations

import shutil
from typing import Any

import optuna
import pytest
from lines import launch
from scripted import Bench, ScriptedPool, spec_of, trains

import search.running.results
import search.running.trials
from search.errors import HeldError, StudyChanged
from search.study.events import Launch, Stop
from search.study.journal import Journal, read_journal
from search.study.storage import open_storage, parse_url
from search.workers.messages import Epoch


def test_a_study_deleted_while_it_is_searched_is_noticed_although_its_name_is_there_again(bench: Bench) -> None:
    url = parse_url(f"sqlite:///{bench.folder}/search.db")

    def replaced(message: Epoch) -> None:
        if message.trial == 1 and not gone:
            storage = open_storage(url)
            optuna.delete_study(study_name="scripted", storage=storage)
            optuna.create_study(study_name="scripted", storage=storage, direction="maximize")
            gone.append(True)

    gone: list[bool] = []
    coordinator = bench.coordinator(ScriptedPool(trains, on_epoch=replaced))
    with pytest.raises(StudyChanged, match="study 'scripted' was deleted or replaced while it was in use"):
        coordinator.run()


@pytest.mark.parametrize("again", [False, True], ids=["deleted", "and another put there"])
def test_a_database_file_deleted_while_it_is_searched_is_noticed_although_it_can_be_written_to(
    bench: Bench, again: bool
) -> None:
    def deleted(message: Epoch) -> None:
        if (message.trial, message.result.epoch) == (1, 1):
            (bench.folder / "search.db").unlink()
            if again:
                (bench.folder / "other.db").replace(bench.folder / "search.db")

    coordinator = bench.coordinator(ScriptedPool(trains, on_epoch=deleted))
    shutil.copy(bench.folder / "search.db", bench.folder / "other.db")
    with pytest.raises(StudyChanged, match="study 'scripted' was deleted or replaced while it was in use; launch it"):
        coordinator.run()


@pytest.mark.parametrize("step", ["report_step", "end_trial"])
def test_a_study_deleted_in_the_middle_of_a_turn_is_noticed_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def deletes_first(*arguments: Any) -> Any:
        if step == "end_trial" or arguments[1].number == 1:
            url = parse_url(f"sqlite:///{bench.folder}/search.db")
            optuna.delete_study(study_name="scripted", storage=open_storage(url))
        return there(*arguments)

    coordinator = bench.coordinator(ScriptedPool(trains))
    owner: Any = search.running.results if step == "report_step" else search.running.trials
    there = getattr(owner, step)
    monkeypatch.setattr(owner, step, deletes_first)
    with pytest.raises(StudyChanged, match="study 'scripted' was deleted or replaced while it was in use"):
        coordinator.run()
    assert read_journal(coordinator.journal.path)[-1].event != "stop", "it is another's by now"


def test_a_study_that_another_process_has_taken_over_is_written_to_no_more(bench: Bench) -> None:
    def taken(message: Epoch) -> None:
        if message.trial == 1:
            taken_over.append(len(coordinator.trials.study.get_trials()[1].intermediate_values))
            winner.append(launch("another"))

    def check_lock() -> None:
        if taken_over:
            raise HeldError("scripted", "process 7")

    taken_over: list[int] = []
    coordinator = bench.coordinator(ScriptedPool(trains, on_epoch=taken), check_lock=check_lock)
    winner = Journal(coordinator.journal.path)
    with pytest.raises(HeldError, match="in use by process 7"):
        coordinator.run()
    assert len(coordinator.trials.study.get_trials()[1].intermediate_values) == taken_over[0]
    winner.append(Stop(reason="the winner's"))
    *_, begun, last = read_journal(winner.path)
    assert isinstance(begun, Launch)
    assert isinstance(last, Stop)
    assert (begun.uuid, last.reason) == ("another", "the winner's"), "nor to its journal"


def test_a_study_that_was_taken_over_before_the_search_began_stays_as_its_new_owner_left_it(bench: Bench) -> None:
    def check_lock() -> None:
        raise HeldError("scripted", "a launch that was faster")

    spec = spec_of(trials=1, pruner="successive_halving")
    coordinator = bench.coordinator(ScriptedPool(trains), spec, check_lock=check_lock)
    study = coordinator.trials.study
    trial = study.ask()
    trial.report(0.5, 1)
    assert not trial.should_prune()  # which notes the rung that a launch would take back
    before = study.get_trials(), study.user_attrs
    with pytest.raises(HeldError, match="in use by a launch that was faster"):
        coordinator.run()
    assert (study.get_trials(), study.user_attrs) == before
    assert read_journal(coordinator.journal.path) == []
