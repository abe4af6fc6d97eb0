"""Label tables with a column for each class, of 0 and 1, as contests have them. They are recognised, but not read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.file_index import separator_of

__all__ = ["about_one_hot"]

ONES, ZEROS = {"1", "1.0", "true"}, {"0", "0.0", "false", ""}
"""Cells that say yes and no, in lower case."""


def about_one_hot(path: Path, header: Sequence[str], lines: Sequence[tuple[int, list[str]]]) -> str | None:
    """A sentence that says how to make one column of labels from columns of 0 and 1; None if there are no such columns.

    At least two columns must have only ONES and ZEROS. In these, most rows must have exactly one of ONES.
    """
    rows = [[cell.strip().lower() for cell in row] + [""] * (len(header) - len(row)) for _, row in lines]
    chosen = [
        number
        for number in range(len(header))
        if {row[number] for row in rows} <= ONES | ZEROS and any(row[number] for row in rows)
    ]
    ones = [sum(row[number] in ONES for number in chosen) for row in rows]
    single = ones.count(1)
    if len(chosen) < 2 or single <= len(rows) / 2:
        return None
    names = [header[number] for number in chosen]
    told = ", ".join(names[:3]) + (", ..." if names[3:] else "")
    columns = f"table[{names}]"
    if len(names) > 3 and chosen == list(range(chosen[0], chosen[-1] + 1)):
        columns = f"table.iloc[:, {chosen[0]}:{chosen[-1] + 1}]"
    separator = separator_of(path.read_text("utf-8", "replace"))
    asked = "skipinitialspace=True" + (f", sep={separator!r}" if separator != "," else "")
    others = (
        f"; {len(rows) - single:,} of {len(rows):,} rows have several classes or none, so leave these rows out"
        if single < len(rows)
        else ""
    )
    return (
        f"it has a column of 0 and 1 for each class ({told}), and one column with the names of the classes is needed; "
        f"with pandas: table = pandas.read_csv({str(path)!r}, {asked}); "
        f'table["label"] = {columns}.idxmax(axis=1); '
        f"table.to_csv({str(path.with_name('labels.csv'))!r}, index=False){others}"
    )
