"""Storage URL -> Optuna storage: write-ahead log and time-outs for SQLite, UTC for Postgres, hidden passwords."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import sqlite3
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, unquote

import optuna
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import URL, Connection, NullPool, create_engine, event, make_url, text
from sqlalchemy.engine import Engine, ExceptionContext
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)

from search.errors import StorageError
from search.paths import Runs
from search.study import postgres
from search.study.file import (
    check_log,
    check_not_emptied,
    cure_if_damaged,
    is_missing,
    lock_beside,
    log_beside,
    mode_of_locks,
    only_readable,
    sentence_if_missing,
    unwritable,
)
from trainer.errors import DiskError, no_room, printable

SQLITE_BUSY_SECONDS = 60
"""Longest time that a writer waits for another one. With 0.5 s, 8 processes lost 11 of 48 trials; with 60 s, none."""

SQLITE_TURN_SECONDS = 1.0
"""Longest wait in a process that also serves workers, signals and a display, and that retries by itself."""

SQLITE_SETTINGS = re.compile(
    r"((cache|cached_statements|check_same_thread|detect_types|immutable|isolation_level|mode|nolock|timeout|uri|vfs)"
    r"=[^/&]*(&|$))+"
)
"""Settings that SQLite and its driver read from a URL."""

STORAGE_FAILURES = (SQLAlchemyError, StorageInternalError)
"""Exceptions of the database: SQLAlchemy's, and Optuna's, which it raises instead of some of them."""


def parse_url(url: str) -> URL:
    """Check a storage URL.

    As in SQLAlchemy, ? is written as %3F, and so on. In the path of a SQLite file, ?, # and spaces need no escape.

    Raises:
        StorageError: this is not a URL, or the database is not supported.
    """
    if not url:
        raise StorageError("--storage is not a URL but empty; set SEARCH_STORAGE to the database's URL, or write it")
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            parsed = _sqlite_url_of(url, parsed)
    except (ArgumentError, ValueError) as error:
        raise StorageError(
            "--storage is not a URL; write sqlite:///FILE or postgresql+psycopg://USER@HOST/DB"
        ) from error
    # After an @ or / without escape, a part of the password would be taken for the host or database, and be shown.
    if parsed.get_backend_name() != "sqlite" and (url.count("@") > 1 or "@" in (parsed.database or "")):
        raise StorageError(
            "--storage has one @ too many; in a name or a password write %40 for @, %2F for / and %3F for ?"
        )
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise StorageError(f"--storage {hidden(parsed)}: use sqlite:///FILE or postgresql+psycopg://USER@HOST/DB")
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StorageError(f"--storage {hidden(parsed)}: name a file, for example sqlite:///runs/search.db")
    try:
        parsed.get_dialect().import_dbapi()
    except NoSuchModuleError:
        raise StorageError(
            f"--storage {hidden(parsed)}: use sqlite:///FILE or postgresql+psycopg://USER@HOST/DB"
        ) from None
    except ImportError:
        raise StorageError(f"--storage {hidden(parsed)}: pip install 'featherweight[postgres]' first") from None
    return parsed


def sqlite_url(file: Path) -> URL:
    """The URL of a database file.

    Raises:
        StorageError: the file's name cannot be written in a URL.
    """
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise StorageError(f"{printable(str(file))} is not named in UTF-8; choose another --runs folder") from None
    return URL.create("sqlite", database=str(file))


def _sqlite_url_of(text: str, parsed: URL) -> URL:
    """The URL of a database file whose path may contain a ?; ``parsed`` has only the part before the first ?."""
    _, _, path = text.partition(":///")
    _, mark, last = path.rpartition("?")
    if path.startswith("file:") or (mark and SQLITE_SETTINGS.fullmatch(last)):
        raise StorageError(f"--storage {text}: a SQLite database takes no settings; write sqlite:///FILE")
    with contextlib.suppress(UnicodeDecodeError):  # a % that is not an escape
        path = unquote(path, errors="strict")
    return parsed.set(host=None, query={}, database=path)


def hidden(url: URL) -> str:
    """The URL with *** instead of passwords, so that it may be shown."""
    masked = url.update_query_dict({key: "***" for key in url.query if _secret(key)})
    return masked.render_as_string(hide_password=True).replace(quote_plus("***"), "***")


def _secret(key: str) -> bool:
    """Whether libpq reads a password from this key of the query."""
    return "password" in key


def sqlite_file(url: URL) -> Path | None:
    """The database file; None if the database is on a server."""
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def with_database(runs: Runs, url: URL) -> Runs:
    """The runs folder with the option that names this database in printed commands.

    A URL with a password is not printed. A command then reads it from the environment variable SEARCH_STORAGE.
    """
    file = sqlite_file(url)
    is_default = file is not None and os.path.realpath(file) == os.path.realpath(runs.database)
    if is_default and not os.environ.get("SEARCH_STORAGE"):
        return runs
    secret = url.password is not None or any(map(_secret, url.query))
    word = '"$SEARCH_STORAGE"' if secret else shlex.quote(url.render_as_string(hide_password=False))
    return replace(runs, storage_option=f" --storage {word}")


def open_storage(url: URL, *, create: bool = False) -> RDBStorage:
    """Open the storage; one process at a time may create it.

    Raises:
        StorageError: the storage cannot be reached, or does not exist and ``create`` is off.
    """
    file = sqlite_file(url)
    # If two processes create the schema at the same time, one of them fails.
    if file is None:
        with storage_errors(url), _alone(url):
            arguments = {"creator": postgres.connector(url), "pool_pre_ping": True}
            storage = RDBStorage(_plain(url), engine_kwargs=arguments)
            event.listen(storage.engine, "handle_error", _leave_read_only)
            event.listen(storage.engine, "handle_error", partial(_refuse_old_numbers, url))
            return storage
    if not create and is_missing(file):
        raise StorageError(sentence_if_missing(file))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock_beside(file), mode=mode_of_locks(file)), storage_errors(url):
            if file.is_file() and file.stat().st_nlink > 1:
                raise StorageError(
                    f"database {file} has another name too (a hard link), and SQLite would not notice that it is open "
                    "under that name; keep one of the two, or make a symbolic link of the other"
                )
            check_not_emptied(file)
            check_log(file)
            if not file.exists():  # SQLite would make it readable for all; -wal and -shm get the mode of the file
                os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
            storage = RDBStorage(_plain(url), engine_kwargs={"connect_args": {"timeout": SQLITE_BUSY_SECONDS}})
            _use_write_ahead_log(storage.engine)
            opened = file.stat()
            storage.engine.update_execution_options(opened=(opened.st_dev, opened.st_ino))
            return storage
    except OSError as error:
        if full := no_room(error, file):
            raise full from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and (why := only_readable(file)):
            raise StorageError(unwritable(file, why)) from error
        raise StorageError(f"database {file}: {error.strerror}; check that you may write to its folder") from error


@contextlib.contextmanager
def _alone(url: URL) -> Iterator[None]:
    """Make other processes that open this Postgres database wait."""
    engine = create_engine(url, poolclass=NullPool, creator=postgres.connector(url))
    with engine.connect() as connection:  # the lock ends with this connection
        key = zlib.crc32(b"featherweight opens its storage")
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
        yield


@contextlib.contextmanager
def storage_errors(url: URL) -> Iterator[None]:
    """Turn exceptions of a database into an error with one sentence, without the password.

    Raises:
        StorageError: SQLAlchemy or Optuna raised one of STORAGE_FAILURES inside.
        DiskError: the disk of a SQLite file is full.
    """
    file = sqlite_file(url)
    log = file and log_beside(file)  # looked for first: SQLite may delete it when it closes the file
    try:
        yield
    except RuntimeError as error:
        if "table schema" not in str(error):  # Optuna's message about a database of another version of Optuna
            raise
        raise StorageError(f"database {hidden(url)}: {error}") from None
    except (*STORAGE_FAILURES, sqlite3.DatabaseError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
        reason = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]
        for secret in (url.password, *(value for key, value in url.query.items() if _secret(key))):
            if secret:
                reason = reason.replace(str(secret), "***")
        if file is not None and ("is full" in reason or _is_full(file.parent)):
            cure = "make room (or free inodes), and the same command goes on"
            raise DiskError(f"database {file}: {reason}; {cure}") from None
        if file is not None and ("readonly" in reason or "unable to open" in reason) and (why := only_readable(file)):
            raise StorageError(unwritable(file, why)) from None
        if file is None:
            cure = postgres.cure_of(getattr(cause, "orig", None) or cause)
        elif "is locked" in reason:
            cure = "another program holds it; close that, then go on"
        elif "malformed" in reason:
            cure = cure_if_damaged(log or log_beside(file))
        else:
            cure = "check that it is a database file, and that you may write to it and its folder"
        raise StorageError("; ".join(filter(None, [f"database {hidden(url)}: {reason}", cure]))) from None


def _is_full(folder: Path) -> bool:
    """Whether a disk has no room or no inode. Then SQLite cannot make a file beside its own, and does not say why."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return False
    return disk.f_bavail == 0 or (disk.f_files > 0 and disk.f_favail == 0)


def is_outage(error: Exception) -> bool:
    """Whether the database may come back by itself: it restarts, is unreachable, busy or read-only, or its disk is
    full."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if not isinstance(cause, DBAPIError):
        return False
    if isinstance(cause.orig, sqlite3.Error):
        return any(words in str(cause.orig) for words in ("is full", "is locked", "disk I/O error"))
    return cause.connection_invalidated or isinstance(cause, OperationalError | InterfaceError)


def is_refusal(error: Exception) -> bool:
    """Whether a server refuses this user or names a cause that does not pass by itself, see ``postgres.REFUSALS``."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    orig = getattr(cause, "orig", None)
    return orig is not None and postgres.sqlstate_of(orig) in postgres.REFUSALS


def words_of_outage(error: Exception) -> str:
    """The cause of an outage in words, after "the database"."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    known = postgres.CURES.get(postgres.sqlstate_of(orig) or "") if (orig := getattr(cause, "orig", None)) else None
    return f"cannot be used now: {known}" if known else "cannot be reached"


def is_same_file(study: optuna.Study) -> bool:
    """Whether a SQLite file is still where it was opened. A deleted file can be read and written without an error."""
    engine = backend_of(study).engine
    opened = engine.get_execution_options().get("opened")
    if opened is None:
        return True
    try:
        found = Path(engine.url.database or "").stat()
    except FileNotFoundError:
        return False
    except OSError:  # the disk fails; the next access to the database reports it
        return True
    return bool(opened == (found.st_dev, found.st_ino))


def wait_briefly(study: optuna.Study) -> None:
    """Set short time-outs for a locked database and a hanging server, for a process that retries by itself."""
    engine = backend_of(study).engine

    def configure(connection: Any, _record: object) -> None:
        if engine.dialect.name == "sqlite":
            connection.execute(f"PRAGMA busy_timeout={1000 * SQLITE_TURN_SECONDS:.0f}")
        else:
            postgres.hurry(connection)

    event.listen(engine, "connect", configure)
    engine.dispose()


def check_writable(study: optuna.Study) -> None:
    """Check that no other program is writing to a SQLite file. Servers lock single rows, so they are not checked.

    Raises:
        OperationalError: another program holds the file for longer than a connection waits.
    """
    engine = backend_of(study).engine
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")


def version_of(connection: Connection) -> int | None:
    """A number that changes when another connection changes a SQLite file; None on a server."""
    if connection.dialect.name != "sqlite":
        return None
    version: int = connection.exec_driver_sql("PRAGMA data_version").scalar_one()
    return version


def backend_of(study: optuna.Study) -> RDBStorage:
    """The database of a study, without any cache or stand-in. All code gets the database and its engine from here."""
    backend: RDBStorage = study._storage._backend  # type: ignore[attr-defined]
    return backend


def _leave_read_only(context: ExceptionContext) -> None:
    """Count a refused write as a lost connection, because the next one may lead to a server that accepts writes."""
    if postgres.sqlstate_of(context.original_exception) == postgres.READ_ONLY:
        context.is_disconnect = True


def _refuse_old_numbers(url: URL, context: ExceptionContext) -> None:
    """Raise a StorageError for a row with an old number; Optuna would pass over some of them and lose the row."""
    if postgres.is_old_number(context.original_exception):
        reason = str(context.original_exception).splitlines()[0]
        raise StorageError(f"database {hidden(url)}: {reason}; {postgres.SEQUENCES}")


def _plain(url: URL) -> str:
    # Optuna runs str.format over the URL to fill in its schema version, so braces are doubled.
    return url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")


def _use_write_ahead_log(engine: Engine) -> None:
    """Use a write-ahead log: readers never block the writer, and a commit is on the disk when it returns."""

    def configure(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    event.listen(engine, "connect", configure)
    engine.dispose()  # Optuna's first connection was opened before these settings
