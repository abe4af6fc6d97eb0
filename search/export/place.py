"""Puts an export in its place: it is made beside the place, then exchanged with the old content.

    exports/birds-3            the export
    exports/.birds-3.partial   the next export while it is made; a file UNFINISHED marks it
    exports/.birds-3.old       the old content between two moves, where the system cannot exchange folders
    exports/.birds-3.new       the next export while the old one is removed, where the old folder cannot be moved: an
                               overlay file system, as in a container, moves no folder of its lower layers
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path, PurePosixPath

from search.errors import SearchError, UsageError
from search.export.folders import in_same_folder, is_mount_point
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
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV)
"""Errors of a kernel or file system that cannot exchange these folders."""


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

    @in_same_folder()
    def check(self) -> None:
        """Check, before anything is trained, that an export can be put here. What a killed process left half done is
        undone or completed first.

        Raises:
            UsageError: no export can be put here.
        """
        self._mend()
        if is_mount_point(self.target):
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
            with tempfile.TemporaryDirectory(prefix=".", dir=self.target.parent) as made:  # as ``begin`` makes one
                Path(made).rename(f"{made}-moved").rename(made)  # which some overlay file systems refuse
        except OSError as error:
            if full := no_room(error, self.target.parent):
                raise full from error
            raise UsageError(
                f"the folder {self.target} cannot be made ({error.strerror}); choose another one with --out"
            ) from error

    def check_replaceable(self) -> None:
        """Check, before the final training, that the present content can give way to another export.

        Raises:
            UsageError: it cannot.
        """
        if not self._is_taken():
            return
        with tempfile.TemporaryDirectory(prefix=".", dir=self.target.parent) as made:
            obstacle = self._obstacle(Path(made))
        if obstacle is not None:
            raise UsageError(
                f"{self.target} cannot be replaced: {obstacle}; it stays as it is: choose another folder with --out"
            )

    def begin(self) -> Path:
        """Make a folder beside the place, with only UNFINISHED in it. That of an earlier export is removed if this user
        may remove it."""
        for number in count():
            partial = self._beside(f"partial-{number}" if number else "partial")
            with contextlib.suppress(OSError):
                if _discard(partial):
                    break
        partial.mkdir(parents=True)
        (partial / UNFINISHED).touch()
        return partial

    @in_same_folder()
    def finish(self, partial: Path) -> str | None:
        """Put a complete export in place. At each moment, the old or the new export exists: at
        its place or, where the system cannot exchange folders, for a moment beside it.

        Returns:
            A line for the user if the old content was moved aside, or could not be removed.

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
        old, notes = partial, list[str]()
        if not _exchange(partial, self.target):
            old = self._beside("old")
            notes += self._vacate(old)
            try:
                self.target.rename(old)  # if the process is killed after this, ``check`` undoes it
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                notes += self._remove_and_put(partial)
                return "; ".join(notes) or None
            partial.rename(self.target)
        sync_folder(self.target.parent)
        notes += self._clear(old, flaw)
        return "; ".join(notes) or None

    def _vacate(self, old: Path) -> Iterator[str]:
        """Make the name for the old content free, if a killed export has left something there."""
        try:
            if _discard(old):
                return
            what = f"an earlier export was killed; the content that it replaced in {self.target}"  # or it has new files
        except OSError as error:
            what = f"an earlier export, which could not be removed ({_words(error, old)}),"
        yield f"{what} is now in {_set_aside(old, self.target)}"

    def _clear(self, old: Path, flaw: str | None) -> Iterator[str]:
        """Remove the old content if it is a complete export, else move it aside. The new export is in place already."""
        try:
            if flaw is None and _discard(old):
                return
        except OSError as error:
            yield (
                f"the new export is in {self.target}; the old one could not be removed ({_words(error, old)}) and is "
                f"now in {old}: remove that by hand"
            )
            return
        aside = _set_aside(old, self.target)
        yield f"{self.target} was not a complete export ({flaw or foreign(aside)}); its content is now in {aside}"

    def _remove_and_put(self, new: Path) -> list[str]:
        """Put a complete export in the place of an old one that cannot be moved: remove the old one, file by file. If
        the process is killed meanwhile, ``check`` completes it.

        Returns:
            Lines for the user, as of ``finish``.

        Raises:
            UsageError: the old content is not a complete export, or cannot be removed; the new one stays beside it.
        """
        waiting, notes = self._beside("new"), list[str]()
        if new != waiting:
            if (why := self._lasting) is not None:
                raise UsageError(
                    f"{self.target} cannot be replaced: {why}; it stays as it is, the new one is {new}: move it by hand"
                )
            notes += self._vacate(waiting)
            new.rename(waiting)
            sync_folder(self.target.parent)
        if self._is_taken() and not _remove(self.target, _unchanged_in(self.target)):
            raise UsageError(
                f"{self.target} has files by now that export-best did not write; they stay, and the new export is "
                f"{waiting}: move them away and repeat the command"
            )
        waiting.rename(self.target)
        sync_folder(self.target.parent)
        return notes

    @property
    def _lasting(self) -> str | None:
        """Why content that cannot be moved cannot be removed either; None if it can be."""
        fixed = "it is in a lower layer of an overlay file system, such as an image, and cannot be moved"
        if (flaw := self.flaw) is not None:
            return f"{fixed}, and it is not a complete export ({flaw})"
        for folder, _, _ in os.walk(self.target):
            if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
                return f"{fixed}, and this user may not write to {folder}"
        return None

    def _obstacle(self, beside: Path) -> str | None:
        """Why the present content cannot give way to an export, in words; ``beside`` is an empty folder of ours."""
        (beside / UNFINISHED).touch()
        try:
            self.target.rename(beside)  # is refused, because that folder is not empty; only the error counts
        except OSError as error:
            if error.errno == errno.EXDEV:
                return self._lasting
            if error.errno in (errno.EPERM, errno.EACCES):
                return f"this user may not move it ({error.strerror})"
        else:  # a file system that refuses nothing
            beside.rename(self.target)
        return None

    def _mend(self) -> None:
        """Undo or complete what a killed process left half done."""
        new, old = self._beside("new"), self._beside("old")
        begun = not self._is_taken() or (self.target / UNFINISHED).exists()
        if begun and _is_whole(new):  # killed while it removed the old export
            self._remove_and_put(new)
        if not self._is_taken() and old.is_dir() and not (old / UNFINISHED).exists():  # killed between two moves
            try:
                old.rename(self.target)
            except OSError as error:
                raise UsageError(
                    f"{old}, the earlier content of {self.target}, cannot be moved back ({error.strerror}); move it by "
                    "hand, or choose another folder with --out"
                ) from error

    def _is_taken(self) -> bool:
        if self.target.is_dir() and not self.target.is_symlink():
            return any(self.target.iterdir())
        return os.path.lexists(self.target)

    def _beside(self, what: str) -> Path:
        return self.target.with_name(f".{self.target.name}.{what}")


def _set_aside(content: Path, target: Path) -> Path:
    """Move content that is not this program's to a new name beside the place. Returns that name."""
    moment = f"{target.name}.aside-{datetime.now():%Y%m%d-%H%M%S}"
    names = (target.with_name(f"{moment}-{number}" if number else moment) for number in count())
    aside = next(name for name in names if not os.path.lexists(name))
    content.rename(aside)
    return aside


def _is_whole(folder: Path) -> bool:
    """Whether a folder is a complete export without any other file."""
    return folder.is_dir() and not folder.is_symlink() and altered(folder) is None and foreign(folder) is None


def _discard(folder: Path) -> bool:
    """Remove this program's files from a folder. Returns whether the folder is gone.

    If UNFINISHED is in the folder, everything in it is this program's. Otherwise it is removed only if it is a complete
    export without any other file.

    Raises:
        OSError: a file cannot be read or removed.
    """
    if not os.path.lexists(folder):
        return True
    if (folder / UNFINISHED).exists():
        found = (path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
        return _remove(folder, [path.relative_to(folder) for path in found])
    return _is_whole(folder) and _remove(folder, [Path(name) for name in (*read_sums(folder), SUMS)])


def _remove(folder: Path, names: Sequence[Path]) -> bool:
    """Remove these files of a folder, then the folder if nothing else is in it. Returns whether it is gone."""
    mark = folder / UNFINISHED
    mark.touch()  # so that the next export removes the rest if this process is killed
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


def _unchanged_in(folder: Path) -> list[Path]:
    """The files of an export that are as SHA256SUMS says, and SHA256SUMS itself as the last one. None if it is gone."""
    try:
        listed = read_sums(folder)
    except (OSError, ValueError):
        return []
    return [Path(name) for name in (*(one for one in listed if first_altered(folder, listed, [one]) is None), SUMS)]


def _words(error: OSError, folder: Path) -> str:
    return f"{error.filename or folder}: {error.strerror}"


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
