"""A warning about many pictures that look the same, such as "image not available" of a shop or a download."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.data import Dataset
from trainer.errors import printable

__all__ = ["placeholders"]

LOOKED_AT = 1000
"""Largest number of pictures that are compared; they are evenly spaced."""

FEWEST = 5
"""Smallest number of pictures that are many; fewer may be a burst."""

SIDE = 16
"""Side of the small versions that are compared, in pixels."""

SAME = 12
"""Largest difference between small versions of pictures that look the same, in levels of any pixel. Of a drawing in
four sizes and as JPEG of quality 15 to 95, it is at most 11; of 1,000 birds, flowers, CIFAR-10 or digits, no two have
so little."""

LEAST_RANGE = 8
"""Smallest range of a channel in a small version, in levels, for it to be compared. Pictures with less, such as nearly
black ones, all look the same at this size, and need not be the same."""

SHARE = 4
"""The differences may be at most the range divided by this: two night skies with other stars do not look the same. Of
faint texts (#bbb on #f2f2f2 to #888 on white) as JPEG of quality 30 to 95, the difference is at most a ninth of the
range."""


def placeholders(data: Dataset) -> Iterator[str]:
    """A warning with the number of pictures that look the same. Those of hardly more than one colour do not count."""
    chosen = range(0, len(data.names), -(-len(data.names) // LOOKED_AT))
    smalls = np.stack([_small(data.images[index]) for index in chosen])
    ranges = np.ptp(smalls.reshape(len(smalls), SIDE * SIDE, -1), axis=1).max(axis=1)
    left, groups = np.flatnonzero(ranges >= LEAST_RANGE), list[list[int]]()
    while len(left):
        same = np.abs(smalls[left] - smalls[left[0]]).max(axis=1) <= min(SAME, ranges[left[0]] / SHARE)
        groups.append([chosen[one] for one in left[same].tolist()])
        left = left[~same]
    if many := sorted((group for group in groups if len(group) >= FEWEST), key=len, reverse=True):
        looked = f"{len(chosen):,}" if len(chosen) == len(data.names) else f"{len(chosen):,} that were looked at"
        first, second = (printable(data.names[index]) for index in many[0][:2])
        classes = Counter(data.class_names[data.labels[index]] for group in many for index in group).most_common()
        told = ", ".join(f"{printable(name)} ({count:,})" for name, count in classes[:5])
        told += f" and {len(classes) - 5:,} more" if len(classes) > 5 else ""
        yield (
            f"{sum(map(len, many)):,} pictures of {looked} look the same as at least {FEWEST - 1} others, for example "
            f"{first} and {second}, in these classes: {told}; if they say that a picture is missing, remove them"
        )


def _small(pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
    image = Image.fromarray(pixels.squeeze())
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.int16).ravel()
