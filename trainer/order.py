"""The order of an epoch's training pictures. It depends on (seed, epoch), so checkpoints hold no random state."""

from __future__ import annotations

from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from trainer.config import TrainConfig

Indices = NDArray[np.int64]


def order_of_epoch(config: TrainConfig, pictures: Indices, labels: NDArray[np.int64], epoch: int) -> Indices:
    """The training pictures of an epoch, in order. Their number is always that of the training split.

    Args:
        config: the candidate, for its seed and class_sampling.
        pictures: indices of the training pictures.
        labels: labels of all pictures.
        epoch: number of the epoch, from 1.
    """
    rng = np.random.default_rng((config.seed, epoch))
    match config.class_sampling:
        case "natural":
            return rng.permutation(pictures)
        case "balanced":
            return rng.permutation(_as_many_of_each(pictures, labels[pictures], rng))
        case _:
            assert_never(config.class_sampling)


def _as_many_of_each(pictures: Indices, labels: NDArray[np.int64], rng: np.random.Generator) -> Indices:
    """As many pictures, balanced: classes differ by at most one picture, and pictures of a class by one repeat."""
    mixed = rng.permutation(len(pictures))
    mixed = mixed[np.argsort(labels[mixed], kind="stable")]
    parts = np.split(pictures[mixed], np.cumsum(np.unique(labels, return_counts=True)[1])[:-1])
    least, more = divmod(len(pictures), len(parts))
    wanted = least + (rng.permutation(len(parts)) < more)
    return np.concatenate([np.resize(part, count) for part, count in zip(parts, wanted, strict=True)])
