"""Warnings about pictures of more than 8 bits that are read too dark, or on several scales."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path

from search.words import count as _count
from trainer.config import DataConfig
from trainer.data import Dataset
from trainer.errors import printable
from trainer.pictures import BYTES, DEPTH, SPREAD, UNIT

__all__ = ["brightness"]

RANGES = {UNIT: "0 to 1", BYTES: "0 to 255", DEPTH: "0 to 65,535", SPREAD: "from its own lowest to its highest value"}
"""Each scale, as the range of values that becomes 0 to 255."""

DARK = 32
"""Smallest level of the brightest pixel without a warning: an eighth of 256."""

LOOKED_AT = 200
"""Largest number of pictures in which the brightest pixel is searched; they are evenly spaced."""

CONVERT = (
    "import shutil, numpy as np; from pathlib import Path; from PIL import Image, ImageOps; "
    "new = Path(shutil.copytree({old!r}, {new!r})); "
    "read = lambda file: np.asarray(ImageOps.exif_transpose(Image.open(file)), float); "
    "deep = [file for file in new.rglob('[!.]*') if file.suffix in {endings!r} and Image.open(file).mode[0] in 'IF']; "
    "low, high = min(read(file).min() for file in deep), max(read(file).max() for file in deep); "
    "print(len([Image.fromarray(np.rint((read(file) - low) * (255 / (high - low))).astype('uint8')).save(file) "
    "for file in deep]), 'pictures converted')"
)


def brightness(data: Dataset, config: DataConfig) -> Iterator[str]:
    """A warning if pictures of more than 8 bits are read on several scales, or if all of them are read nearly black."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, scale in data.scales.items():
        found[scale].append(name)
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
            f"{_cure(data.scales, config)}"
        )
    elif found:
        yield from _dark(data, config)


def _dark(data: Dataset, config: DataConfig) -> Iterator[str]:
    indices = [index for index, name in enumerate(data.names) if name in data.scales]
    chosen = indices[:: -(-len(indices) // LOOKED_AT)]
    highest = max(int(data.images[index].max()) for index in chosen)
    if highest < DARK:
        looked = "" if len(chosen) == len(indices) else f" ({len(chosen):,} were looked at)"
        yield (
            f"the {_count(len(indices), 'picture')} of more than 8 bits are read nearly black: their brightest pixel "
            f"is {highest} of 255{looked}, so they have at most {highest + 1} gray levels; {_cure(data.scales, config)}"
        )


def _cure(names: Collection[str], config: DataConfig) -> str:
    """What helps: a line of Python, if the pictures are files of a folder."""
    advice = "convert all of them to 8 bits with one common scale"
    folder = Path(config.path or "").absolute()
    if config.source != "folder" or not (folder / next(iter(names))).is_file():
        return advice
    endings = sorted({Path(name).suffix for name in names})
    line = CONVERT.format(old=str(folder), new=f"{folder}-8bit", endings=endings)
    return f"{advice}; this line of Python does so in a copy of the folder, {printable(str(folder))}-8bit: {line}"
