"""Database files that this user may not write or read, and those that were emptied or are missing."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import optuna
import pytest
from inside import run_inside
from scripted import Bench, ScriptedPool, spec_of, states, trains
from sqlalchemy import URL

from search.errors import Interrupted, StorageError, UsageError, exit_code_of
from search.paths import Runs
from search.study.file import LOG_SECONDS
from search.study.inventory import list_studies
from search.study.lock import own_study, owner_of
from search.study.readonly import open_to_read
from search.study.storage import open_storage, parse_url, storage_errors
from search.watch.status import read_snapshot


@contextmanager
def without_rights() -> Iterator[None]:
    """As a user to whom nothing belongs, where tests run as root, who may write to anything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A runs folder with a search of two trials. Others may enter it; pytest's own folder may only its owner."""
    with tempfile.TemporaryDirectory(prefix="featherweight-") as made:
        Path(made).chmod(0o755)
        bench = Bench(Path(made))
        assert bench.coordinator(ScriptedPool(trains), spec_of(trials=2)).run() is True
        read_snapshot("scripted", url_of(Path(made)), Runs(Path(made)))  # imports what only root may read
        yield Path(made)
        Path(made).chmod(0o755)


def url_of(folder: Path) -> URL:
    return parse_url(f"sqlite:///{folder}/search.db")


def write(folder: Path) -> None:
    with storage_errors(url_of(folder)):
        storage = open_storage(url_of(folder), create=True)
        optuna.create_study(storage=storage, study_name="two")  # SQLite may say nothing before the first write


def refused(folder: Path) -> str:
    with pytest.raises(StorageError) as raised:
        write(folder)
    assert exit_code_of(raised.value) == 3
    return str(raised.value)


def a_file_of_another(folder: Path) -> Path:
    for file in folder.glob("search.db*"):
        file.chmod(0o444)
    return folder / "search.db"


def a_folder_of_another(folder: Path) -> Path:
    for file in folder.glob("search.db*"):
        file.chmod(0o666)
    (folder / "search.db.lock").unlink()
    return folder


def a_lock_of_another(folder: Path) -> Path:
    for file in folder.glob("search.db*"):
        file.chmod(0o666)
    (folder / "search.db.lock").chmod(0o644)
    folder.chmod(0o777)
    return folder / "search.db.lock"


def an_archive(folder: Path) -> Path:
    """A copy without the files that SQLite keeps beside a database in use, in a folder where it can make none."""
    database = folder / "search.db"
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(folder / "copy.db")) as copy:
        source.backup(copy)
    for file in folder.glob("search.db*"):
        file.unlink()
    (folder / "copy.db").rename(database)
    database.chmod(0o444)
    return database


CLOSED: list[Callable[[Path], Path]] = [a_file_of_another, a_folder_of_another, a_lock_of_another, an_archive]


@pytest.mark.parametrize("closed", CLOSED)
def test_a_database_that_may_only_be_read_is_shown_and_a_write_is_one_sentence(
    folder: Path, closed: Callable[[Path], Path]
) -> None:
    path = closed(folder)
    before, mode = (folder / "search.db").read_bytes(), f"{path.stat().st_mode & 0o7777:04o}"
    with without_rights():
        sentence = refused(folder)
        (found,) = list_studies(url_of(folder), Runs(folder))
        snapshot, held_by = read_snapshot("scripted", url_of(folder), Runs(folder))
    assert f"cannot be written: {path} belongs to {path.owner()} (mode {mode})" in sentence
    assert "; get the right to write there, or copy the folder and name the copy with --runs or --storage (" in sentence
    assert (found.name, found.finished, found.state, held_by) == ("scripted", 2, "finished", None)
    assert len(snapshot.finished) == 2
    assert (folder / "search.db").read_bytes() == before


def test_all_files_that_a_group_lacks_are_named_at_once(folder: Path) -> None:
    for name in ("search.db", "search.db-shm"):
        (folder / name).chmod(0o666)
    user, closed = folder.owner(), {"search.db-wal": "0644", "search.db.lock": "0644", "": "0755"}
    (folder / "search.db-wal").chmod(0o644)
    (folder / "search.db.lock").chmod(0o644)
    words = ", ".join(f"{folder / name} belongs to {user} (mode {mode})" for name, mode in closed.items())
    with without_rights():
        assert f"cannot be written: {words}; get the right" in refused(folder)


@pytest.mark.parametrize("there", [True, False])
def test_a_lock_beside_the_database_that_this_user_cannot_write_is_named_and_no_other_runs_folder(
    folder: Path, there: bool
) -> None:
    for file in folder.glob("search.db*"):
        file.chmod(0o666)
    lock = folder / "search.db.scripted.lock"
    closed = lock if there else folder
    if there:
        folder.chmod(0o777)
        lock.chmod(0o644)
    else:
        lock.unlink()
    mode = f"{closed.stat().st_mode & 0o7777:04o}"
    sentence = (
        f"database {folder}/search.db cannot be written: {closed} belongs to {closed.owner()} (mode {mode}); get the "
        "right to write there, or copy the folder and name the copy with --runs or --storage"
    )
    with tempfile.TemporaryDirectory(prefix="featherweight-") as own:
        Path(own).chmod(0o777)
        with without_rights():
            with (
                pytest.raises(StorageError, match=re.escape(sentence)),
                own_study("scripted", url_of(folder), Runs(Path(own))),
            ):
                pass
            shutil.rmtree(Path(own) / "studies")


def test_a_folder_of_another_in_place_of_the_runs_folder_is_named_with_its_owner(folder: Path) -> None:
    closed = Runs(folder).studies
    for path in (folder, *folder.glob("search.db*")):
        path.chmod(0o777)
    sentence = f"{closed}/new cannot be written: Permission denied; choose another --runs folder"
    with without_rights(), pytest.raises(StorageError, match=sentence), own_study("new", url_of(folder), Runs(folder)):
        pass
    lock = Runs(folder).lock("scripted")
    lock.touch()
    lock.chmod(0o644)
    sentence = (
        rf"{lock} cannot be written: {lock} belongs to {lock.owner()} \(mode 0644\); choose another --runs folder"
    )
    with (
        without_rights(),
        pytest.raises(StorageError, match=sentence),
        own_study("scripted", url_of(folder), Runs(folder)),
    ):
        pass


def test_a_folder_of_studies_that_only_another_may_enter_is_one_sentence(folder: Path) -> None:
    (folder / "studies").chmod(0)
    sentence = f"{folder}/studies/scripted cannot be written: Permission denied; choose another --runs folder"
    with (
        without_rights(),
        pytest.raises(StorageError, match=re.escape(sentence)),
        own_study("scripted", url_of(folder), Runs(folder)),
    ):
        pass
    (folder / "search.db.scripted.lock").chmod(0o600)
    with without_rights():
        assert owner_of("scripted", url_of(folder), Runs(folder)) is None


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o664])
def test_whoever_may_write_to_the_database_may_lock_it(tmp_path: Path, mode: int) -> None:
    (tmp_path / "search.db").touch()
    (tmp_path / "search.db").chmod(mode)
    before = os.umask(0o022)
    try:
        with own_study("one", url_of(tmp_path), Runs(tmp_path / "runs")):
            open_storage(url_of(tmp_path), create=True).engine.dispose()
    finally:
        os.umask(before)
    found = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.glob("search.db*")}
    assert found == dict.fromkeys(["search.db", "search.db.lock", "search.db.one.lock"], mode)


def test_an_archive_that_sqlite_cannot_read_without_writing_is_refused_with_the_cure(folder: Path) -> None:
    """Its last transactions are in a log whose index is missing."""
    copy = folder / "copy"
    copy.mkdir()
    for name in ("search.db", "search.db-wal"):
        shutil.copy(folder / name, copy)
        (copy / name).chmod(0o444)
    complaint = "cannot be read .*, and .*/copy/search.db belongs to .*; copy the runs folder, and name the copy"
    with without_rights(), pytest.raises(StorageError, match=complaint):
        open_to_read(url_of(copy))
    for name in ("search.db", "search.db-wal"):
        (copy / name).chmod(0o644)
    assert len(list_studies(url_of(copy), Runs(copy))) == 1


@pytest.mark.parametrize(("closed", "mode"), [("search.db", 0o600), ("search.db-wal", 0o600), (".", 0o700)])
def test_a_database_that_may_not_be_read_is_one_sentence(folder: Path, closed: str, mode: int) -> None:
    for file in folder.glob("search.db*"):
        file.chmod(0o644)
    path = folder / closed
    path.chmod(mode)
    sentence = f"database {folder}/search.db cannot be read: {path} belongs to {path.owner()} (mode {mode:04o}); "
    with without_rights():
        assert refused(folder).startswith(sentence)
        with pytest.raises(StorageError, match=re.escape(sentence)):
            list_studies(url_of(folder), Runs(folder))
        with pytest.raises(StorageError, match=re.escape(sentence)):
            read_snapshot("scripted", url_of(folder), Runs(folder))


def test_an_emptied_database_beside_a_journal_is_refused_and_left_as_it_is(folder: Path) -> None:
    os.truncate(folder / "search.db", 0)
    log = (folder / "search.db-wal").read_bytes()
    journal = Runs(folder).journal("scripted")
    sentence = (
        f"is empty (0 bytes), but trials of searches are in {journal}; if they are of another database, name it with"
    )
    assert sentence in refused(folder)
    for read in (lambda: list_studies(url_of(folder), Runs(folder)), lambda: open_to_read(url_of(folder))):
        with pytest.raises(StorageError, match=re.escape(sentence)):
            read()
    assert (folder / "search.db").read_bytes() == b""
    assert (folder / "search.db-wal").read_bytes() == log != b"", "SQLite would delete it"
    (folder / "search.db").unlink()
    again = Bench(folder)
    coordinator = again.coordinator(ScriptedPool(trains), spec_of(trials=1))
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["COMPLETE"]
    assert any("its journal and checkpoints are in" in note for note in again.notes)


def test_an_empty_file_where_nothing_was_searched_becomes_a_database(tmp_path: Path) -> None:
    (tmp_path / "search.db").touch()
    Runs(tmp_path).journal("birds").parent.mkdir(parents=True)
    Runs(tmp_path).journal("birds").write_text('{"event": "launch"}\n')
    write(tmp_path)
    assert [one.name for one in list_studies(url_of(tmp_path), Runs(tmp_path))] == ["two"]


def test_a_missing_database_is_named_with_the_journals_that_are_still_there(folder: Path) -> None:
    (folder / "search.db").unlink()
    for number in range(4):
        Runs(folder).journal(f"z{number}").parent.mkdir()
        shutil.copy(Runs(folder).journal("scripted"), Runs(folder).journal(f"z{number}"))
    studies = Runs(folder).studies
    sentence = (
        f"there is no database {folder}/search.db, but trials of searches are in {studies}/scripted/journal"
        f".jsonl, {studies}/z0/journal.jsonl, {studies}/z1/journal.jsonl, 2 more journals; if they are of another "
        "database, name it with --storage; else put a copy"
    )
    with pytest.raises(StorageError, match=re.escape(sentence)):
        read_snapshot("scripted", url_of(folder), Runs(folder))
    code, out, err = run_inside(folder, "studies", "--runs", folder)
    assert (code, "digits" in out) == (0, True)
    assert sentence in err
    code, _, err = run_inside(folder, "studies", "--runs", folder, "--storage", f"sqlite:///{folder}/moved/search.db")
    assert code == 0
    assert f"there is no database {folder}/moved/search.db, but trials of" in err
    shutil.rmtree(studies)
    assert "database" not in run_inside(folder, "studies", "--runs", folder)[2]


@pytest.mark.parametrize(
    ("end", "whole"),
    [
        (None, True),
        (Interrupted("stopped"), True),
        (UsageError("no room"), True),
        (KeyboardInterrupt(), True),
        (StorageError("it is malformed"), False),
    ],
)
def test_whoever_leaves_a_study_leaves_all_of_it_in_the_database_file(
    tmp_path: Path, end: BaseException | None, whole: bool
) -> None:
    """Not after an error of the database: the log would be written into a copy to which it may not belong."""
    ends = (Interrupted, UsageError, KeyboardInterrupt, StorageError)
    with contextlib.suppress(*ends), own_study("one", url_of(tmp_path), Runs(tmp_path)):
        storage = open_storage(url_of(tmp_path), create=True)
        optuna.create_study(storage=storage, study_name="one")
        if end is not None:
            raise end
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "search.db", tmp_path / "copy")
    assert ((tmp_path / "search.db-wal").stat().st_size == 0) is whole
    with closing(sqlite3.connect(tmp_path / "copy/search.db")) as copy:
        tables = [name for (name,) in copy.execute("SELECT name FROM sqlite_master WHERE name = 'studies'")]
        assert [name for _ in tables for (name,) in copy.execute("SELECT study_name FROM studies")] == ["one"] * whole
    storage.engine.dispose()


def test_whoever_leaves_a_study_waits_only_briefly_for_another_program(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "search.db", isolation_level=None)) as other:
        with own_study("one", url_of(tmp_path), Runs(tmp_path)):
            storage = open_storage(url_of(tmp_path), create=True)
            optuna.create_study(storage=storage, study_name="one")
            other.execute("BEGIN IMMEDIATE")
            begun = time.monotonic()
        assert time.monotonic() - begun < 3 * LOG_SECONDS
    storage.engine.dispose()


@pytest.fixture
def put_back(tmp_path: Path) -> Path:
    """A healthy copy of a database, put in its place beside the log of the later one."""
    (tmp_path / "later").mkdir()
    (tmp_path / "runs").mkdir()
    storage = open_storage(url_of(tmp_path / "later"), create=True)
    optuna.create_study(storage=storage, study_name="one")
    with (
        closing(sqlite3.connect(tmp_path / "copy")) as copy,
        closing(sqlite3.connect(tmp_path / "later/search.db")) as now,
    ):
        now.backup(copy)
        for number in range(200):
            insert = "INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (1, ?, ?)"
            now.execute(insert, (str(number), f'"{"x" * 2000}"'))
            now.commit()
            if number == 150:
                now.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copy(tmp_path / "later/search.db-wal", tmp_path / "runs")
    storage.engine.dispose()
    shutil.copy(tmp_path / "copy", tmp_path / "runs/search.db")
    return tmp_path / "runs"


@pytest.mark.parametrize("create", [True, False])
def test_a_copy_put_back_beside_the_log_of_another_is_refused_with_the_cure(put_back: Path, create: bool) -> None:
    file, log = put_back / "search.db", put_back / "search.db-wal"
    before = file.read_bytes(), log.read_bytes()
    sentence = (
        f"malformed; the file is cut or damaged, or the log beside it ({log}) belongs to another copy of the file; to "
        "put a copy back, first move search.db-wal and search.db-shm away, then put the copy in its place again"
    )

    def read() -> None:
        with storage_errors(url_of(put_back)):
            storage = open_storage(url_of(put_back), create=create)
            assert optuna.load_study(storage=storage, study_name="one").user_attrs

    with pytest.raises(StorageError, match=re.escape(sentence)):
        read()
    assert (file.read_bytes(), log.read_bytes()) == before, "SQLite would write the log into the copy"
    log.unlink()
    (put_back / "search.db-shm").unlink(missing_ok=True)
    shutil.copy(put_back.parent / "copy", file)
    write(put_back)
