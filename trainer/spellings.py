"""Groups that are written in several ways, such as 3 and 3.0. Each way is a group of its own when splits are drawn."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from trainer.config import Columns, DataConfig
from trainer.file_index import composed, corrected, read_lines
from trainer.scan import folded
from trainer.values import expanded

__all__ = ["about_groups_alike", "about_one_group"]

WHOLE = re.compile(r"([-+]?\d+)\.0*")
"""A whole number with a decimal point: pandas writes a column of numbers so if one of its cells is empty."""

ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")

Spelled = list[tuple[str, str]]
"""(group, split) of each spelling of what may be one group."""


def about_one_group(config: DataConfig, groups: Sequence[str], splits: Mapping[str, NDArray[Any]]) -> str | None:
    """Why pictures cannot be used: a group is in several splits or folds, because it is written in several ways that
    certainly mean the same. They differ only in a decimal point (3.0), or in how an accent is stored.

    Args:
        config: the settings of the data set.
        groups: the group of each picture, "" without one.
        splits: split -> indices of the pictures in it.
    """
    found = _divided(config, groups, splits, _plain)
    if not found:
        return None
    is_one, where = len(found) == 1, "the names" if config.labels is None else "the tables"
    if config.labels is not None and config.group_by is not None:
        where = "the tables, or in the names if they have the groups"
    told = (
        f"{config.path}: {'a group is' if is_one else f'{len(found):,} groups are'} in several "
        f"{'folds' if config.folds else 'splits'}, because {'it is' if is_one else 'they are'} written in several "
        f"ways: {_some(found)}; write each group in one way in {where}, or give different groups different names"
    )
    return "\n".join([told, *_lines(config)])


def about_groups_alike(config: DataConfig, groups: Sequence[str], splits: Mapping[str, NDArray[Any]]) -> Iterator[str]:
    """A warning about groups in several splits or folds that may be one group: P1 and p1, 3 and 003, 3 and 3,0. The
    arguments are as above."""
    found = _divided(config, groups, splits, _alike)
    if found := [one for one in found if len({_plain(group) for group, _ in one}) > 1]:
        what = "groups that are written alike" if len(found) == 1 else f"{len(found):,} sets of groups written alike"
        yield (
            f"{what} are in several {'folds' if config.folds else 'splits'}: {_some(found)}; if those of a set are one "
            "group, write it in one way"
        )


def _plain(group: str) -> str:
    """A form that is equal only for spellings of one group."""
    text = composed(group)
    return whole[1] if (whole := WHOLE.fullmatch(text)) is not None else text


def _alike(group: str) -> str:
    """A form that is equal for groups that look alike, or are the same number."""
    return ZEROS.sub("", folded(_plain(composed(group).replace(",", "."))))


def _divided(
    config: DataConfig, groups: Sequence[str], splits: Mapping[str, NDArray[Any]], form: Callable[[str], str]
) -> list[Spelled]:
    """The groups of equal form that are in several splits, or that folds may divide."""
    sides = {groups[index]: split for split, indices in splits.items() for index in indices.tolist() if groups[index]}
    alike: dict[str, Spelled] = defaultdict(list)
    for group, split in sorted(sides.items()):
        alike[form(group)].append((group, split))
    return [
        one
        for one in alike.values()
        if len(one) > 1 and (len({split for _, split in one}) > 1 or (config.folds and one[0][1] != "test"))
    ]


def _some(found: Sequence[Spelled]) -> str:
    """The first three of them; letters that are not ASCII as numbers, because they may look the same."""
    some = [" and ".join(f"{group!a} ({split})" for group, split in one) for one in found[:3]]
    return ", ".join(some) + (", ..." if found[3:] else "")


def _lines(config: DataConfig) -> Iterator[str]:
    """For each table with decimal points in its column of groups: a line of Python that copies it without them."""
    root, asked = Path(config.path or ""), ((config.columns or Columns()).group or "group").strip().lower()
    for key, name in (("labels", config.labels), ("test_labels", config.test_labels)):
        if name is None:
            continue
        table = root / expanded(name)
        header, lines = read_lines(table)
        number = next((at for at, cell in enumerate(header) if cell.strip().lower() == asked), len(header))
        if any(WHOLE.fullmatch(row[number].strip()) for _, row in lines if number < len(row)):
            new = Path(name).with_name(f"{table.stem}-corrected.csv")
            line = corrected(table, header[number], _without_point)
            yield f"for data.{key} = {json.dumps(str(new), ensure_ascii=False)}, {line}"


def _without_point(cell: str) -> str:
    """Code of Python for a cell without the decimal point of a whole number. ``cell`` is code for the cell."""
    return rf"re.sub(r'^([-+]?\d+)[.]0*$', r'\1', {cell}.strip())"
