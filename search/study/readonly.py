"""Connections that can only read the database: for the dashboard, for the process that draws the study's page, and for
users who may not write to it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import event
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, OperationalError, SQLAlchemyError

from search.errors import StorageError
from search.study import postgres
from search.study.file import check_not_emptied, is_missing, only_readable
from search.study.storage import open_storage, parse_url, sqlite_file

CONNECT_TIMEOUT_SECONDS = 5  # to users, a page that takes longer seems broken

PAGE_STATEMENT_SECONDS = 10
"""Longest time for a statement of a page on a Postgres server; for its locks, ``postgres.TURN_LOCK_SECONDS``."""


class NotReadyError(Exception):
    """The database cannot be shown now; the message is a sentence for the waiting page, without secrets."""


class Database:
    """Opens connections to a database; they can only read it, unless ``writable``. With ``once``, they are for a
    command that reads once, which may also read an archive. With ``hurried``, no statement waits long for a Postgres
    server, because a browser waits for the answer.

    Its messages about Postgres name neither host nor database: if the password in a URL has an unescaped `@` or `/`,
    pieces of the password are parsed as host and database.
    """

    def __init__(self, storage_url: str, *, writable: bool = False, once: bool = False, hurried: bool = False) -> None:
        self.writable = writable
        self._failed = threading.local()
        url = self.asked = parse_url(storage_url)
        file = sqlite_file(url)
        self.path = file and file.absolute()
        if self.path is not None:
            self.name = str(self.path)
            # Quoted for SQLite's own URI, so that a ? or # in a folder's name has no special meaning.
            mode = "rw" if writable else "ro"  # both refuse to create a file
            query = {"mode": mode, "uri": "true"} | (_as_archive(self.path) if once else {})
            url = URL.create("sqlite", database=f"file:{quote(self.name)}", query=query)
            how: dict[str, Any] = {"connect_args": {"timeout": CONNECT_TIMEOUT_SECONDS}}
        else:
            self.name = "The Postgres database"
            # The last of two equal options counts, so the user's own options come first.
            read_only = "off" if writable else "on"
            options = f"{url.query.get('options', '')} -c default_transaction_read_only={read_only}"
            seconds = PAGE_STATEMENT_SECONDS if hurried else postgres.STATEMENT_SECONDS
            if hurried:
                options += f" -c statement_timeout={1000 * seconds} -c lock_timeout={1000 * postgres.TURN_LOCK_SECONDS}"
            limited = url.update_query_dict({"options": options.strip()})
            how = {"creator": postgres.connector(limited, seconds)}
        # RDBStorage fills the text with str.format; rendering quotes the braces of a password or a path.
        self.url = url.render_as_string(hide_password=False)
        # No pool: a connection kept open would go on reading a file that was deleted, or would not work after
        # a restart of Postgres. A page needs a few connections every ten seconds.
        self.engine_arguments = {"poolclass": sqlalchemy.NullPool, **how}
        self.engine = sqlalchemy.create_engine(self.url, **self.engine_arguments)

    def identity(self) -> tuple[int, int] | None:
        """Identity of the SQLite file; None for Postgres. Raises NotReadyError if there is no file."""
        if self.path is None:
            return None
        try:
            found = self.path.stat()
        except OSError:
            raise NotReadyError(f"There is no database at {self.path} yet.") from None
        return found.st_dev, found.st_ino

    def open(self) -> RDBStorage:
        """The storage, once its tables are complete; raises NotReadyError until then."""
        try:
            # The last table that Optuna creates.
            has_tables = sqlalchemy.inspect(self.engine).has_table("alembic_version")
        except SQLAlchemyError as error:
            raise self.unreadable(error) from None
        if not has_tables:
            raise NotReadyError(f"{self.name} has no study yet.")
        try:
            storage = RDBStorage(self.url, engine_kwargs=dict(self.engine_arguments), skip_table_creation=True)
        except RuntimeError:
            raise NotReadyError(
                f"{self.name} was written by another version of Optuna; install the version that wrote it, "
                "or run `optuna storage upgrade`."
            ) from None
        except (SQLAlchemyError, StorageInternalError) as error:
            cause = error if isinstance(error, SQLAlchemyError) else error.__cause__
            denied = postgres.sqlstate_of(getattr(cause, "orig", None) or error) == "42501"
            if self.path is None and (isinstance(cause, OperationalError) or denied):
                raise self.unreadable(error) from None
            # A writer has created that table but not filled it yet. Optuna would fill it, but cannot write here.
            raise NotReadyError(f"{self.name} is being created.") from None
        event.listen(storage.engine, "handle_error", self._note_failure)
        return storage

    def _note_failure(self, context: ExceptionContext) -> None:
        error = context.sqlalchemy_exception
        is_of_request = isinstance(error, DataError | IntegrityError)  # such as a name that is too long
        if isinstance(error, DBAPIError) and not is_of_request:
            self._failed.error = error

    def has_failed(self) -> bool:
        """Whether an opened storage has failed in this thread, and ``failure`` was not called since."""
        return hasattr(self._failed, "error")

    def failure(self) -> BaseException | None:
        """The last failure of an opened storage in this thread, since this function was called; None if there was
        none. optuna-dashboard catches these failures."""
        failed: BaseException | None = self._failed.__dict__.pop("error", None)
        return failed

    def unreadable(self, error: Exception) -> NotReadyError:
        """The error for a database that exists but does not answer."""
        cause = error if isinstance(error, SQLAlchemyError) else error.__cause__
        if self.path is None:
            state = postgres.sqlstate_of(getattr(cause, "orig", None) or error)
            if state in postgres.CURES and (state == postgres.POOLED or state not in postgres.REFUSALS):
                return NotReadyError(f"{self.name} cannot be read now: {postgres.CURES[state]}.")
            return NotReadyError(f"{self.name} does not answer, or refuses this user.")
        return NotReadyError(f"{self.name} cannot be read ({getattr(cause, 'orig', None) or 'no reason given'}).")


def open_to_read(url: URL) -> RDBStorage:
    """Open the storage for a command that only reads. A SQLite file to which this user may not write is opened
    read-only.

    Raises:
        StorageError: the storage cannot be reached or read, or does not exist.
    """
    file = sqlite_file(url)
    if file is None or is_missing(file) or (why := only_readable(file)) is None:
        return open_storage(url)
    check_not_emptied(file)
    try:
        return Database(url.render_as_string(hide_password=False), once=True).open()
    except NotReadyError as error:
        said = str(error).rstrip(".")
        raise StorageError(
            f"{said[0].lower()}{said[1:]}, and {why}; copy the runs folder, and name the copy with --runs"
        ) from None


def _as_archive(file: Path) -> dict[str, str]:
    """Settings for a file that nobody writes: no write-ahead log is beside it, and none can be made in its folder.
    Without them, SQLite would try to make one."""
    log = Path(f"{os.path.realpath(file)}-wal")
    if is_missing(log) and not os.access(log.parent, os.W_OK, effective_ids=True):
        return {"immutable": "1"}
    return {}
