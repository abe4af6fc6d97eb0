"""The point to try next: the one with the highest expected improvement among random points and points near the best."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from search.policy.encoding import Encoding, Points
from search.policy.gp import Process

RANDOM, NEAR, PARENTS, POLISH = 500, 100, 5, 100
"""Number of random points; of points near each parent; of parents, which are the best candidates; and of points in a
second round, near the best point of the first round."""

REACHES, POLISH_REACH = (0.02, 0.06, 0.15), 0.03
"""Standard deviations, in the unit cube, of the points near the parents, and of those in the second round."""


def expected_improvement(process: Process, best: float, features: Points) -> NDArray[np.float64]:
    """Expected improvement over ``best`` at each point.

    Jones, Schonlau and Welch, "Efficient Global Optimization of Expensive Black-Box Functions", 1998, equation 15.
    """
    mean, deviation = process.predict(features)
    score = (mean - best) / deviation
    density = np.exp(-0.5 * score**2) / np.sqrt(2 * np.pi)
    improvement: NDArray[np.float64] = deviation * (score * ndtr(score) + density)
    return improvement


def proposed(encoding: Encoding, points: Points, process: Process, rng: np.random.Generator) -> Points:
    """The point to try next.

    Args:
        encoding: the encoding of the space.
        points: [number, number of settings]: the candidates, including those without a value.
        process: the Gaussian process that was fitted to these candidates.
        rng: source of random numbers.
    """
    means = process.mean(encoding.features(points))
    best = float(means.max())
    parents = points[np.argsort(-means, kind="stable")[:PARENTS]]
    tried = [rng.random((RANDOM, points.shape[1]))]
    tried += [encoding.nearby(parent, NEAR, rng.choice(REACHES, NEAR), rng) for parent in parents]
    chosen, improvement = _best(np.concatenate(tried), encoding, process, best)
    polished, more = _best(encoding.nearby(chosen, POLISH, np.full(POLISH, POLISH_REACH), rng), encoding, process, best)
    return polished if more > improvement else chosen


def _best(tried: Points, encoding: Encoding, process: Process, best: float) -> tuple[Points, float]:
    improvements = expected_improvement(process, best, encoding.features(tried))
    first = int(np.argmax(improvements))
    return tried[first], float(improvements[first])
