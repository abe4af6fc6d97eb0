"""Tables of the splits of one data set, such as train.csv, val.csv and test.csv, and the line of Python that makes one
table of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import DataError
from trainer.file_index import form_of, read_lines
from trainer.labels import FILE_COLUMNS, Table
from trainer.split_names import rest_of
from trainer.tree import File

__all__ = ["JOINED", "Labelling", "joined", "of_one_set"]

JOINED = "labels_of_all_splits.csv"
"""The name of the table that the line of Python writes into the data folder."""


@dataclass(frozen=True)
class Labelling:
    """A table of which at least half of the rows name a picture and have a label."""

    table: Table
    name: str
    split: str
    """The split of the pictures that it names: train, val or test. A table of all pictures counts as train."""
    setting: str
    """The setting ``columns`` that it needs, as TOML; "" if its columns are found by name."""
    says_split: bool
    """Whether the table's name, or its folder's, has the split."""
    labels: Sequence[tuple[File, str]]
    named: Set[str]
    """The names of the pictures that it names, also without a label."""
    are_classes: bool
    """Whether its labels may be classes by themselves; in a small table, classes may not repeat."""
    num_lost: int
    """Number of its rows that name no picture."""

    @property
    def pictures(self) -> set[str]:
        """The names of the pictures that have a label."""
        return {picture.name for picture, _ in self.labels}


def of_one_set(tables: Sequence[Labelling]) -> Iterator[list[Labelling]]:
    """Tables whose paths differ only in the words of the splits; train and one more split at least, in their order.
    No two of them name the same picture."""
    alike: dict[str, list[Labelling]] = defaultdict(list)
    for one in tables:
        if one.says_split and "split" not in one.table.columns:
            stem = one.name.rpartition(".")[0]
            alike["/".join(rest for part in stem.split("/") if (rest := rest_of(part)))].append(one)
    for same in alike.values():
        classes = {label for one in same if one.split == "train" for _, label in one.labels}
        right = [one for one in same if {label for _, label in one.labels} <= classes]  # not placeholders
        found = [one for split in ("train", "val", "test") for one in right if one.split == split]
        splits = [one.split for one in found]
        are_apart = len(set().union(*(one.pictures for one in found))) == sum(len(one.pictures) for one in found)
        if len(splits) > 1 and splits[0] == "train" and len(set(splits)) == len(splits) and are_apart:
            yield found


def joined(tables: Sequence[Labelling], root: Path) -> str | None:
    """The line of Python that writes JOINED, a table of the rows of all ``tables`` with their splits, and with the
    other columns that all of them have.

    None: there is a file of this name, or a table cannot be read or has two columns of one name.
    """
    if (root / JOINED).exists():
        return None
    roles = ["file", "label"] + ["group"] * all("group" in one.table.columns for one in tables)
    try:
        headers = [read_lines(one.table.path)[0] for one in tables]
        forms = [form_of(one.table.path) for one in tables]
    except (DataError, OSError, ValueError):
        return None
    used = {name for one in tables for name in one.table.columns.values()}
    others = [
        name
        for name in headers[0]
        if name not in used
        and name.lower() not in {"", *FILE_COLUMNS, "label", "split", "group"}
        and all(header.count(name) == 1 for header in headers)
    ]
    parts = []
    for one, header, form in zip(tables, headers, forms, strict=True):
        wanted = [*(one.table.columns[role] for role in roles), *others]
        if any(header.count(name) != 1 for name in wanted):
            return None
        numbers = [header.index(name) for name in wanted]
        rows = form.rows(repr(str(one.table.path)))
        parts.append(
            f"[[*[row[at] if at < len(row) else '' for at in {numbers}], {one.split!r}] for row in list({rows})[1:] "
            "if ''.join(row).strip()]"
        )
    return (
        "import csv; csv.field_size_limit(2**31 - 1); "
        f"csv.writer(open({str(root / JOINED)!r}, 'w', newline='', encoding='utf-8'))"
        f".writerows([{[*roles, *others, 'split']!r}] + {' + '.join(parts)})"
    )
