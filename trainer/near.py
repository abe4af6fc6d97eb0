"""Near-duplicates: the same picture resized, re-encoded, cropped by a few per cent or flipped, in two splits.

A perceptual hash (ImageHash's pHash, 64 bits) finds candidates. Candidates are near-duplicates if small versions of
them agree: both whole, one of them cropped, or both cropped at opposite edges. (The cache has the centre of each
picture, and a crop at a side of a wide picture moves its centre.) All steps work on the decoded pictures of the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.cache import Progress
from trainer.data import Dataset

__all__ = ["NearDuplicate", "are_alike", "find_near_duplicates"]

CANDIDATE_BITS = 22
"""Largest number of bits (of 64) in which the hashes of candidates may differ. Of 1,260 copies without 5 % at two edges
(60 flowers in seven shapes, 9:16 to 2:1, scaled to 3/4, JPEG of quality 80), 99.4 % are found; with 18 bits, 96.3 %."""

SAME = 0.95
"""Least correlation of the small versions of near-duplicates. In 1,200 pictures each of flowers (128 px), birds (64 px)
and CIFAR-10, cropped copies and JPEGs of quality 40 had at least 0.96, different pictures at most 0.935."""

PLAUSIBLE = 0.55
"""Least correlation of whole pictures for which cropped versions are compared too."""

SMALL = 16
"""Side of the small versions, in pixels."""

MOST_CANDIDATES = 16
"""Largest number of pictures of a split, the most similar as a whole, of which cropped versions are compared with those
of a picture. Without this bound, the time would grow with the square of the number of pictures of one scene."""

CROP = 0.05
"""Share of each side that a copy may have lost, at any edge."""

SHIFTS = (0.034, 0.046)
"""Distances by which the centre of a wide picture moves if CROP of its width is lost at a side, as a share of its
height: 0.033 for 4:3, 0.0375 for 3:2, 0.044 for 16:9. The same for tall pictures."""

Interval = tuple[float, float]


def _places() -> list[tuple[Interval, Interval]]:
    """Where a copy may lie in its original, across and down. The original is (0, 1); a copy may reach beyond it."""
    whole, middle, ends = (0.0, 1.0), (CROP / 2, 1 - CROP / 2), [(0.0, 1 - CROP), (CROP, 1.0)]
    moved = [(by, 1 + by) for shift in SHIFTS for by in (-shift, shift)]
    smaller = [(middle[0] + by, middle[1] + by) for shift in SHIFTS for by in (-shift, shift)]
    across = [*product(ends, [whole, middle]), *product(moved, [whole]), *product(smaller, [middle, *ends])]
    return [(whole, whole), (middle, middle), *product(ends, ends), *across, *((y, x) for x, y in across)]


Box = tuple[float, float, float, float]


def _common(place: tuple[Interval, Interval]) -> tuple[Box, Box]:
    """The common part of an original and its copy: as a box of the original, and as one of the copy."""
    (left, right), (top, bottom) = ((max(low, 0.0), min(high, 1.0)) for low, high in place)
    (x, x_end), (y, y_end) = place
    width, height = x_end - x, y_end - y
    inside = ((left - x) / width, (top - y) / height, (right - x) / width, (bottom - y) / height)
    return (left, top, right, bottom), inside


PAIRS = [pair for place in _places() for one, other in [_common(place)] for pair in ((one, other), (other, one))]
BOXES = sorted({box for pair in PAIRS for box in pair})
ONES, OTHERS = (np.array([BOXES.index(pair[side]) for pair in PAIRS]) for side in (0, 1))
"""Version ONES[n] of one picture is compared with version OTHERS[n] of the other; BOXES has the versions."""

KEEP, MIRROR = slice(None), slice(None, None, -1)
FLIPS = ((KEEP, KEEP), (KEEP, MIRROR), (MIRROR, KEEP))
"""Indices of a picture's rows and columns: as they are, mirrored left-right, and mirrored top-bottom."""

BLOCK = 128
"""Number of pictures that are compared with a split at once, which bounds the memory."""

VERSIONS_KEPT = 8192
"""Number of pictures whose cropped versions are kept: 0.4 GB in colour."""


@dataclass(frozen=True)
class NearDuplicate:
    """Two pictures in two splits or folds that are nearly the same."""

    first: str
    second: str
    splits: tuple[str, str]
    """Splits of the first and of the second picture."""
    likeness: float
    """Correlation of the pictures' small versions, at most 1."""


def find_near_duplicates(
    data: Dataset, splits: Mapping[str, NDArray[np.int64]], progress: Progress | None = None
) -> list[NearDuplicate]:
    """For each picture, find its most similar near-duplicate in each earlier split. Exact copies count.

    Args:
        data: the pictures.
        splits: the splits or folds to compare, in their order: the indices of their pictures.
        progress: called with the number of hashed pictures.

    Returns:
        The pairs, the most similar first.
    """
    names = [name for name in splits if len(splits[name])]
    hashes, smalls = _hashes(data, progress)
    versions = lru_cache(VERSIONS_KEPT)(lambda index, flip: _versions(data.images[index][FLIPS[flip]]))
    found: list[NearDuplicate] = []
    total = sum(number * len(splits[name]) for number, name in enumerate(names))
    done = 0
    for number, later in enumerate(names):
        for earlier in names[:number]:
            first, second = splits[later], splits[earlier]
            for start in range(0, len(first), BLOCK):
                part = first[start : start + BLOCK]
                alike = _alike(hashes, smalls, part, second)
                for one, row in zip(part.tolist(), alike, strict=True):
                    likeness, other = _most_similar(one, row, second, versions)
                    if likeness >= SAME:
                        pair = (data.names[one], data.names[other])
                        found.append(NearDuplicate(*pair, (later, earlier), round(likeness, 4)))
                    done += 1
                    if progress is not None:
                        progress("comparing the most similar ones", done, total)
    return sorted(found, key=lambda pair: (-pair.likeness, pair.first))


def are_alike(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Whether two pictures are near-duplicates, mirrored or not, in colour or gray."""
    ours, theirs = (pixels if pixels.shape[-1] == 1 else _gray(pixels) for pixels in (one, other))
    whole = [_unit(_small(Image.fromarray(pixels.squeeze()), None)[None])[0] for pixels in (ours, theirs)]
    if float(np.abs(whole[0]).sum()) == 0:  # a single colour is like nothing
        return False
    small = whole[0].reshape(SMALL, SMALL)
    return any(
        float(small[flip].ravel() @ whole[1]) >= PLAUSIBLE
        and _likeness(_versions(ours[flip]), _versions(theirs)) >= SAME
        for flip in FLIPS
    )


def _gray(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]


def _hashes(data: Dataset, progress: Progress | None) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """Hashes [3, N] of the pictures, one for each of FLIPS, and small versions [N, 16 * 16 * C]."""
    from imagehash import phash  # imported here: it imports SciPy, 0.3 s

    bits = np.zeros((len(FLIPS), len(data.names), 64), bool)
    smalls = np.zeros((len(data.names), SMALL * SMALL * data.images.shape[-1]), np.float32)
    for index, pixels in enumerate(data.images):
        for row, flip in enumerate(FLIPS):
            image = Image.fromarray(np.ascontiguousarray(pixels[flip].squeeze()))
            bits[row, index] = phash(image).hash.ravel()
            if row == 0:
                smalls[index] = _unit(_small(image, None)[None])[0]
        if progress is not None:
            progress("looking for near-duplicates", index + 1, len(data.names))
    return np.packbits(bits, axis=2).view(np.uint64)[:, :, 0], smalls


def _alike(
    hashes: NDArray[np.uint64], smalls: NDArray[np.float32], part: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.float32]:
    """[len(part), 3, len(second)]: the correlation of pictures as a whole, for each flip of the one of ``part``.
    0 for pictures that are no candidates by their hashes."""
    found = np.zeros((len(part), len(FLIPS), len(second)), np.float32)
    grids = smalls[part].reshape(len(part), SMALL, SMALL, -1)
    for row, flip in enumerate(FLIPS):
        ours = np.ascontiguousarray(grids[:, *flip]).reshape(len(part), -1)
        near = np.bitwise_count(hashes[row, part][:, None] ^ hashes[0, second][None, :]) <= CANDIDATE_BITS
        of, columns = np.nonzero(near)
        if 8 * len(of) > near.size:  # most pictures are candidates of most others, so all are compared, by BLAS
            found[:, row] = np.where(near, ours @ smalls[second].T, 0)
            continue
        for at in range(0, len(of), 1024):
            ones, others = of[at : at + 1024], columns[at : at + 1024]
            found[ones, row, others] = np.einsum("nd,nd->n", ours[ones], smalls[second[others]])
    return found


def _most_similar(
    one: int,
    alike: NDArray[np.float32],
    second: NDArray[np.int64],
    versions: Callable[[int, int], NDArray[np.uint8]],
) -> tuple[float, int]:
    """The likeness of the most similar picture of ``second``, and its index. ``alike`` [3, len(second)]: the
    correlations as a whole. If the best of these is enough, no cropped versions are compared.
    """
    best = int(alike.argmax())
    likeness, other = float(alike.flat[best]), int(second[best % len(second)])
    if likeness >= SAME or likeness < PLAUSIBLE:
        return likeness, other
    candidates = np.flatnonzero(alike >= PLAUSIBLE)
    if len(candidates) > MOST_CANDIDATES:
        candidates = candidates[np.argpartition(-alike.flat[candidates], MOST_CANDIDATES)[:MOST_CANDIDATES]]
    for candidate in candidates.tolist():
        flip, column = divmod(candidate, len(second))
        compared = _likeness(versions(one, flip), versions(int(second[column]), 0))
        if compared > likeness:
            likeness, other = compared, int(second[column])
    return likeness, other


def _likeness(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> float:
    """The largest correlation of the versions of two pictures, both whole, or one or both cropped."""
    one, other = _unit(ours.astype(np.float32)), _unit(theirs.astype(np.float32))
    return float(np.einsum("nd,nd->n", one[ONES], other[OTHERS]).max())


def _versions(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[len(BOXES), 16 * 16 * C]: small versions of a picture, whole and cropped."""
    image = Image.fromarray(np.ascontiguousarray(pixels.squeeze()))
    side = image.width
    return np.stack([np.asarray(_resized(image, [side * end for end in box])).ravel() for box in BOXES])


def _resized(image: Image.Image, box: Sequence[float] | None) -> Image.Image:
    return image.resize((SMALL, SMALL), Image.Resampling.BOX, box)  # type: ignore[arg-type]


def _small(image: Image.Image, box: Sequence[float] | None) -> NDArray[np.float32]:
    return np.asarray(_resized(image, box), np.float32).ravel()


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shift each row to mean 0 and scale it to length 1, so that products of rows are correlations."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    unit: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return unit
