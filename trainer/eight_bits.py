"""The range of values of pictures of more than 8 bits, without no-data, and a line of Python that converts them."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from trainer.errors import printable
from trainer.pictures import COLOURS, DEEP, NOT_FINITE

__all__ = ["Contents", "Values", "by_scale", "contents_of", "conversion", "cure_of_not_finite", "listed"]

LOOKED_AT = 200
"""Largest number of files that are read; they are evenly spaced."""

SAMPLE = 20_000
"""About how many values of a file are looked at."""

NO_DATA_TAG = 42113
"""The TIFF tag in which GDAL writes the value of pixels without data."""

MOST_LISTED = 8
"""Largest number of values outside the content that a line of Python lists, those of the most pixels. Values of fewer
pixels are left out picture by picture."""

CONVERT = (
    "import shutil, numpy as np; from pathlib import Path; {imports}; "
    "new = Path(shutil.copytree({old!r}, {new!r})); read = lambda file: {read}; "
    "deep = [file for file in new.rglob('[!.]*') if file.suffix in {endings!r} and {is_deep}]; "
    "content = lambda a: {content}; ends = [{ends} for file in deep if len(v := content(read(file)))]; "
    "low, high = min(ends)[0], max(end[1] for end in ends); "
    "scaled = lambda a: np.rint((np.nan_to_num(a, nan=low).clip(low, high) - low) * (255 / (high - low))); "
    "print(len([{save} for file in deep]), 'pictures converted, from', low, 'to', high)"
)
"""Reads all pictures, because a few of them do not tell the range of all."""

WITH_PILLOW = {
    "imports": "from PIL import Image, ImageOps",
    "read": "np.asarray(ImageOps.exif_transpose(Image.open(file)), float)",
    "is_deep": "Image.open(file).mode[0] in 'IF'",
    "save": "Image.fromarray(scaled(read(file)).astype('uint8')).save(file)",
}
WITH_OPENCV = {
    "imports": "import cv2",
    "read": "cv2.imread(str(file), 6).astype(float)",
    "is_deep": "getattr(cv2.imread(str(file), 6), 'dtype', 'uint8') != 'uint8'",
    "save": "cv2.imwrite(str(file), scaled(read(file)).astype('uint8'))",
}
"""For pictures of 16 bits in each colour, of which Pillow reads the upper 8. It passes over files that it cannot read,
for which Pillow raises an exception. 6 is IMREAD_ANYDEPTH | IMREAD_ANYCOLOR, without alpha."""

CONTENT = "a[np.isfinite(a) & ~np.isin(a, {skip!r})]"
ALL = "(v.min(), v.max())"
WITHOUT_FEW = (
    "(v[k], v[~k]) if 0 < 8 * (v[~(k := min(max(8, len(v) // 1000), len(v) // 16))] - v[k]) < v[-1] - v[0] "
    "else (v[0], v[-1])"
)
"""As ``_ends``; v is sorted."""


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
    has_few: bool
    """Whether pictures have a few pixels outside the content that ``skipped`` does not name."""

    @property
    def skipped(self) -> tuple[float, ...]:
        """The values that a line of Python lists."""
        return self.no_data[:MOST_LISTED]


def contents_of(folder: Path, *groups: Sequence[str]) -> Contents | None:
    """What some of these pictures contain; None if they are no files, or if all of their pixels have one value. From
    each group of names, the same number of files is read."""
    most = LOOKED_AT // max(1, sum(map(bool, groups)))
    chosen = [name for names in groups for name in names[:: -(-len(names) // most) or 1]]
    samples = [one for name in chosen if (one := _sample(folder, name)) is not None]
    counts = Counter[float]()
    for one in samples:
        for value in {*one.no_data, *_isolated(one.values)}:
            counts[value] += int((one.values == value).sum())
    files, has_few = list[Values](), len(counts) > MOST_LISTED
    for one in samples:
        values = np.sort(one.values[~np.isin(one.values, [*counts])])
        if not len(values):
            continue
        low, high = _ends(values)
        has_few = has_few or (low, high) != (values[0], values[-1])
        distinct = len(np.unique(values[(values >= low) & (values <= high)]))
        files.append(Values(one.name, one.full_scale, low, high, distinct))
    lowest, highest = min((one.low for one in files), default=0.0), max((one.high for one in files), default=0.0)
    if lowest == highest:
        return None
    extreme = bool(counts) or has_few or any(not one.finite for one in samples)
    return Contents(tuple(files), lowest, highest, tuple(value for value, _ in counts.most_common()), extreme, has_few)


def _ends(values: NDArray[np.float64]) -> tuple[float, float]:
    """The lowest and highest of these sorted values; without a few at both ends if these are far from all others."""
    few = min(max(8, len(values) // 1000), len(values) // 16)
    low, high, inner = float(values[0]), float(values[-1]), (float(values[few]), float(values[-1 - few]))
    return inner if 0 < 8 * (inner[1] - inner[0]) < high - low else (low, high)


def conversion(folder: Path, names: Collection[str], contents: Contents | None, *, with_opencv: bool = False) -> str:
    """Advice to convert these pictures, with a line of Python if they are files of the folder.

    Args:
        folder: the data folder.
        names: the pictures of more than 8 bits.
        contents: their content, where it is known.
        with_opencv: whether some have more than 8 bits in each colour, or files that cannot be read are among them.
    """
    advice = "convert all of them to 8 bits with one common scale"
    if not names or not (folder / next(iter(names))).is_file():
        return advice
    skip = contents.skipped if contents is not None else ()
    content, ends = CONTENT.format(skip=[*skip]), ALL
    if contents is not None and contents.has_few:
        content, ends = f"np.sort({content})", WITHOUT_FEW
    if skip:
        advice += f" without {listed(skip)}"
    endings = sorted({Path(name).suffix for name in names})
    how = {"endings": endings, "content": content, "ends": ends} | (WITH_OPENCV if with_opencv else WITH_PILLOW)
    line = CONVERT.format(old=str(folder), new=f"{folder}-8bit", **how)
    return f"{advice}; this line of Python does so in a copy of the folder, {printable(str(folder))}-8bit: {line}"


def listed(values: Sequence[float]) -> str:
    """Some of these values, in words."""
    more = f" and {len(values) - 3:,} more" if len(values) > 3 else ""
    return ", ".join(f"{value:,.6g}" for value in values[:3]) + more


def cure_of_not_finite(root: str, bad: Iterable[Sequence[str]], deep: Iterable[Sequence[str]] = ()) -> str:
    """A paragraph with what helps if files were refused for values that are not finite; else "".

    Args:
        root: the folder of the pictures.
        bad: (name, reason) of the files that were refused.
        deep: (name, reason) of the pictures that a plain convert reads differently.
    """
    folder, bad, deep = Path(root).absolute(), list(bad), list(deep)
    names = [name for name, reason in bad if reason.startswith(NOT_FINITE.partition(",")[0])]
    if not names:
        return ""
    with_opencv = any(scale == COLOURS for _, scale in deep) or len(bad) > len(names)
    scales = by_scale(one for one in deep if one[1] in DEEP)
    contents = contents_of(folder, names, *scales)
    if contents is None:
        return ""
    names += [name for name, scale in deep if scale in (*DEEP, COLOURS)]
    return f"\nFor the values that are not finite, {conversion(folder, names, contents, with_opencv=with_opencv)}"


def by_scale(deep: Iterable[Sequence[str]]) -> list[list[str]]:
    """The names in pairs of (name, scale), grouped by scale."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, scale in deep:
        found[scale].append(name)
    return list(found.values())


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
