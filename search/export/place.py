"""Puts an export in its place: it is made beside the place, then exchanged with the old content.

    exports/birds-3            the export
    exports/.birds-3.partial   the next export while it is made; a file UNFINISHED marks it
    exports/.birds-3.old       the old content between two moves, where the system cannot exchange folders
    exports/birds-3.aside-...  old content that was not a complete export

The old content is deleted only if it is a complete export: it has all files of an export, each with its checksum in
SHA256SUMS, and no other file. So no file of another program is lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path, PurePosixPath

from search.errors import SearchError, UsageError
from search.export.formats import weights
from search.export.formats.table import FORMAT_NAMES, format_of
from search.export.record import METRICS, ExportRecord
from trainer.errors import no_room
from trainer.kept import sync_folder
from trainer.sums import SUMS, first_altered, read_sums

CARD, CURVES, CONFUSION, EPOCHS = "README.md", "plots/curves.png", "plots/confusion.png", "plots/curves.csv"
MISTAKES = "plots/mistakes.png"
OUT_OF_FOLD = "out-of-fold.csv"
RANKS = "plots/ranks.png"

UNFINISHED = "UNFINISHED"
"""File that marks a folder which is being made or removed: everything in the folder is this program's."""

CLASS_MAP_SINCE = 3
"""Version of metrics.json from which on an export has a class map."""

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # <fcntl.h>, <stdio.h>
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # the kernel or the file system cannot exchange


def altered(folder: Path) -> str | None:
    """The first file that is missing or has changed since the proof, in words; None if the export is complete.

    Raises:
        OSError: a file cannot be read.
    """
    try:
        record, listed = ExportRecord.load(folder), read_sums(folder)
    except (SearchError, ValueError, FileNotFoundError, NotADirectoryError):
        return f"{METRICS} or {SUMS} is missing or altered"
    found = first_altered(folder, listed, listed) or first_altered(folder, listed, _files_of(record))
    return None if found is None else f"{found.name} is missing or altered"


def foreign(folder: Path) -> str | None:
    """Relative path of the first file or folder that SHA256SUMS does not list; None if it lists all."""
    try:
        ours = {PurePosixPath(name) for name in (*read_sums(folder), SUMS)}
    except (OSError, ValueError):
        ours = set()
    ours |= {parent for name in ours for parent in name.parents}
    for path in sorted(folder.rglob("*")):
        if PurePosixPath(path.relative_to(folder).as_posix()) not in ours:
            return path.relative_to(folder).as_posix()
    return None


def _files_of(record: ExportRecord) -> Iterator[str]:
    """The files that an export with this record must have. Others are checked if SHA256SUMS lists them."""
    yield from ("config.json", weights.FILE, METRICS, CARD, CURVES, CONFUSION)
    for name in record.formats:
        # The file of a format that only a later version knows is listed in SHA256SUMS all the same.
        yield from (format_of(known).file for known in FORMAT_NAMES if known == name)
    if record.out_of_fold is not None:
        yield OUT_OF_FOLD
    if record.rerank is not None:
        yield RANKS
    if record.version >= CLASS_MAP_SINCE:
        yield weights.CLASS_MAP


@dataclass(frozen=True)
class Place:
    """The place of an export."""

    target: Path
    """The folder of the export, as an absolute path."""
    is_default: bool
    """Whether this is the default folder. If the default folder has other content than a complete export, the content
    is moved aside. If a folder that the user chose has such content, the export is refused."""

    @property
    def flaw(self) -> str | None:
        """The reason why the present content cannot be replaced; None if it can be, or if there is none."""
        if not self._is_taken():
            return None
        if not self.target.is_dir() or self.target.is_symlink():
            return "it is not a folder"
        strange = foreign(self.target)
        return altered(self.target) or (None if strange is None else f"export-best did not write {strange}")

    def check(self) -> None:
        """Check, before anything is trained, that an export can be put here. A half-done exchange is undone first.

        Raises:
            UsageError: no export can be put here.
        """
        old = self._beside("old")
        if not self._is_taken() and old.is_dir() and not (old / UNFINISHED).exists():  # killed between two moves
            old.rename(self.target)
        if _is_mount_point(self.target):
            raise UsageError(
                f"{self.target} is a mount point, whose place a finished export cannot take; name a folder in it: "
                f"--out {shlex.quote(str(self.target / 'export'))}"
            )
        if not self.is_default and (flaw := self.flaw) is not None:
            raise UsageError(
                f"--out {self.target} exists and is not a complete export ({flaw}); it stays as it is: "
                "choose another folder"
            )
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".", dir=self.target.parent):  # as ``begin`` makes one
                pass
        except OSError as error:
            if full := no_room(error, self.target.parent):
                raise full from error
            raise UsageError(
                f"the folder {self.target} cannot be made ({error.strerror}); choose another one with --out"
            ) from error

    def begin(self) -> Path:
        """Make a folder beside the place, with only UNFINISHED in it. That of an earlier export is removed."""
        for number in count():
            partial = self._beside(f"partial-{number}" if number else "partial")
            if _discard(partial):
                break
        partial.mkdir(parents=True)
        (partial / UNFINISHED).touch()
        return partial

    def finish(self, partial: Path) -> str | None:
        """Put a complete export in place. At each moment, the old or the new export exists: at
        its place or, where the system cannot exchange folders, for a moment beside it.

        Returns:
            A line for the user if the old content was moved aside.

        Raises:
            UsageError: the place has other content by now; the export stays beside it.
        """
        _sync(partial)
        (partial / UNFINISHED).unlink()
        flaw = self.flaw
        if flaw is not None and not self.is_default:
            raise UsageError(
                f"{self.target} is not a complete export ({flaw}); it stays as it is, the new one is {partial}"
            )
        if not self._is_taken():
            partial.rename(self.target)
            sync_folder(self.target.parent)
            return None
        old, note = partial, None
        if not _exchange(partial, self.target):
            old = self._beside("old")
            if not _discard(old):  # it is no complete export, or has other files
                aside = _set_aside(old, self.target)
                note = f"an earlier export was killed; the content that it replaced in {self.target} is now in {aside}"
            self.target.rename(old)  # if the process is killed after this, ``check`` undoes it
            partial.rename(self.target)
        sync_folder(self.target.parent)
        if flaw is None and _discard(old):
            return note
        aside = _set_aside(old, self.target)
        return f"{self.target} was not a complete export ({flaw or foreign(aside)}); its content is now in {aside}"

    def _is_taken(self) -> bool:
        if self.target.is_dir() and not self.target.is_symlink():
            return any(self.target.iterdir())
        return os.path.lexists(self.target)

    def _beside(self, what: str) -> Path:
        return self.target.with_name(f".{self.target.name}.{what}")


def _is_mount_point(path: Path) -> bool:
    """Whether something is mounted at a path: another disk or, as a container's volume, a folder of the same disk."""
    if os.path.ismount(path):
        return True
    name = os.fsencode(path.resolve())
    for char in b"\\ \t\n":  # the system writes them in octal, the backslash first
        name = name.replace(bytes([char]), b"\\%03o" % char)
    with contextlib.suppress(OSError):
        return any(line.split(b" ")[4] == name for line in Path("/proc/self/mountinfo").read_bytes().splitlines())
    return False


def _set_aside(content: Path, target: Path) -> Path:
    """Move content that is not this program's to a new name beside the place. Returns that name."""
    moment = f"{target.name}.aside-{datetime.now():%Y%m%d-%H%M%S}"
    names = (target.with_name(f"{moment}-{number}" if number else moment) for number in count())
    aside = next(name for name in names if not os.path.lexists(name))
    content.rename(aside)
    return aside


def _discard(folder: Path) -> bool:
    """Remove this program's files from a folder. Returns whether the folder is gone.

    If UNFINISHED is in the folder, everything in it is this program's. Otherwise it is removed only if it is a complete
    export without any other file.
    """
    mark = folder / UNFINISHED
    if not os.path.lexists(folder):
        return True
    if mark.exists():
        names = [path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]
    elif altered(folder) is None and foreign(folder) is None:
        names = [Path(name) for name in (*read_sums(folder), SUMS)]
        mark.touch()  # so that the next export removes the rest if this process is killed
    else:
        return False
    for name in names:
        if name != Path(UNFINISHED):
            (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the folder is not empty: another program has just put a file there
        for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
            path.rmdir()
        if [path.name for path in folder.iterdir()] == [UNFINISHED]:
            mark.unlink()
            folder.rmdir()
    return not folder.exists()


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step. Returns False if the kernel or the file system cannot do that."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _sync(folder: Path) -> None:
    """Make all files of a folder durable, so that a power cut leaves none of them empty under its final name."""
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            with Path(path, name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(path))
