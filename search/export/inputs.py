"""The pictures that ``search predict`` is given: files, folders, patterns, tables of paths, ids of a sample."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from search.errors import UsageError
from trainer.errors import DataError, as_lines
from trainer.file_index import FileIndex, read_lines
from trainer.labels import FILE_COLUMNS
from trainer.tree import File, read_tree

TABLES = (".csv", ".tsv")
"""Endings of tables that list pictures."""


def find_pictures(given: Sequence[Path]) -> list[Path]:
    """The picture files that the arguments of ``search predict`` stand for, in the order of the arguments.

    A folder stands for all files below it, as the scan of training pictures finds them: through links, sorted by name,
    without texts, annotations, and files of operating systems and of this program. A pattern (``"new/*.jpg"``) stands
    for the files that match, without texts and annotations, and a .csv or .tsv file for the pictures that it lists. Any
    other path is a picture, even if there is no such file.

    Raises:
        DataError: a folder, a pattern or a table has no picture, or cannot be read.
    """
    found: list[Path] = []
    for path in given:
        if glob.has_magic(str(path)) and not _holds(path.exists):
            matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  # takes absolute patterns, too
            if not matches:
                raise DataError(f"no file matches {path}")
            pictures = [match for match in map(Path, matches) if match.is_dir() or not _is_text(match)]
            if not pictures:
                raise DataError(f"no file that matches {path} is a picture, the first: {matches[0]}")
            for match in pictures:
                found += _below(match) if match.is_dir() else [match]
        elif _holds(path.is_dir):
            found += _below(path)
        elif path.suffix.lower() in TABLES and _holds(path.is_file):
            found += _listed(path)
        else:
            found.append(path)
    return found


def _holds(test: Callable[[], bool]) -> bool:
    """The answer of a test of a path; False if it is in a folder that is closed to this user."""
    with contextlib.suppress(OSError):
        return test()
    return False


def _is_text(path: Path) -> bool:
    return File(path.name, path, None).is_text


def _below(folder: Path) -> list[Path]:
    files = [file.path for file in read_tree(folder).walk() if not file.is_text]
    if not files:
        raise DataError(f"the folder {folder} holds no picture")
    return files


def _listed(table: Path) -> list[Path]:
    """The pictures of a table. Its paths are relative to the table's folder; if there is no such file, to the working
    folder."""
    header, lines = read_lines(table)
    names = [name.lower() for name in header]
    known = [names.index(name) for name in ("picture", *FILE_COLUMNS) if name in names]
    cells = [row[known[0]].strip() if known and known[0] < len(row) else row[0].strip() for _, row in lines]
    if not known:  # a table of paths alone has no header
        cells = [header[0], *cells]
        if not _holds(_placed(table, header[0]).is_file):
            raise DataError(
                f"{table}: none of its columns ({', '.join(header[:20])}) is called picture or "
                f"{', '.join(FILE_COLUMNS)}; rename the column of paths"
            )
    if not any(cells):
        raise DataError(f"the table {table} lists no picture")
    return [_placed(table, cell) for cell in cells if cell]


def _placed(table: Path, cell: str) -> Path:
    beside = table.parent / cell
    return beside if _holds(beside.exists) else Path(cell)


@dataclass(frozen=True)
class Sample:
    """A sample file, as contests provide it. The written file gets its ids, its order and its columns."""

    path: Path
    header: tuple[str, ...]
    """Names of the columns; the first column has the ids."""
    rows: tuple[tuple[str, ...], ...]
    """Rows, each with a value for every column."""
    pictures: tuple[Path, ...]
    """The picture of each row; the id itself if no given picture has that id."""

    @classmethod
    def read(cls, path: Path, pictures: Sequence[Path]) -> Sample:
        """Read a sample file. A row's id is the path of its picture, the file name, or the name without its ending.

        Raises:
            UsageError: there is no such file.
            DataError: the file cannot be read, an id fits several pictures, or no id fits any given picture.
        """
        if not _holds(path.is_file):
            raise UsageError(f"--like {path}: there is no such file")
        header, lines = read_lines(path)
        index = FileIndex([File(one.as_posix(), one, None) for one in dict.fromkeys(pictures)], Path())
        rows = [tuple([*row, *[""] * len(header)][: len(header)]) for _, row in lines]
        matches = [index.find(row[0], ("test",)) if row[0].strip() else [] for row in rows]
        several = [
            f"{row[0]}: {', '.join(file.name for file in files[:3])}{', ...' * (len(files) > 3)}"
            for row, files in zip(rows, matches, strict=True)
            if len(files) > 1
        ]
        if several:
            raise DataError(
                f"--like {path}: these ids fit several of the given pictures each; give fewer pictures, or write paths "
                f"as ids:{as_lines(several)}"
            )
        if not any(matches):
            first = f" (the first is {rows[0][0]!r})" if rows else ""
            raise DataError(f"--like {path}: none of its {len(rows):,} ids{first} is the id of a given picture")
        found = [files[0].path if files else Path(row[0]) for row, files in zip(rows, matches, strict=True)]
        return cls(path, tuple(header), tuple(rows), tuple(found))
