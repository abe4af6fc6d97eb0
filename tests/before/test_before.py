"""Studies of before go on: a study and a runs folder of an earlier commit, opened with the code of today.

How they were made is in README.md beside this file.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import optuna
import pytest
from inside import run_inside
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from pydantic import Field

import search.export.metrics
import search.study.begun
import search.study.confirmation
import search.study.study
import studies.spec
import trainer.cache
import trainer.checkpoint
import trainer.identity
from search.console import Terminal
from search.export.description import describe
from search.export.retrain import Retraining
from search.paths import Runs
from search.plan.prepare import find_bounds, prepare
from search.running.records import Ending
from search.running.trials import Trials
from search.study.begun import as_begun, begin_trials_anew
from search.study.confirmation import confirmation_of
from search.study.journal import read_journal
from search.study.marks import CHANGED_REASON, ENDED, MARK
from search.study.owned import OwnedStudy
from search.study.replay import replay_study
from search.study.storage import open_storage, parse_url
from search.study.study import FINGERPRINT, SPEC, differences, find_study, fingerprint, open_study
from studies import Limit, Search, StudySpec, load
from trainer.cache import shaping
from trainer.checkpoint import load_checkpoint
from trainer.config import RECIPE_VERSION, DataConfig, EpochResult, ModelSize, TrainConfig

ARCHIVE = Path(__file__).parent / "begun.tar.xz"

RUNNING = 10
"""The trial that was left in the middle, after epoch 3 of 4."""

EXPORT = "exports/before-5"


class LaterTrainConfig(TrainConfig):
    """With a setting that did not exist."""

    warmth: float = Field(0.25, ge=0)
    """Of nothing."""


class LaterLimit(Limit):
    """The same."""

    watts: float | None = Field(None, gt=0)
    """Of nothing."""


class LaterSearch(Search):
    """With other defaults."""

    pruner: Literal["successive_halving", "hyperband", "median", "none"] = "none"
    min_epochs: int = Field(2, ge=1)


class LaterSpec(StudySpec):
    """The same."""

    search: LaterSearch = LaterSearch()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoded digits, which the archive lacks."""
    folder = _unpacked(tmp_path_factory.mktemp("cache"))
    prepare(load(str(folder / "before.toml")), Runs(folder / "runs"), Terminal(quiet=True))
    return folder / "runs" / "cache"


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    """Where the study was begun: before.toml and runs/."""
    _unpacked(tmp_path)
    shutil.copytree(cache, tmp_path / "runs" / "cache")
    return tmp_path


@pytest.fixture
def runs(folder: Path) -> Runs:
    return Runs(folder / "runs")


@pytest.fixture
def storage(runs: Runs) -> Iterator[RDBStorage]:
    opened = open_storage(parse_url(f"sqlite:///{runs.database}"))
    yield opened
    opened.remove_session()
    opened.engine.dispose()


def _unpacked(folder: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def trials_of(storage: RDBStorage, name: str = "before") -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=storage).get_trials()


def events_of(runs: Runs, kind: str, name: str = "before") -> list[dict[str, Any]]:
    return [event.model_dump() for event in read_journal(runs.journal(name)) if event.event == kind]


def with_recipe(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    for module in (search.study.study, search.study.begun, search.study.confirmation, trainer.identity):
        monkeypatch.setattr(module, "RECIPE_VERSION", version)


# -- it is read


def test_every_command_that_looks_finds_the_study(folder: Path) -> None:
    code, out, err = run_inside(folder, "status", "before", "--json")
    assert code == 0, err
    status = json.loads(out)
    assert (status["budget"]["trainings"], status["budget"]["trials"]) == (None, 12)
    assert status["counts"] == {"COMPLETE": 3, "PRUNED": 7, "FAIL": 0}
    assert (status["best"]["number"], status["best"]["value"]) == (3, 0.729050279329609)
    assert status["confirmation"]["candidates"][0]["mean"] == 0.6033519553072626
    for command in ("status before", "report before", "replay before", "replay digits", "check before.toml --gpus cpu"):
        code, out, err = run_inside(folder, *command.split())
        assert code == 0, f"{command}: {err}"
    code, out, _ = run_inside(folder, "replay", "before")
    assert "11 of 11 suggestions and " in out
    assert "difference" not in out


def test_its_export_still_classifies(folder: Path) -> None:
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    picture = np.rint(load_digits().images[0] * (255 / 16)).astype(np.uint8)
    Image.fromarray(picture).save(folder / "zero.png")
    code, out, err = run_inside(folder, "predict", f"runs/{EXPORT}", "zero.png", "--json")
    assert code == 0, err
    assert "zero.png" in out


# -- settings that did not exist


def test_the_study_is_the_same_to_this_version(folder: Path, storage: RDBStorage) -> None:
    for study in optuna.get_all_study_names(storage):
        _, spec = find_study(storage, study)
        stored = optuna.load_study(study_name=study, storage=storage).user_attrs[FINGERPRINT]
        assert fingerprint(spec, stored["data"]["content"]) == stored
    stored = optuna.load_study(study_name="before", storage=storage).user_attrs[FINGERPRINT]
    assert fingerprint(load(str(folder / "before.toml")), stored["data"]["content"]) == stored


def test_a_setting_that_did_not_exist_counts_as_its_default(storage: RDBStorage) -> None:
    study = optuna.load_study(study_name="before", storage=storage)
    stored = study.user_attrs[FINGERPRINT]
    content = stored["data"]["content"]
    spec = StudySpec.model_validate(study.user_attrs[SPEC])

    def later(train: dict[str, Any], limit: dict[str, Any]) -> StudySpec:
        return spec.model_copy(
            update={
                "train": LaterTrainConfig.model_validate(spec.train.model_dump() | train),
                "limit": LaterLimit.model_validate(spec.limit.model_dump() | limit),
            }
        )

    assert fingerprint(later({}, {}), content) == stored
    assert fingerprint(later({"warmth": 0.25}, {"watts": None}), content) == stored
    asked = fingerprint(later({"warmth": 0.5}, {"watts": 3.0}), content)
    assert differences(stored, asked) == ["limit.watts: null -> 3.0", "train.warmth: null -> 0.5"]


@pytest.fixture
def retraining(storage: RDBStorage, runs: Runs) -> Retraining:
    study, spec = find_study(storage, "before")
    console = Terminal(quiet=True)
    owned = OwnedStudy(study, spec, lambda: None)
    return Retraining(owned, runs, prepare(spec, runs, console).data, [], console)


def exported(retraining: Retraining) -> tuple[str, str]:
    """The name of the final training's checkpoint, and the identity of the export."""
    trial = retraining.study.get_trials()[5]
    stages = retraining.plan([trial])
    described = describe(retraining, [trial], stages, [ModelSize(params=2086, macs=230480)], confirmation=None)
    return stages[0][0].checkpoint.parent.name, described.identity


def test_the_trainings_of_an_export_are_found_again_whatever_settings_came_later(
    retraining: Retraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, identity = exported(retraining)
    assert name == "5-9df1c1ef", "where the commit of before left it"
    monkeypatch.setattr(studies.spec, "TrainConfig", LaterTrainConfig)
    assert exported(retraining) == (name, identity)

    train = LaterTrainConfig.model_validate(retraining.spec.train.model_dump() | {"warmth": 0.5})
    retraining.spec = retraining.spec.model_copy(update={"train": train})
    later_name, later_identity = exported(retraining)
    assert later_name != name
    assert later_identity != identity


def test_a_checkpoint_of_before_is_that_of_the_same_candidate(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.checkpoint, "TrainConfig", LaterTrainConfig)
    saved = load_checkpoint(runs.checkpoint("before", RUNNING))
    assert saved is not None
    assert [result.epoch for result in saved.history] == [1, 2, 3]
    asked = LaterTrainConfig.model_validate(saved.config.model_dump(exclude={"warmth"}))
    assert saved.config.model_dump_json() == asked.model_dump_json(), "as fit compares them"


def test_decoded_pictures_are_found_again_whatever_settings_came_later(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LaterData(DataConfig):
        sharpness: float = 1.0

    monkeypatch.setattr(trainer.cache, "SHAPING", (*trainer.cache.SHAPING, "sharpness"))
    (made,) = (folder for folder in cache.iterdir() if folder.is_dir())
    made_for = json.loads((made / "index.json").read_text())["made_for"]
    assert shaping(LaterData(source="digits", image_size=16)) == made_for
    assert shaping(LaterData(source="digits", image_size=16, sharpness=2.0)) == made_for | {"sharpness": 2.0}


# -- settings that its file does not name


def test_a_study_keeps_what_its_file_does_not_name_and_says_so(folder: Path, runs: Runs, storage: RDBStorage) -> None:
    text = (folder / "before.toml").read_text()
    unnamed = "\n".join(line for line in text.splitlines() if not line.startswith(("startup_trials", "reduction")))
    (folder / "before.toml").write_text(unnamed.replace("top = 2\n", ""))
    begun = as_begun(load(str(folder / "before.toml")), storage, None)
    policy = {"search.sampler": "tpe", "search.pruner": "successive_halving"}
    named_less = {"search.startup_trials": 4, "search.reduction_factor": 2, "confirm.top": 2}
    assert begun.kept == named_less | policy
    assert begun.notes == [
        "kept from before, because the study file does not name it: search.sampler = tpe, search.startup_trials = 4, "
        "search.pruner = successive_halving, search.reduction_factor = 2, confirm.top = 2"
    ]
    stored = find_study(storage, "before")[1].search
    assert begun.spec.search == stored.model_copy(update={"min_epochs": None}), "1 and None are the same to its pruner"
    choices = ["search.sampler=model", "search.startup_trials=10", "search.pruner=promote", "search.min_epochs=1"]
    named = load(str(folder / "before.toml"), [*choices, "confirm.top=5", "search.reduction_factor=3"])
    assert as_begun(named, storage, None).spec == named, "a default that is named is another choice"


UNNAMED = """
[data]
source = "digits"
image_size = 16
val_fraction = 0.4
test_fraction = 0.5

[limit]
params = 6000

[train]
model = "wrn-10-1"
epochs = 2
batch_size = 64
rotate = 10
crop_padding = 2

[space]
lr = { low = 1e-3, high = 2e-2, log = true }
weight_decay = { low = 1e-3, high = 0.3, log = true }
label_smoothing = { low = 0.0, high = 0.1 }
dropout = { low = 0.0, high = 0.5 }
width_mult = { low = 0.1 }
"""
"""Study digits, without its budget and its confirmation."""


def test_what_a_study_keeps_is_told_and_in_its_journal(folder: Path, runs: Runs) -> None:
    (folder / "digits.toml").write_text(UNNAMED)
    code, out, err = run_inside(folder, "launch", "digits.toml", "--gpus", "cpu")
    assert code == 0, err
    words = "not name it: search.trials = 2, no search.trainings, search.sampler = tpe, search.startup_trials = 6, "
    assert f"{words}search.pruner = successive_halving, confirm.top = 1, confirm.seeds = 1\n" in out
    assert "has spent its budget of 2 trials" in out
    (event,) = events_of(runs, "keep", "digits")
    kept = {
        "search.trials": 2,
        "search.trainings": None,
        "search.sampler": "tpe",
        "search.startup_trials": 6,
        "search.pruner": "successive_halving",
        "confirm.top": 1,
        "confirm.seeds": 1,
    }
    assert event["settings"] == kept
    assert run_inside(folder, "replay", "digits")[0] == 0


def test_a_study_of_before_keeps_its_trials_until_a_budget_is_named(folder: Path, storage: RDBStorage) -> None:
    def budget(*overrides: str, named: str = "trials = 12\n") -> tuple[float | None, int | None]:
        text = (folder / "before.toml").read_text()
        assert "trials = 12\n" in text
        (folder / "changed.toml").write_text('name = "before"\n' + text.replace("trials = 12\n", named))
        search = as_begun(load(str(folder / "changed.toml"), overrides), storage, None).spec.search
        return search.trainings, search.trials

    assert find_study(storage, "before")[1].search.trainings is None
    assert budget() == (None, 12)
    assert budget(named="") == (None, 12)
    assert budget("search.trainings=5") == (5, 12)
    assert budget("search.trainings=5", named="") == (5, None)
    assert budget("search.trials=20", named="") == (None, 20)
    shipped = as_begun(load("digits"), storage, ["search.trainings=5"]).spec.search
    assert (shipped.trainings, shipped.trials) == (5, 2), "its own text names trials"


def test_later_defaults_are_for_new_studies_only(storage: RDBStorage, folder: Path) -> None:
    values = load(str(folder / "before.toml")).model_dump(mode="json", exclude_unset=True)
    later = LaterSpec.model_validate(values)
    assert later.search.pruner == "none"
    begun = as_begun(later, storage, None)
    policy = {"search.sampler": "tpe", "search.pruner": "successive_halving"}
    assert begun.kept == policy | {"search.min_epochs": None}
    stored = find_study(storage, "before")[1].search
    assert begun.spec.search == stored.model_copy(update={"min_epochs": None}), "1 and None are the same to its pruner"
    new = later.model_copy(update={"name": "new"})
    assert as_begun(new, storage, None).spec.search.pruner == "none"


def test_hours_are_each_launchs_own(storage: RDBStorage, folder: Path) -> None:
    asked = load(str(folder / "before.toml"), ["search.hours=2"])
    open_study(as_begun(asked, storage, None).spec, storage, find_content(storage))
    assert find_study(storage, "before")[1].search.hours == 2
    assert as_begun(load(str(folder / "before.toml")), storage, None).spec.search.hours is None
    assert as_begun(load("digits", ["name=before"]), storage, ["name=before"]).spec.search.hours is None


def find_content(storage: RDBStorage, name: str = "before") -> str:
    content: str = optuna.load_study(study_name=name, storage=storage).user_attrs[FINGERPRINT]["data"]["content"]
    return content


# -- a study that comes with the program


def test_a_study_begun_from_a_file_of_the_product_goes_on_with_the_text_it_was_begun_with(
    folder: Path, runs: Runs, storage: RDBStorage
) -> None:
    _, before = find_study(storage, "digits")
    code, out, err = run_inside(folder, "launch", "digits", "--gpus", "cpu")
    assert code == 0, err
    assert "digits goes on with the text it was begun with; a new study (--set name=NEW) would have " in out
    assert "confirm.seeds: 1 -> null" in out, "a race today"
    assert "has spent its budget of 2 trials" in out
    assert find_study(storage, "digits")[1] == before

    code, _, err = run_inside(folder, "launch", "digits", "--gpus", "cpu", "--set", "train.epochs=3")
    assert code == 8
    assert "train.epochs: 2 -> 3" in err
    assert err.count("\n  ") == 1, "and nothing else"


def test_a_users_own_file_stays_the_authority(folder: Path, storage: RDBStorage) -> None:
    text = (folder / "before.toml").read_text()
    (folder / "before.toml").write_text(text.replace("trials = 12", "trials = 11"))
    assert as_begun(load(str(folder / "before.toml")), storage, None).spec.search.trials == 11

    (folder / "before.toml").write_text(text.replace("epochs = 4", "epochs = 5"))
    code, _, err = run_inside(folder, "launch", "before.toml", "--gpus", "cpu")
    assert code == 8
    assert "train.epochs: 4 -> 5" in err


# -- another recipe


def go_on_with_another_recipe(storage: RDBStorage, runs: Runs) -> tuple[Trials, str]:
    _, spec = find_study(storage, "before")
    lines: list[str] = []
    study = open_study(
        spec,
        storage,
        find_content(storage),
        renewed=lambda study, was: lines.append(begin_trials_anew(study, runs, was)),
    )
    trials = Trials(OwnedStudy(study, spec, lambda: None), find_bounds(spec, 10, runs).space, runs)
    trials.adopt()
    (line,) = lines
    return trials, line


def test_under_another_recipe_finished_trials_stay_and_an_unfinished_one_begins_anew(
    runs: Runs, storage: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_recipe(monkeypatch, RECIPE_VERSION + 1)
    before = trials_of(storage)
    assert before[RUNNING].last_step == 3
    trials, line = go_on_with_another_recipe(storage, runs)
    assert line == (
        "the recipe has changed since the last launch, from version 2 to 3: the same settings may now give another "
        "result; 10 finished trials stay, and trial 10 begins anew"
    )
    (event,) = events_of(runs, "recipe")
    assert {name: event[name] for name in ("was", "now", "anew")} == {"was": 2, "now": 3, "anew": [RUNNING]}
    after = trials_of(storage)
    assert after[:RUNNING] == before[:RUNNING]
    assert after[RUNNING].state == TrialState.RUNNING
    assert after[RUNNING].params == before[RUNNING].params
    assert after[RUNNING].intermediate_values == {}
    assert not any(name.startswith("completed_rung") for name in after[RUNNING].system_attrs)
    assert not runs.checkpoint("before", RUNNING).exists(), "its training must not go on"

    assert list(trials.orphans) == [RUNNING]
    for step in range(1, 5):  # far from what the old recipe gave: 21.5 %, 26.8 %, 53.4 %
        assert trials.results.report(RUNNING, epoch(step)) == ("complete" if step == 4 else "go on")
    trials.finish(RUNNING, "cpu", Ending(state=TrialState.COMPLETE, value=epoch(4).val_accuracy))
    finished = trials_of(storage)[RUNNING]
    assert finished.intermediate_values == {step: epoch(step).val_accuracy for step in range(1, 5)}
    answer = replay_study("before", runs)
    assert answer.identical
    assert answer.rebuilt == 0
    assert answer.decisions == answer.same_decisions > 0

    with_recipe(monkeypatch, RECIPE_VERSION + 2)  # nothing is left to begin anew
    _, line = go_on_with_another_recipe(storage, runs)
    assert line.endswith("from version 3 to 4: the same settings may now give another result; 11 finished trials stay")


def epoch(step: int) -> EpochResult:
    return EpochResult(
        epoch=step,
        train_loss=1.0,
        val_loss=1.0,
        val_accuracy=0.6 + step / 16,
        seconds=1.0,
        images_per_second=100.0,
        final=step == 4,
    )


def test_an_epoch_by_the_new_recipe_that_a_kill_kept_out_of_the_journal_is_noted_by_the_next_launch(
    runs: Runs, storage: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_recipe(monkeypatch, RECIPE_VERSION + 1)
    trials, _ = go_on_with_another_recipe(storage, runs)
    monkeypatch.setattr(trials.journal, "append", lambda *_, **__: None)
    trials.results.report(RUNNING, epoch(1))
    again = Trials(OwnedStudy(trials.study, trials.spec, lambda: None), trials.space, runs)
    assert (RUNNING, 1) not in again.journal.decided, "the old recipe's decision says nothing"
    again.adopt()
    *_, last = events_of(runs, "epoch")
    assert (last["trial"], last["step"], last["value"]) == (RUNNING, 1, epoch(1).val_accuracy)
    assert replay_study("before", runs).identical


def test_a_program_older_than_the_studys_recipe_refuses_it(
    storage: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_recipe(monkeypatch, RECIPE_VERSION - 1)
    _, spec = find_study(storage, "before")
    with pytest.raises(search.study.study.StudyChanged, match="recipe_version: 2 -> 1"):
        open_study(spec, storage, find_content(storage))


def test_an_exports_trainings_begin_anew_under_another_recipe(
    retraining: Retraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, identity = exported(retraining)
    assert confirmation_of(retraining.study, retraining.spec) is not None
    with_recipe(monkeypatch, RECIPE_VERSION + 1)
    assert confirmation_of(retraining.study, retraining.spec) is None, "they were trained by another recipe"
    later_name, later_identity = exported(retraining)
    assert later_name != name
    assert later_identity != identity


# -- all the way


def test_the_search_goes_on_to_its_budget_and_repeats_itself(folder: Path, runs: Runs, storage: RDBStorage) -> None:
    before = trials_of(storage)
    code, out, err = run_inside(folder, "launch", "before.toml", "--gpus", "cpu")
    assert code == 0, err
    assert f"going on with trial {RUNNING}, left unfinished by the last launch" in out
    after = trials_of(storage)
    assert [one.user_attrs.pop(MARK).partition(ENDED)[1] for one in after[:RUNNING]] == [ENDED] * RUNNING
    assert after[:RUNNING] == before[:RUNNING]
    assert len(after) == 12
    assert all(trial.state.is_finished() for trial in after)
    went_on = {step: after[RUNNING].intermediate_values[step] for step in (1, 2, 3)}
    assert went_on == before[RUNNING].intermediate_values
    assert [event["step"] for event in events_of(runs, "epoch") if event["trial"] == RUNNING] == [1, 2, 3, 4]
    code, out, err = run_inside(folder, "replay", "before")
    assert code == 0, err
    assert "12 of 12 suggestions" in out


def test_a_value_of_before_that_is_changed_by_sql_is_not_exported(folder: Path, runs: Runs) -> None:
    with closing(sqlite3.connect(runs.database)) as database, database:
        changed = "SELECT trial_id FROM trials WHERE number = 5 AND study_id = 1"
        assert database.execute(f"UPDATE trial_values SET value = 0.9999 WHERE trial_id = ({changed})").rowcount == 1
    code, out, err = run_inside(folder, "export-best", "before.toml", "--gpus", "cpu", "--trial", "5")
    assert code == 6, err
    assert f"trial 5: {CHANGED_REASON}\n" in out
    assert "trial 5 of 'before' is changed in the database after its end" in err
    assert json.loads(run_inside(folder, "status", "before", "--json")[1])["best"]["number"] == 3


@pytest.mark.slow
def test_the_search_goes_on_by_itself_under_another_recipe(
    folder: Path, runs: Runs, storage: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_recipe(monkeypatch, RECIPE_VERSION + 1)
    code, out, err = run_inside(folder, "launch", "before.toml", "--gpus", "cpu")
    assert code == 0, err
    assert "10 finished trials stay, and trial 10 begins anew" in out
    steps = [event["step"] for event in events_of(runs, "epoch") if event["trial"] == RUNNING]
    assert steps[:4] == [1, 2, 3, 1], "three epochs of before, and then from the first"
    assert not [trial for trial in trials_of(storage) if trial.state == TrialState.FAIL]
    code, _, err = run_inside(folder, "replay", "before")
    assert code == 0, err


@pytest.mark.slow
def test_the_study_is_exported_from_the_trainings_of_before(folder: Path, runs: Runs) -> None:
    checkpoint = runs.final_training("before", "5-9df1c1ef") / "checkpoint"
    log = runs.worker_log("before", 0)
    times = checkpoint.stat().st_mtime_ns, log.stat().st_mtime_ns
    code, out, err = run_inside(folder, "export-best", "before.toml", "--gpus", "cpu")
    assert code == 0, err
    assert (checkpoint.stat().st_mtime_ns, log.stat().st_mtime_ns) == times, "nothing is trained again"
    metrics = json.loads((runs.root / EXPORT / "metrics.json").read_text())
    assert metrics["evaluation"]["accuracy"] == pytest.approx(0.6093, abs=0.001), "as it was before"
    assert "confirmed   60.34% on validation" in out
