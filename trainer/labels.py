"""Label tables: CSV or TSV files with the class of each picture and, if they have the columns, its split and group.

With a table, the names of folders have no meaning. A row names its picture by its path, by its file name, or by the
file name without its ending. The picture may be in any folder below the data folder.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from trainer.classes import are_measured, combined, decimals_in
from trainer.config import Columns, DataConfig
from trainer.errors import DataError, as_lines
from trainer.file_index import (
    FileIndex,
    composed,
    corrected,
    files_around,
    form_of,
    lists_pictures,
    naming_column,
    read_lines,
    tables_in,
)
from trainer.one_hot import about_one_hot, columns_of_classes
from trainer.pixels import about_pixels
from trainer.split_names import split_of
from trainer.tree import NOW, File, Folder, Reading, read_tree
from trainer.unused_columns import columns_not_used, strange_splits
from trainer.values import expanded

__all__ = ["FILE_COLUMNS", "LABEL_COLUMNS", "LabelledFile", "Labels", "Table", "read_labels", "read_table"]

FILE_COLUMNS = (
    *("path", "img_path", "file_name", "filename", "file", "image", "image_id", "id"),
    *("image_path", "file_path", "filepath", "filepaths", "image_name", "img"),
)
"""Names of the column of files, in lower case. If a table has several, the first whose values name files is used."""

MISSING = {"nan", "<na>", "na", "n/a", "null", "none", "?", "-", "--", "missing", "unlabeled", "unlabelled"}
"""Labels and groups, in lower case, that other programs and people write for a missing value."""

LONGEST_LABEL = 1000
"""Largest number of characters of a class's name, and of a cell that a message shows as a whole."""

LABEL_COLUMNS = (
    *("label", "class", "target", "labels", "class_name", "classname", "class_id", "classid", "category"),
    "choice",  # Label Studio
)
COLUMNS = {"file": FILE_COLUMNS, "label": LABEL_COLUMNS, "split": ("split",), "group": ("group",)}
"""Key of the ``columns`` setting -> names of that column."""


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    line: int
    """Line of the file on which it ends, from 1."""
    file: str
    label: str
    split: str = ""
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A table that was read."""

    path: Path
    columns: Mapping[str, str]
    """file, label and, if the table has them, split and group -> name of that column in the header."""
    rows: Sequence[Row]
    notices: Sequence[str] = ()


@dataclass(frozen=True)
class LabelledFile:
    """A picture with its row's label, split and group."""

    file: File
    label: str
    split: str
    group: str


@dataclass(frozen=True)
class Labels:
    """The content of the tables of a data folder."""

    files: Sequence[LabelledFile]
    left_out: Sequence[tuple[str, str]]
    """(name, reason) of each row without a file; and of each picture without a row, in folders where others have one.
    Empty unless bad_files = "skip"."""
    notices: Sequence[str]


def read_labels(config: DataConfig, root: Path, reading: Reading = NOW) -> Labels:
    """Match the tables that ``config`` names with the files below ``root``.

    Raises:
        DataError: a table cannot be read, or does not fit the files; the message lists all problems.
    """
    assert config.labels is not None
    tree = read_tree(root, reading)
    asked = [("train", config.labels)] + ([("test", config.test_labels)] if config.test_labels is not None else [])
    paths = [root / expanded(name) for _, name in asked]
    files = FileIndex([file for file in tree.walk() if file.path not in paths], root)
    found: dict[str, tuple[LabelledFile, str]] = {}
    unlabelled: list[File] = []
    undecided: set[str] = set()
    spelled: dict[str, str] = {}
    wrong: list[str] = []
    missing: list[tuple[str, str]] = []
    notices: list[str] = []
    lost: list[tuple[str, Table]] = []
    for (split, name), path in zip(asked, paths, strict=True):
        table = read_table(path, config.columns or Columns(), files)
        notices += table.notices
        for row in table.rows:
            where = f"{name} line {row.line}"
            own = split_of(row.split) if row.split and split == "train" else split
            matches = files.find(row.file, (own or split, split))
            if own is None:
                wrong.append(f"{where}: {_short(row.split)!r} names no split; write train, val or test")
            elif not matches:
                missing.append((f"{where}: {_short(row.file)}", "names no file"))
                lost.append((row.file, table))
            elif len(matches) > 1:
                undecided |= {file.name for file in matches}
                names = " or ".join(file.name for file in matches[:3])
                wrong.append(
                    f"{where}: {_short(row.file)} may be {names}; write the path, or set data.path to its folder"
                )
            elif not row.label:
                unlabelled.append(matches[0])
            elif len(row.label) > LONGEST_LABEL:
                wrong.append(
                    f"{where}: the label has {len(row.label):,} characters, and a class has at most {LONGEST_LABEL:,}; "
                    "if another column has the classes, name it (data.columns)"
                )
            else:
                # One spelling for names that differ only in how accents are stored, as for class folders.
                label, group = (spelled.setdefault(composed(text), text) for text in (row.label, row.group))
                _take(LabelledFile(matches[0], label, own, group), where, found, wrong)
    beside, elsewhere = _without_a_row(tree, {*found, *undecided, *(file.name for file in unlabelled)}, found)
    missing += [(file.name, "no row names it") for file in beside]
    if config.bad_files == "fail":
        wrong += [f"{name}: {why}" for name, why in missing]
    others = [file for file in tables_in(tree) if file.path not in paths]
    if not found and not wrong:
        wrong.append("no row names a picture and its label")
    elif found and not any(one.split == "train" for one, _ in found.values()):
        wrong.append("no row is of the train split")
    if wrong:
        count = f"{len(wrong)} problems" if len(wrong) > 1 else "a problem"
        cure = '; bad_files = "skip" skips rows without a file and files without a row' if missing else ""
        tables = " and ".join(name for _, name in asked)
        if more := _tables_of(beside, others, config.columns or Columns(), root):
            cure += f"; files without a row are in {' and '.join(more)}: add those rows to {config.labels}, with a "
            cure += "column split that says train, val or test in each row"
        nearly, line = _near_miss(lost, files) if len(lost) > len(found) else ("", "")
        raise DataError(f"{root}: {count} with {tables}{nearly}{cure}:{as_lines(wrong)}{line}")
    others += [file for file in files_around(tree) if file.name.lower().endswith(".txt")]
    notices += _passed_over(unlabelled, elsewhere, root, others, config, {one.label for one, _ in found.values()})
    return Labels([one for one, _ in found.values()], missing, notices)


def _take(one: LabelledFile, where: str, found: dict[str, tuple[LabelledFile, str]], wrong: list[str]) -> None:
    """Add a file to ``found``; if an earlier row has other values for it, add the contradiction to ``wrong``."""
    before, first = found.setdefault(one.file.name, (one, where))
    for what, old, new in (
        ("labels", before.label, one.label),
        ("splits", before.split, one.split),
        ("groups", before.group, one.group),
    ):
        if old != new:
            both = f"{_short(old)!r} in {first} and {_short(new)!r} here"
            wrong.append(f"{where}: {one.file.name} has two {what}, {both}")


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_LABEL else f"{text[:100]}..."


def _without_a_row(tree: Folder, named: set[str], labelled: Iterable[str]) -> tuple[list[File], dict[str, list[File]]]:
    """Pictures that no row names.

    Returns:
        Those in folders where other files have a label; and the rest, by the name of their top folder, "" in the data
        folder."""
    beside: list[File] = []
    elsewhere: dict[str, list[File]] = defaultdict(list)
    folders = {name.rpartition("/")[0] for name in labelled}
    for file in tree.walk():
        if file.is_picture and file.name not in named:
            if file.name.rpartition("/")[0] in folders:
                beside.append(file)
            else:
                elsewhere[file.name.rpartition("/")[0].split("/")[0]].append(file)
    return beside, elsewhere


def _near_miss(values: Sequence[tuple[str, Table]], files: FileIndex) -> tuple[str, str]:
    """A clause about a name in another spelling, and a line with the cure; both are empty without such a name."""
    for value, table in values[:100]:
        if (miss := files.near_miss(value)) is not None:
            told = f"; {miss.why}: {value!r} is perhaps {miss.file.name}; {miss.cure}"
            return told, f"\n{corrected(table.path, table.columns['file'], miss.in_python)}"
    return "", ""


def _passed_over(
    unlabelled: list[File],
    elsewhere: Mapping[str, list[File]],
    root: Path,
    others: Sequence[File],
    config: DataConfig,
    classes: Set[str],
) -> list[str]:
    notices = []
    for files, what in [(unlabelled, "a row without a label")] + [(files, "no row") for files in elsewhere.values()]:
        if not files:
            continue
        folder = files[0].name.rpartition("/")[0]
        count = "1 picture has" if len(files) == 1 else f"{len(files):,} pictures have"
        index = FileIndex(files, root)
        near = sorted(others, key=lambda one: not f"{folder}/".startswith(f"{one.name.rpartition('/')[0]}/"))
        is_test = config.test_labels is None and "test" in map(split_of, folder.split("/"))
        asked = [config.columns or Columns()] + [Columns()] * (config.columns is not None and not is_test)
        tables = (
            (one.name, {row.label for row in _rows_in(one, asked, index)})
            for one in near
            if what == "no row" and not one.name.lower().endswith(".txt")
        )
        table, labels = next(((name, labels) for name, labels in tables if labels), ("", set()))
        if further := sorted(labels - classes):
            then = f"the table {table} names them, and is not used; {config.labels} has no picture of {further[0]}"
        elif table:
            cure = f"add its rows to {config.labels}, with a column split that says train or val in each row"
            if is_test:
                cure = f"set data.test_labels = {json.dumps(table, ensure_ascii=False)}"
            then = f"the table {table} names them, and is not used; to use it, {cure}"
        elif lists := [one.name for one in near if what == "no row" and lists_pictures(one, index)][:3]:
            name, them = (" and ".join(lists), "they are") if lists[1:] else (lists[0], "it is")
            then = (
                f"they are in {name}, and {them} not used; if {'those lists have' if lists[1:] else 'that list has'} "
                f"classes, add the lines to {config.labels}, with a column split that says train, val or test in each "
                "row"
            )
        else:
            then = (
                "unlabelled, so not used; an exported model classifies them: search predict EXPORT "
                f"{shlex.quote(str(root / folder))}"
            )
        notices.append(f"{count} {what}, the first: {files[0].name}; {then}")
    return notices


def _tables_of(pictures: Sequence[File], tables: Sequence[File], columns: Columns, root: Path) -> list[str]:
    """The first three tables that have labels of these pictures, each of some that those before it do not name."""
    found, left, index = list[str](), pictures, FileIndex(pictures, root)
    for table in tables:
        if left and len(found) < 3 and (rows := _rows_in(table, [columns], index)):
            found.append(table.name)
            named = {file.name for row in rows for file in index.find(row.file)}
            left = [file for file in left if file.name not in named]
            index = FileIndex(left, root)
    return found


def _rows_in(file: File, asked: Sequence[Columns], index: FileIndex) -> list[Row]:
    """The rows of a table that label pictures; none if it has no column of labels, or most rows name other pictures."""
    for columns in asked:
        try:
            rows = read_table(file.path, columns, index).rows
        except DataError:
            continue
        if naming_column([[row.file] for row in rows], index) is not None:
            return [row for row in rows if row.label and index.find(row.file)]
    return []


def read_table(path: Path, columns: Columns, files: FileIndex) -> Table:
    """Read a CSV or TSV file whose first line names its columns.

    Raises:
        DataError: the file cannot be read, or has no column of files or of labels; the message names its columns.
    """
    header, lines = read_lines(path)
    index = {name.strip().lower(): number for number, name in reversed(list(enumerate(header)))}
    chosen: dict[str, int] = {}
    notices: list[str] = []
    for kind, known in COLUMNS.items():
        asked: str | None = getattr(columns, kind)
        if asked is not None:
            if asked.strip().lower() not in index:
                raise DataError(f"{path} has no column {asked!r} (data.columns.{kind}); it has {_list(header)}")
            chosen[kind] = index[asked.strip().lower()]
            continue
        candidates = [index[name] for name in known if name in index]
        if kind == "file":
            candidates.sort(key=lambda number: not _names_files(lines, number, files))
        if candidates:
            chosen[kind] = candidates[0]
        elif kind in ("file", "label"):
            if named := next((cell for cell in header if cell.lower() not in FILE_COLUMNS and files.find(cell)), None):
                raise DataError(
                    f"the first line of {path} names no columns, but the file {named}; "
                    f"{_first_line(path, [header, *(row for _, row in lines)], files)}"
                )
            if kind == "file" and (why := about_pixels(header, lines)):
                raise DataError(f"{path} {why}")
            cure = f'name it: data.columns = {{ {kind} = "NAME" }}'
            if kind == "label":
                cure = about_one_hot(path, header, lines, files.root) or cure
            if header[0].startswith("#"):
                cure = f"if its first line is a comment, remove it; else {cure}"
            raise DataError(
                f"{path} has no column of {kind}s called {', '.join(known)}; it has {_list(header)}; {cure}"
            )
        if kind == "label" and len(candidates) > 1:
            others = [header[number] for number in candidates[1:]]
            notices.append(f"{path.name}: labels are in column {header[chosen[kind]]}, not in {' or '.join(others)}")
    if "split" in chosen and columns.split is None:
        values = {row[chosen["split"]] for _, row in lines if chosen["split"] < len(row)} - {""}
        if not all(map(split_of, values)):
            notices.append(strange_splits(path.name, values))
            del chosen["split"]
    notices += columns_not_used(path.name, header, lines, chosen.values(), chosen.keys())
    rows = [
        Row(line, **{kind: row[number].strip() if number < len(row) else "" for kind, number in chosen.items()})
        for line, row in lines
    ]
    notices += _doubts(path.name, {kind: header[number] for kind, number in chosen.items()}, header, rows)
    return Table(path, {kind: header[number] for kind, number in chosen.items()}, rows, notices)


def _first_line(path: Path, rows: Sequence[Sequence[str]], files: FileIndex) -> str:
    """A clause to write a first line for a table without one: names for its columns, with the separator of its cells.
    Of several columns that may have the classes, the first is called label."""
    named: list[str] = []
    classes = columns_of_classes(len(rows[0]), rows)
    for number in range(len(rows[0])):
        values = [row[number].strip() for row in rows if number < len(row)]
        kind = "label"
        if any(map(files.find, values[:100])):
            kind = "file"
        elif number in classes:
            kind = f"class{classes.index(number) + 1}"
        elif values and all(map(split_of, values)):
            kind = "split"
        named.append(f"column{number + 1}" if kind in named else kind)
    separator = form_of(path).separator
    line = separator.join(named) if separator != "\t" else f"{' '.join(named)} (with tabs, not spaces)"
    which = ", with the names of the classes" if classes else ""
    if not classes and any(name.startswith("column") for name in named):
        which = ", with label above the column of the classes"
    return f"write a line such as {line} above it{which}"


def _doubts(name: str, columns: Mapping[str, str], header: Sequence[str], rows: Sequence[Row]) -> Iterator[str]:
    """Sentences about doubled columns, measured or combined labels, and cells that may stand for a missing value."""
    spelled = [cell.lower() for cell in header]
    for column in columns.values():
        if (count := spelled.count(column.lower())) > 1:
            yield f"{name}: of {count} columns called {column}, the first one is used; rename the others"
    if are_measured(row.label for row in rows):
        decimals = decimals_in(row.label for row in rows)
        yield (
            f"{name}: {len(decimals):,} different labels are numbers with decimal places, such as {decimals[0]}, and "
            f"each is taken for a class; to learn ranges, write the range of each into column {columns['label']}"
        )
    if several := combined(row.label for row in rows):
        count = sum(row.label in several for row in rows)
        yield (
            f"{name}: {count:,} {'row has' if count == 1 else 'rows have'} several labels, such as {several[0]}, and "
            "each combination is taken for a class; a classifier gives one class to each picture, so leave such rows "
            "out, or keep one label of each"
        )
    for kind, meaning in (("label", "a class"), ("group", "one group")):
        cells = Counter(str(getattr(row, kind)) for row in rows)
        for cell in sorted(cell for cell in cells if cell.lower() in MISSING):
            yield (
                f"{name}: {cells[cell]:,} {'row has' if cells[cell] == 1 else 'rows have'} the {kind} {cell}, which is "
                f"taken for {meaning}; if it means no {kind}, leave the cell empty"
            )


def _names_files(lines: Sequence[tuple[int, list[str]]], number: int, files: FileIndex) -> bool:
    return any(number < len(row) and files.find(row[number]) for _, row in lines[:100])


def _list(header: Sequence[str]) -> str:
    return ", ".join(name or '""' for name in header[:20])
