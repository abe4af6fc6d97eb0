"""Candidates wait at rungs and are promoted: real Optuna, a real database, workers that play a script."""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from fast import slow_after
from optuna.trial import Trial, TrialState
from scripted import Bench, ScriptedPool, failed, result, spec_of, started
from sqlalchemy.exc import OperationalError

import search.running.trials
import search.study.outage
from search.errors import StudyChanged, UsageError
from search.running.quota import Quota
from search.running.records import Progress
from search.running.stop import stop_search, text_of_stop
from search.study.begun import begin_trials_anew
from search.study.budget import Spent
from search.study.events import Epoch as EpochLine
from search.study.events import Event, Pause, Promote
from search.study.gone import GONE_REASON
from search.study.journal import read_journal
from search.study.marks import CHANGED_REASON, FOREIGN_REASON, own_trials
from search.study.progress import Snapshot
from search.study.replay import replay, replay_with
from search.study.storage import open_storage, parse_url
from search.study.study import find_study
from search.study.trial import is_paused
from search.workers.messages import Assign, Epoch, FromWorker
from search.workers.pool import Exit
from studies import StudySpec
from trainer.config import RECIPE_VERSION

PARTS, WHOLE = "constant", "cosine"
"""Schedules whose trainings are looked at on their way, and whose rungs have whole trainings."""


def spec(schedule: str, *, epochs: int = 9, patience: int | None = None, **search: Any) -> StudySpec:
    """Rungs after 3 of 9 epochs (parts: after 1 and 3); with whole trainings the last step is 12."""
    made = spec_of(pruner="promote", sampler="random").model_dump()
    train = {"epochs": epochs, "schedule": schedule, "patience": patience}
    changes = {"train": made["train"] | train, "search": made["search"] | {"trials": 9} | search}
    return StudySpec.model_validate(made | changes)


def quality(trial: int) -> float:
    """Of a candidate: 0.1 to 0.9, every trial its own."""
    return (1 + 7 * trial % 9) / 10


def trains(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
    """A worker that begins where its checkpoint would: the same epochs have the same accuracies again."""
    trial, epochs = assignment.trial, assignment.config["epochs"]
    assert isinstance(epochs, int)
    yield started(trial)
    for number in range(1, epochs + 1):
        value = quality(trial) * (0.5 + 0.5 * number / epochs)
        yield Epoch(trial=trial, result=result(number, value, epochs=epochs), memory_bytes=1)


def later_ones_are_worse(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
    """Than the first four."""
    for said in trains(assignment, times):
        if isinstance(said, Epoch) and assignment.trial >= 4:
            worse = replace(said.result, val_accuracy=said.result.val_accuracy / 10)
            yield replace(said, result=worse)
        else:
            yield said


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("schedule", [PARTS, WHOLE])
def test_the_best_go_on_the_others_wait_and_a_replay_repeats_it(bench: Bench, schedule: str, workers: int) -> None:
    coordinator = bench.coordinator(ScriptedPool(trains, workers), spec(schedule))
    assert coordinator.run() is True
    trials = coordinator.trials.study.get_trials()
    assert len(trials) == 9
    complete = [trial.number for trial in trials if trial.state == TrialState.COMPLETE]
    paused = [trial.number for trial in trials if is_paused(trial)]
    assert sorted(complete + paused) == list(range(9)), "nobody is lost, and nobody is in between"
    assert max(range(9), key=quality) in complete
    assert len(paused) >= 5
    events = read_journal(coordinator.journal.path)
    assert sum(isinstance(event, Pause) for event in events) >= len(paused)
    assert sum(isinstance(event, Promote) for event in events) >= 1
    played = replay(events)
    assert played.identical, played.first_difference
    assert played.decisions >= 9


def test_the_steps_of_a_candidate_keep_rising_through_its_trainings_and_its_value_is_the_last(bench: Bench) -> None:
    pool = ScriptedPool(trains)
    coordinator = bench.coordinator(pool, spec(WHOLE))
    coordinator.run()
    best = coordinator.trials.study.best_trial
    assert sorted(best.intermediate_values) == list(range(1, 13))
    assert best.value == best.intermediate_values[12]
    lengths = [one.config["epochs"] for one in pool.assigned if one.trial == best.number]
    assert lengths == [3, 9], "a whole training for the rung, and then one of full length"
    files = [one.checkpoint for one in pool.assigned if one.trial == best.number]
    assert len(set(files)) == 2, "no training takes the checkpoint of another for its own"


def test_a_shorter_training_has_a_shorter_warmup_and_augments_as_much_earlier() -> None:
    made = spec(WHOLE, epochs=18)
    train = made.train.model_copy(update={"warmup_epochs": 3.0, "augment_from_epoch": 7})
    made = made.model_copy(update={"train": train})
    short = made.values_for({"lr": 0.01}, 1, 6)
    assert (short["epochs"], short["warmup_epochs"], short["augment_from_epoch"]) == (6, 1.0, 3)
    assert made.values_for({"lr": 0.01}, 1, 18) == made.values_for({"lr": 0.01}, 1)


@pytest.mark.parametrize("schedule", [PARTS, WHOLE])
def test_a_paused_candidate_goes_on_under_its_number_with_a_later_launch(bench: Bench, schedule: str) -> None:
    bench.coordinator(ScriptedPool(trains), spec(schedule, trials=4)).run()
    pool = ScriptedPool(later_ones_are_worse)
    coordinator = bench.coordinator(pool, spec(schedule, trials=12))
    coordinator.begin()
    waiting = set(coordinator.trials.rungs.paused)
    assert waiting, "some wait since the first launch"
    while coordinator.turn():
        pass
    trials = coordinator.trials.study.get_trials()
    assert len(trials) == 12
    events = read_journal(coordinator.journal.path)
    promoted = {event.trial for event in events if isinstance(event, Promote)}
    assert promoted & waiting, "twelve candidates are worse than four, so one of those goes on"
    assert replay(events).identical


@pytest.mark.parametrize("schedule", [PARTS, WHOLE])
def test_paused_candidates_that_another_program_ends_between_launches_are_named_once_and_a_replay_agrees(
    bench: Bench, schedule: str
) -> None:
    """People end "zombie" trials: those that an optimization left RUNNING."""
    coordinator = bench.coordinator(ScriptedPool(trains), spec(schedule, trials=6))
    coordinator.run()
    lost = sorted(coordinator.trials.rungs.paused)[:3]
    foreign = find_study(open_storage(parse_url(f"sqlite:///{bench.folder}/search.db")), "scripted")[0]
    for number in lost:
        foreign.tell(number, state=TrialState.FAIL)
    for trials in (12, 14):
        bench.warnings.clear()
        coordinator = bench.coordinator(ScriptedPool(trains), spec(schedule, trials=trials))
        assert coordinator.run() is True
        found = replay(read_journal(coordinator.journal.path))
        assert found.identical, found.first_difference
        assert found.void == {str(number): FOREIGN_REASON for number in lost}
        named = [line for line in bench.warnings if FOREIGN_REASON in line]
        assert len(named) == (trials == 12), named


@pytest.mark.parametrize("schedule", [PARTS, WHOLE])
def test_killed_workers_lose_nothing_at_a_rung(bench: Bench, schedule: str) -> None:
    def dies_once_everywhere(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
        for said in trains(assignment, times):
            yield said
            if isinstance(said, Epoch) and times == 0 and said.result.epoch == 3:
                yield Exit(-9, "")

    coordinator = bench.coordinator(ScriptedPool(dies_once_everywhere, 2), spec(schedule))
    assert coordinator.run() is True
    quiet = Bench(bench.folder / "quiet")
    other = quiet.coordinator(ScriptedPool(trains, 1), spec(schedule))
    other.run()
    assert coordinator.trials.study.best_trial.number == other.trials.study.best_trial.number
    assert all(trial.state in (TrialState.COMPLETE, TrialState.RUNNING) for trial in coordinator.trials.study.trials)
    assert replay(read_journal(coordinator.journal.path)).identical


@pytest.mark.parametrize("schedule", [PARTS, WHOLE])
def test_a_promotion_that_the_database_did_not_acknowledge_is_taken_again_with_the_same_candidate(
    bench: Bench, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.coordinator(ScriptedPool(trains), spec(schedule, trials=4)).run()
    coordinator = bench.coordinator(ScriptedPool(later_ones_are_worse), spec(schedule, trials=12))
    rungs = coordinator.trials.rungs
    promoted: list[int] = []

    def away_once(progress: Progress, promoted_at: int | None) -> None:
        if rungs._promoting is not None:  # stored, and the answer is lost
            promoted.append(rungs._promoting.trial)
            if len(promoted) == 1:
                raise OperationalError("", None, Exception("the server is gone"))
        place(progress, promoted_at)

    monkeypatch.setattr(search.study.outage, "RETRY_SECONDS", 0)
    place = rungs.leave_rung
    monkeypatch.setattr(rungs, "leave_rung", away_once)
    assert coordinator.run() is True
    assert promoted[0] == promoted[1]
    events = read_journal(coordinator.journal.path)
    noted = [event.trial for event in events if isinstance(event, Promote)]
    assert noted[-len(promoted) + 1 :] == promoted[1:], "each is noted once"
    assert replay(events).identical


def test_a_diverged_candidate_is_pruned_and_counts_as_the_last_at_its_rung(bench: Bench) -> None:
    def diverges(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
        if assignment.trial % 3 == 0:
            yield started(assignment.trial)
            yield failed(assignment.trial, "diverged", "the loss is not finite")
        else:
            yield from trains(assignment, times)

    coordinator = bench.coordinator(ScriptedPool(diverges), spec(WHOLE))
    assert coordinator.run() is True
    trials = coordinator.trials.study.get_trials()
    assert [trial.number for trial in trials if trial.state == TrialState.PRUNED] == [0, 3, 6]
    standings = coordinator.trials.rungs.standings
    assert len(standings._arrived[0]) == 9
    assert len(standings._alive[0]) == 6
    assert replay(read_journal(coordinator.journal.path)).identical


def test_a_candidate_too_large_for_the_memory_holds_no_place_at_its_rung(bench: Bench) -> None:
    def too_large(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
        if assignment.trial == 4:
            yield started(assignment.trial)
            yield failed(assignment.trial, "memory", "CUDA out of memory")
        else:
            yield from trains(assignment, times)

    coordinator = bench.coordinator(ScriptedPool(too_large), spec(PARTS))
    assert coordinator.run() is True
    assert coordinator.trials.study.get_trials()[4].state == TrialState.PRUNED
    assert 4 not in coordinator.trials.rungs.standings._arrived[0]
    assert replay(read_journal(coordinator.journal.path)).identical


@pytest.mark.parametrize("schedule", [PARTS, WHOLE])
def test_a_training_that_loses_patience_before_its_rung_is_compared_there_all_the_same(
    bench: Bench, schedule: str
) -> None:
    def loses_patience(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
        for said in trains(assignment, times):
            if isinstance(said, Epoch) and said.result.epoch == 2:
                last = result(2, said.result.val_accuracy, epochs=2)
                assert last.final
                yield Epoch(trial=said.trial, result=last, memory_bytes=1)
                return
            yield said

    coordinator = bench.coordinator(ScriptedPool(loses_patience), spec(schedule, patience=1))
    assert coordinator.run() is True
    trials = coordinator.trials.study.get_trials()
    assert [trial.state for trial in trials].count(TrialState.COMPLETE) >= 1
    if schedule == WHOLE:  # two epochs of the short training are its steps 1 and 2, the next one's begin after step 3
        best = coordinator.trials.study.best_trial
        assert sorted(best.intermediate_values) == [1, 2, 4, 5]
    assert replay(read_journal(coordinator.journal.path)).identical


def test_folds_are_rungs(bench: Bench) -> None:
    made = spec(WHOLE)
    data = made.data.model_copy(update={"folds": 3})
    made = made.model_copy(update={"data": data})

    def folds(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
        yield started(assignment.trial)
        for number in range(1, 4):
            fold = result(number, quality(assignment.trial), epochs=3)
            yield Epoch(trial=assignment.trial, result=fold, memory_bytes=1)

    pool = ScriptedPool(folds)
    coordinator = bench.coordinator(pool, made)
    assert coordinator.trials.rungs.ladder.steps == (1, 3)
    assert coordinator.run() is True
    assert all(one.config["epochs"] == 9 for one in pool.assigned), "a fold is never shortened"
    assert replay(read_journal(coordinator.journal.path)).identical


def test_people_see_each_training_with_its_own_length_and_hear_where_a_candidate_waits(bench: Bench) -> None:
    pool, seen = ScriptedPool(trains), set()
    coordinator = bench.coordinator(pool, spec(WHOLE))

    def look(_: object) -> None:
        snapshot = coordinator.snapshot()
        seen.update((one.trial, one.epoch, one.epochs, one.attempt) for one in snapshot.workers)
        assert snapshot.spent.paused == len(coordinator.trials.rungs.paused)
        assert not {view.number for view in snapshot.finished} & coordinator.trials.rungs.paused.keys()

    pool.on_epoch = look
    coordinator.run()
    assert {epochs for _, _, epochs, _ in seen} == {3, 9}
    assert all(epoch <= epochs for _, epoch, epochs, _ in seen)
    assert {attempt for *_, attempt in seen} == {1}, "the next training is no second attempt at the one before"
    paused = [trial for trial in coordinator.trials.study.get_trials() if is_paused(trial)]
    for trial in paused:
        line = f"trial {trial.number} paused at rung 1 of 1 (epoch 3), {quality(trial.number):.2%}"
        assert line in bench.notes
    (best,) = [one for one in bench.notes if one.startswith(f"trial {coordinator.snapshot().best.number} complete")]
    assert "at epoch 9 of 9 of training 2 of 2; " in best


@pytest.mark.parametrize("schedule", [PARTS, WHOLE])
def test_the_time_of_a_candidate_is_that_of_all_its_trainings_whoever_launched_them(
    bench: Bench, schedule: str
) -> None:
    bench.coordinator(ScriptedPool(trains), spec(schedule, trials=4)).run()
    coordinator = bench.coordinator(ScriptedPool(later_ones_are_worse), spec(schedule, trials=12))
    coordinator.begin()
    waiting = {number: progress.step for number, progress in coordinator.trials.rungs.paused.items()}
    while coordinator.turn():
        pass
    trials = coordinator.trials.study.get_trials()
    each = result(1, 0.5, epochs=9).seconds
    assert any(max(trials[number].intermediate_values) > step for number, step in waiting.items())
    for trial in trials:
        assert trial.user_attrs["seconds"] == pytest.approx(each * len(trial.intermediate_values)), trial.number


def test_min_epochs_names_the_first_rung(bench: Bench) -> None:
    coordinator = bench.coordinator(ScriptedPool(trains), spec(PARTS, min_epochs=4))
    assert coordinator.trials.rungs.ladder.lengths == (4, 9)
    coordinator.run()
    lines = [one for one in read_journal(coordinator.journal.path) if isinstance(one, EpochLine)]
    assert {one.step for one in lines if one.pruned is not None} == {4}


def test_a_plateau_schedule_is_looked_at_on_its_way(bench: Bench) -> None:
    coordinator = bench.coordinator(ScriptedPool(trains), spec("plateau"))
    assert coordinator.trials.rungs.ladder.anew is False
    assert coordinator.run() is True


def test_a_search_whose_candidates_all_fail_ends(bench: Bench) -> None:
    def fails(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
        yield started(assignment.trial)
        yield failed(assignment.trial, "diverged", "the loss is not finite")

    coordinator = bench.coordinator(ScriptedPool(fails), spec(WHOLE, trials=3))
    assert coordinator.run() is True
    assert [trial.state for trial in coordinator.trials.study.trials] == [TrialState.PRUNED] * 3


def test_the_best_goes_on_although_fewer_came_than_it_takes(bench: Bench) -> None:
    coordinator = bench.coordinator(ScriptedPool(trains), spec(WHOLE, trials=2))
    coordinator.run()
    assert coordinator.trials.study.best_trial.number == max(range(2), key=quality)


def test_if_the_best_fails_later_the_next_one_goes_on(bench: Bench) -> None:
    best = max(range(3), key=quality)

    def fails_at_full_length(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
        if assignment.trial == best and assignment.config["epochs"] == 9:
            yield started(assignment.trial)
            yield failed(assignment.trial, "user", "no such augmentation")
        else:
            yield from trains(assignment, times)

    coordinator = bench.coordinator(ScriptedPool(fails_at_full_length), spec(WHOLE, trials=3))
    coordinator.run()
    trials = coordinator.trials.study.get_trials()
    assert trials[best].state == TrialState.FAIL
    assert [trial.state for trial in trials].count(TrialState.COMPLETE) == 1


def test_a_full_quota_takes_the_checkpoint_of_the_least_promotable(bench: Bench) -> None:
    def saves(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
        for said in trains(assignment, times):
            if isinstance(said, Epoch):
                path = coordinator.runs.checkpoint("scripted", assignment.trial)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(bytes(1000))
            yield said

    made = spec(PARTS)
    made = made.model_copy(update={"faults": made.faults.model_copy(update={"checkpoint_gb": 3.5e-6})})
    coordinator = bench.coordinator(ScriptedPool(saves), made)
    coordinator.run()
    order = coordinator.trials.rungs.order()
    assert len(order) > 3
    kept = [number for number in order if coordinator.runs.checkpoint("scripted", number).exists()]
    assert kept == order[: len(kept)]
    assert 1 <= len(kept) <= 3
    assert any("a paused trial among them would begin anew" in note for note in bench.notes)


def test_checkpoints_are_looked_at_again_only_after_a_while_and_at_the_end(bench: Bench) -> None:
    coordinator = bench.coordinator(ScriptedPool(trains), spec(PARTS))
    quota = Quota(coordinator.runs, coordinator.spec, coordinator.trials.rungs, bench.hear)
    file = coordinator.runs.final_training("scripted", "old") / "checkpoint"
    quota.spec = quota.spec.model_copy(update={"faults": quota.spec.faults.model_copy(update={"checkpoint_gb": 1e-9})})

    def is_kept(*, at_once: bool = False) -> bool:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(9))
        quota.keep(at_once=at_once)
        return file.exists()

    assert not is_kept()
    assert is_kept(at_once=True), "no trial has ended since"
    quota.due, quota.apart = True, math.inf
    assert not is_kept(at_once=True)
    quota.due = True
    assert is_kept()
    assert not is_kept(at_once=True)


def test_the_spent_budget_is_counted_as_the_database_has_it(bench: Bench) -> None:
    looks = 0

    def look(snapshot: Snapshot) -> None:
        nonlocal looks
        looks += 1
        trials = coordinator.trials
        stored = Spent.of(own_trials(trials.study), trials.spec)  # where a trial is paused before its worker is free
        assert snapshot.spent == replace(stored, paused=snapshot.spent.paused)
        assert trials.committed == sum(map(trials.rungs.left_of, trials.progress.values()))

    coordinator = bench.coordinator(ScriptedPool(trains, 3), spec(WHOLE, trials=6), watch=look)
    coordinator.run()
    assert looks > 20
    assert coordinator.trials.spent.epochs > 6


def test_other_rungs_are_refused_while_candidates_wait_at_these(bench: Bench) -> None:
    bench.coordinator(ScriptedPool(trains), spec(PARTS, trials=3)).run()
    words = (
        r"its candidates were compared after 1, 3 of 9 epochs, and would be compared after 2 of 9 epochs; undo the "
        r"change of .* or end its 2 paused trials \(0, 2\): search stop scripted --finish"
    )
    with pytest.raises(StudyChanged, match=words):
        bench.coordinator(ScriptedPool(trains), spec(PARTS, min_epochs=2, reduction_factor=5))
    with pytest.raises(StudyChanged, match=r"and would be trained without rungs; .*--finish"):
        bench.coordinator(ScriptedPool(trains), spec(PARTS, pruner="median"))


def test_a_series_of_trainings_never_becomes_one_training(bench: Bench) -> None:
    """To end its paused trials would not help: those that are complete have other steps, too."""
    bench.coordinator(ScriptedPool(trains), spec(WHOLE, trials=3)).run()
    with pytest.raises(StudyChanged, match=r"3 of 9 epochs, each in a separate training, and .* another name"):
        bench.coordinator(ScriptedPool(trains), spec(WHOLE, pruner="median"))


def test_what_another_pruner_would_have_done_is_known_in_part_or_not_at_all(bench: Bench) -> None:
    coordinator = bench.coordinator(ScriptedPool(trains), spec(PARTS))
    coordinator.run()
    events = read_journal(coordinator.journal.path)
    other = replay_with(events, "none")
    paused = [trial.number for trial in coordinator.trials.study.trials if is_paused(trial)]
    assert other.unknown == tuple(paused)
    assert not other.stopped_earlier
    with pytest.raises(UsageError, match="their later values are unknown"):
        replay_with(events, "promote")


def test_another_pruner_knows_nothing_of_a_series_of_trainings(bench: Bench) -> None:
    coordinator = bench.coordinator(ScriptedPool(trains), spec(WHOLE))
    coordinator.run()
    with pytest.raises(UsageError, match="a training for each rung"):
        replay_with(read_journal(coordinator.journal.path), "median")


def test_paused_trials_are_ended_for_good_and_the_search_goes_on_without_them(bench: Bench) -> None:
    coordinator = bench.coordinator(ScriptedPool(trains), spec(PARTS))
    coordinator.run()
    runs = coordinator.runs
    paused = [trial.number for trial in coordinator.trials.study.trials if is_paused(trial)]
    url = parse_url(f"sqlite:///{runs.database}")
    answer = stop_search("scripted", url, runs, finish=True, tell=bench.hear)
    assert (answer.stopped, answer.finished) == (False, len(paused))
    assert f"{len(paused)} paused trials ended as pruned" in text_of_stop(answer)
    assert stop_search("scripted", url, runs, finish=True, tell=bench.hear).finished == 0

    again = bench.coordinator(ScriptedPool(trains), spec(PARTS, trials=12, min_epochs=2))  # other rungs, too
    assert again.run() is True
    trials = again.trials.study.get_trials()
    for number in paused:
        last = trials[number].intermediate_values[max(trials[number].intermediate_values)]
        assert (trials[number].state, trials[number].value) == (TrialState.PRUNED, last)
        assert "ended while it was paused after epoch" in trials[number].user_attrs["reason"]
    played = replay(read_journal(again.journal.path))
    assert played.identical, played.first_difference


def test_the_command_that_ends_paused_trials_names_those_that_were_deleted_or_changed(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    coordinator = bench.coordinator(ScriptedPool(trains), spec(PARTS))
    coordinator.run()
    trials = coordinator.trials.study.trials
    best = next(one for one in trials if one.state == TrialState.COMPLETE)
    paused = next(one for one in trials if is_paused(one))
    with closing(sqlite3.connect(coordinator.runs.database)) as database, database:
        database.execute(f"DELETE FROM trials WHERE trial_id = {paused._trial_id}")
        database.execute(f"UPDATE trial_values SET value = 2.0 WHERE trial_id = {best._trial_id}")
    url = parse_url(f"sqlite:///{coordinator.runs.database}")
    assert stop_search("scripted", url, coordinator.runs, finish=True, tell=bench.hear).finished
    said = capsys.readouterr().err.splitlines()
    assert f"trial {paused.number}: {GONE_REASON}; the journal has it, and a replay does not judge it" in said
    assert f"trial {best.number}: {CHANGED_REASON}; the journal has it, and a replay does not judge it" in said


def test_a_kill_just_before_an_end_is_stored_makes_the_trial_nobody_elses(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions stored the mark of an end in a transaction before the end."""
    coordinator = bench.coordinator(ScriptedPool(trains), spec(PARTS, trials=3))
    study, told = coordinator.trials.study, list[int]()

    def killed(_study: object, trial: Trial, *_: object) -> None:
        told.append(trial.number)
        raise KeyboardInterrupt

    monkeypatch.setattr(search.running.trials, "end_trial", killed)
    with pytest.raises(KeyboardInterrupt):
        coordinator.run()
    monkeypatch.undo()
    coordinator.trials.marks.mark_ended(study, study.trials[told[0]], TrialState.PRUNED)
    ended = [trial for trial in coordinator.trials.study.trials if str(trial.user_attrs).count("/ended")]
    assert len(ended) == 1
    again = bench.coordinator(ScriptedPool(trains), spec(PARTS, trials=6))
    assert again.run() is True
    trial = again.trials.study.trials[ended[0].number]
    assert trial.value == quality(trial.number)
    assert "fixed_params" not in trial.system_attrs, "it was not queued again"
    assert trial.user_attrs["num_params"] == 900 + trial.number
    assert replay(read_journal(again.journal.path)).identical


@pytest.mark.parametrize(
    ("schedule", "workers", "trainings", "too_late"),
    slow_after(2, [(PARTS, 1, 2.5, 10), (WHOLE, 3, 3.5, 5), (WHOLE, 1, 3, 5), (PARTS, 4, 2, 10), (WHOLE, 4, 4, None)]),
)
def test_a_budget_of_compute_is_exceeded_by_less_than_a_training(
    bench: Bench, schedule: str, workers: int, trainings: float, too_late: int | None
) -> None:
    """A candidate may reach its rung among the best when the compute is spent; it goes on with a larger budget."""
    made = spec(schedule, trials=None, trainings=trainings)
    coordinator = bench.coordinator(ScriptedPool(trains, workers), made)
    assert coordinator.run() is True
    assert trainings <= coordinator.trials.spent.trainings < trainings + 1
    assert coordinator.trials.spent.complete >= 1
    events = read_journal(coordinator.journal.path)
    assert {event.trial for event in events if isinstance(event, EpochLine) and event.too_late} == {too_late} - {None}
    assert replay(events).identical
    if too_late is not None:
        assert is_paused(coordinator.trials.study.trials[too_late])

    larger = bench.coordinator(ScriptedPool(trains, workers), spec(schedule, trials=None, trainings=trainings + 3))
    assert larger.run() is True
    assert trainings + 3 <= larger.trials.spent.trainings < trainings + 4
    events = read_journal(larger.journal.path)
    assert replay(events).identical
    assert {too_late} - {None} <= {event.trial for event in events if isinstance(event, Promote)}


def test_a_budget_too_small_for_one_candidate_trains_one_to_its_end(bench: Bench) -> None:
    coordinator = bench.coordinator(ScriptedPool(trains, 2), spec(WHOLE, trials=None, trainings=0.5))
    assert coordinator.run() is True
    assert coordinator.trials.spent.complete == 1
    assert replay(read_journal(coordinator.journal.path)).identical


@pytest.mark.parametrize("schedule", [PARTS, WHOLE])
def test_paused_candidates_go_on_after_a_change_that_was_accepted(bench: Bench, schedule: str) -> None:
    bench.coordinator(ScriptedPool(trains), spec(schedule, trials=6)).run()
    made = spec(schedule, trials=15)
    changed = made.model_copy(update={"train": made.train.model_copy(update={"batch_size": 32})})
    with pytest.raises(StudyChanged, match="--accept-changes"):
        bench.coordinator(ScriptedPool(trains), changed)
    bench.accept_changes = True
    coordinator = bench.coordinator(ScriptedPool(trains), changed)
    assert coordinator.run() is True
    assert len(coordinator.trials.study.trials) == 15
    assert coordinator.trials.spent.complete >= (3 if schedule == WHOLE else 1), "of 15, a third of a third or a third"
    assert replay(read_journal(coordinator.journal.path)).identical


def test_no_worker_passes_a_rung_while_the_database_is_away(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its decision would come too late, and the trial would be paused at one rung with the checkpoint of another."""
    monkeypatch.setattr(search.study.outage, "RETRY_SECONDS", 0.1)
    blocker = sqlite3.connect(bench.folder / "search.db", isolation_level=None, timeout=30)
    away_since = back_at = 0.0
    passed: list[int] = []

    def at_epoch(message: Epoch) -> None:
        nonlocal away_since
        if message.trial == 2 and message.result.epoch == 1 and not away_since:
            blocker.execute("BEGIN IMMEDIATE")
            away_since = time.monotonic()
        elif away_since and not back_at and message.trial == 2:
            passed.append(message.result.epoch)

    def watch(_: Snapshot) -> None:
        nonlocal back_at
        if away_since and not back_at and time.monotonic() > away_since + 2:
            blocker.execute("ROLLBACK")
            back_at = time.monotonic()

    coordinator = bench.coordinator(ScriptedPool(trains, 1, on_epoch=at_epoch), spec(PARTS), watch=watch)
    assert coordinator.run() is True
    blocker.close()
    assert back_at
    assert passed == []
    for trial in coordinator.trials.study.get_trials():
        if is_paused(trial):
            assert max(trial.intermediate_values) == trial.user_attrs["paused_at"]
    again = bench.coordinator(ScriptedPool(trains), spec(PARTS, trials=12))
    assert again.run() is True
    assert replay(read_journal(again.journal.path)).identical


@pytest.mark.parametrize("lost", [Pause, Promote])
@pytest.mark.parametrize("schedule", [PARTS, WHOLE])
def test_a_kill_that_keeps_a_line_out_of_the_journal_changes_no_decision(
    bench: Bench, schedule: str, lost: type[Pause | Promote]
) -> None:
    coordinator = bench.coordinator(ScriptedPool(trains), spec(schedule))
    append = coordinator.journal.append

    def killed_before(*events: Event) -> None:
        if any(
            isinstance(event, lost) and event.trial == 1 for event in events
        ):  # the second best of all, so it goes on later
            raise KeyboardInterrupt
        append(*events)

    coordinator.journal.append = killed_before  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        coordinator.run()
    coordinator.journal.append = append  # type: ignore[method-assign]
    again = bench.coordinator(ScriptedPool(trains), spec(schedule))
    assert again.run() is True
    events = read_journal(again.journal.path)
    steps = [event.step for event in events if isinstance(event, lost) and event.trial == 1]
    assert len(steps) == len(set(steps)) >= 1, "the launch has added it, once"
    assert events[-1].event == "stop"
    played = replay(events)
    assert played.identical, played.first_difference
    assert played.rebuilt == 0, "one line that is missing is added, and nothing is left unjudged"


@pytest.mark.parametrize("schedule", [PARTS, WHOLE])
def test_under_another_recipe_paused_candidates_begin_anew(bench: Bench, schedule: str) -> None:
    coordinator = bench.coordinator(ScriptedPool(trains), spec(schedule, trials=6))
    coordinator.run()
    study = coordinator.trials.study
    paused = [trial.number for trial in study.trials if is_paused(trial)]
    promoted = [trial.number for trial in study.trials if trial.number not in paused]
    assert paused
    begin_trials_anew(study, coordinator.runs, RECIPE_VERSION - 1)
    for number in paused:
        trial = study.trials[number]
        assert (trial.intermediate_values, is_paused(trial)) == ({}, False)
        assert not {"paused_at", "promoted_at"} & trial.user_attrs.keys()
    pool = ScriptedPool(trains)
    again = bench.coordinator(pool, spec(schedule, trials=6))
    assert again.run() is True
    assert set(paused) <= set(pool.trials), "each is trained again from its first epoch"
    assert not set(promoted) & set(pool.trials)
    assert replay(read_journal(again.journal.path)).identical


def test_a_worker_that_dies_once_its_trial_is_to_pause_costs_the_trial_nothing(bench: Bench) -> None:
    made = spec(PARTS)
    made = made.model_copy(update={"faults": made.faults.model_copy(update={"retries": 0})})
    killed: list[int] = []

    def watch(_: Snapshot) -> None:
        pausing = [
            number for number, one in coordinator.trials.progress.items() if one.waits_at_rung and number not in killed
        ]
        if pausing:  # it was answered, and has not left yet
            killed.extend(pausing)
            pool.kill(0)

    pool = ScriptedPool(trains)
    coordinator = bench.coordinator(pool, made, watch=watch)
    assert coordinator.run() is True
    assert len(killed) >= 6
    assert not [trial for trial in coordinator.trials.study.trials if trial.state == TrialState.FAIL]
    assert replay(read_journal(coordinator.journal.path)).identical
