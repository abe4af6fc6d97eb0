"""Label tables with a column for each class, of 0 and 1, as contests have them. They are recognised, but not read."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from trainer.file_index import form_of
from trainer.split_names import split_of

__all__ = ["about_one_hot", "columns_of_classes"]

ONES, ZEROS = {"1", "1.0", "true"}, {"0", "0.0", "false", ""}
"""Cells that say yes and no, in lower case."""


def about_one_hot(path: Path, header: Sequence[str], lines: Sequence[tuple[int, list[str]]], root: Path) -> str | None:
    """A sentence that says how to make one column of labels from columns of 0 and 1; None if there are no such columns.

    If the folders of several splits have a table of this name, the sentence is about all of them.

    Args:
        path: the table.
        header: the names of its columns.
        lines: its rows, each with the number of its line.
        root: the data folder.
    """
    rows = [row for _, row in lines]
    chosen = columns_of_classes(len(header), rows)
    if not chosen:
        return None
    single = sum(_ones(row, chosen) == 1 for row in rows)
    names = [header[number] for number in chosen]
    told = ", ".join(names[:3]) + (", ..." if names[3:] else "")
    columns = f"table[{names}]"
    if len(names) > 3 and chosen == list(range(chosen[0], chosen[-1] + 1)):
        columns = f"table.iloc[:, {chosen[0]}:{chosen[-1] + 1}]"
    form = form_of(path)
    texts = [name for number, name in enumerate(header) if name and number not in chosen]  # ids keep their zeros
    asked = f"dtype=dict.fromkeys({texts!r}, str), skipinitialspace=True"
    asked += f", sep={form.separator!r}" * (form.separator != ",")
    asked += f", encoding={form.encoding!r}" * (form.encoding == "utf-16")
    asked += f", skiprows={form.above}" * (form.above > 0)
    others = (
        f"; {len(rows) - single:,} of {len(rows):,} rows have several classes or none, so leave these rows out"
        if single < len(rows)
        else ""
    )
    found = (
        f"it has a column of 0 and 1 for each class ({told}), and one column with the names of the classes is needed; "
        "with pandas"
    )
    if _is_of_splits(path, root):
        above = path.parent.parent
        file = next((name for number, name in enumerate(header) if name and number not in chosen), "filename")
        return (
            f"{found}, this line makes a table of labels (data.labels) of the tables of all splits: "
            "import pandas, pathlib; pandas.concat("
            f'table.assign(file=path.parent.name + "/" + table[{file!r}], label={columns}.idxmax(axis=1), '
            f"split=path.parent.name) for path in pathlib.Path({str(above)!r}).glob({f'*/{path.name}'!r}) for table in "
            f'[pandas.read_csv(path, {asked})])[["file", "label", "split"]].to_csv({str(above / "labels.csv")!r}, '
            f"index=False){others}"
        )
    return (
        f"{found}: import pandas; table = pandas.read_csv({str(path)!r}, {asked}); "
        f'table["label"] = {columns}.idxmax(axis=1); '
        f"table.to_csv({str(path.with_name('labels.csv'))!r}, index=False){others}"
    )


def columns_of_classes(width: int, rows: Sequence[Sequence[str]]) -> list[int]:
    """The numbers of the columns that have only ONES and ZEROS, if there are at least two, and most rows have exactly
    one of ONES in them; else none.

    Args:
        width: number of columns; a row may have fewer cells.
        rows: the rows without the header.
    """
    cells = [[cell.strip().lower() for cell in row] + [""] * (width - len(row)) for row in rows]
    chosen = [
        number
        for number in range(width)
        if {row[number] for row in cells} <= ONES | ZEROS and any(row[number] for row in cells)
    ]
    single = sum(_ones(row, chosen) == 1 for row in rows)
    return chosen if len(chosen) > 1 and single > len(rows) / 2 else []


def _ones(row: Sequence[str], chosen: Sequence[int]) -> int:
    return sum(number < len(row) and row[number].strip().lower() in ONES for number in chosen)


def _is_of_splits(path: Path, root: Path) -> bool:
    """Whether the folders of several splits in the data folder have a table of this name, as Roboflow writes them."""
    if path.parent == root or not path.is_relative_to(root):
        return False
    folders = [one.parent for one in path.parent.parent.glob(f"*/{glob.escape(path.name)}")]
    return len(folders) > 1 and all(split_of(folder.name) for folder in folders)
