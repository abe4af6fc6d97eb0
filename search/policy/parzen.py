"""The density of the trials that are not among the best, as Optuna's TPE has it: the same bits, in a part of the time.

A search with many workers has thousands of such trials, and each has a kernel in each setting. Optuna computes all
kernels anew for each suggestion, and their densities with whole arrays of 24 x trials x settings numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers._tpe import _truncnorm
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator, _ParzenEstimatorParameters
from optuna.samplers._tpe.probability_distributions import (
    _BatchedCategoricalDistributions,
    _BatchedTruncLogNormDistributions,
    _BatchedTruncNormDistributions,
    _log_gauss_mass_unique,
    _unique_inverse_2d,
)

Array = NDArray[np.float64]

FEW = 2000
"""For arrays of fewer numbers than this, Optuna computes erf in another way, so that its last bits differ."""

MOST_SETTINGS = 8
"""Largest number of continuous settings for which this module adds up densities. With more settings, numpy adds in an
order that is not repeated here, so Optuna's own code is used."""

BLOCK = 16_384
"""Number of densities that are computed together; they stay in the processor's cache."""

LEAST = -746.0
"""The exponential of a smaller number is 0."""


class KeptMasses:
    """The logarithm of the share of each kernel that is within its axis, kept while the kernel does not change."""

    def __init__(self) -> None:
        self._kernels = np.empty((0, 3, 0))
        """Means, widths and masses [kernel, 3, setting]: row 0 is of the prior, row n + 1 of trial n."""

    def of(self, numbers: NDArray[np.int_], means: Array, widths: Array, lows: Array, highs: Array) -> Array:
        """The masses [kernel, setting].

        Args:
            numbers: the numbers of the trials whose kernels these are; the last kernel is the prior.
            means: [kernel, setting], within the axes.
            widths: [kernel, setting].
            lows: the lower end of each axis; always the same.
            highs: the higher end of each axis; always the same.
        """
        if ((means >= lows) & (means < highs)).sum() < FEW:
            return _masses(means, widths, lows, highs)
        rows = np.append(numbers + 1, 0)
        if (missing := int(rows.max()) + 1 - len(self._kernels)) > 0:
            more = np.full((max(missing, len(self._kernels)), 3, len(lows)), np.nan)
            self._kernels = np.concatenate([self._kernels.reshape(-1, 3, len(lows)), more])
        kept = self._kernels[rows]
        changed = ((kept[:, 0] != means) | (kept[:, 1] != widths)).any(axis=1)
        if changed.any():
            # Padded with copies of the prior, so that Optuna computes erf in the same way as for long arrays (FEW).
            padding = np.full(-(-FEW // len(lows)), len(means) - 1)
            at = np.concatenate([np.flatnonzero(changed), padding])
            found = _masses(means[at], widths[at], lows, highs)[: -len(padding)]
            kept[changed] = np.stack([means[changed], widths[changed], found], axis=1)
            self._kernels[rows[changed]] = kept[changed]
        masses: Array = kept[:, 2]
        return masses


def _masses(means: Array, widths: Array, lows: Array, highs: Array) -> Array:
    masses: Array = _truncnorm._log_gauss_mass((lows - means) / widths, (highs - means) / widths)
    return masses


class ManyKernels(_ParzenEstimator):
    """Optuna's estimator of a density, for many trials.

    Args:
        observations: setting -> values of the trials, as Optuna's.
        search_space: the settings.
        parameters: as Optuna's.
        numbers: the numbers of the trials.
        masses: kept from one estimator of these settings to the next.
    """

    def __init__(
        self,
        observations: dict[str, NDArray[Any]],
        search_space: dict[str, BaseDistribution],
        parameters: _ParzenEstimatorParameters,
        numbers: NDArray[np.int_],
        masses: KeptMasses,
    ) -> None:
        super().__init__(observations, search_space, parameters)
        self._numbers, self._masses = numbers, masses

    def log_pdf(self, samples_dict: dict[str, NDArray[Any]]) -> Array:
        """As Optuna's."""
        samples = self._transform(samples_dict)
        weights, distributions = self._mixture_distribution
        continuous = [
            (samples[:, at], one)
            for at, one in enumerate(distributions)
            if isinstance(one, _BatchedTruncNormDistributions | _BatchedTruncLogNormDistributions)
        ]
        places = np.array([np.log(drawn) if one.is_log else drawn for drawn, one in continuous]).reshape(
            -1, len(samples)
        )
        lows, highs = (np.array([getattr(one, f"adapted_{end}") for _, one in continuous]) for end in ("low", "high"))
        beyond = (places < lows[:, None]) | (places > highs[:, None])  # by a rounding: Optuna's density is 0 there
        if beyond.any() or len(continuous) > MOST_SETTINGS:
            return cast("Array", super().log_pdf(samples_dict))
        densities = np.zeros((len(samples), len(weights)))
        for at, one in enumerate(distributions):
            if isinstance(one, _BatchedCategoricalDistributions):
                choices, inverse = np.unique(samples[:, at].astype(np.int64), return_inverse=True)
                logs = np.ascontiguousarray(np.log(one.weights.T[choices]))
                for row, choice in zip(densities, inverse, strict=True):
                    row += logs[choice]
            elif one.step != 0.0:
                add_discrete(densities, samples[:, at], one)
        if continuous:
            self._add_continuous(densities, places, [one for _, one in continuous], lows, highs)
        shares, most, sums = np.log(weights), np.empty(len(samples)), np.empty(len(samples))
        for at, row in enumerate(densities):  # a row stays in the processor's cache
            row += shares
            most[at] = row.max()
            row -= 0 if np.isneginf(most[at]) else most[at]
            near = row > LEAST
            found, row[:] = np.exp(row[near]), 0.0
            row[near] = found
            sums[at] = row.sum()
        most[np.isneginf(most)] = 0
        with np.errstate(divide="ignore"):
            return cast("Array", np.log(sums) + most)

    def _add_continuous(self, densities: Array, places: Array, axes: Sequence[Any], lows: Array, highs: Array) -> None:
        means, widths = (np.array([getattr(one, name) for one in axes]) for name in ("mu", "sigma"))
        masses = np.ascontiguousarray(self._masses.of(self._numbers, means.T, widths.T, lows, highs).T)
        scales = np.log(widths)
        rows = max(1, BLOCK // densities.shape[1])
        of_one, of_others = np.empty((2, rows, densities.shape[1]))
        for begin in range(0, len(densities), rows):
            block = densities[begin : begin + rows]
            first, rest = of_one[: len(block)], of_others[: len(block)]
            # numpy sums a last axis of four numbers a, b, c and d as a + ((b + c) + d).
            for number in [*range(1, len(axes)), 0]:
                out = rest if number == 1 else first
                np.subtract(places[number, begin : begin + rows, None], means[number], out=out)
                out /= widths[number]
                np.square(out, out=out)
                out *= -0.5
                out -= _truncnorm._norm_pdf_logC
                out -= masses[number]
                out -= scales[number]
                if number > 1:
                    rest += out
            if len(axes) > 1:
                first += rest
            block += first


def add_discrete(densities: Array, drawn: Array, axis: Any) -> None:
    """Add the logarithms of the probabilities of a setting with steps, as Optuna computes them."""
    values, inverse = np.unique(drawn, return_inverse=True)
    means, widths, kernels = _unique_inverse_2d(axis.mu, axis.sigma)
    left, right = values - axis.step / 2, values + axis.step / 2
    if axis.is_log:
        left, right = np.log(left), np.log(right)
    within = _log_gauss_mass_unique((left[:, None] - means) / widths, (right[:, None] - means) / widths)
    densities += within[np.ix_(inverse, kernels)]
    ends = (axis.adapted_low - means) / widths, (axis.adapted_high - means) / widths
    densities -= _truncnorm._log_gauss_mass(*ends)[kernels]
