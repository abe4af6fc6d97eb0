"""The coordinator's decisions, with workers that play a script: real Optuna, a real database, no training."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from scripted import EPOCHS, Bench, ScriptedPool, epoch, failed, spec_of, started, states, trains

import search.study.begun
import search.study.journal
from search.errors import TrainingFailed
from search.running.pace import GATHERED_FOR, SHOWN_APART, Pace, pace_of_turns
from search.study import events
from search.study.journal import read_journal
from search.study.progress import Snapshot
from search.study.replay import replay
from search.study.trial import outcome_of
from search.workers.messages import Assign, Epoch, FromWorker
from search.workers.pool import Exit

RETRIES = 2


@pytest.mark.parametrize("workers", [1, 3, 20])
def test_any_number_of_workers_spends_exactly_the_budget(bench: Bench, workers: int) -> None:
    pool = ScriptedPool(trains, workers)
    coordinator = bench.coordinator(pool, spec_of(trials=9))
    assert coordinator.run() is True
    trials = coordinator.trials.study.get_trials()
    assert [trial.number for trial in trials] == list(range(9))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert sorted(pool.trials) == list(range(9)), "each is trained once"
    assert len(pool.started) == min(workers, 9), "no worker is started for nothing"
    assert pool.closed


def test_observers_that_take_long_are_called_seldom(bench: Bench) -> None:
    seen: list[float] = []

    def watch(_: Snapshot) -> None:
        seen.append(time.monotonic())
        until = time.process_time() + 0.02
        while time.process_time() < until:
            pass

    coordinator = bench.coordinator(ScriptedPool(trains, 2), spec_of(trials=8), watch=watch)
    coordinator.showing = Pace(0.5, SHOWN_APART)
    assert coordinator.run() is True
    *during, end = seen
    assert all(after - before >= 0.02 * SHOWN_APART for before, after in itertools.pairwise(during))
    assert end >= during[-1], "the end is always shown"


def test_observers_see_the_last_epoch_of_a_trial_too(bench: Bench) -> None:
    seen = set()

    def watch(snapshot: Snapshot) -> None:
        seen.update((worker.trial, worker.epoch) for worker in snapshot.workers if worker.epoch)

    pool = ScriptedPool(trains, on_epoch=lambda _: time.sleep(0.15))
    coordinator = bench.coordinator(pool, spec_of(trials=2), watch=watch)
    coordinator.showing = Pace(0.5, SHOWN_APART)
    assert coordinator.run() is True
    assert seen == {(trial, epoch) for trial in range(2) for epoch in range(1, EPOCHS + 1)}


def test_while_all_workers_are_silent_observers_and_the_database_are_left_alone_but_for_some_looks(
    bench: Bench,
) -> None:
    shown: list[float] = []
    looks: list[float] = []
    counts = []

    def silent(assignment: Assign, _times: int) -> Iterator[FromWorker | None]:
        yield started(assignment.trial)
        yield None
        before, until = (len(shown), len(looks)), time.monotonic() + 2
        while time.monotonic() < until:
            yield None
        counts.extend([len(shown) - before[0], len(looks) - before[1]])
        yield epoch(assignment.trial, EPOCHS, 0.5)

    coordinator = bench.coordinator(
        ScriptedPool(silent), spec_of(trials=1), watch=lambda _: shown.append(time.monotonic())
    )
    coordinator.looking, coordinator.showing = Pace(0.5), Pace(0.5, SHOWN_APART)
    check = coordinator.owned.check
    coordinator.owned.check = lambda: looks.append(time.monotonic()) or check()  # type: ignore[method-assign]
    assert coordinator.run() is True
    assert all(2 <= count <= 5 for count in counts), counts


def test_no_worker_waits_for_the_next_look_at_the_database(bench: Bench) -> None:
    coordinator = bench.coordinator(ScriptedPool(trains, 2), spec_of(trials=4))
    coordinator.looking = Pace(math.inf)
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["COMPLETE"] * 4


@pytest.mark.parametrize(("workers", "longest"), [(1, 0.00025), (8, 0.002), (1000, 0.25), (5000, 0.25)])
def test_only_with_many_workers_a_message_waits_for_others(workers: int, longest: float) -> None:
    pace = pace_of_turns(workers)
    assert pace.is_due(news=True)
    assert pace.most == pytest.approx(longest)


def test_a_message_waits_for_others_for_no_longer_than_its_pace(bench: Bench) -> None:
    used = bench.coordinator(ScriptedPool(trains, 8), spec_of(trials=4)).looking
    assert used.most == pytest.approx(8 * GATHERED_FOR)
    pace = Pace(3600, apart=4, most=60)
    with pace.working():
        until = time.process_time() + 0.1
        while time.process_time() < until:
            pass
    assert 0.1 < pace.left(news=True) < 1, "four times the CPU time, less the time since the work began"
    pace.most = 0.002
    assert pace.left(news=True) <= 0


def test_results_that_come_shortly_before_the_end_of_a_stop_are_stored(bench: Bench) -> None:
    def stop(_: Epoch) -> None:
        coordinator.looking = Pace(3600, apart=1e9, most=3600)
        with coordinator.looking.working():
            sum(range(100_000))
        assert not coordinator.looking.is_due(news=True), "without a stop, nothing would be due for an hour"
        coordinator.stop(grace_seconds=2)

    coordinator = bench.coordinator(ScriptedPool(trains, 2, on_epoch=stop), spec_of(trials=2))
    assert coordinator.run() is False
    stored = [trial.intermediate_values.keys() for trial in coordinator.trials.study.get_trials()]
    assert stored == [{1}, {1}]


def test_more_trials_later_are_only_the_difference(bench: Bench) -> None:
    bench.coordinator(ScriptedPool(trains, 2), spec_of(trials=4)).run()
    assert bench.coordinator(ScriptedPool(trains, 2), spec_of(trials=4)).run() is True
    pool = ScriptedPool(trains, 2)
    coordinator = bench.coordinator(pool, spec_of(trials=6))
    coordinator.run()
    assert sorted(pool.trials) == [4, 5]
    assert states(coordinator.trials.study) == ["COMPLETE"] * 6


def test_what_a_trial_is_given_depends_on_its_number_alone_not_on_who_launched_it(bench: Bench, tmp_path: Path) -> None:
    once = bench.coordinator(ScriptedPool(trains), spec_of(trials=6))
    once.run()
    in_one_go = once.trials.study.get_trials()

    other = Bench(tmp_path / "other")
    for trials in (1, 4, 5, 6):
        coordinator = other.coordinator(ScriptedPool(trains), spec_of(trials=trials))
        coordinator.run()
    in_four = coordinator.trials.study.get_trials()
    assert [trial.params for trial in in_four] == [trial.params for trial in in_one_go]
    assert len({str(trial.params) for trial in in_four}) == 6


def test_a_trial_whose_asking_was_cut_short_gets_the_settings_it_would_have_had(bench: Bench, tmp_path: Path) -> None:
    """Optuna stores a trial first and its settings after it, one by one: a kill can come between."""
    whole = Bench(tmp_path / "whole").coordinator(ScriptedPool(trains))
    whole.run()

    cut = bench.coordinator(ScriptedPool(trains))
    cut.trials.study.ask()  # a trial without any settings
    cut.run()
    assert [trial.params for trial in cut.trials.study.get_trials()] == [
        trial.params for trial in whole.trials.study.get_trials()
    ]
    assert "going on with trial 0, left unfinished by the last launch" in bench.notes


def test_known_recipes_come_first_and_are_enqueued_once(bench: Bench) -> None:
    known = spec_of(trials=3).model_copy(update={"known": ({"lr": 0.01}, {"lr": 0.02, "dropout": 0.25})})
    bench.coordinator(ScriptedPool(trains), known.model_copy(update={"search": spec_of(trials=1).search})).run()
    coordinator = bench.coordinator(ScriptedPool(trains), known)
    coordinator.run()
    trials = coordinator.trials.study.get_trials()
    assert [trial.params["lr"] for trial in trials[:2]] == [0.01, 0.02]
    assert trials[1].params == {"lr": 0.02, "dropout": 0.25}
    assert trials[2].params["lr"] not in (0.01, 0.02)


def test_a_dead_workers_trial_goes_on_under_its_own_number_with_no_epoch_reported_twice(bench: Bench) -> None:
    def dies_in_trial_1(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
        trial = assignment.trial
        yield started(trial)
        yield epoch(trial, 1, 0.1)
        if trial == 1 and times == 0:
            yield Exit(-9, "")
        yield epoch(trial, 2, 0.2)
        yield epoch(trial, 3, 0.3)

    pool = ScriptedPool(dies_in_trial_1, 2)
    coordinator = bench.coordinator(pool, spec_of(trials=4))
    assert coordinator.run() is True  # Optuna warns of a step that is reported twice, and warnings are errors
    assert pool.trials.count(1) == 2
    assert len(pool.started) == 3
    trial = coordinator.trials.study.get_trials()[1]
    assert (trial.state, trial.intermediate_values) == (TrialState.COMPLETE, {1: 0.1, 2: 0.2, 3: 0.3})
    assert any("ended with signal 9; trial 1 goes on from its last epoch" in note for note in bench.notes)


def test_a_dead_workers_trial_goes_on_at_once_on_another_that_is_free(bench: Bench) -> None:
    def dies_when_the_other_is_free(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if assignment.trial == 0 and times == 0:
            while 1 not in coordinator.trials.finished:
                yield None
            yield Exit(-9, "")
        yield from trains(assignment, times)

    pool = ScriptedPool(dies_when_the_other_is_free, 2)
    coordinator = bench.coordinator(pool, spec_of(trials=2))
    assert coordinator.run() is True
    assigned = [event for event in read_journal(coordinator.journal.path) if isinstance(event, events.Assign)]
    assert [(event.trial, event.worker, event.attempt) for event in assigned] == [
        (0, "cpu:0", 1),
        (1, "cpu:1", 1),
        (0, "cpu:1", 2),
    ]


def test_a_trial_that_always_kills_its_worker_fails_after_two_retries_with_the_log(bench: Bench) -> None:
    def dies(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
        if assignment.trial == 0:
            yield Exit(1, "Segmentation fault")
        yield from trains(assignment, times)

    pool = ScriptedPool(dies)
    coordinator = bench.coordinator(pool, spec_of(trials=2))
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["FAIL", "COMPLETE"]
    assert pool.trials == [0] * (1 + RETRIES) + [1]
    assert "Segmentation fault" in coordinator.trials.study.get_trials()[0].user_attrs["reason"]


def test_a_trial_that_always_fails_keeps_the_reason_and_the_log(bench: Bench) -> None:
    def fails(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
        if assignment.trial == 0:
            yield failed(0, "crash", "KeyError: 'lr'")
        yield from trains(assignment, times)

    coordinator = bench.coordinator(ScriptedPool(fails, log="Traceback\n  in fit"), spec_of(trials=2))
    assert coordinator.run() is True
    assert coordinator.trials.study.get_trials()[0].user_attrs["reason"] == "KeyError: 'lr'\nTraceback\n  in fit"


def test_a_new_epoch_gives_a_trial_its_retries_back(bench: Bench) -> None:
    def dies_after_each_epoch(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
        trial = assignment.trial
        yield started(trial)
        for number in range(1, times // 2 + 2):
            yield epoch(trial, number, 0.1 * number)
        if times < 4:
            yield Exit(-9, "")

    coordinator = bench.coordinator(ScriptedPool(dies_after_each_epoch), spec_of(trials=1))
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["COMPLETE"]


def test_the_same_error_in_two_trials_in_a_row_ends_the_search(bench: Bench) -> None:
    def fails(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
        yield failed(assignment.trial, "crash", "ValueError: always")

    pool = ScriptedPool(fails)
    coordinator = bench.coordinator(pool)
    with pytest.raises(
        TrainingFailed,
        match="two trials in a row ended in the same error, correct it and launch again: ValueError: always",
    ):
        coordinator.run()
    assert pool.trials == [0, 0, 0, 1, 1, 1]
    assert states(coordinator.trials.study) == ["FAIL", "FAIL"]
    assert pool.closed


def test_an_error_that_names_the_trials_own_file_is_the_same_in_every_trial(bench: Bench) -> None:
    def stale(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
        error = f"OSError: [Errno 116] Stale file handle: '{assignment.checkpoint}'"
        yield failed(assignment.trial, "crash", error)

    coordinator = bench.coordinator(ScriptedPool(stale))
    with pytest.raises(TrainingFailed, match=r"two trials in a row ended in the same error.* Stale file handle: '/"):
        coordinator.run()
    assert states(coordinator.trials.study) == ["FAIL", "FAIL"]


def test_two_errors_in_a_row_that_are_not_the_same_end_nothing(bench: Bench) -> None:
    def fails_twice(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
        if assignment.trial < 2:
            error = "ValueError: lr is too high" if assignment.trial else "ValueError: lr is too low"
            yield failed(assignment.trial, "crash", error)
        yield from trains(assignment, times)

    coordinator = bench.coordinator(ScriptedPool(fails_twice))
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["FAIL", "FAIL", *["COMPLETE"] * 4]


def test_the_same_error_in_two_trials_with_a_good_one_between_ends_nothing(bench: Bench) -> None:
    def every_other_fails(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
        if assignment.trial % 2:
            yield failed(assignment.trial, "user", "LimitError: too large")
        else:
            yield from trains(assignment, times)

    coordinator = bench.coordinator(ScriptedPool(every_other_fails))
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["COMPLETE", "FAIL"] * 3
    assert coordinator.trials.study.get_trials()[1].user_attrs["reason"] == "LimitError: too large"


def test_a_mistake_of_the_users_is_not_tried_again(bench: Bench) -> None:
    def fails_once(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
        if assignment.trial == 0:
            yield failed(0, "user", "ConfigError: no")
        yield from trains(assignment, times)

    pool = ScriptedPool(fails_once)
    bench.coordinator(pool, spec_of(trials=2)).run()
    assert pool.trials == [0, 1]


def test_a_diverged_trial_is_pruned_with_its_last_finite_value_and_the_reason(bench: Bench) -> None:
    def diverges(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
        trial = assignment.trial
        yield started(trial)
        yield epoch(trial, 1, 0.4)
        yield failed(trial, "diverged", "epoch 2 has a training loss of nan")

    coordinator = bench.coordinator(ScriptedPool(diverges), spec_of(trials=3))
    assert coordinator.run() is True
    for trial in coordinator.trials.study.get_trials():
        assert (trial.state, trial.value) == (TrialState.PRUNED, 0.4)
        assert trial.user_attrs["reason"] == "epoch 2 has a training loss of nan"
        assert (trial.user_attrs["failure"], outcome_of(trial)) == ("diverged", "diverged")


def test_workers_that_cannot_start_end_the_search_with_their_log(bench: Bench) -> None:
    pool = ScriptedPool(trains, starts_fail=True)
    coordinator = bench.coordinator(pool)
    with pytest.raises(
        TrainingFailed, match=r"worker cpu:0 cannot start \(ended with exit code 1\):\nImportError: no module"
    ):
        coordinator.run()
    assert len(pool.started) == 1 + RETRIES
    assert states(coordinator.trials.study) == []


def test_a_stop_lets_every_worker_finish_its_epoch_and_the_next_launch_takes_up_each_trial(bench: Bench) -> None:
    pool = ScriptedPool(trains, 3)
    coordinator = bench.coordinator(pool, spec_of(trials=5))
    pool.on_epoch = lambda message: None if coordinator.stopping else coordinator.stop()
    assert coordinator.run() is False
    left = coordinator.trials.study.get_trials()
    assert [trial.state.name for trial in left] == ["RUNNING"] * 3
    assert [list(trial.intermediate_values) for trial in left] == [[1]] * 3
    assert "finishing the epoch; Ctrl-C again to stop now" in bench.notes

    again = bench.coordinator(ScriptedPool(trains, 3), spec_of(trials=5))
    assert again.run() is True
    assert states(again.trials.study) == ["COMPLETE"] * 5


def test_a_second_stop_does_not_wait_for_the_epoch(bench: Bench) -> None:
    pool = ScriptedPool(trains)
    coordinator = bench.coordinator(pool)

    def stop_twice(_message: Epoch) -> None:
        coordinator.stop()
        coordinator.stop()

    pool.on_epoch = stop_twice
    assert coordinator.run() is False
    assert coordinator.killed
    assert states(coordinator.trials.study) == ["RUNNING"]


def test_other_package_versions_are_told_once_and_kept_with_the_trials_begun_before(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = ScriptedPool(trains)
    first = bench.coordinator(pool, spec_of(trials=2))
    pool.on_epoch = lambda message: first.stop()
    first.run()
    monkeypatch.setattr(
        search.study.begun, "installed_versions", lambda: search.study.journal.installed_versions() | {"timm": "9.0"}
    )
    for _ in range(2):
        again = bench.coordinator(ScriptedPool(trains), spec_of(trials=2))
        again.run()
    change = f"timm {version('timm')} -> 9.0"
    assert [change in note for note in bench.notes].count(True) == 1
    assert [trial.user_attrs.get("warning") for trial in again.trials.study.get_trials()] == [
        f"begun with other versions: {change}",
        None,
    ]


def test_an_early_stop_completes_the_trial_with_its_last_epoch(bench: Bench) -> None:
    def loses_patience(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
        trial = assignment.trial
        yield started(trial)
        yield epoch(trial, 1, 0.6)
        last = epoch(trial, 2, 0.5)
        yield replace(last, result=replace(last.result, final=True))

    coordinator = bench.coordinator(ScriptedPool(loses_patience), spec_of(trials=2))
    coordinator.run()
    assert [(trial.state.name, trial.value) for trial in coordinator.trials.study.get_trials()] == [
        ("COMPLETE", 0.5)
    ] * 2


def test_the_pruner_is_not_asked_after_the_last_epoch(bench: Bench) -> None:
    """The last value is worth having, and Optuna would prune a trial that is as good as finished."""

    def worse_at_the_end(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
        trial = assignment.trial
        yield started(trial)
        for number in range(1, EPOCHS + 1):
            yield epoch(trial, number, 0.9 if number < EPOCHS else 0.5 - 0.01 * trial)

    spec = spec_of(pruner="median", startup_trials=1, trials=4)
    coordinator = bench.coordinator(ScriptedPool(worse_at_the_end), spec)
    coordinator.run()
    assert states(coordinator.trials.study) == ["COMPLETE"] * 4


def test_a_pruned_trial_is_decided_again_when_the_kill_came_before_the_decision(bench: Bench) -> None:
    spec = spec_of(pruner="successive_halving", trials=2)
    bench.coordinator(ScriptedPool(trains), spec_of(pruner="successive_halving", trials=1)).run()
    asked = bench.coordinator(ScriptedPool(trains), spec)
    trial = asked.trials.next()
    asked.trials.progress[trial].trial.report(0.0, 1)  # reported, and then the coordinator was gone

    def resumes(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
        yield started(assignment.trial)
        yield epoch(assignment.trial, 1, 0.0)
        yield epoch(assignment.trial, 2, 0.0)

    coordinator = bench.coordinator(ScriptedPool(resumes), spec)
    coordinator.run()
    decided = coordinator.trials.study.get_trials()[1]
    assert (decided.state, list(decided.intermediate_values)) == (TrialState.PRUNED, [1])


def test_hours_that_are_over_begin_no_trial_but_finish_those_begun(bench: Bench) -> None:
    bench.coordinator(ScriptedPool(trains)).trials.study.ask()
    pool = ScriptedPool(trains, 2)
    coordinator = bench.coordinator(pool, spec_of(hours=1e-9))
    assert coordinator.run() is True
    assert pool.trials == [0]
    assert states(coordinator.trials.study) == ["COMPLETE"]


def test_what_a_trial_kept_is_removed_when_it_has_finished(bench: Bench) -> None:
    def keeps(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
        Path(assignment.checkpoint).parent.mkdir(parents=True)
        Path(assignment.checkpoint).write_bytes(b"state")
        yield from trains(assignment, times)

    bench.coordinator(ScriptedPool(keeps), spec_of(trials=2)).run()
    assert list((bench.folder / "studies/scripted/trials").iterdir()) == []


@pytest.mark.parametrize("values", [{"lr": "fast"}, {"lr": 0.01, "dropout": "some"}, {"lr": [0.1]}])
def test_a_trial_queued_by_another_program_with_values_that_cannot_be_fails_and_the_search_goes_on(
    bench: Bench, values: dict[str, Any]
) -> None:
    coordinator = bench.coordinator(ScriptedPool(trains), spec_of(trials=3))
    coordinator.trials.study.enqueue_trial(values)
    assert coordinator.run() is True
    study = coordinator.trials.study
    assert states(study) == ["FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[0].user_attrs["reason"].startswith("queued by another program with impossible values: ")
    assert any(note.startswith("trial 0 fail") for note in bench.notes)
    assert replay(read_journal(coordinator.journal.path)).identical
    again = bench.coordinator(ScriptedPool(trains), spec_of(trials=4))
    assert again.run() is True
    assert states(study)[3] == "COMPLETE"
