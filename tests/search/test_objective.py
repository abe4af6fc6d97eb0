"""A study follows its objective everywhere: workers that play a script, or train for a second; a real database."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import optuna
import pytest
from exports import recorded
from fast import slow_after
from optuna.trial import TrialState
from rich.console import Console
from scripted import Bench, ScriptedPool, result, spec_of, started

import search.export.retrain
import search.workers.places
from search.console import Terminal
from search.devices import WorkerDevice
from search.errors import StudyChanged
from search.export.card import card
from search.export.metrics import Export, text_of_export
from search.export.record import ExportRecord
from search.export.retrain import Retraining
from search.figures.catalogue import page_figures, study_figures
from search.figures.png import draw_values
from search.housekeeping import _row
from search.paths import DEFAULT_RUNS, Runs
from search.study.confirmation import Confirmation, Finalist, confirmation_of
from search.study.gain import gain_of
from search.study.inventory import list_studies
from search.study.journal import read_journal
from search.study.marks import own_trials
from search.study.noise import store_num_pictures
from search.study.owned import OwnedStudy
from search.study.replay import replay
from search.study.result import StudyResult
from search.study.storage import open_storage, parse_url
from search.study.study import find_study, fingerprint
from search.study.trial import best_of, is_paused
from search.watch.findings import as_toml, paused_rows, story
from search.watch.live import text_of_snapshot
from search.watch.page import note_text, text_of_confirmation
from search.watch.report import html_of_report
from search.watch.status import as_json, snapshot_of
from search.workers.messages import Assign, Epoch, FromWorker
from search.workers.pool import Exit
from studies import StudySpec
from studies.objective import NAMES, Objective, number_of, value_of, words_of
from trainer.config import EpochResult, TrainConfig
from trainer.data import Dataset
from trainer.device import Device

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
OTHERS = OBJECTIVES[1:]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def spec(objective: Objective, schedule: str = "constant", **search: Any) -> StudySpec:
    """Rungs after 1 and 3 of 9 epochs, or with whole trainings after 3."""
    made = spec_of(pruner="promote", sampler="random").model_dump()
    changes = {
        "train": made["train"] | {"epochs": 9, "schedule": schedule},
        "search": made["search"] | {"trials": 9, "objective": objective} | search,
        "known": [{"lr": 0.01, "dropout": 0.1}],
        "confirm": {"top": 2, "seeds": 2},
    }
    return StudySpec.model_validate(made | changes)


def quality(trial: int) -> float:
    """0.1 to 0.9, every trial its own."""
    return (1 + 7 * trial % 9) / 10


def as_told(objective: Objective, number: int, value: float, epochs: int) -> EpochResult:
    """A result in which the objective says ``value`` (a loss of 5 to 0 for 0 to 1), and all others the opposite."""
    opposite = result(number, 1 - value, epochs=epochs)
    values: dict[str, float] = {"val_macro_f1": 1 - value, "val_balanced_accuracy": 1 - value, "val_loss": 5 * value}
    told: dict[Objective, dict[str, float]] = {
        "accuracy": {"val_accuracy": value},
        "macro_f1": {"val_macro_f1": value},
        "balanced_accuracy": {"val_balanced_accuracy": value},
        "loss": {"val_loss": 5 * (1 - value)},
    }
    return replace(opposite, **values | told[objective])


class Trains:
    """A worker's script for an objective."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def __call__(self, assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
        trial, epochs = assignment.trial, assignment.config["epochs"]
        assert isinstance(epochs, int)
        yield started(trial)
        for number in range(1, epochs + 1):
            value = quality(trial) * (0.5 + 0.5 * number / epochs)
            yield Epoch(trial=trial, result=as_told(self.objective, number, value, epochs), memory_bytes=1)


def shape_of(study: optuna.Study) -> list[tuple[str, int, bool]]:
    return [(trial.state.name, trial.last_step or 0, is_paused(trial)) for trial in study.get_trials()]


@pytest.mark.parametrize(
    ("objective", "schedule"), [("macro_f1", "constant"), ("loss", "constant"), ("loss", "cosine")]
)
def test_rungs_promotions_and_the_best_follow_it_as_they_follow_accuracy(
    bench: Bench, tmp_path: Path, objective: Objective, schedule: str
) -> None:
    plain = Bench(tmp_path / "plain")
    by_accuracy = plain.coordinator(ScriptedPool(Trains("accuracy"), 2), spec("accuracy", schedule))
    assert by_accuracy.run()
    coordinator = bench.coordinator(ScriptedPool(Trains(objective), 2), spec(objective, schedule))
    assert coordinator.run()
    study = coordinator.trials.study
    assert shape_of(study) == shape_of(by_accuracy.trials.study)
    assert any(is_paused(trial) for trial in study.get_trials())
    best, value = coordinator.snapshot().best, -0.5 if objective == "loss" else 0.9
    assert best is not None
    assert (best.number, best.value) == (max(range(9), key=quality), pytest.approx(value))
    played = replay(read_journal(coordinator.journal.path))
    assert played.identical, played.first_difference
    assert any(f"complete, {words_of(best.value or 0.0, objective)} at epoch 9 of 9" in line for line in bench.notes)
    assert any(f"; best {words_of(best.value or 0.0, objective)} (trial {best.number})" in line for line in bench.notes)


@pytest.mark.parametrize("pruner", slow_after(1, ["hyperband", "median"]))
def test_optunas_pruners_keep_the_best_of_negative_values(bench: Bench, pruner: str) -> None:
    made = spec("loss", pruner=pruner, sampler="model", startup_trials=3, trials=12)
    coordinator = bench.coordinator(ScriptedPool(Trains("loss")), made)
    assert coordinator.run()
    trials = coordinator.trials.study.get_trials()
    best = best_of(trials)
    assert best is not None
    assert best.number == max(range(12), key=quality)
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert replay(read_journal(coordinator.journal.path)).identical


def suggested(study_spec: StudySpec, value: Any, folder: Path) -> list[dict[str, Any]]:
    """The settings that the model asks for; ``value`` makes an epoch's result of a quality that is best at lr 0.01."""

    def trains(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
        lr, epochs = assignment.config["lr"], assignment.config["epochs"]
        assert isinstance(lr, float)
        assert isinstance(epochs, int)
        yield started(assignment.trial)
        for number in range(1, epochs + 1):
            yield Epoch(trial=assignment.trial, result=value(1 - abs(lr - 0.01) * 9, number, epochs), memory_bytes=1)

    coordinator = Bench(folder).coordinator(ScriptedPool(trains), study_spec)
    coordinator.run()
    return [trial.params for trial in coordinator.trials.study.get_trials()]


def test_the_model_suggests_the_same_from_negative_values_as_from_shares(tmp_path: Path) -> None:
    """It standardises what it learns from, so a loss and a share that mean the same lead to the same settings."""
    search: dict[str, Any] = {"sampler": "model", "startup_trials": 3, "trials": 10}
    of_share, of_loss = (
        suggested(
            spec(objective, **search),
            lambda value, number, epochs, objective=objective: as_told(objective, number, value, epochs),
            tmp_path / objective,
        )
        for objective in ("macro_f1", "loss")
    )
    assert [sorted(one) for one in of_share] == [sorted(one) for one in of_loss]
    for share, loss in zip(of_share, of_loss, strict=True):
        assert share == pytest.approx(loss, rel=1e-3)


def test_a_relaunch_goes_on_with_the_standings_and_an_epoch_trained_again_is_known(bench: Bench) -> None:
    bench.coordinator(ScriptedPool(Trains("loss")), spec("loss", trials=4)).run()
    pool = ScriptedPool(Trains("loss"))
    coordinator = bench.coordinator(pool, spec("loss", trials=9))
    coordinator.run()
    assert best_of(coordinator.trials.study.get_trials()).number == max(range(9), key=quality)  # type: ignore[union-attr]
    assert not any("before an interruption" in line for line in bench.notes)


def searched_by_loss(bench: Bench, **search: Any) -> Any:
    """A study that was searched by its loss."""
    made = spec("loss", **search)
    coordinator = bench.coordinator(ScriptedPool(Trains("loss")), made)
    coordinator.run()
    store_num_pictures(coordinator.trials.study, 100)
    return SimpleNamespace(study=coordinator.trials.study, spec=made, coordinator=coordinator, folder=bench.folder)


def test_people_read_the_loss_and_no_percent_wherever_they_look(bench: Bench, tmp_path: Path) -> None:
    searched = searched_by_loss(bench)
    study, made = searched.study, searched.spec
    trials = own_trials(study)
    for snapshot in (searched.coordinator.snapshot(), snapshot_of(made, trials)):
        console = Console(width=80)
        with console.capture() as capture:
            console.print(text_of_snapshot(snapshot))
        assert re.search(r"^best +trial \d+, loss 0.5000", capture.get(), re.MULTILINE)
        assert "%" not in capture.get()
        note = note_text(made, [], snapshot, "is being searched", datetime.now(UTC), DEFAULT_RUNS)
        assert "#### Best so far: loss 0.5000" in note
        told = as_json(snapshot, held_by=None)
        assert (told["objective"], told["best"]["value"]) == ("loss", pytest.approx(-0.5))  # type: ignore[call-overload, index]
    assert "reached loss 0.5000 on validation. " in story(made, trials)
    best = best_of(trials)
    assert best is not None
    assert f"# trial {best.number}, loss 0.5000" in as_toml(made, [best])
    assert all("%" not in value and not value.startswith("-") for _, _, value in paused_rows(made, trials))
    page = html_of_report(made, trials, {"lr": 1.0}, datetime.now(UTC))
    page = page[page.index("<body>") :]
    assert "<dt>claimed loss</dt><dd>0.5000</dd>" in page
    assert "Validation loss of the trials in the order" in page
    listed = list_studies(parse_url(f"sqlite:///{Runs(searched.folder).database}"), Runs(searched.folder))
    assert _row(listed[0])[4] == "loss 0.5000"
    draw_values([{1: -2.0, 2: -1.0}], tmp_path / "curve.png", title="", step="epoch", objective="loss")


def test_a_figure_of_losses_has_the_best_on_top(bench: Bench) -> None:
    searched = searched_by_loss(bench, pruner="none", trials=5)
    trials = own_trials(searched.study)
    figures = {figure.id: figure for figure in study_figures(trials, searched.spec)}
    history = figures["history"].chart
    low, high = history.layout.yaxis.range
    assert low > high, "the axis is turned over"
    completed = next(trace for trace in history.data if trace.name == "completed")
    assert list(completed.y) == pytest.approx([-value for value in (trial.value for trial in trials)])
    assert figures["curves"].chart.layout.yaxis.autorange == "reversed"
    assert figures["size"].title == "Loss against parameters"
    assert {figure.id for figure in page_figures(trials, searched.spec)} >= {"size", "curves"}


def test_a_gain_in_loss_has_no_points_and_an_interval_of_the_seeds_alone(bench: Bench) -> None:
    searched = searched_by_loss(bench, pruner="none", trials=3)  # of quality 0.1, 0.8 and 0.6
    gain = gain_of(searched.study, searched.spec)
    assert gain is not None
    assert gain.interval is None, "of a loss, the pictures alone tell none"
    said = (
        "-3.5000 against the first known recipe (trial 0, loss 4.5000); the value of trial 1 is its own in the search"
    )
    assert gain.sentence.startswith(said)
    one, other = (
        Finalist(trial=trial, num_params=1, search_accuracy=value, accuracies=(value, value), standard_error=0.1)
        for trial, value in ((0, -4.0), (1, -1.5))
    )
    both = Confirmation(
        trainings=4, done=4, candidates=(one, other), winner=1, estimate=-1.5, raw_best=-1.0, test=None, sentence=""
    )
    confirmed_gain = gain_of(searched.study, searched.spec, both)
    assert confirmed_gain is not None
    assert confirmed_gain.sentence.startswith(
        "-2.5000 against the first known recipe (trial 0, loss 4.0000); 95 % interval -2.7772 to -2.2228, from the"
    )


def test_another_objective_is_another_study_once_there_are_values(bench: Bench) -> None:
    assert "objective" not in fingerprint(spec("accuracy"), "content"), "as of the studies of before"
    assert fingerprint(spec("loss"), "content")["objective"] == "loss"
    bench.coordinator(ScriptedPool(Trains("accuracy")), spec("accuracy", trials=1)).run()
    bench.accept_changes = True
    sentence = "has values of search.objective = accuracy, which cannot be compared with loss; undo the change"
    with pytest.raises(StudyChanged, match=sentence):
        bench.coordinator(ScriptedPool(Trains("loss")), spec("loss"))


def test_numbers_in_words() -> None:
    assert [words_of(-0.5 if one == "loss" else 0.5, one) for one in OBJECTIVES] == [
        "50.00%",
        "macro F1 50.00%",
        "balanced accuracy 50.00%",
        "loss 0.5000",
    ]
    assert number_of(-0.25, "loss") == "0.2500"
    assert value_of(as_told("loss", 1, 0.9, 3), "loss") == pytest.approx(-0.5)


@pytest.mark.parametrize("objective", slow_after(1, OTHERS))
def test_a_real_search_and_its_confirmation_by_it(
    bench: Bench, digits: Dataset, cpu: Device, monkeypatch: pytest.MonkeyPatch, objective: Objective
) -> None:
    """Two trainings of one epoch, and two more that confirm them, in this process."""
    from trainer.fit import fit

    results: dict[int, EpochResult] = {}

    def trains(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
        yield started(assignment.trial)
        config = TrainConfig.model_validate(assignment.config)
        few = replace(digits, splits=digits.splits | {"train": digits.splits["train"][:128]})
        for one in fit(config, few, cpu):
            results[len(results)] = one
            yield Epoch(trial=assignment.trial, result=one, memory_bytes=1)

    made = StudySpec.model_validate(
        {
            "name": "real",
            "data": {"source": "digits", "image_size": 16},
            "train": {"model": "resnet10t", "width_mult": 0.1, "epochs": 1, "batch_size": 32},
            "space": {"lr": {"low": 0.001, "high": 0.02, "log": True}},
            "search": {"trials": 2, "objective": objective},
            "confirm": {"top": 2, "seeds": 1},
        }
    )
    coordinator = bench.coordinator(ScriptedPool(trains), made)
    assert coordinator.run()
    study = coordinator.trials.study
    assert [trial.value for trial in study.get_trials()] == [value_of(results[at], objective) for at in (0, 1)]

    monkeypatch.setattr(search.workers.places, "LocalPool", lambda devices, logs: ScriptedPool(trains))
    data: Any = SimpleNamespace(fingerprint="pictures", cache_path=bench.folder / "cache")
    devices = [WorkerDevice("cpu", None, 1)]
    with Retraining(
        OwnedStudy(study, made, lambda: None), Runs(bench.folder), data, devices, Terminal(quiet=True)
    ) as one:
        (trial,), found = one.choose()
    assert found is not None
    means = {candidate.trial: candidate.mean for candidate in found.candidates}
    assert sorted(mean for mean in means.values() if mean is not None) == sorted(
        value_of(results[at], objective) for at in (2, 3)
    )
    assert trial.number == max(means, key=lambda number: means[number] or 0.0) == found.winner
    assert f"{words_of(means[trial.number] or 0.0, objective)} over 1 fresh seed on validation" in found.sentence
    assert f"{number_of(found.raw_best, objective)}" in text_of_confirmation(found)
    assert found.to_json()["objective"] == objective
    assert confirmation_of(study, made) == found
    assert json.loads(json.dumps(found.to_json()))["estimate"] == found.estimate
    assert isinstance(found, Confirmation)
    assert find_study(open_storage(parse_url(f"sqlite:///{Runs(bench.folder).database}")), "real")[1] == made


@pytest.mark.parametrize(
    ("objective", "value", "words"),
    [
        ("macro_f1", 0.25, "macro F1 25.00%"),
        ("balanced_accuracy", 0.5, "balanced accuracy 50.00%"),
        ("loss", -1.5, "loss 1.5000"),
    ],
)
def test_an_export_tells_its_tested_value_of_it(objective: Objective, value: float, words: str) -> None:
    values = recorded()
    score = {"value": value, "interval": None}
    scores = {"macro_f1": score, "balanced_accuracy": score, "top5": None, "calibration_error": score, "classes": []}
    values["evaluation"] |= {"loss": 1.5, "scores": scores | {"calibration_bins": 15, "resamples": 1000}}
    values["search"] |= {"val_accuracy": None, "objective": objective, "value": value}
    record = ExportRecord.model_validate(values)
    kept = Export(record, Path("there")).result
    assert (kept.objective, kept.value) == (objective, value)
    assert kept.sentence.startswith(f"trial 5, {words} and accuracy 60.93% on the test split")
    told = StudyResult(exported=kept).headline(None, objective)
    assert told[:2] == (f"tested {NAMES[objective]}", number_of(value, objective))
    said = text_of_export(Export(record, Path("there")))
    assert words.removeprefix("macro F1 ") in said
    assert f"  claimed     {words}" in said
    assert f"The search claimed {words}" in card(record)
    assert json.loads(json.dumps(record.to_json()))["search"]["objective"] == objective
