"""Labels that are not read: in other files than tables, in tables that cannot be read, in the names of pictures; and
the cure for each."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.classes import may_be_classes
from trainer.errors import DataError
from trainer.file_index import FileIndex, files_around, naming_column, read_lines, tables_in
from trainer.matlab import about_matlab
from trainer.pixels import about_pixels
from trainer.split_names import split_of
from trainer.text_lists import about_lists
from trainer.tree import ARCHIVE, File, Folder

__all__ = ["classes_elsewhere", "labels_elsewhere", "records_elsewhere"]

MOST_TEXTS = 20
"""Largest number of text files (YOLO has one for each picture), and of tables, that are read as text."""

MOST_JSON = 50_000_000
"""Largest size in bytes of a JSON file that is opened."""

SPREADSHEET = re.compile(r"(.+)\.(xlsx?|ods|csv\.gz|csv\.zip|tsv\.gz|tsv\.zip)")
"""Names of tables that pandas reads and this program does not: the first group is the name without its ending."""

TEXT_ENDINGS = {"", ".csv", ".html", ".json", ".md", ".tsv", ".txt", ".xml", ".yaml", ".yml"}

NUMBER = re.compile(r"(.*[^\W\d_].*?)[-_. (]*\d+[)]?")
"""The name of a picture without its ending, as a word and a number: the first group is the word."""


RECORDS = (
    "import csv, json, pathlib; read = lambda file: READ; "
    "names = lambda rows: list({key: 0 for row in rows for key in row}); "
    "print(len([csv.writer(open(file.with_suffix('.csv'), 'w', newline='', encoding='utf-8'))"
    ".writerows([columns] + [[row.get(key) for key in columns] for row in rows]) for file in FILES "
    "for rows in [[row for row in read(file) if isinstance(row, dict)]] if rows for columns in [names(rows)]]), "
    "'tables written')"
)
"""A line of Python that makes a table of each file of records."""

READ_LINES = "[json.loads(line) for line in open(file, encoding='utf-8') if line.strip()]"
READ_LIST = "json.load(open(file, encoding='utf-8'))"


def labels_elsewhere(tree: Folder, root: Path) -> str | None:
    """A sentence about the first file below ``root`` that seems to have labels and is not read, with the cure."""
    return records_elsewhere(tree, root) or next(_about_files(tree, root), None)


def records_elsewhere(tree: Folder, root: Path) -> str | None:
    """A sentence about the first file of records (Parquet, JSON lines), with the cure."""
    for file in tree.walk():
        if file.name.lower().endswith(".parquet"):
            return _about_parquet(file, root)
        if file.name.lower().endswith(".jsonl") and "file_name" in _first_record(file):
            line = _of_records(f"pathlib.Path({str(root)!r}).rglob('*.jsonl')", READ_LINES)
            return (
                f"{file.name} has labels, and only CSV and TSV tables are read; this line of Python makes a table of "
                f"each: {line}"
            )
    return None


def _about_files(tree: Folder, root: Path) -> Iterator[str]:
    """Sentences about text files, tables that cannot be read, JSON files and spreadsheets."""
    around = files_around(tree)
    texts = [file for file in around if file.name.lower().endswith(".txt")]
    texts.sort(key=lambda file: split_of(file.base.rpartition(".")[0]) not in ("train", None))
    index = FileIndex([file for file in tree.walk() if file.is_picture], root)
    yield from about_lists([*texts[:MOST_TEXTS], *tables_in(tree)[:MOST_TEXTS]], index, root)
    for file in tables_in(tree):
        try:
            header, lines = read_lines(file.path)
        except DataError as error:
            yield str(error)
        else:
            if not tree.holds_pictures and (why := about_pixels(header, lines)):
                yield f"{file.name} {why}"
    for file in around:
        if file.name.lower().endswith(".json") and (told := _about_json(file, index)) is not None:
            yield told
    for file in around:
        if (name := SPREADSHEET.fullmatch(file.base.lower())) is not None:
            table = file.path.with_name(f"{file.base[: name.end(1)]}.csv")
            as_text = "dtype=str, keep_default_na=False"
            reading = "read_csv" if "sv." in file.base.lower() else "read_excel"
            tabs = ", sep='\\t'" if ".tsv." in file.base.lower() else ""
            yield (
                f"{file.name} may have labels, and only CSV and TSV tables are read; with pandas: "
                f"import pandas; pandas.{reading}({str(file.path)!r}, {as_text}{tabs})"
                f".to_csv({str(table)!r}, index=False)"
            )


def classes_elsewhere(tree: Folder, root: Path) -> str | None:
    """A sentence about classes in the names of pictures, or about files that may have pictures in them."""
    folders = [folder for folder in tree.tree() if folder.pictures]
    folders.sort(key=lambda folder: (split_of(folder.base) == "train", len(folder.pictures)), reverse=True)
    # True if all other folders with pictures are splits, such as test1 beside train: their pictures need no class.
    are_alone = folders and all(split_of(one.base) for one in folders[1:])
    if are_alone and (told := _about_names(folders[0], root)):
        return told
    if folders and (told := about_matlab(tree, root)):
        return told
    extracted = {part.lower() for folder in folders for part in folder.name.split("/")}
    archives = [(file, found[1].lower()) for file in files_around(tree) if (found := ARCHIVE.fullmatch(file.base))]
    if packed := [file for file, stem in archives if stem not in extracted]:
        more = f", and {len(packed) - 1} more" if packed[1:] else ""
        them = "them" if packed[1:] else "it"
        what = "classes or splits" if folders else "the pictures"
        return f"archives are not read ({packed[0].name}{more}); if {what} are in {them}, extract {them}"
    if folders:
        return None
    endings = Counter(ending for file in tree.walk() if (ending := file.path.suffix.lower()) not in TEXT_ENDINGS)
    for ending, count in endings.most_common(1):
        return (
            f"no file has the ending of a picture, and {count:,} {'ends' if count == 1 else 'end'} in {ending}; if "
            "pictures are in them, write each to a file such as train/CLASS/1.png"
        )
    return None


def _about_names(folder: Folder, root: Path) -> str | None:
    """A sentence about classes in the names of a folder's own pictures, with the cure; None if there are none."""
    stems = [file.base.rpartition(".")[0] for file in folder.pictures]
    words = [found[1] for stem in stems if (found := NUMBER.fullmatch(stem)) is not None]
    classes = Counter(words)
    place = root / folder.name if folder.name else root
    if len(words) < 0.9 * len(stems) or not 1 < len(classes) <= len(words) / 2 or min(classes.values()) < 2:
        return _about_parts(stems, place, sorted({file.path.suffix for file in folder.pictures}))
    named = ", ".join(sorted(classes)[:3]) + (", ..." if len(classes) > 3 else "")
    endings = sorted({file.path.suffix for file in folder.pictures})
    return (
        f"the names of the pictures in {folder.name or root} seem to begin with their classes ({named}); in "
        "Python, this line moves each into the folder of its class: import os, pathlib, re; print(len(["
        "os.renames(file, file.parent / re.sub(r'[-_. (]*\\d+[)]?$', '', file.stem) / file.name) for file in "
        f"list(pathlib.Path({str(place)!r}).glob('*.*')) if file.suffix in {endings!r}]), 'pictures moved')"
    )


def _about_parts(stems: Sequence[str], place: Path, endings: Sequence[str]) -> str | None:
    """A sentence about names of pictures with several parts, of which one may be the class: 26_0_1_20170116; or None.

    Such a part repeats, and it is no date or other long number.
    """
    rows = [stem.split("_") for stem in stems]
    width = Counter(map(len, rows)).most_common(1)[0][0]
    rows = [row for row in rows if len(row) == width]
    parts = {number: {row[number] for row in rows} for number in range(width)}
    found = {
        number: sorted(values)
        for number, values in parts.items()
        if 1 < len(values) <= len(rows) / 2 and not all(one.isdecimal() and len(one) > 4 for one in values)
    }
    if width < 2 or not found or len(rows) < 0.9 * len(stems):
        return None
    told = {number: ", ".join(values[:3]) + (", ..." if values[3:] else "") for number, values in found.items()}
    (first, values), *others = told.items()
    instead = " or ".join(f"[{number}] ({values})" for number, values in others)
    instead = f"; for another part, write {instead} instead of [{first}]" if others else ""
    return (
        f"the names of the pictures in {place} have {width} parts; if one of them is the class, this line of Python "
        f"moves each picture into the folder of its part [{first}] ({values}){instead}: "
        "import os, pathlib; print(len(["
        f"os.renames(file, file.parent / file.stem.split('_')[{first}] / file.name) for file in "
        f"list(pathlib.Path({str(place)!r}).glob('*_*')) if file.suffix in {endings!r} and "
        f"file.stem.count('_') == {width - 1}]), 'pictures moved')"
    )


def _about_parquet(file: File, root: Path) -> str:
    stem = file.base.rpartition(".")[0]
    folder = root / (split_of(stem) or "train")
    return (
        f"{file.name}: pictures in Parquet files are not read; with pandas, this line writes those of this file into "
        f"class folders, if its columns are image and label: import pandas, pathlib; print(len(["
        f'(folder / f"{stem}-{{i}}.png").write_bytes(row["image"]["bytes"]) '
        f"for i, row in pandas.read_parquet({str(file.path)!r}).iterrows() "
        f'for folder in [pathlib.Path({str(folder)!r}, str(row["label"]))] '
        "if not folder.mkdir(parents=True, exist_ok=True)]), 'pictures written')"
    )


def _first_record(file: File) -> dict[str, object]:
    """The first line of a file of JSON lines; an empty object if there is none."""
    try:
        with file.path.open(encoding="utf-8") as lines:
            record = json.loads(next(lines, "{}"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _about_json(file: File, index: FileIndex) -> str | None:
    """A sentence about a JSON file that maps names of pictures to classes, or lists records of pictures; else None."""
    try:
        if file.path.stat().st_size > MOST_JSON:
            return None
        read = json.loads(file.path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if isinstance(read, list):
        return _about_records(file, read, index)
    if not isinstance(read, dict) or not read or not all(isinstance(one, str | int) for one in read.values()):
        return None
    named = [name for name in read if index.find(name)]
    if len(named) < len(read) / 2 or not may_be_classes([str(read[name]) for name in named]):
        return None
    return (
        f"{file.name} has the classes of {len(named):,} pictures, and only CSV and TSV tables are read; this line of "
        f"Python makes a table of it: import csv, json; {_writer(file.path.with_suffix('.csv'))}"
        f".writerows([['file', 'label'], *json.load(open({str(file.path)!r}, encoding='utf-8')).items()])"
    )


def _about_records(file: File, read: list[object], index: FileIndex) -> str | None:
    """A sentence about a JSON file with a list of records, if most of them name a picture in one of their values."""
    records = [one for one in read[:100] if isinstance(one, dict)]
    if any(isinstance(one.get("data"), dict) and "annotations" in one for one in records):
        return (
            f"{file.name} is an export of Label Studio as JSON, and only CSV and TSV tables are read; export it from "
            "Label Studio as CSV, and name that table (data.labels)"
        )
    rows = [[value if isinstance(value, str) else "" for value in one.values()] for one in records]
    if naming_column(rows, index) is None:
        return None
    return (
        f"{file.name} names pictures, and only CSV and TSV tables are read; this line of Python makes a table of "
        f"it: {_of_records(f'[pathlib.Path({str(file.path)!r})]', READ_LIST)}"
    )


def _of_records(files: str, read: str) -> str:
    return RECORDS.replace("READ", read).replace("FILES", files)


def _writer(path: Path) -> str:
    return f"csv.writer(open({str(path)!r}, 'w', newline='', encoding='utf-8'))"
