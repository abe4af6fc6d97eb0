"""The studies of a database: whose they are, what is listed of them, and what a deletion removes."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from io import StringIO
from pathlib import Path

import optuna
import pytest
from fast import slow_after
from inside import run_inside
from scripted import Bench, ScriptedPool, spec_of, trains

from search.errors import HeldError, StudyChanged
from search.paths import Runs
from search.study.budget import Budget, Spent
from search.study.inventory import Listed, delete_study, find_to_delete, list_studies
from search.study.lock import own_study
from search.study.storage import sqlite_url
from search.study.study import PERSON, SPEC, UUID, person_of, user_name
from trainer.kept import write_checked


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def runs(folder: Path) -> Runs:
    return Runs(folder / "runs")


def search(runs: Runs, trials: int = 2, *, name: str = "scripted") -> optuna.Study:
    spec = spec_of(trials=trials).model_copy(update={"name": name})
    coordinator = Bench(runs.root).coordinator(ScriptedPool(trains), spec)
    coordinator.run()
    write_checked(runs.last_study, {"study": name})
    return coordinator.trials.study


def listed(runs: Runs) -> dict[str, Listed]:
    return {one.name: one for one in list_studies(sqlite_url(runs.database), runs)}


def raw(runs: Runs, name: str) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{runs.database}")


# -- whose


def test_a_study_keeps_the_name_of_who_began_it(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEARCH_OWNER", " anna \x1b[31m" + "x" * 100)
    study = search(runs)
    assert person_of(study) == ("anna \\x1b[31m" + "x" * 100)[:60]
    monkeypatch.setenv("SEARCH_OWNER", "ben")
    assert person_of(search(runs, trials=3)) == person_of(study), "whoever goes on with it"
    monkeypatch.setenv("SEARCH_OWNER", "")
    assert user_name() not in ("", "ben")


@pytest.mark.parametrize("kept", slow_after(1, [None, 7, "", ["anna"]]))
def test_the_owner_is_unknown_where_none_was_kept(runs: Runs, kept: object) -> None:
    study = search(runs)
    study.set_user_attr(PERSON, kept)
    assert person_of(study) is None
    assert listed(runs)["scripted"].owner is None
    search(runs, trials=3)
    assert person_of(study) is None, "a later launch does not know it either"


STUDY = """
name = "scripted"
[data]
source = "digits"
[train]
epochs = 3
[space]
lr = { low = 1e-4, high = 1e-1, log = true }
dropout = { low = 0.0, high = 0.5 }
[search]
trials = 2
"""


def test_two_people_with_one_database_are_told_whose_study_it_is(
    folder: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "mine.toml").write_text(STUDY)
    monkeypatch.setenv("SEARCH_OWNER", "anna")
    search(runs)
    _, out, _ = run_inside(folder, "status", "scripted")
    assert "owner: anna\n" in out
    assert json.loads(run_inside(folder, "status", "scripted", "--json")[1])["owner"] == "anna"

    monkeypatch.setenv("SEARCH_OWNER", "ben")
    other = ("--runs", "others", "--storage", "sqlite:///runs/search.db")
    code, _, err = run_inside(folder, "launch", "mine.toml", "--gpus", "cpu", *other)
    assert code == 8, err
    assert "study 'scripted' of anna was begun with other settings:" in err

    with own_study("scripted", sqlite_url(runs.database), runs):
        code, _, err = run_inside(folder, "launch", "mine.toml", "--gpus", "cpu", *other)
    assert code == 7
    whose = (
        "study 'scripted', which is anna's, is in use by a process that was begun with another runs folder than others"
    )
    stop = "search stop scripted --runs OTHER_FOLDER --storage sqlite:///runs/search.db, or search one"
    assert f"{whose}; wait for it, or end it: {stop}" in err
    assert err.endswith("or search one of your own: --set name=NEW\n")


def test_a_launch_that_is_refused_says_that_it_has_put_the_journal_of_another_study_aside(
    folder: Path, runs: Runs
) -> None:
    (folder / "mine.toml").write_text(STUDY)
    before = str(search(runs).user_attrs[UUID])
    search(Runs(folder / "others"))
    other = ("--storage", "sqlite:///others/search.db")
    code, out, err = run_inside(folder, "launch", "mine.toml", "--gpus", "cpu", *other)
    assert code == 8, err
    assert f"its journal and checkpoints are in runs/studies/scripted/earlier/{before}" in out
    assert out.count("are in runs/studies/scripted/earlier") == 1


def test_the_lock_is_that_of_the_real_file_by_whatever_name_it_is_given(
    folder: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(runs)
    (folder / "link.db").symlink_to("runs/search.db")
    (folder / "again.db").symlink_to(folder / "link.db")
    (folder / "there").symlink_to(folder / "runs", target_is_directory=True)
    monkeypatch.chdir(folder / "there")
    names = ["search.db", "../there/./search.db", "../link.db", str(folder / "again.db"), "../runs/../there/search.db"]
    with own_study("scripted", sqlite_url(runs.database), Runs(folder / "one")):
        for number, name in enumerate(names):
            with (
                pytest.raises(HeldError),
                own_study("scripted", sqlite_url(Path(name)), Runs(folder / f"other-{number}")),
            ):
                pass


# -- listed


def test_the_studies_of_a_database_are_listed_with_owner_state_budget_best_and_last_change(
    folder: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEARCH_OWNER", "anna")
    assert listed(runs) == {}
    best = search(runs).best_value
    search(runs, name="longer")
    raw(runs, "longer").set_user_attr(
        SPEC, spec_of(trials=9).model_copy(update={"name": "longer"}).model_dump(mode="json")
    )
    search(runs, name="later")
    raw(runs, "later").set_user_attr(SPEC, {"name": "later", "warmth": 3})
    optuna.create_study(study_name="../else\x1b[31m", storage=f"sqlite:///{runs.database}", direction="maximize")
    optuna.copy_study(
        from_study_name="scripted",
        from_storage=f"sqlite:///{runs.database}",
        to_storage=f"sqlite:///{runs.database}",
        to_study_name="copy",
    )
    with own_study("longer", sqlite_url(runs.database), runs):
        found = listed(runs)
    assert {name: one.state for name, one in found.items()} == {
        "../else\x1b[31m": "foreign",
        "copy": "foreign",
        "later": "unreadable",
        "longer": "in use",
        "scripted": "finished",
    }
    assert listed(runs)["longer"].state == "stopped"
    assert found["longer"].held_by is not None
    one = found["scripted"]
    assert (one.owner, one.finished, one.best) == ("anna", 2, best)
    assert one.budget == Budget(trainings=None, trials=2, hours=None, steps=3)
    assert one.spent == Spent(epochs=6, trainings=2, begun=2, finished=2, complete=2)
    assert one.last_change is not None
    assert abs((datetime.now() - datetime.fromisoformat(one.last_change)).total_seconds()) < 600
    assert (found["later"].budget, found["later"].spent, found["later"].finished, found["later"].best) == (
        None,
        None,
        2,
        None,
    )

    code, out, _ = run_inside(folder, "studies")
    assert code == 0
    assert "\x1b" not in out
    lines = out.partition("in sqlite:///runs/search.db:\n")[2].splitlines()
    assert lines[0].split() == ["study", "owner", "state", "budget", "best", "last", "change"]
    assert lines[1].split()[:4] == [r"../else\x1b[31m", "unknown", "made", "or"]
    assert f"anna finished 2 of 2 trials finished {best:.2%}" in " ".join(lines[-1].split())
    assert "of another version 2 trials finished " in " ".join(lines[3].split())
    shown = json.loads(run_inside(folder, "studies", "--json")[1])
    assert [one["name"] for one in shown["begun"]] == sorted(found)
    assert (shown["version"], shown["begun"][-1]["budget"]["trials"], shown["begun"][-1]["spent"]["begun"]) == (2, 2, 2)


def test_a_database_that_cannot_be_read_is_said(folder: Path, runs: Runs) -> None:
    runs.root.mkdir()
    runs.database.write_text("no database" * 1000)
    code, _, err = run_inside(folder, "studies")
    assert code == 3
    assert "file is not a database" in err


# -- deleted


def test_a_deleted_study_takes_what_belongs_to_it_and_nothing_else(folder: Path, runs: Runs) -> None:
    search(runs, name="other")
    study = search(runs)
    upload = runs.artifacts
    upload.mkdir()
    figure = folder / "figure.png"
    figure.write_bytes(b"drawn")
    store = optuna.artifacts.FileSystemArtifactStore(upload)
    for one in (study, raw(runs, "other")):
        optuna.artifacts.upload_artifact(artifact_store=store, file_path=str(figure), study_or_trial=one)
    for path in (runs.checkpoint("scripted", 7), runs.export("scripted", 1), runs.earlier("scripted", "5") / "x"):
        path.mkdir(parents=True)
    code, out, err = run_inside(folder, "delete", "scripted", "--yes")
    assert code == 0, err
    assert out == "study 'scripted' is deleted, with its 2 trials; its exports stay\n"
    assert {path.name for path in runs.study("scripted").iterdir()} == {"lock", "earlier"}
    assert len(list(upload.iterdir())) == 1
    assert runs.export("scripted", 1).exists()
    assert not runs.last_study.exists()
    assert list(listed(runs)) == ["other"]
    assert runs.journal("other").exists()
    assert len(search(runs, 3).trials) == 3, "and another may be begun"


def test_a_deletion_leaves_the_files_of_another_study_of_its_name(folder: Path, runs: Runs) -> None:
    search(runs)
    shutil.move(runs.database, folder / "elsewhere.db")
    uuid = search(runs).user_attrs["featherweight:uuid"]
    assert run_inside(folder, "delete", "scripted", "--yes", "--storage", "sqlite:///elsewhere.db")[0] == 0
    assert (runs.earlier("scripted", uuid) / "journal.jsonl").exists()
    assert "featherweight:uuid" in raw(runs, "scripted").user_attrs
    notes = Bench(runs.root)
    notes.coordinator(ScriptedPool(trains), spec_of(trials=3)).run()
    assert any("are back from" in note for note in notes.notes)


def test_a_study_in_use_is_not_deleted(folder: Path, runs: Runs) -> None:
    search(runs)
    with own_study("scripted", sqlite_url(runs.database), runs):
        code, _, err = run_inside(folder, "delete", "scripted", "--yes")
    assert code == 7
    assert "is in use by" in err
    assert raw(runs, "scripted").trials


@pytest.mark.parametrize("name", ["nothing", "../escape", "", "foreign"])
def test_only_a_study_of_ours_is_deleted(folder: Path, runs: Runs, name: str) -> None:
    search(runs)
    optuna.create_study(study_name="foreign", storage=f"sqlite:///{runs.database}")
    optuna.create_study(study_name="../escape", storage=f"sqlite:///{runs.database}").set_user_attr(SPEC, {})
    (runs.root / "escape").mkdir()
    code, _, err = run_inside(folder, "delete", name, "--yes")
    assert code == 2
    assert "no study" in err or "delete it with optuna delete-study" in err
    assert (runs.root / "escape").exists()
    assert len(listed(runs)) == 3


def test_a_study_whose_settings_this_version_cannot_read_can_be_deleted(folder: Path, runs: Runs) -> None:
    search(runs).set_user_attr(SPEC, {"name": "scripted", "warmth": 3})
    assert run_inside(folder, "delete", "scripted", "--yes")[0] == 0
    assert listed(runs) == {}


@pytest.mark.parametrize(
    ("answer", "deleted"),
    slow_after(2, [("y\n", True), ("\n", False), ("yes\n", True), ("n\n", False), ("", False)]),
)
def test_a_deletion_asks_first_and_names_the_owner(
    folder: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch, answer: str, deleted: bool
) -> None:
    monkeypatch.setenv("SEARCH_OWNER", "anna")
    search(runs)
    terminal = StringIO(answer)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    code, out, err = run_inside(folder, "delete", "scripted", "--json")
    assert code == 0
    assert "delete study 'scripted' of anna with its 2 trials, its journal and its checkpoints? [y/N]" in err
    assert json.loads(out) == {"version": 1, "study": "scripted", "deleted": deleted, "trials": 2}
    assert bool(listed(runs)) is not deleted


def test_where_nobody_can_be_asked_nothing_is_deleted_without_yes(folder: Path, runs: Runs) -> None:
    search(runs)
    code, _, err = run_inside(folder, "delete", "scripted")
    assert code == 2
    assert "--yes deletes without asking" in err
    assert listed(runs)


def test_a_study_replaced_meanwhile_is_not_deleted(runs: Runs) -> None:
    search(runs)
    found = find_to_delete("scripted", sqlite_url(runs.database))
    optuna.delete_study(study_name="scripted", storage=f"sqlite:///{runs.database}")
    search(runs)
    with pytest.raises(StudyChanged, match="nothing was deleted"):
        delete_study(found, sqlite_url(runs.database), runs)
    assert listed(runs)
