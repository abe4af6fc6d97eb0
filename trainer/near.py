"""Near-duplicates: the same picture resized, re-encoded, cropped by a few per cent or flipped, in two splits.

A perceptual hash (ImageHash's pHash, 64 bits) finds candidates. Candidates are near-duplicates if small versions of
them agree, both whole or one of them cropped. Both steps work on the decoded pictures of the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.cache import Progress
from trainer.data import Dataset

__all__ = ["NearDuplicate", "are_alike", "find_near_duplicates"]

CANDIDATE_BITS = 18
"""Largest number of bits (of 64) in which the hashes of candidates may differ. After a crop of 5 % at a corner, the
hashes of 95 % of pictures differ in at most 16 bits."""

SAME = 0.95
"""Least correlation of the small versions of near-duplicates. In 1,200 pictures each of flowers (128 px), birds (64 px)
and CIFAR-10, cropped copies and JPEGs of quality 40 had at least 0.96, different pictures at most 0.935."""

PLAUSIBLE = 0.6
"""Least correlation of whole pictures for which cropped versions are compared too; that takes 0.7 ms for a pair."""

SMALL = 16
"""Side of the small versions, in pixels."""

CROP = 0.05
"""Share of each side that a copy may have lost, at any edge."""

KEEP, MIRROR = slice(None), slice(None, None, -1)
FLIPS = ((KEEP, KEEP), (KEEP, MIRROR), (MIRROR, KEEP))
"""Indices of a picture's rows and columns: as they are, mirrored left-right, and mirrored top-bottom."""

BLOCK = 1024
"""Number of pictures, or of pairs, that are compared at once, which bounds the memory."""


@dataclass(frozen=True)
class NearDuplicate:
    """Two pictures in two splits that are nearly the same."""

    first: str
    second: str
    splits: tuple[str, str]
    """Splits of the first and of the second picture."""
    likeness: float
    """Correlation of the pictures' small versions, at most 1."""


def find_near_duplicates(
    data: Dataset, splits: Sequence[str] = ("train", "val", "test"), progress: Progress | None = None
) -> list[NearDuplicate]:
    """For each picture, find its most similar near-duplicate in each earlier split. ``splits`` has their order.
    Exact copies count.

    Args:
        data: the pictures.
        splits: the splits to compare.
        progress: called with the number of hashed pictures.

    Returns:
        The pairs, the most similar first.
    """
    names = [name for name in splits if len(data.splits[name])]
    hashes, smalls = _hashes(data, progress)
    found: list[NearDuplicate] = []
    for number, later in enumerate(names):
        for earlier in names[:number]:
            first, second = data.splits[later], data.splits[earlier]
            best: dict[int, tuple[float, int]] = {}
            for row, flip in enumerate(FLIPS):
                for one, other in _candidates(hashes[row], hashes[0], smalls[row], smalls[0], first, second):
                    likeness = _likeness(data.images[one], data.images[other], flip)
                    if likeness >= max(SAME, best.get(one, (0.0, 0))[0]):
                        best[one] = (likeness, other)
            found += [
                NearDuplicate(data.names[one], data.names[other], (later, earlier), round(likeness, 4))
                for one, (likeness, other) in best.items()
            ]
    return sorted(found, key=lambda pair: (-pair.likeness, pair.first))


def are_alike(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Whether two pictures are near-duplicates, mirrored or not, in colour or gray."""
    ours, theirs = (pixels if pixels.shape[-1] == 1 else _gray(pixels) for pixels in (one, other))
    whole = [_unit(_small(Image.fromarray(pixels.squeeze()), None)[None])[0] for pixels in (ours, theirs)]
    if float(np.abs(whole[0]).sum()) == 0:  # a single colour is like nothing
        return False
    small = whole[0].reshape(SMALL, SMALL)
    return any(
        float(small[flip].ravel() @ whole[1]) >= PLAUSIBLE and _likeness(ours, theirs, flip) >= SAME for flip in FLIPS
    )


def _gray(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]


def _hashes(data: Dataset, progress: Progress | None) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """Hashes [3, N] and small versions [3, N, 16 * 16 * C] of the pictures, one for each of FLIPS."""
    from imagehash import phash  # imported here: it imports SciPy, 0.3 s

    bits = np.zeros((len(FLIPS), len(data.names), 64), bool)
    smalls = np.zeros((len(FLIPS), len(data.names), SMALL * SMALL * data.images.shape[-1]), np.float32)
    for index, pixels in enumerate(data.images):
        for row, flip in enumerate(FLIPS):
            image = Image.fromarray(np.ascontiguousarray(pixels[flip].squeeze()))
            bits[row, index] = phash(image).hash.ravel()
            smalls[row, index] = _unit(_small(image, None)[None])[0]
        if progress is not None:
            progress("looking for near-duplicates", index + 1, len(data.names))
    return np.packbits(bits, axis=2).view(np.uint64)[:, :, 0], smalls


def _candidates(
    hashes: NDArray[np.uint64],
    other_hashes: NDArray[np.uint64],
    smalls: NDArray[np.float32],
    other_smalls: NDArray[np.float32],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
) -> Iterator[tuple[int, int]]:
    """Pairs of a picture of ``first`` and a picture of ``second`` that are similar by their hashes and as a whole.

    Many parameters: hashes, small versions and indices for either side.
    """
    for start in range(0, len(first), BLOCK):
        part = first[start : start + BLOCK]
        near = np.bitwise_count(hashes[part][:, None] ^ other_hashes[second][None, :]) <= CANDIDATE_BITS
        rows, columns = np.nonzero(near)
        for at in range(0, len(rows), BLOCK):
            ones, others = part[rows[at : at + BLOCK]], second[columns[at : at + BLOCK]]
            likely = np.einsum("nd,nd->n", smalls[ones], other_smalls[others]) >= PLAUSIBLE
            yield from zip(ones[likely].tolist(), others[likely].tolist(), strict=True)


def _likeness(one: NDArray[np.uint8], other: NDArray[np.uint8], flip: tuple[slice, slice]) -> float:
    """The largest correlation of two pictures, the first one flipped, both whole or one of them cropped."""
    ours = _versions(one[flip])
    theirs = _versions(other)
    return float(max((theirs @ ours[0]).max(), (ours @ theirs[0]).max()))


def _versions(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[10, 16 * 16 * C], rows of unit length: the picture, its middle, and the picture without one or two edges."""
    image = Image.fromarray(np.ascontiguousarray(pixels.squeeze()))
    side = float(image.width)
    lost = side * CROP
    boxes = [(0.0, 0.0, side, side), (lost / 2, lost / 2, side - lost / 2, side - lost / 2)]
    boxes += [(x * lost, y * lost, side - (1 - x) * lost, side - (1 - y) * lost) for x in (0, 1) for y in (0, 1)]
    boxes += [(lost, 0.0, side, side), (0.0, lost, side, side), (0.0, 0.0, side - lost, side)]
    boxes += [(0.0, 0.0, side, side - lost)]
    return _unit(np.stack([_small(image, box) for box in boxes]))


def _small(image: Image.Image, box: tuple[float, float, float, float] | None) -> NDArray[np.float32]:
    return np.asarray(image.resize((SMALL, SMALL), Image.Resampling.BOX, box), np.float32).ravel()


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shift each row to mean 0 and scale it to length 1, so that products of rows are correlations."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    unit: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return unit
