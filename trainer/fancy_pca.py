"""FancyPCA: a shift of all colours along the principal axes of the training pictures' colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.data import STATISTICS_PICTURES, Dataset

DEVIATION = 0.1
"""Standard deviation of the draws (Krizhevsky et al., 2012, section 4.1)."""

DECIMALS = 6
"""Decimals of all values: the last bits of an eigenvector differ between machines, but an export's identity,
which these values are a part of, must not."""


@dataclass(frozen=True)
class FancyPca:
    """A colour shift, drawn once. Channels are red, green and blue, from 0 to 1."""

    axes: tuple[tuple[float, ...], ...]
    """The principal axes of the pixels, by falling variance. Of each axis, the number farthest from 0 is positive."""
    variances: tuple[float, ...]
    """Variance of the pixels along each axis."""
    draws: tuple[float, ...]
    """The number drawn for each axis."""
    shift: tuple[float, ...]
    """The value that is added to each channel: the sum of axis times draw times variance."""


def draw_fancy_pca(data: Dataset, seed: int) -> FancyPca:
    """Draw the colour shift of Krizhevsky et al., 2012: along each axis, its variance times a draw from N(0, 0.1).

    The axes are those of the pixels of at most 10,000 training pictures, evenly spaced.

    Args:
        data: pictures of three channels.
        seed: seed of the draws.
    """
    train = data.splits["train"]
    chosen = train[:: -(-len(train) // STATISTICS_PICTURES)]
    sums, products, pixels = np.zeros(3), np.zeros((3, 3)), 0
    for index in chosen:
        levels = data.images[index][data.centre].reshape(-1, 3).astype(np.float64)  # sums of whole numbers are exact
        sums, products, pixels = sums + levels.sum(axis=0), products + levels.T @ levels, pixels + len(levels)
    covariance = (products / pixels - np.outer(sums, sums) / pixels**2) / 255**2
    variances, columns = np.linalg.eigh(covariance)
    axes = columns.T[::-1]
    axes = axes * np.sign(axes[np.arange(3), np.abs(axes).argmax(axis=1)])[:, None]
    variances = variances[::-1].clip(min=0)
    draws = np.random.default_rng(seed).normal(0, DEVIATION, 3)
    return FancyPca(
        axes=tuple(tuple(axis) for axis in axes.round(DECIMALS).tolist()),
        variances=tuple(variances.round(DECIMALS).tolist()),
        draws=tuple(draws.round(DECIMALS).tolist()),
        shift=tuple(((draws * variances) @ axes).round(DECIMALS).tolist()),
    )
