"""Labels in files that are not read: JSON lines, Parquet, tables without names of columns; and the cure for each."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from trainer.file_index import FileIndex, naming_column
from trainer.split_names import split_of
from trainer.tree import File, Folder

__all__ = ["labels_elsewhere"]

MOST_TEXTS = 20
"""Largest number of text files that are opened, of which 100 lines are read. YOLO has one for each picture."""


def labels_elsewhere(tree: Folder, root: Path) -> str | None:
    """A sentence about the first file below ``root`` that seems to have labels and is not read, with the cure."""
    for file in tree.walk():
        if file.name.lower().endswith(".parquet"):
            return _about_parquet(file, root)
        if file.name.lower().endswith(".jsonl") and "file_name" in _first_record(file):
            return (
                f"{file.name} has labels, and only CSV and TSV tables are read; with pandas, a table of each such "
                f'file: for file in pathlib.Path({str(root)!r}).rglob("*.jsonl"): '
                'pandas.read_json(file, lines=True).to_csv(file.with_suffix(".csv"), index=False)'
            )
    texts = [
        file
        for file in (*tree.files, *(file for folder in tree.folders for file in folder.files))
        if file.name.lower().endswith(".txt")
    ]
    index = FileIndex([file for file in tree.walk() if file.is_picture], root) if texts else None
    told = (_about_text(file, index, root) for file in texts[:MOST_TEXTS] if index is not None)
    return next(filter(None, told), None)


def _about_parquet(file: File, root: Path) -> str:
    stem = file.base.rpartition(".")[0]
    folder = root / (split_of(stem) or "train")
    return (
        f"{file.name}: pictures in Parquet files are not read; with pandas, this line writes those of this file into "
        f"class folders, if its columns are image and label: for i, row in pandas.read_parquet({str(file.path)!r})"
        f'.iterrows(): (folder := pathlib.Path({str(folder)!r}, str(row["label"]))).mkdir(parents=True, '
        f'exist_ok=True); (folder / f"{stem}-{{i}}.png").write_bytes(row["image"]["bytes"])'
    )


def _first_record(file: File) -> dict[str, object]:
    """The first line of a file of JSON lines; an empty object if there is none."""
    try:
        with file.path.open(encoding="utf-8") as lines:
            record = json.loads(next(lines, "{}"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _about_text(file: File, index: FileIndex, root: Path) -> str | None:
    """A sentence about a table without names of columns, in which a column names pictures and the next one is taken
    for their classes; None if the file is no such table."""
    try:
        with file.path.open(encoding="utf-8") as text:
            lines = [line.strip() for line in islice(text, 100) if line.strip()]
    except (OSError, ValueError):
        return None
    separator = max("\t,;", key=lines[0].count) if lines else "\t"
    rows = [line.split(separator) for line in lines]
    number = naming_column(rows, index)
    if number is None or number + 1 >= min(map(len, rows)):
        return None
    row = next(row for row in rows if index.find(row[number]))
    picture = index.find(row[number], (split_of(file.name.split("/")[0]) or "train",))[0]
    found = f"{file.name} names pictures, such as {picture.name}, and {row[number + 1]!r} seems to be its class"
    if split_of(file.name.split("/")[0]) is None or not picture.name.endswith(row[number]):
        return f"{found}; write a line with a name for each column above it, and it is a table of labels (data.labels)"
    before = f"{root}/{picture.name.removesuffix(row[number])}"
    after = f"{root}/{file.name.split('/')[0]}/"
    return (
        f"{found}; in Python, this line moves each picture into the folder of its class: for line in "
        f"pathlib.Path({str(file.path)!r}).read_text().splitlines(): cells = line.split({separator!r}); "
        f'os.renames({before!r} + cells[{number}], {after!r} + cells[{number + 1}] + "/" + cells[{number}])'
    )
