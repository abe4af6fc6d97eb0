"""The file of a SQLite database: whether this user may read and write it, its log, and what is left without it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from pathlib import Path
from urllib.parse import quote

from search.errors import StorageError
from search.paths import Runs

ASKED = b'"event": "ask"'
"""Part of a journal's line about a trial."""

LOG_SECONDS = 0.5
"""Longest wait for other programs before the log is written into the file. SQLite may wait twice."""


def is_missing(file: Path) -> bool:
    """Whether there is no such file; False if it may exist in a folder that this user may not enter."""
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def check_not_emptied(file: Path) -> None:
    """Check that a database file has any content, or never had any.

    SQLite takes an empty file for a new database, and would delete the write-ahead log beside it.

    Raises:
        StorageError: the file is empty, and a journal beside it has trials.
    """
    if file.is_file() and not file.stat().st_size and (journals := _journals_beside(file)):
        raise StorageError(
            f"database {file} is empty (0 bytes), but trials of searches are in {journals}; if they are of another "
            "database, name it with --storage; else put a copy of the database in its place, and the search goes on "
            "from there; to begin anew without a copy, delete the empty file"
        )


def sentence_if_missing(file: Path) -> str:
    """The sentence about a database that does not exist. It names the journals that are still there."""
    return sentence_if_lost(file) or f"there is no database {file} yet; start a search first: search launch"


def sentence_if_lost(file: Path, runs: Runs | None = None) -> str | None:
    """The sentence about a database that existed before or is elsewhere, because a runs folder has journals with
    trials; else None.

    Args:
        file: the database, which does not exist.
        runs: the runs folder; by default that of the database.
    """
    journals = _journals_beside(file, runs)
    if not journals:
        return None
    return (
        f"there is no database {file}, but trials of searches are in {journals}; if they are of another database, name "
        "it with --storage; else put a copy of the database in its place (search replay needs none, and exports are "
        "complete without it); without a copy, search launch begins anew"
    )


def _journals_beside(file: Path, runs: Runs | None = None) -> str:
    """The journals with trials in a runs folder, by default that of a database, in words; "" if there is none."""
    found = []
    for path in sorted((runs or Runs(file.parent)).studies.glob("*/journal.jsonl")):
        try:
            if ASKED in path.read_bytes():
                found.append(str(path))
        except OSError:
            continue
    return ", ".join([*found[:3], *([f"{len(found) - 3} more journals"] if found[3:] else [])])


def log_beside(file: Path) -> Path | None:
    """The write-ahead log of a database file, if it has any content. It may belong to another copy of the file."""
    log = Path(f"{os.path.realpath(file)}-wal")
    with contextlib.suppress(OSError):
        return log if log.stat().st_size else None
    return None


def empty_log(file: Path) -> None:
    """Write the log into the database file, so that a copy of this file alone has everything.

    Nothing depends on it, so errors are ignored, and it waits only briefly for other programs.
    """
    if log_beside(file) is None:
        return
    with contextlib.suppress(sqlite3.Error), contextlib.closing(_connect(file, "rw")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def check_log(file: Path) -> None:
    """Check that the log beside a database file belongs to it. Reads all of the file, if there is a log.

    Raises:
        sqlite3.DatabaseError: the file with its log is malformed.
    """
    if log_beside(file) is None:
        return
    try:
        # Another connection would write the log into the file when it is closed, and so damage a good copy.
        with contextlib.closing(_connect(file, "ro")) as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError:  # it is locked, or cannot be read; whoever opens it next reports it
        return
    if found != "ok":
        raise sqlite3.DatabaseError("database disk image is malformed")


def cure_if_damaged(log: Path | None) -> str:
    """What to do about a malformed file, with or without a log beside it."""
    if log is None:
        return (
            "the file is cut or damaged: put a copy in its place, rescue what is left with sqlite3's .recover or "
            ".dump, or begin anew with another --runs"
        )
    return (
        f"the file is cut or damaged, or the log beside it ({log}) belongs to another copy of the file; to put a copy "
        f"back, first move {log.name} and {log.name.removesuffix('-wal')}-shm away, then put the copy in its place "
        "again; without a copy, rescue what is left with sqlite3's .recover or .dump, or begin anew with another --runs"
    )


def _connect(file: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(file.absolute()))}?mode={mode}", uri=True, timeout=LOG_SECONDS)


def lock_beside(file: Path, study: str | None = None) -> Path:
    """The lock file beside a database: that of a study, or by default the one for the time in which it is opened."""
    return Path(f"{file.resolve()}.{study}.lock" if study else f"{file.resolve()}.lock")


def mode_of_locks(file: Path) -> int:
    """Mode of new lock files beside a database: that of the database, so who may write to it may lock it.

    SQLite does the same for its log.
    """
    try:
        return file.stat().st_mode & 0o666 | 0o600
    except OSError:
        return 0o600


def only_readable(file: Path, study: str | None = None) -> str | None:
    """Why this user may not write to a database, in words; None if nothing forbids it. All closed files are named.

    Args:
        file: the database.
        study: a study whose lock this user needs, too.

    Raises:
        StorageError: this user may not read it either.
    """
    real = Path(os.path.realpath(file))
    for folder in reversed(real.parents):
        if not os.access(folder, os.X_OK, effective_ids=True):
            if is_missing(folder):
                return None
            raise StorageError(_unreadable(file, folder))
    beside = [Path(f"{real}{ending}") for ending in ("-wal", "-shm")]
    for path in (real, *beside):
        if not os.access(path, os.R_OK, effective_ids=True) and path.exists():
            raise StorageError(_unreadable(file, path))
    needed = [real, *beside, lock_beside(real), *([lock_beside(real, study)] if study else []), real.parent]
    closed = [path for path in needed if not os.access(path, os.W_OK, effective_ids=True) and path.exists()]
    if not closed:
        return None
    return whose(closed[0]) if _is_read_only(closed[0]) else ", ".join(map(whose, closed))


def unwritable(file: Path, why: str) -> str:
    """The sentence about a database to which this user may not write, see ``only_readable``."""
    return (
        f"database {file} cannot be written: {why}; get the right to write there, or copy the folder and name the copy "
        "with --runs or --storage (search status, studies and report only read it)"
    )


def _unreadable(file: Path, path: Path) -> str:
    return f"database {file} cannot be read: {whose(path)}; get the right to read it, or use another --runs folder"


def whose(path: Path) -> str:
    """Why a file or folder is closed to this user: "runs/search.db belongs to USER (mode 0600)"."""
    found = path.stat()
    if _is_read_only(path):
        return f"{path} is on a read-only disk"
    try:
        owner = path.owner()
    except KeyError:  # a user of another machine
        owner = f"user {found.st_uid}"
    return f"{path} belongs to {owner} (mode {stat.S_IMODE(found.st_mode):04o})"


def _is_read_only(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
