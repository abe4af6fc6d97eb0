"""What the coordinator does when it is told to stop, with workers that play a script."""

from __future__ import annotations

import time
from collections.abc import Iterator

from scripted import Bench, ScriptedPool, epoch, spec_of, started, states, trains

from search.paths import Runs
from search.study.journal import read_journal
from search.study.lock import own_study
from search.study.storage import parse_url
from search.workers.messages import Assign, FromWorker
from search.workers.pool import Exit


def test_a_stop_request_in_the_runs_folder_ends_the_search_after_its_epochs(bench: Bench) -> None:
    request = bench.folder / "studies/scripted/stop"
    pool = ScriptedPool(trains, on_epoch=lambda message: request.touch())
    coordinator = bench.coordinator(pool, spec_of(trials=3))
    assert coordinator.run() is False
    assert states(coordinator.trials.study) == ["RUNNING"]
    url = parse_url(f"sqlite:///{bench.folder}/search.db")
    with own_study("scripted", url, Runs(bench.folder)):
        again = bench.coordinator(ScriptedPool(trains), spec_of(trials=3))
        assert again.run() is True, "an old request is nobody's"


def test_a_stop_request_that_comes_while_pictures_are_read_is_heard(bench: Bench) -> None:
    url = parse_url(f"sqlite:///{bench.folder}/search.db")
    with own_study("scripted", url, Runs(bench.folder)):
        (bench.folder / "studies/scripted/stop").touch()
        coordinator = bench.coordinator(ScriptedPool(trains), spec_of(trials=3))
        assert coordinator.run() is False
    assert states(coordinator.trials.study) == []


def test_an_epoch_that_takes_longer_than_the_grace_is_given_up(bench: Bench) -> None:
    def endless(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        yield started(assignment.trial)
        yield epoch(assignment.trial, 1, 0.1)
        coordinator.stop(grace_seconds=0.3)
        while True:
            yield None

    def steady(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        yield started(assignment.trial)
        coordinator.stop(grace_seconds=30)
        yield epoch(assignment.trial, 1, 0.1)

    for script, limit in ((endless, 5.0), (steady, 5.0)):
        coordinator = bench.coordinator(ScriptedPool(script), spec_of(trials=1))
        begun = time.monotonic()
        assert coordinator.run() is False
        assert not coordinator.killed
        assert time.monotonic() - begun < limit
        assert states(coordinator.trials.study) == ["RUNNING"]


def test_being_told_to_stop_before_the_first_epoch_is_no_retry_however_often(bench: Bench) -> None:
    def slow(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        yield started(assignment.trial)
        coordinator.stop(grace_seconds=0.01)
        while True:
            yield None

    spec = spec_of(trials=1, faults={"retries": 0})
    for _ in range(3):
        coordinator = bench.coordinator(ScriptedPool(slow), spec)
        assert coordinator.run() is False
    again = bench.coordinator(ScriptedPool(trains), spec)
    assert again.run() is True
    assert states(again.trials.study) == ["COMPLETE"]
    assert "crash" not in [event.event for event in read_journal(again.journal.path)]
