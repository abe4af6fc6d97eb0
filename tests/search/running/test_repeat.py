"""The first known recipe is trained a second time, with another seed: a real database, workers that play a script."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from exports import recorded
from fast import slow_after
from needed import postgres
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from scripted import Bench, ScriptedPool, result, spec_of, started
from sqlalchemy.exc import OperationalError

import search.study.outage
from search.errors import NothingToExport
from search.export.card import card
from search.export.choice import choose_trials
from search.export.record import ExportRecord
from search.paths import Runs
from search.policy.candidates import CandidateReader
from search.policy.ladder import PAUSED_AT, REPEATS
from search.running.coordinator import Coordinator
from search.study.confirmation import candidates, rounds_for
from search.study.events import Enqueue, Epoch, Promote
from search.study.journal import read_journal
from search.study.marks import own_trials
from search.study.noise import noise_of, store_num_pictures
from search.study.replay import replay, replay_with
from search.study.result import result_of
from search.study.standings import standings_of
from search.study.study import HAS_REPEAT
from search.study.trial import best_of, view_of
from search.watch.findings import story
from search.watch.live import text_of_snapshot
from search.watch.status import as_json, with_results
from search.workers.messages import Assign, FromWorker
from search.workers.messages import Epoch as Said
from search.workers.pool import Exit
from studies import StudySpec

KNOWN = {"lr": 0.05}
"""Better than all others. Its dropout is sampled."""


def spec(schedule: str, *, pruner: str = "promote", sampler: str = "random", **search: Any) -> StudySpec:
    """Rungs after 3 of 9 epochs; 15 trainings are 135 epochs."""
    made = spec_of(pruner=pruner, sampler=sampler, trials=None, trainings=15, **search).model_dump()
    return StudySpec.model_validate(
        made | {"train": made["train"] | {"epochs": 9, "schedule": schedule}, "known": [KNOWN]}
    )


def trains(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
    """Accuracy by the settings; the repeat is better by two points than the trial it repeats."""
    trial, epochs, lr = assignment.trial, assignment.config["epochs"], assignment.config["lr"]
    assert isinstance(epochs, int)
    assert isinstance(lr, float)
    yield started(trial)
    for number in range(1, epochs + 1):
        value = (0.9 - abs(lr - 0.05)) * (0.5 + 0.5 * number / epochs) + 0.02 * (lr == 0.05 and trial > 0)
        yield Said(trial=trial, result=result(number, value, epochs=epochs), memory_bytes=1)


def repeats_of(coordinator: Coordinator) -> list[FrozenTrial]:
    return [one for one in coordinator.trials.study.get_trials() if REPEATS in one.user_attrs]


def check_whole(coordinator: Coordinator) -> FrozenTrial:
    """One repeat, trained to its end without a pause, in the journal, and a replay that is identical."""
    (repeat,) = repeats_of(coordinator)
    known = coordinator.trials.study.get_trials()[0]
    assert repeat.state == TrialState.COMPLETE
    assert repeat.params == known.params
    assert max(repeat.intermediate_values) == coordinator.trials.rungs.ladder.last_step
    assert PAUSED_AT not in repeat.user_attrs
    events = read_journal(coordinator.journal.path)
    assert [one.repeats for one in events if isinstance(one, Enqueue)] == [None, 0]
    played = replay(events)
    assert played.identical, played.first_difference
    assert played.asks == len(coordinator.trials.study.get_trials())
    return repeat


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_repeat_runs_to_its_end_with_its_own_seed_and_is_no_candidate(bench: Bench, schedule: str) -> None:
    pool = ScriptedPool(trains, 2)
    coordinator = bench.coordinator(pool, spec(schedule, sampler="model"))
    assert coordinator.run() is True
    repeat, study = check_whole(coordinator), coordinator.trials.study
    seeds = {one.config["seed"] for one in pool.assigned if one.trial in (0, repeat.number)}
    assert len(seeds) == 2
    assert repeat.value > study.get_trials()[0].value
    best = best_of(study.get_trials())
    assert best is not None
    assert coordinator.snapshot().best is not None
    assert (best.number, coordinator.snapshot().best.number) == (0, 0), "the candidate, not its luckier repeat"
    settings = coordinator.spec
    assert repeat.number not in [one.number for one in candidates(study, settings, rounds_for(settings.confirm, 30))]
    assert repeat.number not in coordinator.trials.rungs.standings.paused
    for standings in (coordinator.trials.rungs.standings, standings_of(settings, study.get_trials())):
        assert all(repeat.number != number for alive in standings._alive for _, number in alive)
    seen = CandidateReader(coordinator.trials.rungs.ladder).candidates(study.get_trials(deepcopy=False), but=-1)
    assert repeat.number not in [one.number for one in seen]
    with pytest.raises(NothingToExport, match=f"trial {repeat.number} .* is trial 0 again with another seed"):
        choose_trials(study, [repeat.number], settings)
    ended = f"trial {repeat.number} complete, .* trial 0 again with another seed"
    assert view_of(repeat).repeats == 0
    assert any(re.match(ended, note) for note in bench.notes)
    assert coordinator.trials.spent.epochs == sum(max(one.intermediate_values) for one in study.get_trials())
    assert coordinator.trials.spent.trainings <= 16


def test_the_noise_comes_from_the_pair_and_the_binomial_error(bench: Bench) -> None:
    coordinator = bench.coordinator(ScriptedPool(trains, 2), spec("constant"))
    coordinator.run()
    store_num_pictures(coordinator.trials.study, 400)
    noise = noise_of(coordinator.trials.study, coordinator.spec)
    assert noise is not None
    pair = 0.02**2 / 2
    assert noise.sigma == pytest.approx(((pair + 3 * 0.9 * 0.1 / 400) / 4) ** 0.5)
    assert (noise.repeats, noise.repeated, noise.pictures, noise.best) == (1, (0,), 400, 0)
    sentence = noise.sentence
    assert "from further seeds of trial 0 and the binomial error of 400 pictures" in sentence
    study, settings = coordinator.trials.study, coordinator.spec
    snapshot = with_results(coordinator.snapshot(), study, settings, Runs(bench.folder))
    shown = Console(width=200, file=(out := io.StringIO()))
    shown.print(text_of_snapshot(snapshot))
    assert " ".join(sentence.split()) in " ".join(out.getvalue().split())
    assert as_json(snapshot, held_by=None)["noise"] == noise.to_json()
    assert f"Noise: {sentence}." in story(settings, own_trials(study), result_of(study, settings))
    assert f"| noise of one training | {sentence} |" in card(
        ExportRecord.model_validate(recorded() | {"noise": sentence})
    )
    assert "noise of one training" not in card(ExportRecord.model_validate(recorded()))


@pytest.mark.parametrize("why", slow_after(1, ["budget", "known", "before", "trials"]))
def test_a_small_budget_no_recipe_or_a_study_of_before_means_no_repeat(bench: Bench, why: str) -> None:
    settings = spec("constant")
    if why == "budget":
        settings = spec("constant").model_copy(
            update={"search": settings.search.model_copy(update={"trainings": 14.9})}
        )
    elif why == "known":
        settings = settings.model_copy(update={"known": ()})
    elif why == "trials":
        search = settings.search.model_copy(update={"trainings": None, "trials": 40})
        settings = settings.model_copy(update={"search": search})
    if why == "before":
        bench.coordinator(ScriptedPool(trains), settings).trials.study.set_user_attr(HAS_REPEAT, None)
    coordinator = bench.coordinator(ScriptedPool(trains, 2), settings)
    coordinator.run()
    assert repeats_of(coordinator) == []
    assert best_of(coordinator.trials.study.get_trials()) is not None
    assert replay(read_journal(coordinator.journal.path)).identical


@pytest.mark.parametrize("at", slow_after(1, ["queued", "asked", "rung", "last"]))
@pytest.mark.parametrize("schedule", slow_after(1, ["constant", "cosine"]))
def test_a_kill_at_each_moment_of_the_repeat_loses_nothing(
    bench: Bench, schedule: str, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    coordinator = bench.coordinator(ScriptedPool(trains, 2), spec(schedule))
    append = coordinator.journal.append

    def killed(*events: Any) -> None:
        event = events[0]
        repeats = [one.number for one in repeats_of(coordinator)]
        is_due = {
            "queued": isinstance(event, Enqueue) and event.repeats is not None,
            "asked": repeats and getattr(event, "trial", None) in repeats and event.event == "ask",
            "rung": isinstance(event, Epoch) and event.trial in repeats and event.step == 3,
            "last": getattr(event, "trial", None) in repeats and event.event == "tell",
        }
        if is_due[at]:
            raise Killed  # after the database has stored it, before the journal
        append(*events)

    monkeypatch.setattr(coordinator.journal, "append", killed)
    with pytest.raises(Killed):
        coordinator.run()
    again = bench.coordinator(ScriptedPool(trains, 2), spec(schedule))
    assert again.run() is True
    check_whole(again)


def test_a_lost_acknowledgement_queues_one_repeat(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator = bench.coordinator(ScriptedPool(trains, 2), spec("constant"))
    study, lost = coordinator.trials.study, itertools.count()
    enqueue = study.enqueue_trial

    def away(params: Any, **more: Any) -> None:
        enqueue(params, **more)
        if REPEATS in more.get("user_attrs", {}):
            next(lost)
            raise OperationalError("", None, Exception("the server is gone"))

    monkeypatch.setattr(search.study.outage, "RETRY_SECONDS", 0)
    monkeypatch.setattr(study, "enqueue_trial", away)
    assert coordinator.run() is True
    assert next(lost) == 1
    check_whole(coordinator)


@pytest.mark.parametrize("pruner", ["successive_halving", "median", "none"])
def test_optunas_pruners_are_not_asked_about_the_repeat(bench: Bench, pruner: str) -> None:
    coordinator = bench.coordinator(ScriptedPool(trains, 2), spec("constant", pruner=pruner, min_epochs=1))
    coordinator.run()
    repeat = check_whole(coordinator)
    lines = [one for one in read_journal(coordinator.journal.path) if isinstance(one, Epoch)]
    assert {one.pruned for one in lines if one.trial == repeat.number} == {None}
    other = replay_with(read_journal(coordinator.journal.path), "median")
    assert other.best_trial == 0
    assert repeat.number not in other.stopped_earlier


@pytest.mark.postgres
@pytest.mark.slow
def test_on_a_postgres_server_too(tmp_path: Path) -> None:
    with postgres() as server:
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        coordinator = Bench(tmp_path, url=url).coordinator(ScriptedPool(trains, 2), spec("cosine"))
        coordinator.run()
        check_whole(coordinator)
        assert any(isinstance(one, Promote) for one in read_journal(coordinator.journal.path))
