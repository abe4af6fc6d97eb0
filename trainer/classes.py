"""Whether the values of a column may be classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from trainer.split_names import split_of

__all__ = ["are_measured", "decimals_in", "may_be_classes"]

DECIMAL = re.compile(r"[-+]?\d*[.]\d+")

MANY_DECIMALS = 10
"""Largest number of different numbers with decimal places that are probably classes, such as 0.5, 1.5 and 2.5."""


def decimals_in(values: Iterable[str]) -> list[str]:
    """The different values that are numbers with decimal places, sorted."""
    return sorted({value for value in values if DECIMAL.fullmatch(value)})


def are_measured(values: Iterable[str]) -> bool:
    """Whether most values are numbers with decimal places, and too many for classes: ages, scores."""
    found = set(values)
    decimals = decimals_in(found)
    return len(decimals) > max(MANY_DECIMALS, len(found) / 2) and any(one.rstrip("0")[-1] != "." for one in decimals)


def may_be_classes(values: Sequence[str]) -> bool:
    """Whether values may be classes. Names of splits, values that hardly repeat (captions, checksums) and measured
    numbers are none."""
    found = set(values)
    if are_measured(found) or len(found) > max(2, len(values) / 2):
        return False
    return not all(map(split_of, found))
