"""One process at a time owns a study, by a lock that ends with the process. Others can ask which process that is."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import socket
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout
from sqlalchemy import URL, NullPool, create_engine, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from search.errors import HeldError, StorageError, StudyChanged
from search.paths import Runs
from search.study import postgres
from search.study.file import empty_log, is_missing, lock_beside, mode_of_locks, only_readable, unwritable, whose
from search.study.storage import STORAGE_FAILURES, hidden, open_storage, sqlite_file, storage_errors
from search.study.study import other_person_in_database
from trainer.errors import DiskError, no_room
from trainer.kept import write_whole

ELSEWHERE = " --runs OTHER_FOLDER"
"""The option that names another runs folder, which is not known."""

LOCK_PATIENCE_SECONDS = 1.0
"""Longest wait of a launch for the lock, because `search status` takes the lock briefly to see if it is free."""


@contextlib.contextmanager
def own_study(name: str, url: URL, runs: Runs) -> Iterator[Callable[[], None]]:
    """Own the study while the block runs, by a lock that ends with the process.

    The lock is a file lock beside a SQLite file, or an advisory lock in Postgres. The study's folder is locked too,
    because studies of the same name in two databases share it. If a Postgres lock is lost, the folder's lock still
    keeps out other launches with this runs folder.

    Yields:
        A function to call before each write. If a restart of the Postgres server or a break of the network has lost the
        lock, the function takes it again, or raises HeldError if another process was faster.

    Raises:
        HeldError: another process owns the study; the message says which one, and since when.
        StorageError: the runs folder or the database cannot be written.
        DiskError: the disk is full.
    """
    holder = runs.holder(name)
    with contextlib.ExitStack() as stack:
        try:
            holder.parent.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(_file_lock(runs.lock(name), name, holder, LOCK_PATIENCE_SECONDS))
            except HeldError as held:
                raise _of_folder(name, held.owner, url, runs) from None
            try:
                still_owner = stack.enter_context(_lock(name, url, holder, patience_seconds=LOCK_PATIENCE_SECONDS))
            except HeldError:  # every owner has the lock of its own folder too
                owner = f"a process that was begun with another runs folder than {runs.root}"
                if sqlite_file(url) is None:
                    owner += ", or by a session of an ended process that the server still keeps"
                raise HeldError(name, owner, _other_person(name, url), f"{ELSEWHERE}{runs.storage_option}") from None
            runs.stop_request(name).unlink(missing_ok=True)  # the request was meant for an earlier process
            shutil.rmtree(runs.gpu_requests(name), ignore_errors=True)  # so were these
            owner = f"{process_name()} since {datetime.now():%Y-%m-%d %H:%M:%S}"
            write_whole(holder, owner.encode(), durable=False)
        except OSError as error:
            if full := no_room(error, runs.root):
                raise full from error
            raise StorageError(_unwritable(error, name, url, runs)) from error
        tidy = True
        try:
            yield still_owner
        except (*STORAGE_FAILURES, sqlite3.Error, StorageError, StudyChanged, HeldError, DiskError):
            tidy = False  # the file may be damaged, lost or replaced, so the log may belong to another one
            raise
        finally:
            if tidy:
                _tidy(url)
            if read_holder(holder) == owner:  # else another process owns the study by now
                holder.unlink(missing_ok=True)


def _unwritable(error: OSError, name: str, url: URL, runs: Runs) -> str:
    """The sentence about a file that this user cannot write: beside the database, or in the runs folder."""
    file, path = sqlite_file(url), Path(error.filename or runs.root)
    reason = error.strerror or str(error)
    if file is not None and path == lock_beside(file, name):
        return unwritable(file, only_readable(file, name) or f"{path}: {reason}")
    if error.errno in (errno.EACCES, errno.EPERM):
        with contextlib.suppress(OSError):  # it is missing, or in a folder that this user may not enter
            reason = whose(path)
    return f"{path} cannot be written: {reason}; choose another --runs folder"


def _of_folder(name: str, owner: str, url: URL, runs: Runs) -> HeldError:
    """The error if another process has the lock of the study's folder."""
    # A free lock of a file shows that the owner has another database. The lock of a server may be lost for a while.
    file = sqlite_file(url)
    if file is not None and (is_missing(file) or owner_of(name, url, runs) is None):
        other = replace(runs, storage_option=" --storage OTHER_URL")
        return HeldError(name, f"{owner}, with another database than {hidden(url)}", None, other.option)
    return HeldError(name, owner, _other_person(name, url), runs.option)


def _tidy(url: URL) -> None:
    """Write the log of a SQLite file into it."""
    if (file := sqlite_file(url)) is not None:
        empty_log(file)


def _other_person(name: str, url: URL) -> str | None:
    with contextlib.suppress(StorageError, OSError), storage_errors(url):
        storage = open_storage(url)
        try:
            return other_person_in_database(name, storage)
        finally:
            storage.engine.dispose()
    return None


def process_name() -> str:
    """Name of this process as the owner of a study."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def owner_of(name: str, url: URL, runs: Runs) -> str | None:
    """The process that owns the study, in words; None if none does."""
    try:
        with _lock(name, url, runs.holder(name), patience_seconds=0):
            return None
    except HeldError as held:
        return held.owner
    except OSError:  # this user cannot lock a file beside the database, so only the owner's file is read
        return read_holder(runs.holder(name)) if os.path.lexists(runs.holder(name)) else None


@contextlib.contextmanager
def _file_lock(file: Path, name: str, holder: Path, patience_seconds: float, mode: int | None = None) -> Iterator[None]:
    lock = FileLock(file) if mode is None else FileLock(file, mode=mode)
    try:
        lock.acquire(timeout=patience_seconds)
    except Timeout:
        raise HeldError(name, read_holder(holder)) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _lock(name: str, url: URL, holder: Path, *, patience_seconds: float) -> Iterator[Callable[[], None]]:
    file = sqlite_file(url)
    if file is not None:
        with _file_lock(lock_beside(file, name), name, holder, patience_seconds, mode_of_locks(file)):
            yield lambda: None  # a file lock cannot be lost while its process lives
        return
    with storage_errors(url):
        lock = _ServerLock(name, url, patience_seconds)
    try:
        with storage_errors(url):
            lock.take(lambda: read_holder(holder))
        yield lock.check
    finally:
        lock.release()


USED_SECONDS = 60.0
"""A connection that has worked this many seconds ago was not closed by a firewall for its silence."""

_OWN_SESSION = """
    SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (classid::bigint << 32 | objid::bigint) IN (:key, :mark) GROUP BY pid HAVING count(*) = 2
"""
"""The session that has both the lock and the mark. A bigint key is shown as two halves."""


class _ServerLock:
    """A study's lock on a Postgres server: an advisory lock, which ends with its session.

    After a break of the network, or with a new address of this machine, the server keeps the old session until its
    keepalives fail (``postgres.KEEPALIVES``), or longer behind a proxy. So that such a session is known as our own,
    each one also has a mark: a lock on a random number, which they share.
    """

    def __init__(self, name: str, url: URL, patience_seconds: float) -> None:
        self._name, self._patience_seconds = name, patience_seconds
        self._numbers = {"key": zlib.crc32(f"featherweight:{name}".encode()), "mark": secrets.randbits(62)}
        # Without a pool, because a pool keeps connections open, and the lock lasts as long as its connection.
        connector = postgres.connector(url, postgres.TURN_STATEMENT_SECONDS)
        # The lock belongs to the session, so no statement needs a transaction.
        self._engine = create_engine(url, poolclass=NullPool, creator=connector, isolation_level="AUTOCOMMIT")
        self._connection, self._checked = self._engine.connect(), time.monotonic()

    def take(self, owner: Callable[[], str]) -> None:
        """Take the lock.

        Args:
            owner: returns the name of its other owner, for the message.

        Raises:
            HeldError: another process has it.
            OperationalError: an old session of this object has it; it counts as an outage, because it will end.
        """
        try:
            self._ask("SELECT pg_advisory_lock_shared(:mark)")
            deadline = time.monotonic() + self._patience_seconds
            while not self._ask("SELECT pg_try_advisory_lock(:key)"):
                own = self._ask(_OWN_SESSION)
                if own is not None:
                    with contextlib.suppress(SQLAlchemyError):  # another role may not; then it ends by itself
                        self._connection.execute(text("SELECT pg_terminate_backend(:own)"), {"own": own})
                if time.monotonic() >= deadline:
                    raise HeldError(self._name, owner(), None, ELSEWHERE) if own is None else _kept_by_old_session()
                time.sleep(0.1)
        except BaseException:
            self.release()  # otherwise the next check would take this for a connection with the lock
            raise

    def check(self) -> None:
        """Check that the lock is still held. If its session has ended, take it again.

        Raises:
            HeldError, OperationalError: as for ``take``.
            SQLAlchemyError: the server is unavailable.
        """
        begun = time.monotonic()
        try:
            self._connection.execute(text("SELECT 1"))
        except SQLAlchemyError:
            self.release()
            now = time.monotonic()
            if now - begun >= postgres.TURN_STATEMENT_SECONDS and begun - self._checked < USED_SECONDS:
                raise  # the server hangs: the next check connects, so that the caller waits only once
            self._connection = self._engine.connect()
            # Only a launch from another runs folder can be faster, because this process holds its own folder's lock.
            self.take(lambda: "a launch from another runs folder, which was faster")
        self._checked = time.monotonic()

    def release(self) -> None:
        """Close the connection, and with it the session."""
        with contextlib.suppress(SQLAlchemyError):
            self._connection.close()

    def _ask(self, statement: str) -> object:
        return self._connection.execute(text(statement), self._numbers).scalar()


def _kept_by_old_session() -> OperationalError:
    from psycopg.errors import LockNotAvailable  # in an extra

    reason = LockNotAvailable("the server still keeps a session of this search whose connection has ended")
    return OperationalError("the study's lock", None, reason)


def read_holder(holder: Path) -> str:
    """The name that the owner wrote into its file; "another process" if the file is missing or empty.

    The file is missing if the owner is on another machine, or has only just begun.
    """
    try:
        said = holder.read_text(encoding="utf-8", errors="replace")
        return said if said and said.isprintable() else "another process"
    except OSError:
        return "another process"
