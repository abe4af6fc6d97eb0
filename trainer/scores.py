"""Scores in which each class counts the same, from the confusion table of a classification. With numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ClassCounts:
    """Numbers of pictures of each class; all arrays are [c]."""

    hits: NDArray[np.int64]
    """Pictures of the class that were classified correctly."""
    predicted: NDArray[np.int64]
    """Pictures that were classified as the class."""
    true: NDArray[np.int64]
    """Pictures of the class."""

    @classmethod
    def of(cls, table: NDArray[np.int64], num_classes: int) -> ClassCounts:
        """The counts from a confusion table [k, 3]: true class, predicted class, pictures."""
        true, predicted, pictures = table.T
        right = true == predicted

        def summed(classes: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
            found = np.zeros(num_classes, np.int64)
            np.add.at(found, classes, counts)
            return found

        return cls(summed(true[right], pictures[right]), summed(predicted, pictures), summed(true, pictures))

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that have a picture or are predicted, as in scikit-learn's ``f1_score``.

        The F1 of a class is 2 hits / (true + predicted), the harmonic mean of its precision and its recall.
        """
        total = self.true + self.predicted
        return _mean(2 * self.hits[total > 0] / total[total > 0])

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall over the classes that have a picture, as in scikit-learn's ``balanced_accuracy_score``."""
        there = self.true > 0
        return _mean(self.hits[there] / self.true[there])


def _mean(scores: NDArray[np.float64]) -> float:
    """The mean; 0 if there are no scores, because no picture was classified."""
    return float(scores.mean()) if len(scores) else 0.0
