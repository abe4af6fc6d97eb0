"""Whatever a user can do wrong ends in one sentence, the documented exit code, and nothing lost."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from desk import PICTURES, SHAPES, SMALL, STEADY, Answer, Desk
from optuna.trial import TrialState

from search.paths import Runs
from search.study.storage import open_storage, parse_url
from search.study.study import open_study
from studies import load
from trainer.cores import num_cores

pytestmark = pytest.mark.timeout(400)

CANARY = "canary-4711"


def refused(answer: Answer, code: int, *sentences: str) -> None:
    """It ended with the code, after one message on stderr that holds the sentences, and with nothing on stdout."""
    assert answer.code == code, answer
    assert "Traceback" not in answer.err
    assert answer.err.startswith(("search: ", "Usage: "))
    assert answer.out == ""
    for sentence in sentences:
        assert sentence in answer.err


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A place for commands that end before they write anything."""
    return Desk(tmp_path_factory.mktemp("empty"))


@pytest.fixture
def shapes(desk: Desk, pictures: Callable[[Path], Path]) -> Desk:
    """A place with pictures in ``shapes`` and a study file for them."""
    pictures(desk.folder / "shapes")
    desk.write("shapes.toml", SHAPES)
    return desk


# -- pictures


def test_a_folder_study_without_data_names_the_layout_and_the_command(empty: Desk) -> None:
    answer = empty.inside("launch", "birds400", "--gpus", "cpu")
    refused(answer, 4, "give it with --data DIR", "CLASS/* or train/CLASS/*")


def test_a_missing_data_folder(shapes: Desk) -> None:
    answer = shapes.inside("launch", "shapes.toml", "--gpus", "cpu", "--data", "nowhere")
    refused(answer, 4, f"the data folder {shapes.folder}/nowhere does not exist; check --data DIR")


def test_an_empty_data_folder(shapes: Desk) -> None:
    (shapes.folder / "nothing").mkdir()
    answer = shapes.inside("launch", "shapes.toml", "--gpus", "cpu", "--data", "nothing")
    refused(answer, 4, "holds no class folders; expected are CLASS/* or train/CLASS/*")


def test_a_file_as_data_folder(shapes: Desk) -> None:
    answer = shapes.inside("launch", "shapes.toml", "--gpus", "cpu", "--data", "shapes.toml")
    refused(answer, 4, "shapes.toml is not a folder")


def test_a_class_with_one_picture(shapes: Desk) -> None:
    for picture in list((shapes.folder / "shapes/train/checks").iterdir())[1:]:
        picture.unlink()
    answer = shapes.inside("launch", "shapes.toml", "--gpus", "cpu", "--data", "shapes")
    refused(answer, 4, "checks: one training picture, so none is left for validation; add some or remove the class")


def test_no_readable_picture(shapes: Desk) -> None:
    for picture in (shapes.folder / "shapes").rglob("*.png"):
        picture.write_bytes(b"this is no picture")
    answer = shapes.inside("launch", "shapes.toml", "--gpus", "cpu", "--data", "shapes")
    refused(answer, 4, "shapes holds no readable picture", "train/bars/0.png: is not a picture in a format")


def test_pictures_that_cannot_be_read_are_listed_together(shapes: Desk) -> None:
    (shapes.folder / "shapes/train/bars/0.png").write_bytes(b"")
    (shapes.folder / "shapes/train/plain/3.png").write_bytes(b"no picture")
    answer = shapes.inside("launch", "shapes.toml", "--gpus", "cpu", "--data", "shapes")
    refused(answer, 4, "2 problems", "train/bars/0.png: is empty", "train/plain/3.png: is not", 'bad_files = "skip"')


def test_a_data_folder_for_a_study_that_has_its_own_pictures(empty: Desk) -> None:
    answer = empty.inside("launch", "digits", "--gpus", "cpu", "--data", ".")
    refused(answer, 2, "the digits are built in")


# -- the study


def launched_with(desk: Desk, *changes: str) -> Answer:
    """The answer to a launch of the small study with some settings changed."""
    settings = (word for change in changes for word in ("--set", change))
    return desk.inside("launch", desk.write("small.toml", SMALL), "--gpus", "cpu:2", *settings)


def test_an_unknown_study_names_those_that_there_are(empty: Desk) -> None:
    refused(
        empty.inside("launch", "digit", "--gpus", "cpu"),
        2,
        "no study 'digit' comes with the program, nor is it a .toml file; did you mean digits?",
    )
    refused(empty.inside("launch", "mine.toml", "--gpus", "cpu"), 2, "there is no file mine.toml; search studies --new")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("train.lable_smoothing=0.1", "train.lable_smoothing: unknown key; did you mean label_smoothing?"),
        ("train.optimizer=adamm", "train.optimizer = 'adamm': input should be 'adam', 'adamw'"),
        ("train.batch_size=1", "train.batch_size = 1: input should be greater than or equal to 2"),
        ("train.epochs=many", "train.epochs = 'many': input should be a valid integer"),
        ("search.trials=0", "search.trials = 0: input should be greater than or equal to 1"),
        ("search.min_epochs=4", "search.min_epochs: 4 exceeds train.epochs = 3"),
        ("search.sampler=grid", "search.sampler = 'grid': input should be 'model', 'tpe', 'random' or 'gp'"),
        ("space.dropout={low=0.3,high=0.1}", "low = 0.3 is above high = 0.1"),
        ("space.dropout={low=0.0,high=1.5}", "space.dropout: 1.5: input should be less than 1"),
        ("space.epochs={low=1,high=2}", "space.epochs: cannot be sampled"),
        ("space.weightdecay={low=0.0,high=0.1}", "space.weightdecay: cannot be sampled; did you mean weight_decay?"),
        ("known=[{dropout=0.9}]", "known.0.dropout: 0.9 is outside the space, 0 to 0.3"),
        ("known=[{lr=0.02}]", "known.0.lr: 0.02 is not among the space's"),
        ("known=[{rotate=10}]", "known.0.rotate: is not in the space"),
        ("name=../../elsewhere", "'../../elsewhere' cannot name a study; use 1 to 64 letters"),
        ("name=", "'' cannot name a study"),
        ("train.lr", "write key=value, for example --set train.lr=0.01"),
        ("data.source=folder", "needs a folder"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_the_cure(desk: Desk, change: str, sentence: str) -> None:
    answer = launched_with(desk, change)
    if change == "data.source=folder":
        refused(answer, 4, "give it with --data DIR")
        return
    refused(answer, 2, sentence)
    assert (desk.folder / "small.toml").read_text() == SMALL
    assert not (desk.runs / "search.db").exists(), "and all of that before anything is written"


def test_every_mistake_in_a_study_is_told_at_once(desk: Desk) -> None:
    answer = launched_with(desk, "train.lr=-1", "train.optimiser=sgd", "limit.params=0", "colour=3")
    refused(answer, 2, "train.lr = -1", "train.optimiser: unknown key", "limit.params = 0", "colour: unknown key")


def test_a_study_file_that_is_no_toml(desk: Desk) -> None:
    study = desk.write("broken.toml", "[train]\nlr = = 3\n")
    refused(desk.inside("launch", study, "--gpus", "cpu"), 2, "study broken.toml is not TOML", "line 2")


def test_an_unknown_model_names_the_nearest_one(desk: Desk) -> None:
    answer = launched_with(desk, "train.model=resnet10tt")
    refused(answer, 2, "model = 'resnet10tt' is not a timm model; did you mean resnet10t?")


def test_a_model_without_a_width_whose_width_is_sampled(desk: Desk) -> None:
    refused(launched_with(desk, "train.model=mobilenetv3_small_050"), 2, "width_mult = 0.05: mobilenetv3_small_050 ")


def test_a_limit_that_no_width_fits(desk: Desk) -> None:
    refused(launched_with(desk, "limit.params=20_000"), 5, "resnet10t", "parameters", "the limit is 20,000 parameters")


def test_a_range_of_widths_that_begins_over_the_limit(desk: Desk) -> None:
    refused(launched_with(desk, "space.width_mult={low=0.1}", "known=[]"), 5, "the limit is 60,000 parameters")


def test_a_known_recipe_that_is_wider_than_the_limit(desk: Desk) -> None:
    answer = launched_with(desk, "known=[{width_mult=0.5}]")
    refused(answer, 2, "known.0.width_mult = 0.5 is over the limit; the widest that fits is 0.0")


# -- devices


@pytest.mark.parametrize("gpus", ["cpu:0", "cpu:99", "cpu:many", "gpu", "77", "0,0,0"])
def test_devices_that_do_not_exist(empty: Desk, gpus: str) -> None:
    refused(empty.inside("launch", "digits", "--gpus", gpus), 2, f"--gpus {gpus}: ")


def test_a_refused_number_of_cpu_workers_names_those_possible(empty: Desk) -> None:
    refused(empty.inside("launch", "digits", "--gpus", "cpu:99"), 2, f"cpu:N with N from 1 to {num_cores()}")


# -- storage


@pytest.mark.parametrize("command", ["launch", "status", "export-best"])
def test_an_unreachable_database_is_named_without_its_password(empty: Desk, command: str) -> None:
    url = f"postgresql+psycopg://bob:{CANARY}@127.0.0.1:1/search"
    answer = empty.inside(command, "digits", *(["--gpus", "cpu"] if command != "status" else []), SEARCH_STORAGE=url)
    refused(answer, 3, "database postgresql+psycopg://bob:***@127.0.0.1:1/search: ", "check host, port, user")
    assert CANARY not in answer.out + answer.err


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("runs/search.db", "--storage is not a URL"),
        (f"mysql://bob:{CANARY}@host/db", "mysql://bob:***@host/db: use sqlite:///FILE or postgresql"),
        ("sqlite://", "name a file"),
    ],
)
def test_a_storage_url_that_cannot_be_used(empty: Desk, url: str, sentence: str) -> None:
    answer = empty.inside("launch", "digits", "--gpus", "cpu", "--storage", url)
    refused(answer, 3, sentence)
    assert CANARY not in answer.err


def test_a_database_file_that_is_no_database_is_left_alone(desk: Desk) -> None:
    file = desk.folder / "diary.db"
    file.write_text("dear diary\n" * 200)
    answer = desk.inside("launch", "digits", "--gpus", "cpu", "--storage", f"sqlite:///{file}")
    refused(answer, 3, "file is not a database")
    assert file.read_text() == "dear diary\n" * 200


def test_a_runs_folder_that_is_a_file(empty: Desk) -> None:
    (empty.folder / "occupied").write_text("mine")
    answer = empty.inside("launch", "digits", "--gpus", "cpu", "--runs", "occupied")
    refused(answer, 3, "cannot be written", "choose another --runs folder")
    assert (empty.folder / "occupied").read_text() == "mine"


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A study with one trial, which has not finished."""
    desk = Desk(tmp_path_factory.mktemp("begun") / "desk")
    desk.folder.mkdir()
    spec = load(str(desk.folder / desk.write("small.toml", SMALL)))
    storage = open_storage(parse_url(f"sqlite:///{Runs(desk.runs).database}"), create=True)
    open_study(spec, storage, "content").ask()
    storage.remove_session()
    storage.engine.dispose()
    return desk


def test_a_study_of_which_nothing_is_known(begun: Desk, desk: Desk) -> None:
    refused(desk.inside("status"), 2, "no study was launched in runs yet; name one, or start: search launch")
    refused(desk.inside("status", "digits"), 3, "there is no database runs/search.db yet")
    refused(begun.inside("status", "smal"), 2, "no study 'smal' in this database; did you mean small?")


@pytest.mark.parametrize("command", ["status", "export-best"])
@pytest.mark.parametrize("name", ["../../elsewhere", "a/b", "", "two\nlines"])
def test_a_study_name_that_is_a_path_makes_no_folder(begun: Desk, command: str, name: str) -> None:
    def there() -> list[Path]:
        """All but what SQLite keeps beside a database while anybody has it open."""
        return sorted(path for path in begun.folder.parent.rglob("*") if not path.name.endswith(("-shm", "-wal")))

    before = there()
    refused(begun.inside(command, name), 2, "no study ")
    assert there() == before


# -- the disk


@pytest.fixture
def small_disk(desk: Desk) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of a given size at ``small`` here."""
    folder = desk.folder / "small"
    folder.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"a small disk cannot be mounted here: {error}")
        mounted = True
        return folder

    yield mount
    desk.clear()
    if mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)  # a worker may need an instant to let go


def test_no_room_for_the_cache_is_told_before_a_picture_is_decoded(
    desk: Desk, small_disk: Callable[[str], Path]
) -> None:
    small_disk("size=2m")
    study = desk.write("steady.toml", STEADY)
    answer = desk.inside("launch", study, "--gpus", "cpu:2", "--runs", "small", "--set", "data.image_size=64")
    refused(answer, 11, "the picture cache needs 0.023 GB", "make room, or choose a smaller image_size")
    assert not list((desk.folder / "small/cache").glob("digits*"))


def test_no_room_for_checkpoints_is_told_before_a_worker_starts(desk: Desk, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("size=3m")
    shutil.copytree(desk.runs / "cache", disk / "cache")
    study = desk.write("steady.toml", STEADY)
    elsewhere = ("--storage", f"sqlite:///{desk.folder}/search.db")
    answer = desk.inside("launch", study, "--gpus", "cpu:2", "--runs", "small", *elsewhere)
    refused(answer, 11, "checkpoints need ", "are free; free some or use --runs")
    assert not list((disk / "studies/steady/logs").glob("worker*"))


@pytest.mark.slow
def test_a_disk_that_fills_up_pauses_the_search_until_there_is_room(
    desk: Desk, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("size=16m")
    shutil.copytree(desk.runs / "cache", disk / "cache")
    database = f"sqlite:///{desk.runs}/search.db"
    command = ("launch", desk.write("steady.toml", STEADY), "--gpus", "cpu", "--runs", "small", "--storage", database)
    running = desk.start(*command, "--trials", 2)
    running.until((disk / "studies/steady/trials/0/checkpoint").exists)
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:

        def paused() -> bool:
            with contextlib.suppress(OSError):
                while True:  # also what a deleted checkpoint gives back
                    file.write(bytes(4096))
            return "paused: no room for a checkpoint of " in running.out.read_text()

        running.until(paused)
    (left,) = desk.trials("steady")
    assert left.state == TrialState.RUNNING
    assert len(left.intermediate_values) >= 1

    filler.unlink()
    answer = running.wait()
    assert answer.code == 0, answer
    assert "there is room on the disk; going on" in answer.out
    assert [trial.state for trial in desk.trials("steady")] == [TrialState.COMPLETE] * 2


def test_a_runs_folder_that_may_only_be_read(desk: Desk, small_disk: Callable[[str], Path]) -> None:
    small_disk("ro,size=2m")
    answer = desk.inside("launch", "digits", "--gpus", "cpu:2", "--runs", "small")
    refused(answer, 3, "cannot be written: Read-only file system; choose another --runs folder")


# -- exports


def test_an_export_with_no_finished_trial(begun: Desk) -> None:
    answer = begun.inside("export-best", "small", "--gpus", "cpu")
    refused(answer, 6, "study 'small' has no completed trial yet (1 begun); to go on, repeat its search launch")
    assert begun.inside("export-best", "--trial", 0, "small", "--gpus", "cpu").code == 6
    assert not (begun.runs / "exports").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trial", "sentence"),
    [
        (99, "is not there; search report small lists the others"),
        (2, "is pruned, not complete"),
        (3, "is diverged, not complete"),
    ],
)
def test_an_export_of_a_trial_that_did_not_complete(used: Desk, trial: int, sentence: str) -> None:
    answer = used.inside("export-best", "--trial", trial, "--gpus", "cpu")
    refused(answer, 6, f"trial {trial} of 'small' {sentence}")


@pytest.mark.slow
def test_an_export_never_overwrites_what_is_no_export(used: Desk) -> None:
    mine = used.folder / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    refused(used.inside("export-best", "--gpus", "cpu", "--out", "mine"), 2, "exists and is not a complete export")
    refused(
        used.inside("export-best", "--gpus", "cpu", "--out", "mine/thesis.txt"),
        2,
        "exists and is not a complete export",
    )
    refused(used.inside("export-best", "--gpus", "cpu", "--out", "mine/thesis.txt/x"), 2, "cannot be made")
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_predicting_with_what_is_no_export(empty: Desk) -> None:
    refused(empty.inside("predict", "nowhere", "a.png"), 2, "nowhere is not an export (no usable config.json)")
    folder = empty.folder / "half"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    refused(empty.inside("predict", "half", "a.png"), 2, "half is not an export (no usable config.json)")


# -- nothing lost


@pytest.mark.slow
def test_a_search_that_is_there_survives_every_mistake(used: Desk) -> None:
    before = used.trials("small")
    study = hashlib.sha256((used.folder / "small.toml").read_bytes()).hexdigest()
    for mistake, code in (
        (("--set", "train.lable_smoothing=0.1"), 2),
        (("--gpus", "77"), 2),
        (("--set", "train.epochs=4"), 8),
        (("--data", "."), 2),
    ):
        assert used.inside("launch", "small.toml", *mistake).code == code
    assert used.trials("small") == before
    assert hashlib.sha256((used.folder / "small.toml").read_bytes()).hexdigest() == study
    assert used.inside("status", "--json").json()["held_by"] is None


def test_a_new_study_file_is_never_written_over_another(empty: Desk) -> None:
    empty.write("mine.toml", PICTURES)
    refused(empty.inside("studies", "--new", "mine.toml"), 2, "mine.toml exists already; choose another name")
    refused(empty.inside("studies", "--new", "no/where.toml"), 2, "there is no folder no; create it first")
    assert (empty.folder / "mine.toml").read_text() == PICTURES
