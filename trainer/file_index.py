"""The files that the cells of a label table mean, and the rows of such tables as text."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

from trainer.errors import DataError
from trainer.split_names import split_of
from trainer.tree import PICTURE_ENDINGS, File, Folder
from trainer.unclear import unwrapped

__all__ = [
    "FileIndex",
    "Form",
    "NearMiss",
    "composed",
    "corrected",
    "encoding_of",
    "files_around",
    "form_of",
    "lists_pictures",
    "naming_column",
    "read_lines",
    "separator_of",
    "tables_in",
]

csv.field_size_limit(2**31 - 1)
"""Python's own limit is 131,072 characters, and the cells of masks (RLE) and of base64 are longer. A table is in memory
as a whole, so this limit, the highest that all systems allow, costs nothing."""

LONGEST_PATH = 16_384
"""Largest number of characters of a cell that may name a file: 4,096 bytes written as %20, and a signature after it."""

MOST_FOLDERS = 40
"""Largest number of leading folders that a path may have more than the name of a picture."""

TABLE = re.compile(r"\.[ct]sv$")
URL = re.compile(r"[a-z][a-z0-9+.-]+://[^/]*(/[^?#]*)", re.IGNORECASE)
LABEL_STUDIO = re.compile(r"/data/local-files/\?d=(.+)")
"""The form in which Label Studio writes the path of a local file."""

UPLOADED = re.compile(r"(?:.*/)?data/upload/(?:\d+/)?[0-9a-f]{8}-(.+)")
"""The form in which Label Studio writes an uploaded file: the group is the name that the file had before."""


@dataclass(frozen=True)
class NearMiss:
    """A picture that a row names in another spelling."""

    file: File
    why: str
    """What is different, as a clause: "ids lack leading zeros"."""
    cure: str
    too_much: str = ""
    """Regular expression of what the row has and the name has not; empty if zeros lack."""
    digits: int = 0
    """Number of digits with leading zeros."""

    def mended(self, cell: str) -> str:
        """The text of a cell in the spelling of the picture."""
        return re.sub(self.too_much, "", cell) if self.too_much else cell.strip().zfill(self.digits)

    def in_python(self, cell: str) -> str:
        """Code of Python for ``mended``. ``cell`` is code for the text."""
        return f're.sub(r"{self.too_much}", "", {cell})' if self.too_much else f"{cell}.strip().zfill({self.digits})"


class FileIndex:
    """Files by the last parts of their paths: "train/a/1.jpg", "a/1.jpg", "1.jpg"; each also without ".jpg"."""

    def __init__(self, files: Sequence[File], root: Path) -> None:
        self._by_key: dict[str, list[File]] = defaultdict(list)
        self._by_number: dict[str, list[File]] = defaultdict(list)
        self.root = root
        self._root = [_folded(part) for part in root.resolve().parts[1:]]
        for file in files:
            parts = _folded(os.fsencode(file.name).decode("utf-8", "surrogateescape")).split("/")  # UTF-8, as in tables
            for start in range(len(parts)):
                key = "/".join(parts[start:])
                for one in {key, _stem(key)}:
                    self._by_key[one].append(file)
            if (stem := _stem(parts[-1])).isdecimal() and stem.startswith("0") and file.is_picture:
                self._by_number[stem.lstrip("0")].append(file)

    def find(self, value: str, splits: Sequence[str] = ("train",)) -> list[File]:
        """The files that a row names: one, several that fit equally well, or none. Files in folders of ``splits`` are
        preferred, in this order."""
        if len(value) > LONGEST_PATH:
            return []
        for path in _paths(value):
            written = composed(path.replace("\\", "/"))
            is_elsewhere = written.startswith(("/", "../")) or written[1:3] == ":/"
            exact = [part for part in written.split("/") if part not in ("", ".", "..")]
            parts = [part.casefold() for part in exact]
            for start in range(len(parts)):
                # Leading folders may be dropped if the data folder's path ends in them, or if the path leads out of
                # the data folder: the table may be from another machine.
                if start and not is_elsewhere and parts[:start] != self._root[-start:]:
                    break
                if found := self._by_key.get("/".join(parts[start:])):
                    return _chosen(found, "/".join(exact[start:]), splits)
        return []

    def near_miss(self, value: str) -> NearMiss | None:
        """The picture that a row names in another spelling. None if it names a file exactly, or in no spelling."""
        value = value.strip()
        if len(value) > LONGEST_PATH or self.find(value):
            return None
        if found := self._by_number.get(value):
            file = _chosen(found, value, ("train",))[0]
            why, cure = "ids lack leading zeros", "write ids as in the names"
            return NearMiss(file, why, cure, digits=len(_stem(file.base)))
        for too_much, why, cure in _differences(value):
            spelling = re.sub(too_much, "", value)
            pictures = [file for file in self.find(spelling) if file.is_picture] if spelling not in ("", value) else []
            if len(pictures) == 1:
                return NearMiss(pictures[0], why, cure, too_much)
        return None


def _differences(value: str) -> Iterator[tuple[str, str, str]]:
    """What a row may have more than the name of a picture: ``NearMiss.too_much``, and why and the cure."""
    if re.fullmatch(r"\d+[.]0*", value):
        yield r"[.]0*\s*$", "ids are written with a decimal point", "write ids as in the names"
    if value.lower().endswith(PICTURE_ENDINGS):
        yield r"[.]\w+\s*$", "files have another ending here", "write names without their ending"
    cure = "write paths as they are below the data folder"
    for count in range(1, min(len(re.findall(r"[/\\]", value)), MOST_FOLDERS + 1)):
        folders = "a folder" if count == 1 else f"{count} folders"
        yield rf"^\s*([^/\\]+[/\\]){{{count}}}", f"paths begin with {folders} more than here", cure
    yield r"^.*[/\\]", "files are in other folders here", f"{cure}, or file names"


def _chosen(found: list[File], written: str, splits: Sequence[str]) -> list[File]:
    """The files that fit best, by: whole path of a picture, whole path in any case, a picture's ending, upper and lower
    case, the folder's split."""
    if len(found) == 1:
        return found
    key, depth = written.casefold(), written.count("/") + 1

    def end(file: File, parts: int = depth) -> str:
        return "/".join(composed(file.name).split("/")[-parts:])

    # The most important comes first.
    best: tuple[Callable[[File], bool], ...] = (
        lambda file: file.is_picture and written == composed(file.name),
        lambda file: key in (_folded(file.name), _stem(_folded(file.name))),
        lambda file: file.is_picture,
        lambda file: written in (end(file), _stem(end(file))),
        lambda file: written.rpartition("/")[2] in (end(file, 1), _stem(end(file, 1))),
        *(partial(_lies_in, split=split) for split in splits),
    )
    for fits in best:
        found = [file for file in found if fits(file)] or found
    return found


def _paths(value: str) -> Iterator[str]:
    """The paths that a row may mean: its text, and others if it is a URL or has a "%", or if Label Studio wrote it.
    They are the path in the URL, or else the text, with %20 and the like decoded; and the name of an uploaded file."""
    yield value
    path = value
    if (found := LABEL_STUDIO.fullmatch(value.strip()) or URL.match(value.strip())) is not None:
        path = found[1]
    if "%" in path or path != value:
        path = unquote(path)
        yield path
    if (uploaded := UPLOADED.fullmatch(path.strip())) is not None:
        yield uploaded[1]


def _lies_in(file: File, split: str) -> bool:
    return any(split_of(part) == split for part in file.name.split("/")[:-1])


def composed(text: str) -> str:
    """A name as Windows and Linux write it (NFC), without spaces around it. macOS separates accents from letters."""
    return unicodedata.normalize("NFC", text.strip())


def _folded(text: str) -> str:
    """A name in the form in which names are compared: composed, and without regard to case."""
    return composed(text).casefold()


def _stem(name: str) -> str:
    """The name without its ending, if it has one."""
    stem, _, ending = name.rpartition(".")
    return name if not stem or "/" in ending else stem


@dataclass(frozen=True)
class Form:
    """The form of a table, with which Python's csv reads it as this program does."""

    encoding: str
    separator: str
    above: int
    """Number of lines above the names of the columns: empty ones, comments, the separator for Excel."""

    def rows(self, table: str) -> str:
        """Code of Python for the rows of a table, from the names of its columns on. ``table`` is code for its path."""
        lines = f"open({table}, newline='', encoding={self.encoding!r})"
        lines = f"list({lines})[{self.above}:]" if self.above else lines
        return f"csv.reader({lines}, delimiter={self.separator!r}, skipinitialspace=True)"


def form_of(path: Path) -> Form:
    """The form of a table that ``read_lines`` reads.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    encoding = encoding_of(path)
    text = path.read_bytes().decode(encoding, "replace")
    separator = separator_of(text)
    if (said := EXCEL_SEPARATOR.match(text)) is not None:
        text = "\n" * len(said[0].splitlines()) + text[said.end() :]
    lines = io.StringIO(_without_comments(text, separator), newline=None)
    return Form(
        encoding, separator, next((at for at, line in enumerate(lines) if line.replace(separator, "").strip()), 0)
    )


def corrected(table: Path, column: str, in_python: Callable[[str], str]) -> str:
    """A line of Python that copies a table with another spelling in one column, and what it does. ``in_python`` gives
    code for the new text of a cell, from code for the cell."""
    header, _ = read_lines(table)
    form, number = form_of(table), header.index(column)
    new = table.with_name(f"{table.stem}-corrected.csv")
    return (
        f"this line of Python does so in a new table, {new.name}: import csv, re; csv.field_size_limit(2**31 - 1); "
        f"csv.writer(open({str(new)!r}, 'w', newline='', encoding='utf-8')).writerows([[*row[:{number}], "
        f"{in_python(f'row[{number}]')}, *row[{number + 1}:]] if at and len(row) > {number} "
        f"else row for at, row in enumerate({form.rows(repr(str(table)))})])"
    )


def read_lines(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header of a table, and the rows that are not empty, each with the number of its line.

    Raises:
        DataError: it is not a CSV or TSV file, or cannot be read.
    """
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: the path has a NUL in it
        why = getattr(error, "strerror", error)
        raise DataError(f"the table {path} cannot be read: {why}; data.labels is relative to the data folder") from None
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
        if "\0" in text:  # UTF-16 without a byte order mark
            raise UnicodeError
    except UnicodeError:
        raise DataError(f"the table {path} is not text in UTF-8; save it as CSV in UTF-8") from None
    separator = separator_of(text)
    if (said := EXCEL_SEPARATOR.match(text)) is not None:
        text = "\n" + text[said.end() :]  # so that lines keep their numbers
    text = _without_comments(text, separator)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        lines = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"the table {path} is not a CSV or TSV file, line {reader.line_num}: {error}") from None
    if not lines:
        raise DataError(f"the table {path} is empty; its first line names the columns")
    header = [name.strip() for name in lines[0][1]]
    for line, row in lines[1:]:
        if any(cell.strip() for cell in row[len(header) :]):
            raise DataError(
                f"the table {path} has {len(header)} columns, and line {line} has {len(row)} cells; put a cell that "
                f"contains {'a tab' if separator == chr(9) else separator} in double quotes"
            )
    return header, lines[1:]


def encoding_of(path: Path) -> str:
    """The encoding of a text file for Python's ``open``: UTF-16 if the file says so in its first bytes, else UTF-8.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _without_comments(text: str, separator: str) -> str:
    """The text with an empty line in place of each comment line ("#") at its beginning, so that lines keep their
    numbers. If the last of them has as many cells as the line after it, it has the names of the columns, and stays."""
    found = COMMENTS.match(text)
    if found is None:
        return text
    comments = found[0].splitlines(keepends=True)
    after = text[found.end() :].partition("\n")[0]
    if separator in after and comments[-1].count(separator) == after.count(separator):
        comments.pop()
    return "\n" * len(comments) + text[sum(map(len, comments)) :]


COMMENTS = re.compile(r"(#[^\r\n]*(\r\n|\r|\n))+")
"""Lines at the beginning of a table that begin with "#"."""

EXCEL_SEPARATOR = re.compile(r"\s*sep=(.)(\r\n|\r|\n)", re.IGNORECASE)
"""A first line in which Excel is told the separator of a CSV file."""


def separator_of(text: str) -> str:
    """The separator of a table's cells: the one after "sep=", or else one that occurs in the first line,
    if possible one that divides most lines into as many cells as the first line."""
    if (said := EXCEL_SEPARATOR.match(text)) is not None:
        return said[1]
    if (comments := COMMENTS.match(text)) is not None:
        text = text[comments.end() :]
    some = [line[:10_000] for line in islice(io.StringIO(text, newline=None), 100) if line.strip()][:20]
    first = some[0] if some else ""

    def fit(separator: str) -> tuple[bool, int]:
        rows = csv.reader(some, delimiter=separator, skipinitialspace=True)
        counts = [len(row) for row in rows]
        return 2 * counts.count(counts[0]) > len(counts) if counts else False, first.count(separator)

    return max((one for one in "\t,;|" if one in first), key=fit, default=",")


def tables_in(tree: Folder) -> list[File]:
    """The CSV and TSV files of ``files_around``, except a contest's sample submission."""
    files = files_around(tree)
    return [one for one in files if TABLE.search(one.name.lower()) and "submission" not in one.name.lower()]


def files_around(tree: Folder) -> list[File]:
    """Files that may say something about the pictures. They are in the data folder, in a wrapper (a folder inside it,
    which holds all pictures), or in a folder directly inside one of these. If such a folder holds no pictures, its
    files at any depth are included."""
    wraps = [tree, unwrapped(tree)]
    while (name := wraps[-1].name.rpartition("/")[0]) and name != tree.name:
        wraps.append(next(one for one in tree.tree() if one.name == name))
    folders = {one.name: one for top in wraps for one in (top, *top.folders)}
    folders |= {one.name: one for top in [*folders.values()] if not top.holds_pictures for one in top.tree()}
    return [file for folder in folders.values() for file in folder.files]


def naming_column(rows: Sequence[Sequence[str]], index: FileIndex) -> int | None:
    """The column that names files in most of the first 100 rows; None if there is none."""
    some = rows[:100]
    for number in range(max(map(len, some), default=0)):
        if 2 * sum(number < len(row) and bool(index.find(row[number])) for row in some) > len(some):
            return number
    return None


def lists_pictures(file: File, index: FileIndex) -> bool:
    """Whether the lines of a text file (.txt) name pictures, each with something else: a class, or other numbers."""
    if not file.name.lower().endswith(".txt"):
        return False
    try:
        with file.path.open(encoding=encoding_of(file.path)) as text:
            rows = [re.split(r"[,;\s]+", line.strip()) for line in islice(text, 100) if line.strip()]
    except (OSError, ValueError):
        return False
    return all(len(row) > 1 for row in rows) and naming_column(rows, index) is not None
