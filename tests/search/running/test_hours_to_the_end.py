"""A launch that goes on to the export keeps back the time for it; epochs take the time that the script says."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from needed import postgres
from optuna.trial import TrialState, create_trial
from scripted import Bench, ScriptedPool, result, spec_of, started, trains

import search.running.clock
import search.running.launch
import search.study.outage
from search.errors import NothingToExport
from search.plan.outlook import outlook
from search.plan.schedule import EXPORT_SECONDS, MARGIN, START_SECONDS, Pace, Schedule, load_factor
from search.running.clock import Clock
from search.running.launch import _go_on
from search.study.events import Stop
from search.study.hours import LAUNCHED, first_launch, is_time_up, note_time_up
from search.study.journal import read_journal
from search.study.progress import Snapshot
from search.study.replay import replay
from search.study.storage import STORAGE_FAILURES
from search.study.trial import TrialView, is_paused
from search.workers.messages import Assign, Epoch, FromWorker
from search.workers.pool import Exit
from studies import StudySpec

BEGUN = 1_000_000.0

SECONDS = 40.0
"""An epoch takes so long, if nothing else is said."""


class Watch:
    """The time of these searches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = BEGUN
        monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
        monkeypatch.setattr(search.running.clock, "time", SimpleNamespace(time=self.time, monotonic=self.time))

    def time(self) -> float:
        return self.now


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


def spec(**search_: Any) -> StudySpec:
    """Rungs after 1 and 3 of 9 epochs."""
    made = spec_of(pruner="promote", sampler="random", trials=5000, trainings=300.0, hours=1.0).model_dump()
    train = made["train"] | {"epochs": 9, "schedule": "constant"}
    return StudySpec.model_validate(made | {"train": train, "search": made["search"] | search_})


class Trains:
    """Workers whose epochs take ``seconds``."""

    def __init__(self, watch: Watch, workers: int = 1) -> None:
        self.watch, self.seconds = watch, SECONDS
        self.pool = ScriptedPool(self.play, workers)
        self.done: set[tuple[int, int]] = set()
        """Epochs, with their trials, that a checkpoint holds."""

    def play(self, assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
        trial = assignment.trial
        yield started(trial)
        for number in range(1, 10):
            if (trial, number) not in self.done:
                self.watch.now += self.seconds / self.pool.num_workers
                self.done.add((trial, number))
            value = (1 + 7 * trial % 9) / 10 * (0.5 + number / 18)
            yield Epoch(trial=trial, result=result(number, value, seconds=self.seconds, epochs=9), memory_bytes=1)


def schedule(minutes: float, parallel: int = 1, **search_: Any) -> Schedule:
    return Schedule(spec(**search_), BEGUN + 60 * minutes, parallel)


def test_the_last_stages_take_the_trainings_of_the_race_and_the_export() -> None:
    pace = Pace(10.0, load=1.0)
    long = MARGIN * (START_SECONDS + (4 + 2 * 2 + 2) * 90 + EXPORT_SECONDS)
    assert schedule(60).search_ends_at(pace) == pytest.approx(BEGUN + 3600 - long), "4 > 2 x 3, and 2 to report"
    short = MARGIN * (START_SECONDS + (3 + 2 + 2) * 90 + EXPORT_SECONDS)
    assert schedule(60, trainings=8.0).search_ends_at(pace) == pytest.approx(BEGUN + 3600 - short)
    waves = MARGIN * (START_SECONDS + (2 + 1 + 1) * 90 + EXPORT_SECONDS)
    assert schedule(60, parallel=2, trainings=8.0).search_ends_at(pace) == pytest.approx(BEGUN + 3600 - waves)
    alone = MARGIN * (START_SECONDS + 90 + EXPORT_SECONDS)
    assert schedule(60).final_begins_at(pace) == pytest.approx(BEGUN + 3600 - alone)
    large = Pace(10.0, macs=10**9, load=1.0)
    assert (once := Schedule(spec(), BEGUN, 1, pictures=1000).export_seconds(large)) > EXPORT_SECONDS + 60
    busy = replace(large, load=3.0)
    assert Schedule(spec(), BEGUN, 1, pictures=1000).export_seconds(busy) == pytest.approx(3 * once)


def test_a_process_that_may_use_one_core_does_not_take_the_load_of_all_cores_for_that_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allowed, cores = os.sched_getaffinity(0), os.cpu_count() or 1
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0 * cores, 0.0, 0.0))
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert load_factor() == 3.0
    finally:
        os.sched_setaffinity(0, allowed)


def test_final_trainings_that_are_longer_or_more_take_their_time_too() -> None:
    longer = spec().model_copy(update={"final": spec().final.model_copy(update={"epochs": 27, "ensemble": 3})})
    begins = Schedule(longer, BEGUN, 2).final_begins_at(Pace(10.0, load=1.0))
    assert begins == pytest.approx(BEGUN - MARGIN * (START_SECONDS + 2 * 270 + EXPORT_SECONDS))


@pytest.mark.parametrize(("workers", "minutes"), [(1, 90), (3, 45)])
def test_a_search_ends_when_the_time_of_the_last_stages_begins_and_a_replay_repeats_it(
    bench: Bench, watch: Watch, workers: int, minutes: int
) -> None:
    plan, trains, planned = schedule(minutes, workers, trainings=20.0), Trains(watch, workers), list[float]()

    def see(snapshot: Snapshot) -> None:
        planned.extend([snapshot.ends_at] if snapshot.ends_at is not None else [])
        assert not snapshot.stopping

    clock = Clock(1.0, plan)
    coordinator = bench.coordinator(trains.pool, plan.spec, clock=clock, watch=see)
    assert coordinator.run() is True
    ends = plan.search_ends_at(Pace(SECONDS, load=1.0))
    assert ends - 10 * SECONDS < watch.now <= ends, "the time is used, and what follows has its own"
    assert not coordinator.out_of_time, "no candidate in progress was stopped"
    trials = coordinator.trials.study.get_trials()
    assert {trial.state for trial in trials if not is_paused(trial)} == {TrialState.COMPLETE}
    assert coordinator.trials.spent.complete >= 3
    assert planned
    assert max(planned) <= plan.ends_at
    events = read_journal(coordinator.journal.path)
    assert isinstance(events[-1], Stop)
    assert events[-1].reason == "budget spent"
    played = replay(events)
    assert played.identical, played.first_difference
    before = len(trains.pool.assigned)
    again = bench.coordinator(trains.pool, plan.spec, clock=Clock(1.0, plan))
    assert again.run() is True
    assert len(trains.pool.assigned) == before, "a later launch goes straight to the export"


def test_candidates_that_become_slow_stop_so_that_the_best_complete_one_is_exported_in_time(
    bench: Bench, watch: Watch
) -> None:
    plan, trains = schedule(90, pruner="none", trainings=20.0), Trains(watch)

    def see(snapshot: Snapshot) -> None:
        assert not snapshot.stopping, "nobody has told the search to stop"
        if snapshot.spent.complete:
            trains.seconds = 600.0

    coordinator = bench.coordinator(trains.pool, plan.spec, clock=Clock(1.0, plan), watch=see)
    assert coordinator.run() is True
    assert coordinator.out_of_time
    assert watch.now < plan.ends_at
    states = [trial.state for trial in coordinator.trials.study.get_trials()]
    assert states == [TrialState.COMPLETE, TrialState.RUNNING], "the second one goes on with more hours"
    events = read_journal(coordinator.journal.path)
    assert isinstance(events[-1], Stop)
    assert events[-1].reason == "time is up"
    assert replay(events).identical


def test_the_speed_of_earlier_launches_counts_once_and_with_their_largest_model() -> None:
    def ended(number: int, seconds: float, macs: int) -> TrialView:
        return TrialView(number, "COMPLETE", 0.5, 2, {}, 10, macs, seconds, "")

    clock, views = Clock(1.0, schedule(60)), [ended(0, 4.0, 100), ended(1, 4.0, 300)]
    clock.adopt(views)
    assert clock.pace is not None
    assert (clock.pace.step_seconds, clock.pace.macs) == (2.0, 300)
    clock.adopt(views)
    clock.add_step(5.0)
    assert clock.pace.step_seconds == 3.0


def test_if_no_candidate_is_complete_the_best_is_trained_to_its_end_although_the_time_is_over(
    bench: Bench, watch: Watch
) -> None:
    first, trains = bench.coordinator(ScriptedPool(Trains(watch).play), spec()), Trains(watch)

    def stop(snapshot: Snapshot) -> None:
        if snapshot.spent.paused == 4:
            first.stop()

    first.audience.watch = stop
    assert first.run() is False
    coordinator = bench.coordinator(trains.pool, spec(), clock=Clock(1.0, schedule(60), search_is_over=True))
    assert coordinator.run() is True
    assert coordinator.trials.spent.complete == 1
    begun = len(first.trials.study.get_trials())
    assert len(coordinator.trials.study.get_trials()) == begun, "no new candidate"


def test_a_study_without_a_complete_candidate_in_its_hours_is_told_to_take_more(bench: Bench, watch: Watch) -> None:
    made = spec(hours=0.001)
    clock = Clock(0.001, Schedule(made, BEGUN + 3.6, 1), search_is_over=True)
    coordinator = bench.coordinator(Trains(watch).pool, made, clock=clock)
    assert coordinator.run() is True
    with pytest.raises(NothingToExport, match=r"to its end within 0.001 hours of the first launch; .* --hours 0.002$"):
        _go_on(coordinator, [], lambda *_: pytest.fail("there is nothing to export"))


def test_without_hours_nothing_is_kept_back_and_the_planned_end_counts_the_last_stages(
    bench: Bench, watch: Watch
) -> None:
    small = spec(trainings=4.0)
    plan, trains, planned = Schedule(small, math.inf, 1), Trains(watch), list[float]()
    coordinator = bench.coordinator(
        trains.pool,
        small,
        clock=Clock(None, plan),
        watch=lambda snapshot: planned.extend([] if snapshot.ends_at is None else [snapshot.ends_at]),
    )
    assert coordinator.run() is True
    assert coordinator.trials.spent.trainings >= 4
    assert planned[-1] == pytest.approx(watch.now + plan.seconds_after_search(Pace(SECONDS, load=1.0)), abs=9 * SECONDS)


def test_the_hours_count_from_the_first_launch_and_more_of_them_go_on() -> None:
    study = optuna.create_study()
    at = first_launch(study)
    assert first_launch(study) == at == study.user_attrs[LAUNCHED]
    before, begun = optuna.create_study(), datetime(2026, 11, 1, 12)
    trial = create_trial(value=1.0)
    trial.datetime_start = begun
    before.add_trial(trial)
    assert first_launch(before) == begun.timestamp(), "of a study of before, its first trial"
    assert not is_time_up(study, 2.0)
    note_time_up(study, 2.0)
    assert is_time_up(study, 2.0)
    assert is_time_up(study, 1.5)
    assert not is_time_up(study, 3.0)
    assert not is_time_up(study, None)


def test_the_plan_is_told_before_a_launch_and_counts_the_time_once_epochs_are_measured() -> None:
    now = time.time()
    whole = Schedule(spec(), now + 3600, 1)
    told = outlook(whole, None, now)
    assert "300 trainings" not in told
    assert "; then 8 trainings to choose the model, 2 to measure it; exported by " in told
    numbers = [
        int(re.findall(r"about ([\d,]+) candidate", one)[0].replace(",", ""))
        for one in (told, outlook(whole, Pace(1.0, load=1.0), now), outlook(whole, Pace(10.0, load=1.0), now))
    ]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] > numbers[2] > 0
    assert "when the budget is spent" in outlook(Schedule(spec(hours=None), math.inf, 1), None, now)
    assert "are over; the best is exported; a larger --hours" in outlook(replace(whole, ends_at=now - 1), None, now)


@pytest.mark.postgres
def test_a_postgres_server_that_is_away_between_the_search_and_the_export_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.study.outage, "RETRY_SECONDS", 0)
    with postgres() as server:
        server.psql("CREATE DATABASE away;")
        url = server.get_uri(database="away").replace("postgresql://", "postgresql+psycopg://")
        bench = Bench(tmp_path, url=url)
        hours = spec(trainings=1.0, hours=1.0)
        coordinator = bench.coordinator(ScriptedPool(trains), hours, clock=Clock(1.0, Schedule(hours, math.inf, 1)))
        coordinator.run()

        def away(*_: object) -> None:
            """The server refuses; at the second attempt it is back."""
            away_for.append(bool(away_for))
            server.psql(f"ALTER DATABASE away ALLOW_CONNECTIONS {'true' if away_for[-1] else 'false'};")

        away_for: list[bool] = []
        exported: list[str] = []
        away()
        server.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'away';")
        monkeypatch.setattr(search.running.launch, "time", SimpleNamespace(sleep=away))
        _go_on(coordinator, [], lambda owned, *_: exported.append(owned.study.user_attrs["featherweight:uuid"]))
        assert away_for == [False, True]
        assert len(exported) == 1
        said = [note for note in bench.notes if "the database" in note]
        assert said[0].startswith("the database cannot be reached")
        assert said[1].startswith("the database is back")
        away_for.clear()
        away()
        server.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'away';")
        coordinator.owned.spec = hours.model_copy(
            update={"faults": hours.faults.model_copy(update={"storage_minutes": 0})}
        )
        monkeypatch.setattr(search.running.launch, "time", SimpleNamespace(sleep=lambda _: None))
        with pytest.raises(STORAGE_FAILURES):
            _go_on(coordinator, [], lambda *_: exported.append("not away"))
        assert len(exported) == 1
