"""Data folders of contests: folders of pictures with a table of their classes beside them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.classes import have_one_each, may_be_classes
from trainer.config import Columns
from trainer.errors import DataError
from trainer.file_index import FileIndex, corrected, read_lines, tables_in
from trainer.joining import JOINED, Labelling, joined, of_one_set
from trainer.labels import FILE_COLUMNS, Table, read_table
from trainer.one_hot import about_one_hot
from trainer.split_names import split_of, words_of
from trainer.tree import File, Folder
from trainer.unused_columns import means_splits

__all__ = ["Suggestion", "about_test_table", "suggest_labels"]


GROUPS = {"artist", "burst", "participant", "patient", "subject", "video"}
THINGS = {"item", "location", "person", "place", "product", "scene", "site"}
"""Words in the names of columns that have groups, not classes. One of THINGS may be the class, unless it is an ID."""

CLASSES = {"category", "class", "code", "label", "species", "target"}
"""Words in the names of columns whose numbers are classes."""

NUMBER = re.compile(r"[-+]?(\d+[.]?\d*|[.]\d+)?")


@dataclass(frozen=True)
class Suggestion:
    """A suggestion to use label tables found in a data folder."""

    reason: str
    """What was found, and what to do."""
    contradicts_folders: bool
    """Whether the table contradicts the folders: some folder has pictures with different labels, or folders of several
    names have pictures of one label. If the column of the classes is not known, this is true if a column may have them.
    False if no column was compared."""
    divides_folders: bool = False
    """Whether the column of the classes is known, and some folder has pictures with different labels."""
    divided: Collection[str] = ()
    """The folders whose pictures have different labels; or all in which pictures are named, if the labels are no other
    names of the folders, such as those of patients."""
    is_clear: bool = True
    """Whether the column of the classes is known; if not, the table may have none."""
    settings: str = ""
    """Lines to add to the study file, each after a line break; "" if there are none."""
    more: str = ""
    """What else may be done, after a line break; "" for nothing."""
    test_table: str = ""
    """The table that has the classes of the test split; "" without one."""

    @property
    def lines(self) -> str:
        """The reason, the lines to add to the study file, and what else may be done."""
        return f"{self.reason}:{self.settings}{self.more}" if self.settings else self.reason


def suggest_labels(tree: Folder, root: Path) -> Suggestion | None:
    """A suggestion to use those of ``tables_in`` that have the labels of pictures; None if there are none.

    If no table clearly has them, the suggestion is about one that names pictures and may have their labels, or about
    one that names pictures in another spelling.
    """
    tables = tables_in(tree)
    if not tables:
        return None
    index = FileIndex([file for file in tree.walk() if file.is_picture], root)
    read = [table for file in tables if (table := _labelling(file, index)) is not None]
    classes = {label for one in read if one.split == "train" and one.are_classes for _, label in one.labels}
    found = [one for one in read if one.are_classes or {label for _, label in one.labels} <= classes]
    if not any(one.split == "train" for one in found):
        training = (file for file in tables if _said_split(file) not in ("val", "test"))
        unclear = [one for file in training if (one := _unclear(file, index)) is not None]
        if not unclear:
            tables.sort(key=lambda file: _said_split(file) in ("val", "test"))
            return next(filter(None, (_near_missed(file, index) for file in tables)), None)
        return max(unclear, key=lambda one: (one[1].contradicts_folders, one[0]))[1]
    return _suggestion(found, tree, root)


def _suggestion(found: Sequence[Labelling], tree: Folder, root: Path) -> Suggestion:
    """A suggestion of tables that fit together: no two name the same picture, one setting ``columns`` is right for
    both, the test table has no further class, and if possible they name all pictures in their folders."""
    tests = [one for one in found if one.split == "test"]
    pairs = [
        (train, test)
        for train in found
        if train.split == "train"
        for test in (*tests, None)
        if test is None or _fit(train, test)
    ]
    best = max(pairs, key=_worth)
    sets = [one for one in of_one_set(found) if not _without_row(tree, one)]
    sets.sort(key=lambda one: one[0] is not best[0])
    all_splits = next(((one, line) for one in sets if (line := joined(one, root)) is not None), None)
    without_row = _without_row(tree, best)
    if without_row:
        theirs = _pictures(best)
        if wider := [pair for pair in pairs if not _without_row(tree, pair) and theirs <= _pictures(pair)]:
            best, without_row = max(wider, key=_worth), 0
        elif all_splits is not None:
            return _of_all_splits(*all_splits)
    train, test = best
    settings = [f"labels = {_quoted(train.name)}"]
    settings += [f"test_labels = {_quoted(test.name)}"] if test is not None else []
    settings += [f"columns = {train.setting}"] if train.setting else []
    lost = train.num_lost + (test.num_lost if test is not None else 0)
    left_out = [f"{without_row:,} pictures without a row"] * (without_row > 0) + [f"{lost:,} rows without a file"] * (
        lost > 0
    )
    settings += [f'bad_files = "skip"  # leaves out {" and ".join(left_out)}'] if left_out else []
    divides, divided = _divided([train] if test is None else [train, test])
    more = ""
    if all_splits is not None and len(all_splits[0]) > len(best) - best.count(None):
        more = (
            f"\nto keep the splits of {_listed(all_splits[0])}, join them into one table with this line of Python, and "
            f'set data.labels = "{JOINED}" instead: {all_splits[1]}'
        )
    return Suggestion(
        f"{train.name} names {len(train.labels):,} of the pictures and their classes; to train on those, add to "
        "the study file",
        contradicts_folders=bool(divided),
        divides_folders=divides,
        divided=divided,
        settings="".join(f"\n  {line}" for line in ("[data]", *settings)),
        more=more,
        test_table=test.name if test is not None else "",
    )


def _of_all_splits(tables: Sequence[Labelling], line: str) -> Suggestion:
    divides, divided = _divided(tables)
    count = sum(len(one.labels) for one in tables)
    return Suggestion(
        f"{_listed(tables)} name {count:,} of the pictures and their classes; this line of Python joins them into one "
        f"table with a column split: {line}\nthen add to the study file",
        contradicts_folders=bool(divided),
        divides_folders=divides,
        divided=divided,
        settings=f'\n  [data]\n  labels = "{JOINED}"',
    )


def _listed(tables: Sequence[Labelling]) -> str:
    return f"{', '.join(one.name for one in tables[:-1])} and {tables[-1].name}"


def _fit(train: Labelling, test: Labelling) -> bool:
    classes = {label for _, label in train.labels}
    return (
        train.setting == test.setting
        and not train.pictures & test.pictures
        and all(label in classes for _, label in test.labels)
    )


def _worth(pair: tuple[Labelling, Labelling | None]) -> tuple[int, ...]:
    """Tables whose names have the split go first; among equals, those with more labels."""
    return tuple(number for one in pair for number in ((one.says_split, len(one.labels)) if one else (-1, 0)))


def _pictures(tables: Sequence[Labelling | None]) -> set[str]:
    return {name for one in tables if one is not None for name in one.pictures}


def _without_row(tree: Folder, tables: Sequence[Labelling | None]) -> int:
    """The number of pictures without a row in folders where others have a label."""
    named = {name for one in tables if one is not None for name in one.named}
    folders = {name.rpartition("/")[0] for name in _pictures(tables)}
    return sum(file.name not in named for one in tree.tree() if one.name in folders for file in one.pictures)


def _divided(tables: Sequence[Labelling]) -> tuple[bool, set[str]]:
    """``divides_folders`` and ``divided`` of a Suggestion of tables whose column of the classes is known."""
    labels_of: dict[str, set[str]] = defaultdict(set)
    for one in tables:
        for picture, label in one.labels:
            labels_of[picture.name.rpartition("/")[0]].add(label)
    if divided := {folder for folder, labels in labels_of.items() if len(labels) > 1}:
        return True, divided
    levels = _levels([picture.name.split("/")[:-1] for one in tables for picture, _ in one.labels])
    are_folders = _are_folders(levels, [label for one in tables for _, label in one.labels])
    return False, set(labels_of) if are_folders is False else set()


def _levels(paths: Sequence[Sequence[str]]) -> list[list[str]]:
    """Of each depth with several folders, except for splits, the names of the folders in ``paths``; "" for none."""
    deepest = max(map(len, paths), default=0)
    levels = ([path[depth] if depth < len(path) else "" for path in paths] for depth in range(deepest))
    return [level for level in levels if len(found := {*level} - {""}) > 1 and not all(map(split_of, found))]


def _are_folders(levels: Sequence[Sequence[str]], labels: Sequence[str]) -> bool | None:
    """Whether labels are other names of folders: at one depth, all pictures in folders of one name have one label, and
    hardly any two names have the same label. None if there are no ``levels``."""
    return any(_are_names(level, labels) for level in levels) if levels else None


def _are_names(level: Sequence[str], labels: Sequence[str]) -> bool:
    label_of: dict[str, str] = {}
    for folder, label in zip(level, labels, strict=True):
        if folder and label_of.setdefault(folder, label) != label:
            return False
    return len(set(label_of.values())) >= 0.9 * len(label_of)


def about_test_table(tree: Folder, root: Path) -> str | None:
    """A sentence about a table that has the classes of the test pictures; None if there is no such table."""
    index = FileIndex([file for file in tree.walk() if file.is_picture], root)
    for file in tables_in(tree):
        if (one := _labelling(file, index)) is not None and one.split == "test" and one.are_classes:
            picture, label = one.labels[0]
            return (
                f"{one.name} has the classes of {len(one.labels):,} test pictures; to use them as the test split, move "
                f"each into the folder of its class, such as {picture.name.rpartition('/')[0]}/{label}"
            )
    return None


def _labelling(file: File, index: FileIndex) -> Labelling | None:
    """The labels in a table; None if fewer than half of its rows name a picture and have a label."""
    read = _read(file, index)
    if read is None:
        return None
    own = _said_split(file)
    table, columns = read
    found = [(index.find(row.file, (own or "train",)), row.label) for row in table.rows]
    labels = [(files[0], label) for files, label in found if files and label]
    if not labels or len(labels) < len(table.rows) / 2:
        return None
    in_test = own is None and all(_said_split(picture) == "test" for picture, _ in labels)
    return Labelling(
        table,
        file.name,
        split="test" if in_test else own or "train",
        setting=columns,
        says_split=own is not None,
        labels=labels,
        named={files[0].name for files, _ in found if files},
        are_classes=may_be_classes([label for _, label in labels]),
        num_lost=sum(not files for files, _ in found),
    )


def _read(file: File, index: FileIndex) -> tuple[Table, str] | None:
    """A table, and the ``columns`` setting that it needs: "" if its columns are found by name.

    None: it cannot be read, or its columns are not clear.
    """
    try:
        return read_table(file.path, Columns(), index), ""
    except DataError:
        pass
    try:
        header, lines = read_lines(file.path)
    except DataError:
        return None
    naming, others = _naming(index, header, lines)
    if len(naming) != 1 or len(others) != 1:  # ambiguous: the column of the classes is not guessed
        return None
    name, label = header[naming[0]], header[others[0]]
    values = {row[others[0]].strip() for _, row in lines if others[0] < len(row)} - {""}
    if index.find(name) or means_splits(label, values):  # the first line is a row, or the other column has splits
        return None
    columns = Columns(file=name, label=label)
    return read_table(file.path, columns, index), f"{{ file = {_quoted(name)}, label = {_quoted(label)} }}"


def _unclear(file: File, index: FileIndex) -> tuple[int, Suggestion] | None:
    """The number of pictures that a table names, and a suggestion to choose its column of the classes.

    None: fewer than half of its rows name a picture; not exactly one column names pictures; there are fewer than two
    other columns; or one of the others has other names of the folders, and does not seem to have splits or groups.
    """
    try:
        header, lines = read_lines(file.path)
    except DataError:
        return None
    naming, others = _naming(index, header, lines)
    if len(naming) != 1 or len(others) < 2 or index.find(header[naming[0]]):
        return None
    named = [(found[0], row) for _, row in lines if (found := _found(index, row, naming[0]))]
    if not named or len(named) < len(lines) / 2:
        return None
    if _other_folders(header, others, named):
        return None
    folders = [picture.name.rpartition("/")[0] for picture, _ in named]
    columns = [[_cell(row, number) for _, row in named] for number in others]
    may_be = [column for column in columns if len({*column} - {""}) > 1 and may_be_classes(column)]
    share = any(have_one_each(folders, column) for column in may_be)
    name, among = header[naming[0]], ", ".join(header[number] for number in others)
    if one_hot := about_one_hot(file.path, header, lines, index.root):
        return len(named), Suggestion(
            f"{file.name} names {len(named):,} of the pictures; {one_hot}", True, divided=set(folders), is_clear=False
        )
    return len(named), Suggestion(
        f"{file.name} names {len(named):,} of the pictures; if one of its columns ({among}) has their classes, add to "
        "the study file, with the name of that column as label",
        contradicts_folders=bool(may_be),
        divided=set(folders) if share else set(),  # folders, such as those of patients, whose pictures share a value
        is_clear=False,
        settings=f"\n  [data]\n  labels = {_quoted(file.name)}\n"
        f'  columns = {{ file = {_quoted(name)}, label = "..." }}',
    )


def _other_folders(
    header: Sequence[str], others: Sequence[int], named: Sequence[tuple[File, Sequence[str]]]
) -> bool | None:
    """Whether one of the columns ``others`` has other names of the class folders: ``_are_folders``."""
    paths = [picture.name.split("/")[:-1] for picture, _ in named]
    levels = _levels(paths)
    for number in others if levels else ():
        values = [_cell(row, number) for _, row in named]
        if _are_folders(levels, values) and _may_name_folders(header[number], values, paths):
            return True
    return False if levels and others else None


def _cell(row: Sequence[str], number: int) -> str:
    return row[number].strip() if number < len(row) else ""


def _may_name_folders(column: str, values: Sequence[str], paths: Sequence[Sequence[str]]) -> bool:
    """Whether the values of a column may be other names of class folders: not splits, groups (patient_id) or numbers
    (age), unless the numbers are the names of the folders, or the column's name says that they are classes."""
    words = words_of(column)
    stems = {word.removesuffix("id") for word in words}
    if stems & GROUPS or (stems != words and stems & THINGS) or all(map(split_of, values)):
        return False
    are_numbers = all(map(NUMBER.fullmatch, values))
    is_plain = stems != words or words & CLASSES or all(one in path for one, path in zip(values, paths, strict=True))
    return not are_numbers or bool(is_plain)


def _naming(
    index: FileIndex, header: Sequence[str], lines: Sequence[tuple[int, list[str]]]
) -> tuple[list[int], list[int]]:
    """The numbers of the columns whose values name pictures, and those of the other columns.

    A column of URLs beside a column of files is in neither list. Numbers may name pictures by chance (1 and 1.jpg). So
    if exactly one of the columns that name pictures has a name of FILE_COLUMNS, the rest of them are other columns.
    """
    naming = [number for number in range(len(header)) if any(_found(index, row, number) for _, row in lines[:100])]
    others = [number for number in range(len(header)) if number not in naming]
    plain = [number for number in naming if not any("://" in row[number] for _, row in lines if number < len(row))]
    known = [number for number in plain if header[number].lower() in FILE_COLUMNS]
    if len(known) == 1:
        return known, sorted({*others, *plain} - {*known})
    return plain or naming, others


def _near_missed(file: File, index: FileIndex) -> Suggestion | None:
    """A suggestion to correct a table whose values name pictures only in another spelling."""
    try:
        header, lines = read_lines(file.path)
    except DataError:
        return None
    for number, name in enumerate(header):
        if name.lower() not in FILE_COLUMNS:
            continue
        ids = [row[number] for _, row in lines if number < len(row)]
        missed = [(one, miss) for one in ids if (miss := index.near_miss(one)) is not None]
        if missed and 2 * len(missed) > len(lines):
            written, miss = missed[0]
            pictures = {one: miss.file for one, miss in missed}
            named = [(pictures[row[number]], row) for _, row in lines if number < len(row) and row[number] in pictures]
            others = [other for other in range(len(header)) if other != number]
            contradicts = _other_folders(header, others, named) is False
            return Suggestion(
                f"most rows of {file.name} name no picture, because {miss.why}: {written!r} is perhaps "
                f"{miss.file.name}; {miss.cure}; {corrected(file.path, name, miss.in_python)}",
                contradicts_folders=contradicts,
                divided={picture.name.rpartition("/")[0] for picture, _ in named} if contradicts else (),
                is_clear=False,
            )
    return None


def _found(index: FileIndex, row: Sequence[str], number: int) -> Sequence[File]:
    return index.find(row[number], ("train",)) if number < len(row) else ()


def _said_split(file: File) -> str | None:
    """The split in a file's name, or else in the names of its folders."""
    parts = [re.sub(r"\.\w+$", "", file.base), *file.name.split("/")[-2::-1]]
    return next((split for part in parts if (split := split_of(part)) is not None), None)


def _quoted(text: str) -> str:
    """The text as a TOML string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
