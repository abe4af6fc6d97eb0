"""The estimated end of each candidate, from the rungs that it has reached, and the variance of that estimate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_SLOPE = 0.3
"""Smallest slope of a regression from a rung to the next one."""

FEW = 5
"""If fewer candidates than this have reached both rungs, all are assumed to gain the same from the one to the other."""

UNKNOWN = 0.35
"""Error of a prediction from fewer than FEW candidates, as a share of the standard deviation of all values."""


@dataclass(frozen=True)
class Estimates:
    """An estimate for each candidate, in the order of the candidates."""

    ends: NDArray[np.float64]
    """The value at the end, measured or estimated; NaN if no rung was reached."""
    variances: NDArray[np.float64]
    """Variance of the estimate, 0 for a measured value; NaN if no rung was reached."""


def estimated_ends(values: NDArray[np.float64]) -> Estimates:
    """The estimated ends of candidates, predicted from rung to rung.

    The value at the next rung is predicted by a regression over the candidates that have reached both rungs, with a
    slope from ``LEAST_SLOPE`` to 1; with fewer than ``FEW`` candidates, by their mean gain. From rung to
    rung, the variance is multiplied by the slope's square, and the variance of the residuals is added.

    Args:
        values: [number of candidates, number of rungs + 1]; the last column is the end. NaN if not reached.
    """
    number, rungs = values.shape
    known = ~np.isnan(values)
    ends, variances = np.full(number, np.nan), np.full(number, np.nan)
    seen = values[known]
    unknown = (UNKNOWN * float(seen.std())) ** 2 if len(seen) else 0.0
    for rung in range(rungs):
        if rung:
            both = known[:, rung - 1] & known[:, rung]
            slope, offset, variance = _next(values[both, rung - 1], values[both, rung], unknown)
            ends, variances = slope * ends + offset, slope**2 * variances + variance
        at = known[:, rung]
        ends[at], variances[at] = values[at, rung], 0.0
    return Estimates(ends, variances)


def _next(here: NDArray[np.float64], there: NDArray[np.float64], unknown: float) -> tuple[float, float, float]:
    """Slope and offset of the regression from a rung to the next, and the variance of its residuals."""
    slope, number = 1.0, len(here)
    if number == 0:
        return slope, 0.0, unknown
    centred = here - here.mean()
    if number >= FEW and (spread := float(centred @ centred)) > 0:
        slope = float(np.clip(centred @ (there - there.mean()) / spread, LEAST_SLOPE, 1.0))
    offset = float(there.mean() - slope * here.mean())
    if number < FEW:
        return slope, offset, unknown
    residuals = there - slope * here - offset
    return slope, offset, float(residuals @ residuals) / (number - 2)
