"""The order of an epoch's training pictures. It is drawn from (seed, epoch), so a checkpoint has no random state."""

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
    order = rng.permutation(pictures)
    match config.class_sampling:
        case "natural":
            return order
        case "balanced":
            return _balanced(order, labels[order], rng)
        case _:
            assert_never(config.class_sampling)


def _balanced(order: Indices, labels: NDArray[np.int64], rng: np.random.Generator) -> Indices:
    """The order with equally many pictures of each class, or one more. Repeated pictures of small classes replace
    random pictures of large classes. If all classes are equal, the order does not change.

    Args:
        order: the pictures of an epoch.
        labels: their labels.
        rng: the epoch's generator, after the order was drawn.
    """
    classes, counts = np.unique(labels, return_counts=True)
    least, more = divmod(len(order), len(classes))
    wanted = np.full(len(classes), least)
    wanted[np.argsort(-counts, kind="stable")[:more]] += 1
    free, repeats = [np.arange(0)], [order[:0]]  # empty arrays, for the types of the concatenations
    for label, count, number in zip(classes, counts, wanted, strict=True):
        places = rng.permutation(np.flatnonzero(labels == label))
        free.append(places[number:])
        repeats.append(np.resize(order[places], max(0, number - count)))
    order[rng.permutation(np.concatenate(free))] = np.concatenate(repeats)
    return order
