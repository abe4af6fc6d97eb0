"""Whose a study's folder is, and what comes of what others left in it."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import optuna
import pytest
from lines import launch
from scripted import Bench, ScriptedPool, epoch, failed, spec_of, states, trains

from search.errors import ReplayFailed, UsageError
from search.paths import Runs
from search.study.events import Accept, Event
from search.study.identity import take_folder
from search.study.journal import Journal, read_journal, study_uuid_of
from search.study.replay import replay, replay_study, replay_with, text_of_replay
from search.study.storage import open_storage, parse_url
from search.study.study import UUID
from search.workers.messages import Assign, Epoch, FromWorker
from search.workers.pool import Exit
from studies import StudySpec
from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.values import validate


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def saves(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
    """Trains as the others do, and keeps a checkpoint."""
    checkpoint = Path(assignment.checkpoint)
    for said in trains(assignment, times):
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(json.dumps(assignment.config))
        yield said


def refuses_others(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
    """As a worker refuses a checkpoint of another candidate."""
    checkpoint = Path(assignment.checkpoint)
    if checkpoint.exists() and json.loads(checkpoint.read_text()) != assignment.config:
        yield failed(assignment.trial, "user", f"CheckpointError: {checkpoint} belongs to another candidate")
    else:
        yield from saves(assignment, times)


def stopped(bench: Bench, spec: StudySpec, epochs: int = 2, workers: int = 1) -> str:
    """Search until so many epochs are trained; the study's UUID."""
    seen: list[Epoch] = []

    def count(message: Epoch) -> None:
        seen.append(message)
        if len(seen) == epochs:
            coordinator.stop()

    coordinator = bench.coordinator(ScriptedPool(saves, workers, on_epoch=count), spec)
    assert coordinator.run() is False
    return str(coordinator.trials.uuid)


def run(bench: Bench, spec: StudySpec, workers: int = 1) -> tuple[optuna.Study, list[Event]]:
    coordinator = bench.coordinator(ScriptedPool(refuses_others, workers), spec)
    assert coordinator.run() is True
    return coordinator.trials.study, read_journal(coordinator.journal.path)


def test_a_study_begun_again_after_its_deletion_has_nothing_of_the_old_one(bench: Bench) -> None:
    runs = Runs(bench.folder)
    old = stopped(bench, spec_of(trials=3))
    assert runs.checkpoint("scripted", 0).exists()
    optuna.delete_study(study_name="scripted", storage=open_storage(parse_url(f"sqlite:///{runs.database}")))

    study, journal = run(bench, spec_of(trials=2).model_copy(update={"seed": 1}))
    assert states(study) == ["COMPLETE", "COMPLETE"]
    assert [event.uuid for event in journal if event.event == "launch"] == [study.user_attrs[UUID]]
    assert [event.trial for event in journal if event.event == "ask"] == [0, 1]
    assert replay(journal).identical
    assert any(note.endswith(f"are in {runs.earlier('scripted', old)}") for note in bench.notes)
    assert {path.name for path in runs.earlier("scripted", old).iterdir()} == {"journal.jsonl", "trials"}


def test_what_was_put_aside_comes_back_with_its_study_and_counts_towards_the_quota(tmp_path: Path) -> None:
    runs, (first, second) = Runs(tmp_path), (str(uuid4()), str(uuid4()))

    def search_as(uuid: str) -> None:
        Journal(runs.journal("birds")).append(launch(uuid))
        runs.confusion("birds").write_text(uuid)
        runs.checkpoint("birds", 3).parent.mkdir(parents=True)
        runs.checkpoint("birds", 3).write_text(uuid)

    assert take_folder(runs, "birds", None) == []
    search_as(first)
    assert take_folder(runs, "birds", first) == []
    assert "deleted or in another database" in take_folder(runs, "birds", None)[0]
    assert not runs.trials("birds").exists()
    search_as(second)
    aside, back = take_folder(runs, "birds", first)
    assert second in aside
    assert "are back from" in back
    assert runs.checkpoint("birds", 3).read_text() == runs.confusion("birds").read_text() == first
    assert study_uuid_of(read_journal(runs.journal("birds"))) == first
    assert take_folder(runs, "birds", first) == []
    assert runs.keep_to_quota("birds", 0) == [f"earlier/{second}/trials/3"], "what nobody trains, and no more"
    assert runs.checkpoint("birds", 3).exists()


def test_files_that_the_system_cannot_rename_are_put_aside_and_come_back_too(tmp_path: Path) -> None:
    if not (far := Path("/dev/shm")).is_dir() or far.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system is here")
    runs = Runs(tmp_path)
    runs.trial("scripted", 1).mkdir(parents=True)
    (runs.trial("scripted", 1) / "checkpoint").write_text("weights")
    runs.journal("scripted").write_text("lines")
    with tempfile.TemporaryDirectory(dir=far) as folder:
        runs.earlier("scripted", "a").parent.symlink_to(folder)
        runs.put_aside("scripted", "a")
        assert not runs.journal("scripted").exists()
        assert (Path(folder) / "a/trials/1/checkpoint").read_text() == "weights"
        assert runs.bring_back("scripted", "a")
        assert (runs.trial("scripted", 1) / "checkpoint").read_text() == "weights"
        assert runs.journal("scripted").read_text() == "lines"


def test_a_kill_at_any_step_of_a_move_that_copies_loses_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, steps = Path.rename, iter(range(0))

    def refused(path: Path, target: Path) -> Path:
        if path.name in ("trials", "journal.jsonl"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(path))
        return rename(path, target)

    def killed(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            if next(steps, None) == 0:
                raise KeyboardInterrupt
            return call(*arguments, **options)

        return step

    monkeypatch.setattr(Path, "rename", killed(refused))
    monkeypatch.setattr(Path, "unlink", killed(Path.unlink))
    for name in ("unlink", "rmdir", "open", "mkdir"):
        monkeypatch.setattr(os, name, killed(getattr(os, name)))
    for at in range(100):
        runs, kills = Runs(tmp_path / str(at)), 0
        for number in range(3):
            runs.checkpoint("birds", number).parent.mkdir(parents=True)
            runs.checkpoint("birds", number).write_text("weights")
        runs.journal("birds").write_text("lines")
        steps = iter(range(at, -1, -1))
        try:
            runs.put_aside("birds", "a")
        except KeyboardInterrupt:
            kills = 1
        steps = iter(range(0))
        runs.put_aside("birds", "a")
        aside = runs.earlier("birds", "a")
        assert sorted(path.name for path in aside.iterdir()) == ["journal.jsonl", "trials"], at
        assert sorted(path.name for path in (aside / "trials").iterdir()) == ["0", "1", "2"], at
        assert all((aside / f"trials/{number}/checkpoint").read_text() == "weights" for number in range(3)), at
        assert not runs.trials("birds").exists()
        if not kills:
            break
    assert 10 < at < 99


def test_what_is_in_the_place_of_files_that_are_put_aside_is_replaced(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.trial("birds", 1).mkdir(parents=True)
    (tmp_path / "other").mkdir()
    runs.earlier("birds", "a").mkdir(parents=True)
    (runs.earlier("birds", "a") / "trials").symlink_to(tmp_path / "other")
    runs.put_aside("birds", "a")
    assert (runs.earlier("birds", "a") / "trials/1").is_dir()
    assert list((tmp_path / "other").iterdir()) == []


def test_a_damaged_journal_is_set_aside_and_a_new_one_begins_with_what_the_database_has(bench: Bench) -> None:
    stopped(bench, spec_of(trials=6), epochs=4)
    path = Runs(bench.folder).journal("scripted")
    with path.open("a") as file:
        file.write("nonsense\n")
    study, journal = run(bench, spec_of(trials=6))
    assert states(study) == ["COMPLETE"] * 6
    (aside,) = path.parent.glob("journal.damaged-*.jsonl")
    assert aside.read_text().endswith("nonsense\n")
    assert any(f"set aside as {aside}" in note for note in bench.notes)
    found = replay(journal)
    assert (found.asks, found.rebuilt, found.identical) == (4, 2, True)


UNLIKE_A_CRASH: dict[str, Callable[[bytes], bytes]] = {
    "only zeros": lambda content: bytes(len(content)),
    "zeros in the middle": lambda content: content[:100] + bytes(100) + content[200:],
    "zeros, then the rest of a line": lambda content: content + bytes(100) + b'"step": 1',
    "no line breaks": lambda content: content.replace(b"\n", b""),
    "line breaks of an old Mac": lambda content: content.replace(b"\n", b"\r"),
    "nothing but nonsense": lambda _: b"nonsense",
    "nonsense at the end": lambda content: content + b"nonsense",
}

OF_A_CRASH: dict[str, Callable[[bytes], bytes]] = {
    "half a line": lambda content: content[:-100],
    "a line without its line break": lambda content: content[:-1],
    "half a line, then zeros": lambda content: content[:-100] + bytes(100),
    "whole lines, then zeros": lambda content: content + bytes(4096),
    "half of the first line": lambda content: content[: content.index(b"\n") // 2],
}


@pytest.mark.parametrize("left", UNLIKE_A_CRASH.values(), ids=UNLIKE_A_CRASH)
def test_a_journal_that_lost_more_than_its_last_line_is_kept_aside_whole_and_a_replay_says_so(
    bench: Bench, left: Callable[[bytes], bytes]
) -> None:
    stopped(bench, spec_of(trials=3))
    runs = Runs(bench.folder)
    path = runs.journal("scripted")
    path.write_bytes(damaged := left(path.read_bytes()))
    with pytest.raises(ReplayFailed, match=r"the next search launch sets it aside and begins a new one"):
        replay_study("scripted", runs)
    with pytest.raises(ReplayFailed):
        Journal(path)
    assert path.read_bytes() == damaged
    _, journal = run(bench, spec_of(trials=3))
    (aside,) = path.parent.glob("journal.damaged-*.jsonl")
    assert aside.read_bytes() == damaged
    assert any(f"set aside as {aside}" in note for note in bench.notes)
    assert not any("last line" in note for note in bench.notes)
    assert replay(journal).identical


@pytest.mark.parametrize("left", OF_A_CRASH.values(), ids=OF_A_CRASH)
def test_a_last_line_that_a_crash_cut_is_removed_and_said(bench: Bench, left: Callable[[bytes], bytes]) -> None:
    stopped(bench, spec_of(trials=3))
    path = Runs(bench.folder).journal("scripted")
    path.write_bytes(left(path.read_bytes()))
    _, journal = run(bench, spec_of(trials=3))
    assert list(path.parent.glob("journal.damaged-*")) == []
    assert sum("the last line of the journal was incomplete" in note for note in bench.notes) == 1
    assert replay(journal).identical


def test_an_empty_journal_is_not_said_to_be_missing_and_goes_on_from_the_database(bench: Bench) -> None:
    stopped(bench, spec_of(trials=3))
    runs = Runs(bench.folder)
    runs.journal("scripted").write_bytes(b"")
    with pytest.raises(UsageError, match="its search never began, or its lines were lost"):
        replay_study("scripted", runs)
    _, journal = run(bench, spec_of(trials=3))
    assert replay(journal).identical
    with pytest.raises(UsageError, match="has no journal in"):
        replay_study("other", runs)


def test_a_journal_that_names_a_path_for_its_study_moves_nothing_there(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs")
    Journal(runs.journal("birds")).append(launch("../../../../elsewhere"))
    assert "set aside as" in take_folder(runs, "birds", str(uuid4()))[0]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert not runs.journal("birds").exists()


def test_a_launch_removes_what_no_running_trial_keeps(bench: Bench) -> None:
    runs = Runs(bench.folder)
    stopped(bench, spec_of(trials=3), epochs=4)
    assert states(bench.coordinator(ScriptedPool(trains)).trials.study) == ["COMPLETE", "RUNNING"]
    for number in (0, 7):
        runs.checkpoint("scripted", number).parent.mkdir()
    bench.coordinator(ScriptedPool(trains)).trials.adopt()
    assert [folder.name for folder in runs.trials("scripted").iterdir()] == ["1"]


def copied(source: Bench, target: Bench) -> Bench:
    """Search the same database from another runs folder, as two machines do with Postgres."""
    target.folder.mkdir(exist_ok=True)
    with (
        closing(sqlite3.connect(Runs(source.folder).database)) as here,
        closing(sqlite3.connect(Runs(target.folder).database)) as there,
    ):
        here.backup(there)
    return target


@pytest.mark.parametrize("pruner", ["successive_halving", "hyperband"])
def test_what_a_journal_did_not_witness_is_not_judged_by_its_replay_and_the_rest_is_identical(
    tmp_path: Path, pruner: str
) -> None:
    def spec(trials: int) -> StudySpec:
        known = ({"lr": 0.03}, {"lr": 0.01, "dropout": 0.25})
        return spec_of(trials=trials, pruner=pruner).model_copy(update={"known": known})

    here, there = Bench(tmp_path / "here"), Bench(tmp_path / "there")
    stopped(here, spec(6), epochs=8, workers=2)
    begun = len(here.coordinator(ScriptedPool(trains), spec(6)).trials.study.get_trials())
    copied(here, there)
    Journal(Runs(there.folder).journal("scripted")).append(Accept(differences=["seed: 0 -> 1"]))
    stopped(there, spec(9), epochs=7, workers=2)
    run(copied(there, here), spec(12), workers=2)

    journals = [read_journal(Runs(bench.folder).journal("scripted")) for bench in (here, there)]
    asked = [{event.trial for event in journal if event.event == "ask"} for journal in journals]
    assert asked[0] | asked[1] == set(range(12))
    assert asked[0] & asked[1] == set()
    for journal, own in zip(journals, asked, strict=True):
        found = replay(journal)
        assert found.first_difference is None
        assert (found.asks, found.identical) == (len(own), True)
        assert found.decisions > 4
        assert found.rebuilt > 0
        assert f"not judged: steps of {found.rebuilt} trials that the database or the journal lacked" in text_of_replay(
            found
        )
    for name in ("none", "median", "successive_halving"):
        other = replay_with(journals[1], name)
        judged = {*other.kept, *other.unknown, *other.stopped_earlier, *other.stopped_at_the_same_epoch}
        assert judged <= asked[1]
        assert other.rebuilt == begun


def test_a_decision_that_a_kill_kept_out_of_a_lost_journal_is_made_and_replayed_again(bench: Bench) -> None:
    """Successive halving notes the rung before it answers; the trial is to be as if it had not been asked."""
    spec = spec_of(pruner="successive_halving", trials=3)
    run(bench, spec_of(pruner="successive_halving", trials=1))
    coordinator = bench.coordinator(ScriptedPool(trains), spec)
    trial = coordinator.trials.progress[coordinator.trials.next()].trial
    trial.report(0.0, 1)
    assert trial.should_prune()  # and then the coordinator was gone
    coordinator.journal.path.unlink()

    def worse(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
        for number in (1, 2, 3):
            yield epoch(assignment.trial, number, 0.0)

    again = bench.coordinator(ScriptedPool(worse), spec)
    assert again.run() is True
    assert [trial.last_step for trial in again.trials.study.get_trials()] == [3, 1, 1]
    found = replay(read_journal(again.journal.path))
    assert (found.decisions, found.rebuilt, found.identical) == (2, 2, True)


def test_one_step_that_a_kill_kept_out_of_a_journal_is_no_reason_to_judge_less(bench: Bench) -> None:
    stopped(bench, spec_of(trials=4), epochs=4)
    path = Runs(bench.folder).journal("scripted")
    lines = path.read_text().splitlines(keepends=True)
    assert json.loads(lines[-2])["event"] == "epoch"
    path.write_text("".join(lines[:-2]))
    found = replay(run(bench, spec_of(trials=4))[1])
    assert (found.asks, found.rebuilt, found.identical) == (4, 0, True)


def test_a_running_trial_whose_recipe_was_changed_and_accepted_fails_with_its_reason_and_the_search_goes_on(
    bench: Bench,
) -> None:
    """Its checkpoint is of another recipe; its epochs until then cannot be compared with those after."""
    stopped(bench, spec_of(trials=4), epochs=4, workers=2)
    values: dict[str, Any] = spec_of(trials=5).model_dump(mode="json")
    values["train"]["batch_size"] = 32
    values["space"]["weight_decay"] = {"low": 0.0, "high": 0.1}
    bench.accept_changes = True
    study, journal = run(bench, StudySpec.model_validate(values), workers=2)
    assert states(study) == ["FAIL", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    for trial in study.get_trials()[:2]:
        checkpoint = Runs(bench.folder).checkpoint("scripted", trial.number)
        assert trial.user_attrs["reason"] == f"CheckpointError: {checkpoint} belongs to another candidate"
        assert "weight_decay" in trial.params
    assert replay(journal).identical


def test_a_running_trial_that_the_accepted_recipe_contradicts_fails_with_its_reason_and_the_search_goes_on(
    bench: Bench,
) -> None:
    def validates(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
        """As a worker does before it trains."""
        try:
            validate(TrainConfig, assignment.config, "candidate")
        except ConfigError as error:
            yield failed(assignment.trial, "user", f"ConfigError: {error}")
        else:
            yield from trains(assignment, times)

    values: dict[str, Any] = spec_of(trials=3).model_dump(mode="json")
    values["space"] = {"mixup": {"low": 0.7, "high": 0.9}, "lr": {"low": 1e-3, "high": 1e-2}}
    stopped(bench, StudySpec.model_validate(values), epochs=2)
    values["train"]["cutmix"], values["space"]["mixup"] = 0.5, {"low": 0.1, "high": 0.5}
    bench.accept_changes = True
    coordinator = bench.coordinator(ScriptedPool(validates), StudySpec.model_validate(values))
    assert coordinator.run() is True
    first, *others = coordinator.trials.study.get_trials()
    assert [trial.state.name for trial in (first, *others)] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert "and cutmix = 0.5 are shares of batches; at most 1 together" in first.user_attrs["reason"]


def test_a_running_trial_without_an_epoch_is_trained_by_the_recipe_that_was_accepted(bench: Bench) -> None:
    coordinator = bench.coordinator(ScriptedPool(trains), spec_of(trials=6))
    coordinator.trials.adopt()
    coordinator.trials.next()  # asked for, and then the coordinator was gone
    values: dict[str, Any] = spec_of(trials=6).model_dump(mode="json")
    values["space"]["weight_decay"] = {"low": 0.0, "high": 0.1}
    bench.accept_changes = True
    study, journal = run(bench, StudySpec.model_validate(values))
    assert states(study) == ["COMPLETE"] * 6
    assert all("weight_decay" in trial.params for trial in study.get_trials())
    assert replay(journal).identical, "what was drawn for it is known to the suggestions after it"
