"""The dashboard's page of a study: drawn elsewhere, written by the search, read by the dashboard itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import psutil
import pytest
from invented import at_rungs
from marked import add_own
from moments import moment
from optuna.artifacts import get_all_artifact_meta
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna_dashboard import get_note, save_note
from PIL import Image
from scripted import Bench, ScriptedPool, trains

from search.errors import HeldError, SearchError, StudyChanged
from search.paths import DEFAULT_RUNS, Runs
from search.study.confirmation import begin, confirmation_of, record
from search.study.owned import OwnedStudy
from search.study.progress import Snapshot, WorkerView
from search.study.storage import open_storage, parse_url
from search.study.study import open_study
from search.watch import page as module
from search.watch.front import build_app
from search.watch.live import Display
from search.watch.observers import Observers
from search.watch.page import (
    CONFIRMED,
    EXPORTED,
    EXPORTED_BEFORE,
    SEARCHED,
    StudyPage,
    draw_best,
    note_text,
    page_attributes,
    show_confirmation,
    show_export,
)
from search.watch.status import snapshot_of
from studies import Confirm, StudySpec

CANARY = "canary-4711"
FACTS = [("pictures", "1,222 train, 216 val"), ("widest that fits", "width_mult 0.23242")]
SPACE = {"lr": FloatDistribution(1e-3, 2e-2, log=True)}


@pytest.fixture
def spec() -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": "birds",
            "limit": {"params": 300_000},
            "train": {"epochs": 3},
            "space": {
                "lr": {"low": 1e-3, "high": 2e-2, "log": True},
                "width_mult": {"low": 0.1},
                "dropout": [0.0, 0.2],
            },
            "search": {"trials": 20},
        }
    )


def trial(number: int, accuracy: float, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    curve = {epoch: accuracy * epoch / 3 for epoch in range(1, 4 if state == TrialState.COMPLETE else 2)}
    return create_trial(
        state=state,
        value=curve[max(curve)],
        params={"lr": 1e-3 * (1 + number % 15 / 10)},
        distributions=dict(SPACE),
        intermediate_values=curve,
        user_attrs={"num_params": 200_000 + number, "macs": 9_000_000, "seconds": 30.0},
    )


def many(count: int) -> list[FrozenTrial]:
    return [
        trial(number, 0.5 + number % 40 / 100, TrialState.PRUNED if number % 3 == 2 else TrialState.COMPLETE)
        for number in range(count)
    ]


class Dashboard:
    """What a browser would be given, by the mounted dashboard itself."""

    def __init__(self, url: str) -> None:
        self._app = build_app(url)

    def study(self) -> Any:
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies/1", "HTTP_HOST": "127.0.0.1", "QUERY_STRING": ""}
        return json.loads(b"".join(self._app(environ, lambda *_: lambda _: None)))


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


@pytest.fixture
def storage(runs: Runs) -> RDBStorage:
    return open_storage(parse_url(f"sqlite:///{runs.database}"), create=True)


@pytest.fixture
def study(spec: StudySpec, storage: RDBStorage) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return open_study(spec, storage, "0" * 64)


def test_the_process_that_draws_is_told_the_password_where_nobody_sees_it(
    spec: StudySpec, study: optuna.Study, storage: RDBStorage, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_SECONDS", 0)
    url = parse_url(f"postgresql+psycopg://me:{CANARY}@127.0.0.1:1/db")
    page, snapshot = StudyPage(OwnedStudy(study, spec, lambda: None), FACTS, url, runs), seen(spec, study)
    others = set(psutil.Process().children())  # of tests that ran before in this process
    page.watch(snapshot)
    (process,) = set(psutil.Process().children()) - others
    assert "search.watch.page" in process.cmdline()
    assert CANARY not in " ".join(process.cmdline())
    process.wait(60)  # until it has found that no server is there
    with pytest.raises(RuntimeError, match="cannot be drawn; see") as raised:
        page.watch(snapshot)
    log = runs.page_log(spec.name).read_text()
    assert "does not answer, or refuses this user" in log
    assert CANARY not in log + str(raised.value)


def owned(spec: StudySpec, storage: RDBStorage, check_lock: Callable[[], None] = lambda: None) -> OwnedStudy:
    return OwnedStudy(optuna.load_study(study_name=spec.name, storage=storage), spec, check_lock)


def page_of(spec: StudySpec, storage: RDBStorage, runs: Runs) -> StudyPage:
    return StudyPage(owned(spec, storage), FACTS, parse_url(f"sqlite:///{runs.database}"), runs)


def seen(spec: StudySpec, study: optuna.Study) -> Snapshot:
    return snapshot_of(spec, study.get_trials(deepcopy=False))


def test_the_note_says_what_is_searched_how_far_it_is_and_how_to_have_the_best(spec: StudySpec) -> None:
    study = optuna.create_study(direction="maximize")
    add_own(study, [*many(4), create_trial(state=TrialState.RUNNING, params={}, distributions={})])
    now = datetime(2026, 3, 7, 9, 30, tzinfo=UTC)
    note = note_text(spec, FACTS, seen(spec, study), "is being searched", now, Runs(Path("a b")))
    for words in (
        "#### Best so far: 53.00%",
        "Trial 3, 200,003 parameters, 9,000,000 multiply-adds (0.018 GFLOPs)",
        "| lr | 0.0013 |",
        "`search export-best birds --runs 'a b'`",
        "4 of 20 trials finished, 3 complete, 1 pruned, about 8 min left, at 09:30 UTC on 7 March 2026. "
        "The study is being searched.",
        "- **widest that fits**: width_mult 0.23242",
        "- **limit**: 300,000 parameters",
        "lr 0.001 to 0.02 (log), width_mult 0.1 to the widest that fits, dropout 0 | 0.2",
    ):
        assert words in note, words
    assert "Workers" not in note
    workers = tuple(WorkerView(label=f"ray:{number}", node=f"n{number % 2}") for number in range(3))
    spread = note_text(spec, FACTS, moment("birds", 20, (), workers, None), "is being searched", now, DEFAULT_RUNS)
    assert "The study is being searched.\n\nWorkers: 2 on n0, 1 on n1.\n" in spread
    empty = note_text(spec, FACTS, moment("birds", 20, (), (), None), "is being searched", now, DEFAULT_RUNS)
    assert "Best" not in empty
    assert "export-best" not in empty


def test_the_note_lists_the_paused_trials_and_says_why_the_dashboard_calls_them_running(
    series: StudySpec, runs: Runs
) -> None:
    trials = [at_rungs(series, 0, 0.3), at_rungs(series, 1, 0.5, 0.6), at_rungs(series, 2, 0.6, 0.7, 0.9)]
    snapshot = snapshot_of(series, trials)
    note = note_text(series, FACTS, snapshot, "is being searched", datetime(2026, 3, 7, 9, 30, tzinfo=UTC), runs)
    assert "2.0 of 6 full trainings spent, 3 candidates, 1 complete, 2 paused" in note
    how = "compared after 2, 6 and 18 epochs, each in a separate training; the best third"
    assert f"- **how**: model, promote, {how}" in note
    shown = "".join(str(value) for value in page_attributes({}, note, None, trials, series, runs).values())
    assert "#### Paused: 2" in shown
    assert "This dashboard shows them as RUNNING" in shown
    assert "| 1 | 60.00% | paused at rung 2 of 2 (epoch 6) |" in shown
    again = page_attributes(page_attributes({}, note, None, trials, series, runs), note, None, trials, series, runs)
    assert "".join(map(str, again.values())).count("#### Paused: 2") == 1
    done = page_attributes({}, note, None, trials[2:], series, runs)
    assert "#### Paused" not in "".join(map(str, done.values()))


def test_a_search_of_a_thousand_trials_sends_the_browser_little_more_than_one_of_fifty(
    spec: StudySpec, runs: Runs
) -> None:
    few, lots = (
        sum(len(str(value)) for value in page_attributes({}, "", None, many(count), spec, runs).values())
        for count in (50, 1000)
    )
    assert lots < 80_000
    assert lots < 3 * few


def test_a_running_searchs_page_is_drawn_and_goes_with_it(
    spec: StudySpec, study: optuna.Study, storage: RDBStorage, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_own(study, many(14))
    page = page_of(spec, storage, runs)
    page.watch(seen(spec, study))
    assert page._process is None, "a search of seconds has no page"

    monkeypatch.setattr(module, "FIRST_SECONDS", 0)
    deadline = time.monotonic() + 60
    during_drawing = 0
    while "Best so far: 63.00%" not in get_note(study) or page._waiting:
        assert time.monotonic() < deadline
        page.watch(seen(spec, study))
        during_drawing += page._drawing
        time.sleep(0.01)
    assert during_drawing > 1, "workers would wait for their answers meanwhile"
    shown = Dashboard(f"sqlite:///{runs.database}").study()
    assert "300,000 parameters" in shown["note"]["body"]
    drawn = {figure["id"]: json.loads(figure["graph_object"]) for figure in shown["plotly_graph_objects"]}
    assert drawn.keys() == {"size", "curves", "time", "importance"} - ({"importance"} if len(drawn) == 3 else set())
    assert drawn["size"]["layout"]["title"]["text"] == "Accuracy against size, with the frontier"

    process = page._process
    assert process is not None
    add_own(study, [trial(14, 0.99)])
    page.end(seen(spec, study), None, 20)
    assert "Best so far: 99.00%" in get_note(study)
    assert "has spent its budget" in get_note(study)
    assert process.poll() is not None
    assert not runs.page("birds").exists()


def test_what_a_database_that_was_away_did_not_take_is_written_later(
    spec: StudySpec, study: optuna.Study, storage: RDBStorage, runs: Runs
) -> None:
    class Away(RDBStorage):
        def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
            if key == "third" and not returned:
                raise OSError("away")
            super().set_study_system_attr(study_id, key, value)

    returned: list[bool] = []
    page = StudyPage(owned(spec, Away(str(storage.url))), FACTS, parse_url(f"sqlite:///{runs.database}"), runs)
    page._waiting = [(key, key) for key in ("first", "second", "third", "fourth")]
    with pytest.raises(OSError, match="away"):
        page.watch(seen(spec, study))
    returned.append(True)
    page.watch(seen(spec, study))
    written = storage.get_study_system_attrs(study._study_id)
    assert [written.get(key) for key in ("first", "second", "third", "fourth")] == [
        "first",
        "second",
        "third",
        "fourth",
    ]


@pytest.mark.parametrize("error", [HeldError("birds", "process 7"), StudyChanged("it was deleted")])
def test_a_search_that_has_lost_its_study_writes_no_last_page_to_it(
    spec: StudySpec,
    study: optuna.Study,
    storage: RDBStorage,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    error: SearchError,
) -> None:
    monkeypatch.setattr(module, "FIRST_SECONDS", 0)
    page, display = page_of(spec, storage, runs), Display()

    def search() -> None:
        with Observers(display, [page], at_once=lambda: False) as observers:
            observers.watch(seen(spec, study))
            page._waiting = [("drawn", "before it was lost")]
            raise error

    with pytest.raises(type(error)):
        search()
    process = page._process
    assert process is not None
    assert storage.get_study_system_attrs(study._study_id) == {}
    assert process.poll() is not None


def test_a_page_is_not_written_to_a_study_that_is_anothers_since_the_database_is_back(
    spec: StudySpec, study: optuna.Study, storage: RDBStorage, runs: Runs
) -> None:
    def check_lock() -> None:
        raise HeldError("birds", "process 7")

    page = StudyPage(owned(spec, storage, check_lock), FACTS, parse_url(f"sqlite:///{runs.database}"), runs)
    page._waiting = [("drawn", "before it was lost")]
    with pytest.raises(HeldError):
        page.watch(seen(spec, study))
    assert storage.get_study_system_attrs(study._study_id) == {}


def test_what_an_export_added_stays_when_the_search_goes_on(spec: StudySpec, study: optuna.Study, runs: Runs) -> None:
    picture = runs.root / "confusion-matrix.png"
    for text in (b"first", b"second"):
        picture.write_bytes(text)
        show_export(study, spec, runs.artifacts, "98.70% on the test split", [picture])
    (artifact,) = get_all_artifact_meta(study)
    assert (artifact.filename, artifact.mimetype) == ("confusion-matrix.png", "image/png")
    assert (runs.artifacts / artifact.artifact_id).read_bytes() == b"second"

    storage = study._storage
    drawn = page_attributes(storage.get_study_system_attrs(study._study_id), "new note", None, many(4), spec, runs)
    for key, value in drawn.items():
        storage.set_study_system_attr(study._study_id, key, value)
    assert get_note(study) == f"{EXPORTED}```\n98.70% on the test split\n```{SEARCHED}new note"


def test_a_figure_that_was_deleted_in_the_dashboard_is_shown_again(
    spec: StudySpec, study: optuna.Study, runs: Runs
) -> None:
    picture = runs.root / "curves.png"
    picture.write_bytes(b"first")
    show_export(study, spec, runs.artifacts, "98.70% on the test split", [picture])
    (artifact,) = get_all_artifact_meta(study)
    app = build_app(f"sqlite:///{runs.database}", runs=runs, token="t" * 16, edits=True)
    environ = {"REQUEST_METHOD": "DELETE", "PATH_INFO": f"/api/artifacts/1/{artifact.artifact_id}"}
    environ |= {"HTTP_HOST": "127.0.0.1", "SERVER_PORT": "80", "HTTP_COOKIE": f"featherweight-80={'t' * 16}"}
    said: list[str] = []
    list(app(environ, lambda status, *_: said.append(status) or (lambda _: None)))
    assert said == ["204 No Content"]
    assert not (runs.artifacts / artifact.artifact_id).exists()

    picture.write_bytes(b"second")
    show_export(study, spec, runs.artifacts, "98.70% on the test split", [picture])
    (shown,) = [one["artifact_id"] for one in Dashboard(f"sqlite:///{runs.database}").study()["artifacts"]]
    assert (runs.artifacts / shown).read_bytes() == b"second"


def test_a_figure_that_the_last_export_does_not_have_is_removed(
    spec: StudySpec, study: optuna.Study, runs: Runs
) -> None:
    pictures = [runs.root / name for name in ("curves.png", "mistakes.png")]
    for picture in pictures:
        picture.write_bytes(b"of an export")
    show_export(study, spec, runs.artifacts, "98.70% on the test split", pictures)
    pictures[1].unlink()
    for _ in range(2):
        show_export(study, spec, runs.artifacts, "98.80% on the test split", pictures)
        (artifact,) = Dashboard(f"sqlite:///{runs.database}").study()["artifacts"]
        assert artifact["filename"] == "curves.png"
        assert [file.name for file in runs.artifacts.iterdir()] == [artifact["artifact_id"]]


def test_the_best_so_far_has_its_pictures_among_the_artifacts(spec: StudySpec, study: optuna.Study, runs: Runs) -> None:
    runs.study("birds").mkdir(parents=True)
    storage = study._storage
    for number in range(2):
        add_own(study, [trial(number, 0.8 + number / 10)])
        np.savez(runs.confusion("birds"), trial=number, confusion=[[5, 1], [0, 6]], names=["owl", "wren"])
        shown = storage.get_study_system_attrs(study._study_id)
        drawn = page_attributes(shown, "", None, study.get_trials(), spec, runs)
        for key, value in drawn.items():
            storage.set_study_system_attr(study._study_id, key, value)
    pictures = {meta.filename: runs.artifacts / meta.artifact_id for meta in get_all_artifact_meta(study)}
    assert pictures.keys() == {"best-curve.png", "best-confusion.png"}, "replaced, not added"
    for file in pictures.values():
        with Image.open(file) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 20


@pytest.mark.parametrize("damage", ["flip", "cut", "text", "empty", "other keys"])
def test_a_damaged_file_of_confusions_is_said_in_the_log_and_the_curve_is_drawn_all_the_same(
    spec: StudySpec, study: optuna.Study, runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    file = runs.confusion("birds")
    file.parent.mkdir(parents=True)
    add_own(study, [trial(0, 0.8)])
    np.savez(file, trial=0, table=[[0, 0, 5], [1, 1, 6]], names=["owl", "wren"])
    content = bytearray(file.read_bytes())
    content[content.index(b"NUMPY", content.index(b"table.npy")) + 140] ^= 1
    match damage:
        case "flip":
            file.write_bytes(content)
        case "cut":
            file.write_bytes(content[:300])
        case "text":
            file.write_text("[1, 2]")
        case "empty":
            file.write_bytes(b"")
        case _:
            np.savez(file, trial=0)
    (drawn,) = draw_best(study.get_trials(), spec, runs, tmp_path)
    assert drawn.name == "best-curve.png"
    assert f"the confusion matrix is not drawn: {file} is damaged: " in capsys.readouterr().out


def test_what_the_best_trial_mistook_is_kept_when_its_folder_goes(tmp_path: Path, runs: Runs) -> None:
    def leave(message: dict[str, Any]) -> None:
        """As a worker does after the last epoch."""
        file = runs.trial_confusion("scripted", message.trial)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, trial=message.trial, table=[[0, 0, 1], [1, 1, 1]], names=["owl", "wren"])

    coordinator = Bench(tmp_path).coordinator(ScriptedPool(trains, on_epoch=leave))
    coordinator.run()
    best = coordinator.snapshot().best
    assert best is not None
    with np.load(runs.confusion("scripted")) as known:
        assert known["trial"] == best.number


def test_what_was_confirmed_is_in_the_note_from_its_first_result_on(
    spec: StudySpec, study: optuna.Study, runs: Runs
) -> None:
    spec = spec.model_copy(update={"confirm": Confirm(top=2, seeds=2)})
    add_own(study, [trial(0, 0.9), trial(1, 0.91), trial(2, 0.8)])
    save_note(study, "what the search wrote")
    begin(study, spec)
    for number, seed, accuracy in ((1, 0, 0.88), (0, 0, 0.89), (1, 1, 0.90), (0, 1, 0.90)):
        record(study, number, seed, accuracy, 1.0)
        show_confirmation(study, spec)
        if number == 1 and seed == 0:
            assert "Confirming the best: 1 of 4 trainings done, about 3 s left." in get_note(study)
    note = get_note(study)
    assert note.startswith(f"{CONFIRMED}Confirmed: trial 0, 89.50% +- 0.79% over 2 fresh seeds on validation")
    assert note.endswith(f"{SEARCHED}what the search wrote"), "behind what is known better"
    assert "the search's best had claimed 91.00%." in note
    assert (
        "| 0 | 200,000 | 90.00% | 89.50% +- 0.79% | chosen |\n| 1 | 200,001 | 91.00% | 89.00% +- 0.79% | tied |" in note
    )

    shown = study._storage.get_study_system_attrs(study._study_id)
    drawn = page_attributes(shown, "new note", confirmation_of(study, spec), study.get_trials(), spec, runs)
    for key, value in drawn.items():
        study._storage.set_study_system_attr(study._study_id, key, value)
    assert get_note(study) == note.replace("what the search wrote", "new note"), "it stays when the search goes on"
    show_export(study, spec, runs.artifacts, "98.70% on the test split", [])
    note = get_note(study)
    assert note.index(EXPORTED) < note.index(CONFIRMED) < note.index(SEARCHED)
    assert note.endswith(f"{SEARCHED}new note")


def test_a_note_of_before_which_had_the_searchs_part_first_is_put_in_order(
    spec: StudySpec, study: optuna.Study, runs: Runs
) -> None:
    add_own(study, [trial(0, 0.9)])
    save_note(study, f"what the search wrote\n\n{CONFIRMED}Confirmed: trial 0\n\n{EXPORTED_BEFORE}```\nan export\n```")
    shown = study._storage.get_study_system_attrs(study._study_id)
    drawn = page_attributes(shown, "new note", None, study.get_trials(), spec, runs)
    for key, value in drawn.items():
        study._storage.set_study_system_attr(study._study_id, key, value)
    assert get_note(study) == f"{EXPORTED}```\nan export\n```{SEARCHED}new note"
    save_note(study, f"what the search wrote\n\n{EXPORTED_BEFORE}```\nan export\n```")
    show_export(study, spec, runs.artifacts, "another", [])
    assert get_note(study) == f"{EXPORTED}```\nanother\n```{SEARCHED}what the search wrote"


def test_the_page_is_drawn_once_a_minute_and_soon_after_a_new_best(
    spec: StudySpec, storage: RDBStorage, study: optuna.Study, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(StudyPage, "_start", lambda _: SimpleNamespace(poll=lambda: None))
    drawn: list[float] = []
    monkeypatch.setattr(StudyPage, "_say", lambda *_: drawn.append(clock[0]))
    add_own(study, [trial(0, 0.5)])
    first = seen(spec, study)
    add_own(study, [trial(1, 0.6)])
    second = seen(spec, study)
    page = page_of(spec, storage, runs)
    for second_of in range(200):
        clock[0] = float(second_of)
        page.watch(first if second_of < 95 else second)
        page._drawing = False
    assert drawn == [30, 90, 100, 160], "the new best of 95 s waits for the ten seconds since the last update"


def test_a_page_that_cannot_be_drawn_says_where_to_look(
    spec: StudySpec, study: optuna.Study, storage: RDBStorage, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_SECONDS", 0)
    page = StudyPage(owned(spec, storage), FACTS, parse_url(f"sqlite:///{runs.root}/gone.db"), runs)
    page.watch(seen(spec, study))
    assert page._process is not None
    page._process.wait(60)
    with pytest.raises(RuntimeError, match=r"cannot be drawn; see .*page\.log"):
        page.watch(seen(spec, study))
    assert "cannot be read" in runs.page_log("birds").read_text()
    page.end(seen(spec, study), None, 20)


def test_a_page_whose_drawing_process_died_is_tidied_away_at_the_end(
    spec: StudySpec, study: optuna.Study, storage: RDBStorage, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_SECONDS", 0)
    page = page_of(spec, storage, runs)
    page.watch(seen(spec, study))
    assert page._process is not None
    page._process.kill()
    page._process.wait()
    with pytest.raises(RuntimeError, match="cannot be drawn; see"):
        page.end(seen(spec, study), None, 20)
    assert not runs.page("birds").exists()
