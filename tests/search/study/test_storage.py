"""Storage URLs and what databases raise: one sentence each, and no password in any."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import optuna
import pytest
from needed import postgres
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage
from scripted import Bench, ScriptedPool, spec_of, trains
from sqlalchemy import URL

import search.study.storage
from search.errors import StorageError
from search.options import places
from search.paths import Runs
from search.study.postgres import settings as postgres_settings
from search.study.readonly import Database
from search.study.storage import hidden, open_storage, parse_url, sqlite_url, storage_errors, with_database
from search.study.study import find_study

CANARY = "canary-4711"


@contextmanager
def opened(url: URL, *, create: bool = True) -> Iterator[RDBStorage]:
    storage = open_storage(url, create=create)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


@pytest.fixture
def url(tmp_path: Path) -> URL:
    return parse_url(f"sqlite:///{tmp_path}/new folder/search.db")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("search.db", "is not a URL"),
        ("", "is not a URL"),
        ("postgresql://host:port/db", "is not a URL"),
        ("mysql://me@host/db", "use sqlite:///FILE or postgresql"),
        ("sqlite://", "name a file"),
        ("sqlite://runs/search.db", "name a file"),
        ("sqlite:///:memory:", "name a file"),
        ("postgresql+nonsense://me@host/db", "use sqlite:///FILE or postgresql"),
    ],
)
def test_a_url_that_cannot_be_used_is_an_error_with_the_cure(text: str, complaint: str) -> None:
    with pytest.raises(StorageError, match=complaint):
        parse_url(text)


@pytest.mark.parametrize("scheme", ["mysql", "postgresql+nonsense", "redis"])
def test_no_error_about_a_url_shows_its_password(scheme: str) -> None:
    with pytest.raises(StorageError) as raised:
        parse_url(f"{scheme}://me:{CANARY}@host/db")
    assert CANARY not in str(raised.value)


def test_a_url_is_shown_without_its_password() -> None:
    assert hidden(parse_url(f"postgresql+psycopg://me:{CANARY}@host/db")) == "postgresql+psycopg://me:***@host/db"


def test_a_password_in_the_query_is_hidden_wherever_the_url_is_named() -> None:
    url = parse_url(f"postgresql+psycopg://127.0.0.1:1/db?user=me&password={CANARY}&sslpassword={CANARY}")
    assert hidden(url) == "postgresql+psycopg://127.0.0.1:1/db?password=***&sslpassword=***&user=me"
    with pytest.raises(StorageError, match="refused") as raised:
        open_storage(url)
    assert CANARY not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://me:a@{CANARY}@host/db",
        f"postgresql://me:a/b@c/{CANARY}@host/db",
        f"postgresql://me:a@c?{CANARY}@host/db",
        f"postgresql:///me:{CANARY}@host/db",
        f"mysql://me:a@{CANARY}@host/db",
    ],
)
def test_a_url_that_may_have_a_part_of_the_password_where_others_see_it_is_refused(text: str) -> None:
    with pytest.raises(StorageError, match="write %40 for @") as raised:
        parse_url(text)
    assert CANARY not in str(raised.value)
    assert parse_url("postgresql://me:a%40b%2Fc@host/db").password == "a@b/c"


@pytest.mark.parametrize(
    "name", ["a?b", "a?b=c", "a#b", "50% b", "a%41", "a%de", "a b", "é?#% +&=", "a@b:c", "{x}", "a?b/c?d=e", "~", "'\""]
)
def test_a_database_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / name / "search.db"
    with opened(sqlite_url(file)) as storage:
        optuna.create_study(storage=storage, study_name="one")
    assert file.exists()
    written = sqlite_url(file).render_as_string(hide_password=False)
    assert parse_url(written) == sqlite_url(file), "as the dashboard and the page's process are given it"
    assert Database(written).open().get_all_studies()[0].study_name == "one"
    assert [path.name for path in tmp_path.iterdir()] == [Path(name).parts[0]]


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("sqlite:///a?b/search.db", "a?b/search.db"),
        ("sqlite:////x/a?b=c/#d e.db", "/x/a?b=c/#d e.db"),
        ("sqlite:///a%3Fb%23.db", "a?b#.db"),
        ("sqlite:///50%/a%20b.db", "50%/a b.db"),
        ("sqlite:///a%de.db", "a%de.db"),
        ("sqlite:///a?key=1", "a?key=1"),
    ],
)
def test_a_url_of_a_file_is_read_as_sqlalchemy_does_and_its_path_may_stand_as_it_is(text: str, file: str) -> None:
    assert parse_url(text).database == file


@pytest.mark.parametrize(
    "text", ["sqlite:///a.db?mode=ro", "sqlite:///a.db?timeout=5&uri=true", "sqlite:///file:a.db?uri=true"]
)
def test_settings_in_the_url_of_a_file_are_refused(text: str) -> None:
    with pytest.raises(StorageError, match="takes no settings; write sqlite:///FILE"):
        parse_url(text)


def test_a_folder_whose_name_is_no_text_is_refused() -> None:
    with pytest.raises(StorageError, match="choose another --runs folder"):
        sqlite_url(Path(os.fsdecode(b"caf\xe9/search.db")))


def test_a_plain_postgres_url_uses_the_driver_that_is_installed() -> None:
    assert parse_url("postgresql://me@host/db").get_driver_name() == "psycopg"


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("sqlite:///a b/search.db", ""),
        ("sqlite:///a b/../a b/search.db", ""),
        ("sqlite:///search.db", " --storage sqlite:///search.db"),
        ("sqlite:///my data/a?b%25.db", " --storage 'sqlite:///my data/a%3Fb%25.db'"),
        ("postgresql+psycopg://bee@host/db", " --storage postgresql+psycopg://bee@host/db"),
        ("postgresql+psycopg://bee:canary@host/db", ' --storage "$SEARCH_STORAGE"'),
        ("postgresql+psycopg://bee@/db?host=h&password=canary", ' --storage "$SEARCH_STORAGE"'),
    ],
)
def test_printed_commands_name_the_database_but_no_password(text: str, option: str) -> None:
    url, runs = parse_url(text), Runs(Path("a b"))
    command = with_database(runs, url).command("stop", "birds")
    assert command == f"search stop birds --runs 'a b'{option}"
    assert with_database(runs, url) == runs
    if option and "$" not in option:
        assert parse_url(shlex.split(command)[-1]) == url


def test_an_empty_storage_option_is_refused_and_not_taken_for_the_default() -> None:
    """A printed command has "$SEARCH_STORAGE", which may not be set in another shell."""
    with pytest.raises(StorageError, match="--storage is not a URL"):
        places("", Path("runs"))
    assert places(None, Path("runs"))[1] == sqlite_url(Path("runs/search.db"))


def test_a_server_that_is_not_there_is_an_error_without_the_password() -> None:
    url = parse_url(f"postgresql+psycopg://me:{CANARY}@127.0.0.1:1/db")
    with pytest.raises(StorageError, match=r"refused.*; check host, port, user and password") as raised:
        open_storage(url)
    assert CANARY not in str(raised.value)


def test_a_database_that_is_created_is_its_owners_alone_and_one_that_is_there_keeps_its_mode(url: URL) -> None:
    before = os.umask(0)
    try:
        with opened(url) as storage:
            optuna.create_study(storage=storage)
            files = sorted(Path(str(url.database)).parent.glob("search.db*"))
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in files if file.suffix != ".lock"}
        assert modes == {"search.db": 0o600, "search.db-shm": 0o600, "search.db-wal": 0o600}
    finally:
        os.umask(before)
    Path(str(url.database)).chmod(0o664)
    with opened(url):
        assert stat.S_IMODE(Path(str(url.database)).stat().st_mode) == 0o664


def test_a_database_behind_a_link_that_leads_nowhere_yet_is_created_there(url: URL, tmp_path: Path) -> None:
    Path(str(url.database)).parent.mkdir(parents=True)
    Path(str(url.database)).symlink_to(tmp_path / "real.db")
    with opened(url):
        assert stat.S_IMODE((tmp_path / "real.db").stat().st_mode) == 0o600


def test_a_database_that_does_not_exist_is_created_only_when_asked_to(url: URL) -> None:
    with pytest.raises(StorageError, match=r"there is no database .*search\.db yet; start a search first"):
        open_storage(url)
    assert url.database is not None
    assert not Path(url.database).exists()
    with opened(url):
        assert Path(url.database).exists()


def test_readers_never_wait_for_the_writer_and_a_power_cut_takes_nothing_that_was_committed(url: URL) -> None:
    """Write-ahead logging, which the file remembers, synced at each commit (2 is FULL), which it does not."""
    with opened(url) as storage, storage.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    with opened(url) as storage, storage.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2, "and each connection is told anew"


def test_a_reader_in_the_middle_of_a_page_delays_no_search_and_sees_the_study_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.study.storage, "SQLITE_TURN_SECONDS", 0.1)
    bench = Bench(tmp_path)
    coordinator = bench.coordinator(ScriptedPool(trains), spec_of(trials=3))
    with closing(sqlite3.connect(tmp_path / "search.db", isolation_level=None)) as dashboard:
        dashboard.execute("BEGIN")
        before = dashboard.execute("SELECT count(*) FROM trials").fetchone()
        assert coordinator.run() is True
        assert dashboard.execute("SELECT count(*) FROM trials").fetchone() == before == (0,)
        dashboard.execute("COMMIT")
        assert dashboard.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone() == (3,)
    assert not [note for note in bench.notes if "database" in note]


def test_a_writer_in_the_middle_of_a_step_delays_no_reader(tmp_path: Path) -> None:
    Bench(tmp_path).coordinator(ScriptedPool(trains), spec_of(trials=2)).run()
    url = parse_url(f"sqlite:///{tmp_path}/search.db")
    with closing(sqlite3.connect(tmp_path / "search.db", isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DELETE FROM trials")
        begun = time.monotonic()
        with opened(url, create=False) as storage:
            study, _ = find_study(storage, "scripted")
            assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE", "COMPLETE"]
        assert time.monotonic() - begun < 10, "a writer is waited for 60 s"
        writer.execute("ROLLBACK")


def test_many_at_once_may_create_the_same_database(url: URL) -> None:
    def create(number: int) -> int:
        with opened(url) as storage:
            return optuna.create_study(storage=storage, study_name=f"study-{number}")._study_id

    optuna.logging.set_verbosity(logging.WARNING)
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(create, range(8)))) == 8


@pytest.mark.postgres
def test_many_at_once_may_open_a_new_postgres_database() -> None:
    with postgres() as server:
        url = parse_url(server.get_uri())

        def create(_number: int) -> int:
            with opened(url) as storage:
                return len(optuna.get_all_study_names(storage))

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(create, range(4))) == [0] * 4


@pytest.mark.postgres
def test_a_postgres_server_gives_up_a_client_that_has_vanished_and_hears_the_urls_own_options() -> None:
    """Else the lock of a machine without power is held for the two hours that systems wait by default."""
    with postgres() as server:
        url = parse_url(server.get_uri()).update_query_dict({"options": "-c application_name=mine -c timezone=EST"})
        with opened(url) as storage, storage.engine.connect() as connection:
            query = "SELECT name, setting FROM pg_settings WHERE source = 'session'"
            found = {row[0]: row[1] for row in connection.exec_driver_sql(query)}
    assert found["application_name"] == "mine"
    assert found["TimeZone"] == "UTC"
    # The server of the tests has a socket, for which it shows 0.
    kept = {name: value for name, value in postgres_settings(url).items() if name in found and name.startswith("tcp_")}
    assert kept == {"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3"}


def test_a_file_that_is_no_database_is_an_error_and_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "search.db"
    file.write_text("Dear diary, today I opened a text file as a database." * 100)
    before = file.read_bytes()
    with pytest.raises(StorageError, match="file is not a database; check that it is a database file"):
        open_storage(parse_url(f"sqlite:///{file}"), create=True)
    assert file.read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "garbled"])
def test_a_damaged_database_is_an_error_with_its_own_cure(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "search.db"
    url = parse_url(f"sqlite:///{file}")
    with opened(url, create=True):
        pass
    content = file.read_bytes()
    half = len(content) // 2
    file.write_bytes(content[:half] if damage == "cut" else content[:4096] + b"x" * (len(content) - 4096))
    for rest in tmp_path.glob("search.db-*"):
        rest.unlink()
    cure = "malformed; the file is cut or damaged: put a copy in its place, rescue what is left with sqlite3's .recover"
    with pytest.raises(StorageError, match=cure):
        open_storage(url, create=False)


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="needs the program sqlite3")
def test_the_line_of_the_docs_rescues_a_damaged_database(tmp_path: Path) -> None:
    file = tmp_path / "search.db"
    with opened(parse_url(f"sqlite:///{file}"), create=True) as storage:
        study = optuna.create_study(storage=storage, study_name="birds")
        for value in range(3):
            study.tell(study.ask({"lr": FloatDistribution(0, 1)}), value)
    with sqlite3.connect(file) as database:
        database.execute("pragma wal_checkpoint(truncate)")
        (page,) = database.execute("select rootpage from sqlite_master where name = 'trial_params'").fetchone()
    database.close()
    with file.open("r+b") as content:
        content.seek((page - 1) * 4096)
        content.write(b"x" * 4096)
    docs = (Path(__file__).parents[3] / "docs/troubleshooting.md").read_text()
    (line,) = re.findall(r"`(sqlite3 FILE .dump .*?)`", docs)
    line = line.replace("\\|", "|").replace("FILE", str(file)).replace("NEW", str(tmp_path / "new.db"))
    subprocess.run(["bash", "-c", line], check=True, capture_output=True)
    with opened(parse_url(f"sqlite:///{tmp_path}/new.db"), create=False) as storage:
        assert [trial.value for trial in optuna.load_study(storage=storage, study_name="birds").trials] == [0, 1, 2]


def test_a_folder_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "search.db").mkdir()
    with pytest.raises(StorageError, match="unable to open database file"):
        open_storage(parse_url(f"sqlite:///{tmp_path}/search.db"), create=True)


def test_a_file_where_a_folder_should_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(StorageError, match="check that you may write to its folder"):
        open_storage(parse_url(f"sqlite:///{tmp_path}/runs/search.db"), create=True)


def test_a_file_that_another_program_holds_is_an_error_that_says_so(url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.study.storage, "SQLITE_BUSY_SECONDS", 0.1)
    with opened(url):
        pass
    with closing(sqlite3.connect(str(url.database), isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageError, match="database is locked; another program holds it; close that"):
            open_storage(url)
        other.execute("COMMIT")
    with opened(url) as storage:
        assert storage.get_all_studies() == []


def test_what_the_database_raises_later_is_one_sentence_too(url: URL) -> None:
    with opened(url) as storage:
        with storage.engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE studies")
        with pytest.raises(StorageError, match="no such table: studies") as raised, storage_errors(url):
            optuna.create_study(storage=storage, study_name="one")
    assert "\n" not in str(raised.value)
    assert "SELECT" not in str(raised.value)


def test_a_password_that_the_server_repeats_is_hidden_too() -> None:
    from sqlalchemy.exc import OperationalError

    url = parse_url(f"postgresql+psycopg://me:{CANARY}@host/db")
    with pytest.raises(StorageError) as raised, storage_errors(url):
        raise OperationalError("connect", None, Exception(f'connection to "me:{CANARY}@host" failed'))
    assert CANARY not in str(raised.value)


@pytest.mark.parametrize("version", ["v3.0.0.d", "v9.9.9.a"])
def test_a_database_of_another_version_of_optuna_is_an_error_with_optunas_own_cure(
    tmp_path: Path, version: str
) -> None:
    url = parse_url(f"sqlite:///{tmp_path}/search.db")
    with opened(url) as storage, storage.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{version}'")
    with pytest.raises(StorageError, match=r"table schema.* Please "):
        open_storage(url)


def test_a_database_with_a_hard_link_is_refused_before_sqlite_would_corrupt_it(tmp_path: Path) -> None:
    url = parse_url(f"sqlite:///{tmp_path}/search.db")
    with opened(url):
        pass
    (tmp_path / "other.db").hardlink_to(tmp_path / "search.db")
    with pytest.raises(StorageError, match="has another name too"):
        open_storage(url)
