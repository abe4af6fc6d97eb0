"""A study on Postgres behind a pooler: one that keeps sessions works, any other is refused in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from needed import pooler, postgres, required
from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

import search.study.postgres
from search.errors import HeldError, StorageError
from search.paths import Runs
from search.study.lock import own_study
from search.study.postgres import connector
from search.study.readonly import Database, NotReadyError
from search.study.storage import open_storage

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with postgres() as server:
        yield server


def shown(url: URL, *names: str) -> list[str]:
    engine = create_engine(url, creator=connector(url))
    with engine.connect() as connection:
        found = [str(connection.execute(text(f"SHOW {name}")).scalar()) for name in names]
    engine.dispose()
    return found


def test_a_pooler_that_keeps_sessions_keeps_the_lock_and_all_settings(server: Any, tmp_path: Path) -> None:
    with pooler(server) as (url, _):
        open_storage(url, create=True).engine.dispose()
        names = ("statement_timeout", "timezone", "tcp_user_timeout", "default_transaction_read_only")
        assert shown(url, *names) == ["1min", "UTC", "0", "off"]
        mine = url.update_query_dict({"options": "-c statement_timeout=7s --time-zone=EST -ctimezone=EST -c geqo=off"})
        assert shown(mine.difference_update_query(["options"]), "geqo") == ["on"], "no session has another's settings"
        with own_study("birds", url, Runs(tmp_path / "here")) as check:
            check()
            with pytest.raises(HeldError), own_study("birds", url, Runs(tmp_path / "there")):
                pass
        with own_study("birds", url, Runs(tmp_path / "there")):
            pass
        database = Database(url.render_as_string(hide_password=False))
        storage = database.open()
        with storage.engine.connect() as connection, pytest.raises(Exception, match="read-only transaction"):
            connection.execute(text("DELETE FROM studies"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("-c statement_timeout=7s -c timezone=EST -c geqo=off", ["7s", "UTC", "off", "0"]),
        ("-cstatement_timeout=7s --geqo=off --tcp-keepalives-idle=0", ["7s", "UTC", "off", "0"]),
        (r"-c  application_name=a\ b -c Statement_Timeout=7s", ["7s", "UTC", "on", "0"]),
        ("", ["1min", "UTC", "on", "0"]),
    ],
)
def test_the_options_of_a_url_are_settings_of_the_session_behind_a_pooler_too(
    server: Any, options: str, expected: list[str]
) -> None:
    names = ("statement_timeout", "timezone", "geqo", "post_auth_delay")
    with pooler(server) as (url, _):
        direct = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        for way in (url, direct):
            assert shown(way.update_query_dict({"options": options}), *names) == expected


@pytest.mark.parametrize(
    ("mode", "further"),
    [("transaction", ()), ("statement", ()), ("transaction", ("server_round_robin = 1", "min_pool_size = 2"))],
)
def test_a_pooler_that_gives_each_transaction_another_session_is_refused_and_gets_no_setting(
    server: Any, mode: str, further: tuple[str, ...], tmp_path: Path
) -> None:
    cure = r"hands out another session for each transaction; .*pool_mode = session"
    with pooler(server, mode, "ignore_startup_parameters = options", *further) as (url, _):
        for _ in range(3):
            with pytest.raises(StorageError, match=cure):
                open_storage(url, create=True)
            with pytest.raises(StorageError, match=cure), own_study("birds", url, Runs(tmp_path)):
                pass
            with pytest.raises(NotReadyError, match="pool_mode = session"):
                Database(url.render_as_string(hide_password=False)).open()
        plain = url.set(drivername="postgresql").render_as_string(False)
        for _ in range(3):
            with required("psycopg").connect(plain, autocommit=True) as connection:
                assert connection.execute("SHOW default_transaction_read_only").fetchone() == ("off",)
                assert connection.execute("SHOW statement_timeout").fetchone() == ("0",)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"options": "-e"}, r"unsupported startup parameter: options; .*remove it from the URL"),
        ({"options": "-c nonsense=1"}, "unrecognized configuration parameter"),
        ({"options": "-c ignore_system_indexes=on"}, "cannot be set after connection start; .*ALTER ROLE"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_with_its_cure(server: Any, query: dict[str, str], said: str) -> None:
    with pooler(server) as (url, _), pytest.raises(StorageError, match=said):
        open_storage(url.update_query_dict(query), create=True)


def test_a_pooler_that_hangs_while_it_lets_clients_in_is_given_up(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.study.postgres, "CONNECT_SECONDS", 2)
    with pooler(server) as (url, process):
        process.suspend()
        try:
            with pytest.raises(OperationalError, match=r"timeout expired|has not answered"):
                shown(url, "timezone")
        finally:
            process.resume()
