"""Lists of pictures and their classes in text files, as data sets have them, and tables without names of columns. They
are recognised, but not read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

from trainer.classes import are_measured, combined, may_be_classes
from trainer.config import Columns
from trainer.errors import DataError
from trainer.file_index import FileIndex, encoding_of, naming_column, read_lines, separator_of
from trainer.joining import JOINED
from trainer.labels import read_table
from trainer.pixels import about_pixels
from trainer.split_names import rest_of, split_of, words_of
from trainer.tree import PICTURE_ENDINGS, File

__all__ = ["about_lists"]

MOST_LINES = 10_000
"""Largest number of lines that are read of a file. Lists are often sorted, so those of one word may come first."""

MOST_CHARACTERS = 20_000_000
"""Largest number of characters that are read of a file."""

BEGINNING = 4_000
"""Number of characters of a line in which a column that names pictures is looked for."""

MOST_CELLS = 20
"""Largest number of cells after the name of a picture at which a line is cut."""

CORNERS = 4
"""Number of numbers that make a box in a picture."""

LONGEST = 200
"""Number of characters after the name of a picture in which numbers are looked for."""

NUMERIC = re.compile(r"[-+]?(\d+[.]?\d*|[.]\d+)(e[-+]?\d+)?", re.IGNORECASE)
YES_OR_NO = {"-1", "0", "1"}
SPLITTING = {"fold", "folds", "partition", "partitions", "split", "splits"}
"""Words in the name of a file with the split of each picture, as a number."""


@dataclass(frozen=True)
class _List:
    """A file in which a column names pictures, and what comes after it is taken for their classes."""

    file: File
    encoding: str
    separator: str | None
    """The separator of the cells; None: white space."""
    number: int
    """Number of the column that names pictures."""
    parts: int
    """Number of separators at which a line is cut; -1: at all of them."""
    above: int
    """Number of lines above the first one that names a picture."""
    header: Sequence[str]
    """The names of the columns after the one that names pictures; empty if no line has them."""
    rows: Sequence[tuple[str, str]]
    """Name and class of each picture; an empty class if there is no single column of classes, but several of 0 and 1.
    """
    is_cut: bool
    """Whether the file has more lines than were read."""

    @property
    def split(self) -> str | None:
        return split_of(self.file.base.rpartition(".")[0])

    @property
    def label(self) -> str:
        """The first class; "" if there is no single column of classes."""
        return next((label for _, label in self.rows if label), "")

    def cells(self, wanted: str) -> str:
        """Code of Python that makes a list of what is wanted of the ``cells`` of each line."""
        lines = f"open({str(self.file.path)!r}, encoding={self.encoding!r})"
        return f"[{wanted} for line in {f'list({lines})[{self.above}:]' if self.above else lines} {self.cut}]"

    @property
    def cut(self) -> str:
        """Code of Python that cuts a line into cells, and leaves out lines without a class."""
        asked = [repr(self.separator)] * (self.separator is not None or self.parts >= 0)
        asked += [str(self.parts)] * (self.parts >= 0)
        return f"for cells in [line.strip().split({', '.join(asked)})] if len(cells) > {self.number + 1}"


def about_lists(files: Sequence[File], index: FileIndex, root: Path) -> Iterator[str]:
    """Sentences about files whose lines name pictures and their classes, each with the cure.

    Args:
        files: text files and tables, the most important first.
        index: the pictures.
        root: the data folder.
    """
    lists = [one for file in files if (one := _read(file, index)) is not None]
    known = {label for one in lists if one.split in ("train", None) for _, label in one.rows}
    if not any(one.is_cut for one in lists if one.split in ("train", None)):  # else not all classes are known
        lists = [one for one in lists if not _are_counted(one) or known.issuperset(label for _, label in one.rows)]
    for one in lists:
        if (told := _about(one, lists, index, root)) is not None:
            yield told


def _read(file: File, index: FileIndex) -> _List | None:
    """The list in a file; None if no column names pictures, or if what is after it is no class (boxes, captions)."""
    try:
        encoding = encoding_of(file.path)
        with file.path.open(encoding=encoding) as text:
            lines = [line.strip() for line in islice(_lines_of(text), MOST_LINES)]
            is_cut = text.readline(1) != ""
    except (OSError, ValueError):
        return None
    some = [line[:BEGINNING] for line in islice(filter(None, lines), 100)]
    separator: str | None = separator_of("\n".join(some))
    if not file.name.lower().endswith(".txt") and _have_pixels([line.split(separator) for line in some]):
        return None
    number = naming_column([line.split(separator) for line in some], index)
    if number is None:
        separator, number = None, naming_column([line.split() for line in some], index)
    if number is None:
        return None
    most = number + 1 + MOST_CELLS
    named = [
        (at, row[:most])
        for at, row in enumerate(line.split(separator, most) for line in lines)
        if number < len(row) and index.find(row[number])
    ]
    if not named:  # only the cut beginnings of lines name pictures
        return None
    above = named[0][0]
    after = [row[number + 1 :] for _, row in named]
    if not all(after):
        return None
    width, first = len(lines[above].split(separator)) - number - 1, {row[0].strip() for row in after}
    header = _header(lines[:above], separator, number, width, first)
    if _are_yes_or_no((lines[at].split(separator)[number + 1 :] for at, _ in named), header):
        rows = [(row[number], "") for _, row in named]
        return _List(file, encoding, separator, number, -1, above, header, rows, is_cut)
    parts = _parts(file, after, separator, number)
    if parts is None:
        return None
    cut = [lines[at].split(separator, parts if parts >= 0 else number + 2) for at, _ in named]
    rows = [(row[number], row[number + 1].strip()) for row in cut]
    found = _List(file, encoding, separator, number, parts, above, header, rows, is_cut)
    return found if _may_be_labels(found) else None


def _lines_of(text: TextIO) -> Iterator[str]:
    """The whole lines in the first ``MOST_CHARACTERS`` of a file."""
    left = MOST_CHARACTERS
    while left > 0 and (line := text.readline(left)):
        left -= len(line)
        if left > 0 or line.endswith("\n"):
            yield line


def _have_pixels(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the cells are those of a table with the pixels of pictures, and not columns of ``YES_OR_NO``."""
    cells = [[cell.strip(' "') for cell in row] for row in rows]
    levels = [{cell for cell in row if cell.isdecimal()} - YES_OR_NO for row in cells[1:]]
    if not any(len(found) > 1 for found in levels) and max(map(len, cells), default=0) > MOST_CELLS:
        return False
    return bool(about_pixels(rows[0], list(enumerate(cells[1:])))) if rows else False


def _header(above: Sequence[str], separator: str | None, number: int, width: int, first: Set[str]) -> Sequence[str]:
    """The names of the columns after the one that names pictures, in the last line above the pictures. The line may
    have no name for the column that names pictures.

    Args:
        above: the lines above the pictures.
        separator: the separator of the cells.
        number: number of the column that names pictures.
        width: number of the columns after it.
        first: the cells of the first column after it.
    """
    line = next(filter(None, reversed(above)), "")
    last = line.split(separator)
    if not line or line.startswith("#") or len(last) not in (width, number + 1 + width):
        return ()
    names = [name.strip() for name in last[-width:]]
    return () if names[0] in first else names


def _parts(file: File, after: Sequence[Sequence[str]], separator: str | None, number: int) -> int | None:
    """``_List.parts`` for the cells after the name of each picture; None if they are no class: coordinates, several
    numbers, measured ones, or splits.

    Cells between white space are one class ("Boeing 707-320"), unless all after the first one are numbers.
    """
    # Masks are thousands of numbers in a cell, of which a few are enough.
    numbers = [re.split(r"[\s,;]+", " ".join(row)[:LONGEST].strip()) for row in after]
    widths = {len(row) for row in after}
    if all(NUMERIC.fullmatch(cell) for row in numbers for cell in row):
        first = [row[0] for row in numbers]
        count = {len(row) for row in numbers}
        says_split = words_of(file.base) & SPLITTING and set(first) <= {"0", "1", "2"}
        if len(count) > 1 or max(count) >= CORNERS or len(widths) > 1 or count != widths or says_split:
            return None
        return None if are_measured(first) or (max(count) > 1 and not may_be_classes(first)) else -1
    if separator is not None:
        return -1
    are_columns = len(widths) == 1 and max(widths) > 2
    if are_columns and all(NUMERIC.fullmatch(cell) for row in after for cell in row[1:]):
        return -1
    return number + 1


def _are_yes_or_no(after: Iterable[Sequence[str]], header: Sequence[str]) -> bool:
    """Whether the cells after the name of each picture are columns of YES_OR_NO, at least two with names."""
    width = 0
    for row in after:
        width = width or len(row)
        if len(row) != width or not {cell.strip() for cell in row} <= YES_OR_NO:
            return False
    return width >= (2 if header else CORNERS)


def _may_be_labels(one: _List) -> bool:
    """Whether the classes of a list are no names of splits or of pictures, no captions, and no lists of several classes
    in a line; and whether some are repeated, if it may be the training pictures."""
    labels = [label for _, label in one.rows]
    found = set(labels)
    if found == {""} or (len(found) == len(labels) and one.split in ("train", None)):
        return False
    if all(map(split_of, found)) or all(label.lower().endswith(PICTURE_ENDINGS) for label in found):
        return False
    words = sum(len(label.split()) for label in labels) / len(labels)
    return (may_be_classes(labels) or words <= 3) and not (one.parts >= 0 and combined(labels))


def _are_counted(one: _List) -> bool:
    """Whether each line has another number: it is probably the number of the picture (ImageNet)."""
    numbers = {label for _, label in one.rows if label.isdecimal()}
    return len(numbers) == len(one.rows) > 1


def _about(one: _List, lists: Sequence[_List], index: FileIndex, root: Path) -> str | None:
    """What a list has, and the cure; None if it is a table that is read."""
    (name, _), label = one.rows[0], one.label
    top = one.file.name.split("/")[0]
    in_split = split_of(top) if "/" in one.file.name else None
    picture = index.find(name, (in_split or "train",))[0]
    if not label:
        return _about_columns(one, f"{one.file.name} names pictures, such as {picture.name}")
    found = f"{one.file.name} names pictures, such as {picture.name}, and {label!r} seems to be its class"
    if in_split is not None and not one.above and picture.name.endswith(name):
        before = f"{root}/{picture.name.removesuffix(name)}"
        moved = f"{before!r} + cells[{one.number}]"
        to = f"{f'{root}/{top}/'!r} + cells[{one.number + 1}].strip() + '/' + cells[{one.number}]"
        return (
            f"{found}; in Python, this line moves each picture into the folder of its class: import os, pathlib; "
            f"print(len([os.renames({moved}, {to}) for line in "
            f"pathlib.Path({str(one.file.path)!r}).read_text({one.encoding!r}).splitlines() {one.cut} and "
            f"os.path.isfile({moved})]), 'pictures moved')"
        )
    if one.separator is not None and one.header:
        if not one.file.name.lower().endswith(".txt") or not may_be_classes([label for _, label in one.rows]):
            return None
        if (settings := _settings(one, index)) is not None:
            return f"{found}; it is a table of labels: {settings}"
    elif one.separator is not None:
        return f"{found}; to make it a table of labels (data.labels), add a first line with a name for each column"
    return found + _as_table(one, lists, root)


def _settings(one: _List, index: FileIndex) -> str | None:
    """The settings with which a table with names of columns is read; None if it cannot be read."""
    labels = f"data.labels = {_quoted(one.file.name)}"
    try:
        read_table(one.file.path, Columns(), index)
    except DataError:
        pass
    else:
        return labels
    try:
        header, _ = read_lines(one.file.path)
        file, label = header[one.number], header[one.number + 1]
        read_table(one.file.path, Columns(file=file, label=label), index)
    except (DataError, IndexError):
        return None
    return f"{labels}, data.columns = {{ file = {_quoted(file)}, label = {_quoted(label)} }}"


def _as_table(one: _List, lists: Sequence[_List], root: Path) -> str:
    """A clause with the line of Python that makes a table of labels of a list, and of the lists of the other splits."""
    same = _of_one_set(one, lists)
    others = [
        other.file.name
        for other in lists
        if other not in same and other.split in ("train", None) and other.separator is None and other.label
    ]
    more = f"; other such lists: {', '.join(others)} (write the name of one in the line instead)" if others else ""
    wanted = f"[cells[{one.number}], cells[{one.number + 1}].strip()"
    if same[1:] and not (root / JOINED).exists():
        names = "".join(f", {other.file.name}" for other in same[1:-1]) + f" and {same[-1].file.name}"
        rows = " + ".join(other.cells(f"{wanted}, {other.split!r}]") for other in same)
        return (
            f"{more}; this line of Python makes a table of labels of it{names}, data.labels = "
            f"{_quoted(JOINED)}: import csv; {_writer(root / JOINED)}.writerows([['file', 'label', 'split']] + {rows})"
        )
    table = _new(one.file)
    name = one.file.name.removesuffix(one.file.base) + table.name
    made = one.file.path.with_suffix(".csv")
    if made != table and _begins(made, "file,label"):
        return f"; its table is there: data.labels = {_quoted(name.removesuffix(table.name) + made.name)}"
    return (
        f"{more}; this line of Python makes a table of labels of it, data.labels = {_quoted(name)}: import csv; "
        f"{_writer(table)}.writerows([['file', 'label']] + {one.cells(f'{wanted}]')})"
    )


def _of_one_set(one: _List, lists: Sequence[_List]) -> Sequence[_List]:
    """A list of training pictures and those of the other splits, in their order: their names differ only in the words
    of the splits, they name other pictures, and they have no other classes, if all lines of it were read. For another
    list, this list alone."""
    if one.split != "train":
        return [one]
    name = _without_splits(one.file)
    found, pictures = [one], _names(one)
    for split in ("val", "test"):
        for other in lists:
            if (
                other.split == split
                and _without_splits(other.file) == name
                and (other.separator, other.number, other.parts) == (one.separator, one.number, one.parts)
                and (one.is_cut or {label for _, label in other.rows} <= {label for _, label in one.rows})
                and pictures.isdisjoint(names := _names(other))
            ):
                found.append(other)
                pictures |= names
                break
    return found


def _names(one: _List) -> set[str]:
    """The names of the pictures of a list, also in lines after the first ``MOST_LINES``."""
    names = {name for name, _ in one.rows}
    if one.is_cut:
        with suppress(OSError, ValueError), one.file.path.open(encoding=one.encoding) as text:
            for line in islice(_lines_of(text), one.above, None):
                cells = line.strip().split(one.separator, one.number + 1)
                names.update(cells[one.number : one.number + 1])
    return names - {""}


def _without_splits(file: File) -> str:
    """The path of a file without its ending and without the words of splits."""
    return "/".join(filter(None, map(rest_of, file.name.rpartition(".")[0].split("/"))))


def _about_columns(one: _List, found: str) -> str | None:
    """A sentence about a file with columns of 0 and 1, or of -1 and 1; None if it is a table with names of columns."""
    if one.header and not one.file.name.lower().endswith(".txt"):
        return None
    if not one.header:
        return (
            f"{found}, and has columns of {' and '.join(sorted(YES_OR_NO))}; if one of them is the class, make a "
            "table with names of columns of it (data.labels, data.columns)"
        )
    table = _new(one.file)
    name = one.file.name.removesuffix(one.file.base) + table.name
    some = ", ".join(one.header[:3]) + (", ..." if one.header[3:] else "")
    wanted = f"[cells[{one.number}], *cells[{one.number + 1}:]]"
    return (
        f"{found}, and has columns of yes and no ({some}); if one of them is the class, this line of Python makes a "
        f'table of it, with which data.labels = {_quoted(name)} and data.columns = {{ file = "file", label = '
        f"{_quoted(one.header[0])} }} train on that column: import csv; {_writer(table)}"
        f".writerows([{['file', *one.header]!r}] + {one.cells(wanted)})"
    )


def _new(file: File) -> Path:
    """The path of a new table of a file."""
    table = file.path.with_suffix(".csv")
    return table.with_name(f"{table.stem}-labels.csv") if table.exists() else table


def _begins(table: Path, line: str) -> bool:
    try:
        with table.open(encoding="utf-8") as text:
            return next(text, "").strip() == line
    except (OSError, ValueError):
        return False


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _writer(path: Path) -> str:
    return f"csv.writer(open({str(path)!r}, 'w', newline='', encoding='utf-8'))"
