"""The range of values of pictures of more than 8 bits, without no-data, and a line of Python that converts them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from trainer.errors import printable
from trainer.pictures import NOT_FINITE

__all__ = ["Contents", "Values", "contents_of", "conversion", "cure_of_not_finite"]

LOOKED_AT = 200
"""Largest number of files that are read; they are evenly spaced."""

SAMPLE = 20_000
"""About how many values of a file are looked at."""

NO_DATA_TAG = 42113
"""The TIFF tag in which GDAL writes the value of pixels without data."""

CONVERT = (
    "import shutil, numpy as np; from pathlib import Path; from PIL import Image, ImageOps; "
    "new = Path(shutil.copytree({old!r}, {new!r})); "
    "read = lambda file: np.asarray(ImageOps.exif_transpose(Image.open(file)), float); "
    "deep = [file for file in new.rglob('[!.]*') if file.suffix in {endings!r} and Image.open(file).mode[0] in 'IF']; "
    "low, high = {limits}; "
    "print(len([Image.fromarray(np.rint((np.nan_to_num(read(file), nan=low).clip(low, high) - low) "
    "* (255 / (high - low))).astype('uint8')).save(file) for file in deep]), 'pictures converted')"
)
ALL_VALUES = "min(read(file).min() for file in deep), max(read(file).max() for file in deep)"


@dataclass(frozen=True, eq=False)
class Values:
    """Values of one picture of more than 8 bits."""

    name: str
    full_scale: float
    """Length of the range of values that is read as 0 to 255."""
    low: float
    high: float
    """The range of its content: without no-data, and without a few pixels that are far from all others."""
    distinct: int
    """Number of different values in this range, as far as it was looked at."""


@dataclass(frozen=True, eq=False)
class Contents:
    """The content of all pictures that were looked at."""

    files: tuple[Values, ...]
    low: float
    high: float
    no_data: tuple[float, ...]
    """Values outside the content, the most frequent first."""
    has_extremes: bool
    """Whether some pixels are outside the content."""


def contents_of(folder: Path, names: Sequence[str]) -> Contents | None:
    """What some of these pictures contain; None if they are no files, or if all of their pixels have one value."""
    samples = [one for name in names[:: -(-len(names) // LOOKED_AT) or 1] if (one := _sample(folder, name)) is not None]
    counts = Counter(value for one in samples for value in {*one.no_data, *_isolated(one.values)})
    files, extreme = list[Values](), bool(counts) or any(not one.finite for one in samples)
    for one in samples:
        values = np.sort(one.values[~np.isin(one.values, [*counts])])
        if not len(values):
            continue
        low, high = float(values[0]), float(values[-1])
        left_out = min(max(8, len(values) // 1000), len(values) // 16)
        inner = float(values[left_out]), float(values[-1 - left_out])
        if 0 < 8 * (inner[1] - inner[0]) < high - low:
            (low, high), extreme = inner, True
        distinct = len(np.unique(values[(values >= low) & (values <= high)]))
        files.append(Values(one.name, one.full_scale, low, high, distinct))
    lowest, highest = min((one.low for one in files), default=0.0), max((one.high for one in files), default=0.0)
    if lowest == highest:
        return None
    return Contents(tuple(files), lowest, highest, tuple(value for value, _ in counts.most_common()), extreme)


def conversion(folder: Path, names: Collection[str], contents: Contents | None) -> str:
    """Advice to convert these pictures, with a line of Python if they are files of the folder."""
    advice = "convert all of them to 8 bits with one common scale"
    if not names or not (folder / next(iter(names))).is_file():
        return advice
    limits = ALL_VALUES
    if contents is not None and contents.has_extremes:
        limits = f"{contents.low!r}, {contents.high!r}"
        advice += f", from {contents.low:,.6g} to {contents.high:,.6g}"
    endings = sorted({Path(name).suffix for name in names})
    line = CONVERT.format(old=str(folder), new=f"{folder}-8bit", endings=endings, limits=limits)
    return f"{advice}; this line of Python does so in a copy of the folder, {printable(str(folder))}-8bit: {line}"


def cure_of_not_finite(root: str, bad: Iterable[Sequence[str]], deep: Iterable[Sequence[str]] = ()) -> str:
    """A paragraph with what helps if files were refused for values that are not finite; else "".

    Args:
        root: the folder of the pictures.
        bad: (name, reason) of the files that were refused.
        deep: (name, reason) of the pictures that a plain convert reads differently.
    """
    folder = Path(root).absolute()
    names = [name for name, reason in bad if reason.startswith(NOT_FINITE.partition(",")[0])]
    names += [name for name, _ in deep if names]
    contents = contents_of(folder, names)
    if contents is None:
        return ""
    return f"\nFor the values that are not finite, {conversion(folder, names, contents)}"


@dataclass(frozen=True, eq=False)
class _Sample:
    name: str
    full_scale: float
    values: NDArray[np.float64]
    """Some of its finite values, among them the lowest and the highest."""
    finite: bool
    no_data: frozenset[float]


def _sample(folder: Path, name: str) -> _Sample | None:
    """Values of a picture of more than 8 bits; None for another one, or without any finite value."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(folder / name) as image:
                if image.mode[0] not in "IF":
                    return None
                tag = image.tag_v2.get(NO_DATA_TAG) if isinstance(image, TiffImageFile) else None
                values, has_floats = np.asarray(image, dtype=np.float64).ravel(), image.mode == "F"
    except Exception:  # Pillow's readers raise many kinds of exceptions; the cache names what cannot be read
        return None
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    low, high = float(finite.min()), float(finite.max())
    scales = (*([1.0] if has_floats else []), 255.0, 65535.0)
    full_scale = next((scale for scale in scales if low >= 0 and high <= scale), high - low)
    some = np.concatenate([finite[:: -(-len(finite) // SAMPLE)], [low, high]])
    return _Sample(name, full_scale, some, len(finite) == len(values), _told(tag))


def _told(tag: object) -> frozenset[float]:
    """The value of GDAL's tag, as it is, and as a file of 32-bit floats has it."""
    try:
        value = float(str(tag).strip(" \0"))
        with np.errstate(over="ignore"):
            return frozenset({value, float(np.float32(value))}) if np.isfinite(value) else frozenset()
    except ValueError:
        return frozenset()


def _isolated(values: NDArray[np.float64]) -> list[float]:
    """The lowest and highest values that are further from the next value than all values between are from each other.

    At least three values are left.
    """
    distinct = np.unique(values)
    first, last = 0, len(distinct) - 1
    while last - first >= 4:
        between = distinct[last - 1] - distinct[first + 1]
        is_low = distinct[first + 1] - distinct[first] > between
        is_high = distinct[last] - distinct[last - 1] > between
        if not (is_low or is_high):
            break
        first, last = first + bool(is_low), last - bool(is_high)
    return [*distinct[:first].tolist(), *distinct[last + 1 :].tolist()]
