"""Tables that have the pixels of pictures in their cells. They are recognised, but not read."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["about_pixels"]

FEWEST_PIXELS = 36
"""Smallest number of pixels by which a table is recognised."""

LEVELS = re.compile(rf"[\[(]?\s*\d{{1,3}}([\s,;]+\d{{1,3}}){{{FEWEST_PIXELS - 1},}}\s*[\])]?")
"""The levels of all pixels of a picture in one cell."""


def about_pixels(header: Sequence[str], lines: Sequence[tuple[int, list[str]]]) -> str | None:
    """A clause about a table with a column for each pixel, or with a column for all pixels of a picture; else None."""
    rows = [row for _, row in lines[:20]]
    if not rows:
        return None
    in_one = [
        number
        for number in range(len(header))
        if all(number < len(row) and LEVELS.fullmatch(row[number].strip()) for row in rows)
    ]
    levels = sum(all(number < len(row) and _is_level(row[number]) for row in rows) for number in range(len(header)))
    if not in_one and levels < FEWEST_PIXELS:
        return None
    what = f"all pixels of a picture in column {header[in_one[0]]}" if in_one else "a column for each pixel"
    return (
        f"seems to have {what}, and only files of pictures are read; write the picture of each row to a file such as "
        "train/CLASS/1.png"
    )


def _is_level(cell: str) -> bool:
    return (cell := cell.strip().removesuffix(".0")).isdecimal() and int(cell) < 256
