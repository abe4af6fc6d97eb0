"""The pictures of an epoch, in order: a function of (seed, epoch), so a checkpoint needs no random state."""

from __future__ import annotations

from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from trainer.config import TrainConfig

Indices = NDArray[np.int64]


def order_of_epoch(config: TrainConfig, pictures: Indices, labels: NDArray[np.int64], epoch: int) -> Indices:
    """The training pictures as an epoch shows them, as many as there are.

    Args:
        config: the candidate; its seed and its class_sampling count.
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
    """As many pictures in all, whose classes' numbers differ by at most one, and so do the repeats within a class."""
    mixed = rng.permutation(len(pictures))
    mixed = mixed[np.argsort(labels[mixed], kind="stable")]
    parts = np.split(pictures[mixed], np.cumsum(np.unique(labels, return_counts=True)[1])[:-1])
    least, more = divmod(len(pictures), len(parts))
    wanted = least + (rng.permutation(len(parts)) < more)
    return np.concatenate([np.resize(part, count) for part, count in zip(parts, wanted, strict=True)])
