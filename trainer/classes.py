"""Whether the values of a column may be classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from trainer.split_names import split_of

__all__ = ["are_measured", "combined", "decimals_in", "have_one_each", "may_be_classes"]

DECIMAL = re.compile(r"[-+]?\d*[.]\d+")

CHOICES = re.compile(r'\{"choices": *\[(.*)\]\}')
"""The form in which Label Studio writes several labels of a picture."""

MANY_DECIMALS = 10
"""Up to this many different values with decimal places, such as 0.5, 1.5 and 2.5, are probably classes."""


def have_one_each(folders: Sequence[str], values: Sequence[str]) -> bool:
    """Whether the pictures of each folder have one value, empty ones left out.

    Args:
        folders: of each picture, the name of its folder.
        values: of each picture, its value; "" if it has none.
    """
    pairs = {(folder, value) for folder, value in zip(folders, values, strict=True) if value}
    return len(pairs) == len({folder for folder, _ in pairs})


def decimals_in(values: Iterable[str]) -> list[str]:
    """The different values that are numbers with decimal places, sorted."""
    return sorted({value for value in values if DECIMAL.fullmatch(value)})


def are_measured(values: Iterable[str]) -> bool:
    """Whether the values are measured numbers (ages, scores): over half of the different ones, and more than
    MANY_DECIMALS of them, have decimal places, and not all of these are .0."""
    found = set(values)
    decimals = decimals_in(found)
    return len(decimals) > max(MANY_DECIMALS, len(found) / 2) and any(one.rstrip("0")[-1] != "." for one in decimals)


def may_be_classes(values: Sequence[str]) -> bool:
    """Whether values may be classes. Names of splits, values that hardly repeat (captions, checksums) and measured
    numbers are not classes."""
    found = set(values)
    if are_measured(found) or len(found) > max(2, len(values) / 2):
        return False
    return not all(map(split_of, found))


def combined(values: Iterable[str]) -> list[str]:
    """The different values that combine several of the other values, sorted: "cat,dog", "['cat', 'dog']", "cat|dog".

    With a "|", it is enough that one of the parts is in another value. Label Studio's lists are always combinations.
    """
    parts_of = {value: _parts(value) for value in set(values)}
    single = {parts[0] for parts in parts_of.values() if len(parts) == 1}
    count = Counter(part for parts in parts_of.values() for part in set(parts))
    return sorted(
        value
        for value, parts in parts_of.items()
        if len(parts) > 1
        and (
            single.issuperset(parts)
            or ("|" in value and any(count[part] > 1 for part in parts))
            or CHOICES.fullmatch(value) is not None
        )
    )


def _parts(value: str) -> list[str]:
    if (choices := CHOICES.fullmatch(value)) is not None:
        return [part for part in re.findall(r'"([^"]*)"', choices[1]) if part] or [value]
    return [part.strip("'\"") for part in re.split(r"[|,;\s]+", value.strip("[](){} ")) if part] or [value]
