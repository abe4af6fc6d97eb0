"""Files by what a label table writes for them, and the rows of such tables as text."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from trainer.errors import DataError
from trainer.split_names import split_of
from trainer.tree import File, Folder
from trainer.unclear import unwrapped

__all__ = ["FileIndex", "composed", "naming_column", "read_lines", "tables_in"]


class FileIndex:
    """Files by the ends of their paths, with and without the name's ending: "train/a/1.jpg", "a/1.jpg", "1.jpg"."""

    def __init__(self, files: Sequence[File], root: Path) -> None:
        self._by_key: dict[str, list[File]] = defaultdict(list)
        self._by_number: dict[str, list[File]] = defaultdict(list)
        self._root = [_folded(part) for part in root.resolve().parts[1:]]
        for file in files:
            parts = _folded(file.name).split("/")
            for start in range(len(parts)):
                key = "/".join(parts[start:])
                for one in {key, _stem(key)}:
                    self._by_key[one].append(file)
            if (stem := _stem(parts[-1])).isdecimal() and stem.startswith("0") and file.is_picture:
                self._by_number[stem.lstrip("0")].append(file)

    def find(self, value: str, splits: Sequence[str] = ("train",)) -> list[File]:
        """The file that a row names; several if they fit equally well. Folders of the first split are preferred."""
        written = _folded(value.replace("\\", "/"))
        is_absolute = written.startswith("/") or written[1:3] == ":/"
        parts = [part for part in written.split("/") if part not in ("", ".")]
        for start in range(len(parts)):
            # Leading folders may be dropped if the data folder's path ends in them, or if the path is absolute: the
            # table may be from another machine.
            if start and not is_absolute and parts[:start] != self._root[-start:]:
                break
            if found := self._by_key.get("/".join(parts[start:])):
                return self._chosen(found, value, "/".join(parts[start:]), splits)
        return []

    def lacks_zeros(self, value: str) -> File | None:
        """The picture whose name is this number with leading zeros: "1" for 0001.png."""
        found = self._by_number.get(value.strip())
        return self._chosen(found, value, value, ("train",))[0] if found else None

    def _chosen(self, found: list[File], value: str, key: str, splits: Sequence[str]) -> list[File]:
        """The files that fit best, by: whole path, a picture's ending, upper and lower case, the folder's split."""
        exact = composed(value).replace("\\", "/").rpartition("/")[2]
        if len(found) == 1:
            return found
        # In the order of their weight. The third sets ``name`` for its own comparison.
        best: tuple[Callable[[File], bool], ...] = (
            lambda file: key in (_folded(file.name), _stem(_folded(file.name))),
            lambda file: file.is_picture,
            lambda file: exact in (name := composed(file.name).rpartition("/")[2], _stem(name)),
            *(partial(_lies_in, split=split) for split in splits),
        )
        for fits in best:
            found = [file for file in found if fits(file)] or found
        return found


def _lies_in(file: File, split: str) -> bool:
    return any(split_of(part) == split for part in file.name.split("/")[:-1])


def composed(text: str) -> str:
    """A name as Windows and Linux write it (NFC); macOS separates accents from their letters (NFD)."""
    return unicodedata.normalize("NFC", text.strip())


def _folded(text: str) -> str:
    """A name in the form in which names are compared: composed, and without regard to case."""
    return composed(text).casefold()


def _stem(name: str) -> str:
    """The name without its ending, if it has one."""
    stem, _, ending = name.rpartition(".")
    return name if not stem or "/" in ending else stem


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
    except UnicodeDecodeError:
        raise DataError(f"the table {path} is not text in UTF-8; save it as CSV in UTF-8") from None
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = max("\t,;", key=first.count)
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


def tables_in(tree: Folder) -> list[File]:
    """CSV and TSV files in the data folder, in the only folder with pictures, and in the folders directly inside these
    two, except a contest's sample submission."""
    tops = {folder.name: folder for folder in (tree, unwrapped(tree))}
    folders = {one.name: one for top in tops.values() for one in (top, *top.folders)}
    return [
        file
        for folder in folders.values()
        for file in folder.files
        if file.name.lower().endswith((".csv", ".tsv")) and "submission" not in file.name.lower()
    ]


def naming_column(rows: Sequence[Sequence[str]], index: FileIndex) -> int | None:
    """The column that names files in most of the first 100 rows; None if there is none."""
    some = rows[:100]
    for number in range(max(map(len, some), default=0)):
        if 2 * sum(number < len(row) and bool(index.find(row[number])) for row in some) > len(some):
            return number
    return None
