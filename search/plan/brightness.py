"""Warnings about pictures of more than 8 bits that are read too dark, in few gray levels, or on several scales."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from search.words import count as _count
from trainer.config import DataConfig
from trainer.data import Dataset
from trainer.eight_bits import Contents, Values, by_scale, contents_of, conversion, listed
from trainer.errors import printable
from trainer.pictures import BYTES, COLOURS, DEPTH, SPREAD, UNIT

__all__ = ["brightness"]

RANGES = {UNIT: "0 to 1", BYTES: "0 to 255", DEPTH: "0 to 65,535", SPREAD: "from its own lowest to its highest value"}
"""Each scale, as the range of values that becomes 0 to 255."""

DARK = 32
"""Smallest level of the brightest pixel without a warning: an eighth of 256. Also the smallest number of gray levels
for the content of a picture."""

LOOKED_AT = 200
"""Largest number of pictures in which the brightest pixel is searched; they are evenly spaced."""


def brightness(data: Dataset, config: DataConfig) -> Iterator[str]:
    """Warnings if pictures of more than 8 bits are read on several scales, nearly black, or in few gray levels.

    The first of them has a line of Python that writes a better copy of the folder.
    """
    names, contents, folder = list(data.scales), None, Path(config.path or "").absolute()
    if config.source == "folder":
        gray = ((name, scale) for name, scale in data.scales.items() if scale != COLOURS)
        contents = contents_of(folder, *by_scale(gray), _black(data))
        names += [one.name for one in contents.files if one.name not in data.scales] if contents is not None else []
    told = [*_scales(data)] or [*_dark(data)]
    if contents is not None and (contents.has_extremes or not told):
        told += _few_levels(contents)
    for number, sentence in enumerate(told):
        cure = "the line of Python above spreads them"
        if not number:
            with_opencv = COLOURS in data.scales.values() or bool(data.bad_files)
            cure = conversion(folder, names, contents, with_opencv=with_opencv)
        yield f"{sentence}{cure}"


def _scales(data: Dataset) -> Iterator[str]:
    found: dict[str, list[str]] = defaultdict(list)
    for name, scale in data.scales.items():
        found[DEPTH if scale == COLOURS else scale].append(name)
    if len(found) > 1:
        scales = " and ".join(
            f"{_count(len(found[scale]), 'picture')} with {told} (the first: {printable(found[scale][0])})"
            for scale, told in RANGES.items()
            if scale in found
        )
        factor = " by a factor of 257" if found.keys() == {BYTES, DEPTH} else ""
        yield (
            f"pictures of more than 8 bits are read on {len(found)} scales: {scales}; so equal values differ in "
            f"brightness{factor}, and a model learns this difference; if the pictures are from one instrument, "
        )


def _dark(data: Dataset) -> Iterator[str]:
    indices = [index for index, name in enumerate(data.names) if name in data.scales]
    if not indices:
        return
    chosen = indices[:: -(-len(indices) // LOOKED_AT)]
    highest = max(int(data.images[index].max()) for index in chosen)
    if highest < DARK:
        looked = "" if len(chosen) == len(indices) else f" ({len(chosen):,} were looked at)"
        yield (
            f"the {_count(len(indices), 'picture')} of more than 8 bits are read nearly black: their brightest pixel "
            f"is {highest} of 255{looked}, so they have at most {_count(highest + 1, 'gray level')}; "
        )


def _few_levels(contents: Contents) -> Iterator[str]:
    """A warning about pictures whose content has few gray levels, and would have twice as many on its own scale."""
    few = [one for one in contents.files if _levels_of(one) < min(DARK, one.distinct)]
    few = [one for one in few if one.full_scale >= 2 * (contents.high - contents.low)]
    if few:
        worst = min(few, key=_levels_of)
        without = ""
        if contents.no_data:
            without = f" without {listed(contents.no_data)} (perhaps no-data)"
        elif contents.has_extremes:
            without = " without its most extreme pixels"
        yield (
            f"{len(few):,} of {_count(len(contents.files), 'picture')} of more than 8 bits that "
            f"{'was' if len(contents.files) == 1 else 'were'} looked at are read in few gray levels: the content "
            f"of {printable(worst.name)}, from {worst.low:,.6g} to {worst.high:,.6g}{without}, has "
            f"{_levels_of(worst)} of 256 gray levels for {worst.distinct:,} different values; "
        )


def _levels_of(one: Values) -> int:
    return int((one.high - one.low) * 255 / one.full_scale) + 1


def _black(data: Dataset) -> list[str]:
    """Names of some black pictures that ``scales`` does not have; they may be of more than 8 bits."""
    chosen = range(0, len(data.names), -(-len(data.names) // LOOKED_AT))
    black = (data.names[index] for index in chosen if not data.images[index].any())
    return [name for name in black if name not in data.scales]
